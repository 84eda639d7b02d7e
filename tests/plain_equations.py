"""Eqs. 1, 3, 9–11 and 13 for any loss, slow and obvious: one graph of everything, kept to the end.

:mod:`teddy.theory.unrolled` computes the same step by step; tests compare the two.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Loss = Callable[[Weights, Any], Tensor]


def training_trajectory(
    loss: Loss, theta_0: Weights, data: Any, *, lr: float, num_steps: int
) -> list[Weights]:
    """theta_0, ..., theta_T of gradient descent, each differentiable in ``data`` (Eqs. 1, 9)."""
    trajectory = [theta_0]
    for _ in range(num_steps):
        gradient = torch.func.grad(loss)(trajectory[-1], data)
        trajectory.append({k: x - lr * gradient[k] for k, x in trajectory[-1].items()})
    return trajectory


def meta_loss(
    loss: Loss, theta_0: Weights, synthetic: Any, real: Any, *, lr: float, num_steps: int
) -> Tensor:
    """l(T; theta_T) (Eq. 1)."""
    return loss(training_trajectory(loss, theta_0, synthetic, lr=lr, num_steps=num_steps)[-1], real)


def first_order_meta_loss(
    loss: Loss, theta_0: Weights, synthetic: Any, real: Any, *, detach: bool = True, **loop: Any
) -> Tensor:
    """l(T; theta_0) - eta sum_t <g_T(theta_t), g_S(theta_t)> (Eqs. 3, 10).

    With ``detach`` (Eq. 11) every theta_t is a constant. The value is the same either way; the
    gradient is not.
    """
    pairs = gradient_pairs(loss, theta_0, synthetic, real, detach, **loop)
    products = [(g_t[k] * g_s[k]).sum() for g_t, g_s in pairs for k in g_t]
    lr: float = loop["lr"]
    return loss(theta_0, real) - lr * torch.stack(products).sum()


def gradient_matching_loss(
    loss: Loss, theta_0: Weights, synthetic: Any, real: Any, **loop: Any
) -> Tensor:
    """sum_t ||g_T(theta_t) - g_S(theta_t)||^2, every theta_t a constant (Eq. 13)."""
    pairs = gradient_pairs(loss, theta_0, synthetic, real, True, **loop)
    return torch.stack([(g_t[k] - g_s[k]).square().sum() for g_t, g_s in pairs for k in g_t]).sum()


def gradient_pairs(
    loss: Loss, theta_0: Weights, synthetic: Any, real: Any, detach: bool, **loop: Any
) -> list[tuple[Weights, Weights]]:
    """(g_T, g_S) at theta_0, ..., theta_(T-1) of the training on S."""
    pairs = []
    for theta in training_trajectory(loss, theta_0, synthetic, **loop)[:-1]:
        at = {k: x.detach() for k, x in theta.items()} if detach else theta
        pairs.append((torch.func.grad(loss)(at, real), torch.func.grad(loss)(at, synthetic)))
    return pairs
