"""The bi-level problem of Eq. 1 for any loss: its exact gradient, and what the paper puts instead.

Holds Eqs. 1 and 9 (training on S), 3, 10 and 11 (its first-order form), 13 and 19 (matching) and
6 and 20 (segments). Every objective is a function of the inner loop, the weights theta_0 it starts
from, the synthetic set S and the real set T; it returns its value and its gradient with respect to
the first tensor of S, and keeps no larger graph than it must.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from teddy.objectives import Moments, statistics_loss
from teddy.theory.equations import Weights, inner_product, squared_distance

Batch = tuple[Tensor, ...]
"""Images and their labels; or whatever else the loss takes, what is to be learned coming first."""


class Objective(NamedTuple):
    """Value of an objective, and its gradient in the synthetic images."""

    value: Tensor
    """Scalar, detached."""
    gradient: Tensor
    """Shaped like the images."""


@dataclass(frozen=True, slots=True)
class InnerLoop:
    """Plain gradient descent on the synthetic set (Eqs. 1, 9).

    Raises:
        ValueError: the rate is not positive and finite, or there is no step.
    """

    loss: Callable[[Weights, Batch], Tensor]
    """l(D; theta), a scalar."""
    lr: float
    """eta."""
    num_steps: int
    """T."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")

    def gradient(self, theta: Weights, batch: Batch, *, create_graph: bool = False) -> Weights:
        """g_D(theta); differentiable in ``theta`` and the batch with ``create_graph``."""
        theta = theta if create_graph else constants(theta)
        found = torch.autograd.grad(
            self.loss(theta, batch), list(theta.values()), create_graph=create_graph
        )
        return dict(zip(theta, found, strict=True))

    def step(self, theta: Weights, gradient: Weights) -> Weights:
        """Weights theta - eta g, constants of the graph if both arguments are."""
        return {name: value - self.lr * gradient[name] for name, value in theta.items()}

    def steps(self, theta_0: Weights, synthetic: Batch) -> Iterator[tuple[Weights, Weights]]:
        """Yield (theta_t, g_S(theta_t)) for t < T, without a graph."""
        theta = constants(theta_0)
        for _ in range(self.num_steps):
            gradient = self.gradient(theta, synthetic)
            yield theta, gradient
            theta = constants(self.step(theta, gradient))

    def end(self, theta_0: Weights, synthetic: Batch) -> Weights:
        """theta_T, without a graph: also the end of a student segment of T steps (Eqs. 6, 20)."""
        for theta, gradient in self.steps(theta_0, synthetic):
            last = self.step(theta, gradient)
        return constants(last)


def constants(theta: Weights) -> Weights:
    """The same numbers as leaves of a new graph."""
    return {name: value.detach().requires_grad_() for name, value in theta.items()}


def teacher_step(inner: InnerLoop, theta: Weights, data: Batch) -> Weights:
    """One step theta - k eta g(theta) in place of the k = T steps of a segment (Eqs. 6, 20).

    On the real set it is the teacher theta^T_(i+1). On S it is the middle member of Eq. 20, and
    differs from the end of the segment by O(k^2 eta^2).
    """
    return replace(inner, lr=inner.num_steps * inner.lr, num_steps=1).end(theta, data)


# --- Objectives ----------------------------------------------------------------------------------


def exact(inner: InnerLoop, theta_0: Weights, synthetic: Batch, real: Batch) -> Objective:
    """Eq. 1: l(T; theta_T), differentiated through all T steps; keeps the graph of all of them."""
    images = synthetic[0].detach().requires_grad_()
    theta = constants(theta_0)
    for _ in range(inner.num_steps):
        gradient = inner.gradient(theta, (images, *synthetic[1:]), create_graph=True)
        theta = inner.step(theta, gradient)
    value = inner.loss(theta, real)
    (slope,) = torch.autograd.grad(value, images)
    return Objective(value.detach(), slope)


def first_order(inner: InnerLoop, theta_0: Weights, synthetic: Batch, real: Batch) -> Objective:
    """Eq. 11: l(T; theta_0) - eta sum_t <g_T(theta_t), g_S(theta_t)>, each theta_t a constant.

    Keeps the graph of one step at a time. The constant l(T; theta_0) makes the value that of
    Eq. 10; the term lambda l(S; theta_T) is left out of it, as of :func:`exact`.
    """
    terms = _compare_gradients(
        inner, theta_0, synthetic, real, lambda g_t, g_s: -inner.lr * inner_product(g_t, g_s)
    )
    with torch.no_grad():
        start = inner.loss(theta_0, real)
    return Objective(start + terms.value, terms.gradient)


def gradient_matching(
    inner: InnerLoop, theta_0: Weights, synthetic: Batch, real: Batch
) -> Objective:
    """Eq. 13: sum_t ||g_T(theta_t) - g_S(theta_t)||^2, each theta_t a constant; no lambda term."""
    return _compare_gradients(inner, theta_0, synthetic, real, squared_distance)


def statistics_matching(
    inner: InnerLoop,
    theta_0: Weights,
    synthetic: Batch,
    real: Batch,
    *,
    statistics: Callable[[Weights, Tensor], list[Moments]],
    classifier_weight: float,
) -> Objective:
    """Eq. 19: statistics of S and T matched at every theta_t, plus lambda l(S; theta_T).

    ``statistics`` are those of every layer for weights and images, and ``classifier_weight`` is
    lambda; the first layer weighs as much as the others.
    """

    def term(theta: Weights, batch: Batch) -> tuple[Tensor, Weights]:
        with torch.no_grad():
            target = statistics(theta, real[0])
        found = statistics(theta, batch[0])
        return statistics_loss(found, target, 1.0), inner.gradient(theta, synthetic)

    matched, theta_end = _along_trajectory(inner, theta_0, synthetic, term)
    images = synthetic[0].detach().requires_grad_()
    prior = classifier_weight * inner.loss(theta_end, (images, *synthetic[1:]))
    (slope,) = torch.autograd.grad(prior, images)
    return Objective(matched.value + prior.detach(), matched.gradient + slope)


def _compare_gradients(
    inner: InnerLoop,
    theta_0: Weights,
    synthetic: Batch,
    real: Batch,
    compare: Callable[[Weights, Weights], Tensor],
) -> Objective:
    """Sum over t < T of a function of g_T(theta_t) and g_S(theta_t)."""

    def term(theta: Weights, batch: Batch) -> tuple[Tensor, Weights]:
        g_t = inner.gradient(theta, real)
        g_s = inner.gradient(theta, batch, create_graph=True)
        return compare(g_t, g_s), g_s

    return _along_trajectory(inner, theta_0, synthetic, term)[0]


def _along_trajectory(
    inner: InnerLoop,
    theta_0: Weights,
    synthetic: Batch,
    term: Callable[[Weights, Batch], tuple[Tensor, Weights]],
) -> tuple[Objective, Weights]:
    """Sum of a term over t < T, and theta_T; ``term`` returns its value and g_S(theta_t)."""
    images = synthetic[0].detach().requires_grad_()
    theta = constants(theta_0)
    value, slope = images.new_zeros(()), torch.zeros_like(images)
    for _ in range(inner.num_steps):
        part, g_s = term(theta, (images, *synthetic[1:]))
        slope += torch.autograd.grad(part, images)[0]
        value += part.detach()
        theta = constants(inner.step(theta, g_s))
        del part, g_s  # their graph, before the next step builds its own
    return Objective(value, slope), theta


# --- What a synthetic set is worth, and how good the expansion is --------------------------------


class Worth(NamedTuple):
    """A synthetic set measured by training on it from one theta_0."""

    exact_loss: float
    """l(T; theta_T) (Eq. 1)."""
    first_order_loss: float
    """l(T; theta_0) - eta sum_t <g_T(theta_t), g_S(theta_t)> (Eq. 10)."""
    theta: Weights
    """theta_T."""


def worth(inner: InnerLoop, theta_0: Weights, synthetic: Batch, real: Batch) -> Worth:
    """Train on the synthetic set and compare the real loss with its expansion; builds no graph."""
    with torch.no_grad():
        expansion = inner.loss(theta_0, real).item()
    for theta, g_s in inner.steps(theta_0, synthetic):
        expansion -= inner.lr * inner_product(inner.gradient(theta, real), g_s).item()
        end = inner.step(theta, g_s)
    with torch.no_grad():
        return Worth(inner.loss(end, real).item(), expansion, constants(end))


class ExpansionError(NamedTuple):
    """Both losses of one set, and how far Eqs. 10 and 11 are from Eq. 1."""

    exact_loss: float
    first_order_loss: float
    loss_error: float
    """|Eq. 1 - Eq. 10|."""
    gradient_error: float
    """Distance of the meta-gradients (Eq. 1 and Eq. 11), relative."""
    cosine: float
    """Of their angle."""


def expansion_error(
    inner: InnerLoop, theta_0: Weights, synthetic: Batch, real: Batch
) -> ExpansionError:
    """Error of Proposition 1's expansion of the loss, and of its gradient in the images."""
    true = exact(inner, theta_0, synthetic, real)
    approximate = first_order(inner, theta_0, synthetic, real)
    a, b = true.gradient.flatten(), approximate.gradient.flatten()
    return ExpansionError(
        true.value.item(),
        approximate.value.item(),
        (true.value - approximate.value).abs().item(),
        ((a - b).norm() / a.norm()).item(),
        (a @ b / (a.norm() * b.norm())).item(),
    )
