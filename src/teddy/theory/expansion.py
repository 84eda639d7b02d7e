"""Proposition 1, Eqs. 1, 3 and 9–11: the first-order form of the bi-level objective."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from teddy.settings.theory import TheoryConfig
from teddy.theory import equations as theory
from teddy.theory.checks import (
    Check,
    Section,
    equals,
    f64,
    network_loss,
    network_problem,
    orders,
    printed,
)


@dataclass(frozen=True, slots=True)
class ErrorLaw:
    """Error of Proposition 1's expansion."""

    step_sizes: tuple[float, ...]
    loss_errors: tuple[float, ...]
    gradient_errors: tuple[float, ...]
    cosines: tuple[float, ...]
    lengths: tuple[int, ...]
    length_errors: tuple[float, ...]


def error_law(config: TheoryConfig, seed: int) -> ErrorLaw:
    """Errors of the expansion for every step size, and for every length of the inner loop."""
    theta, (inputs, labels), real = network_problem(seed)
    losses, gradients, cosines = [], [], []
    for lr in config.step_sizes:
        inputs = inputs.detach().requires_grad_()
        run = (network_loss, theta, (inputs, labels), real)
        exact = theory.meta_loss(*run, lr=lr, num_steps=config.num_steps)
        first = theory.first_order_meta_loss(*run, lr=lr, num_steps=config.num_steps)
        a, b = (torch.autograd.grad(loss, inputs)[0].flatten() for loss in (exact, first))
        losses.append((exact - first).abs().item())
        gradients.append(((a - b).norm() / a.norm()).item())
        cosines.append((a @ b / (a.norm() * b.norm())).item())
    growth = []
    for length in config.lengths:
        run = (network_loss, theta, (inputs.detach(), labels), real)
        exact = theory.meta_loss(*run, lr=config.length_lr, num_steps=length)
        first = theory.first_order_meta_loss(*run, lr=config.length_lr, num_steps=length)
        growth.append((exact - first).abs().item())
    return ErrorLaw(
        config.step_sizes, tuple(losses), tuple(gradients), tuple(cosines),
        config.lengths, tuple(growth),
    )  # fmt: skip


def proposition_1(config: TheoryConfig, law: ErrorLaw) -> Section:
    """The first-order form of the bi-level objective and the size of its error."""
    start, real, synthetic = f64(0.0), f64(1.0), f64(2.0).requires_grad_()
    run = (_parabola, start, synthetic, real)
    path = theory.training_trajectory(_parabola, start, synthetic, lr=0.1, num_steps=2)
    exact = theory.meta_loss(*run, lr=0.1, num_steps=2)
    first = theory.first_order_meta_loss(*run, lr=0.1, num_steps=2)
    slopes = [torch.autograd.grad(loss, synthetic)[0].item() for loss in (exact, first)]
    squares = sum(theory.gradient(_parabola, t, synthetic).item() ** 2 for t in path[:2])
    ratios = []
    for lr in (0.1, 0.05, 0.01):
        exact_lr = theory.meta_loss(*run, lr=lr, num_steps=2)
        first_lr = theory.first_order_meta_loss(*run, lr=lr, num_steps=2)
        a, b = (torch.autograd.grad(x, synthetic)[0].item() for x in (exact_lr, first_lr))
        ratios.append(b / a)
    checks = [
        equals(config, "θ_1 of the parabolas", path[1].item(), 0.2, "1"),
        equals(config, "θ_2", path[2].item(), 0.38, "1"),
        equals(config, "exact loss, Eq. 1", exact.item(), 0.1922, "1"),
        equals(config, "first-order loss, Eq. 10", first.item(), 0.156, "1"),
        equals(
            config, "exact − first-order, against ½η²Σg_S²", (exact - first).item(),
            0.1**2 / 2 * squares, "1",
        ),
        equals(config, "its value", (exact - first).item(), 0.0362, "1"),
        equals(config, "exact meta-gradient", slopes[0], -0.1178, "1"),
        equals(config, "meta-gradient of Eq. 11, θ_t constant", slopes[1], -0.18, "1"),
        *(
            printed(f"ratio of the two, η = {lr:g}", ratio, known, "1")
            for lr, ratio, known in zip(
                (0.1, 0.05, 0.01), ratios, ("1.528", "1.210", "1.036"), strict=True
            )
        ),
        Check(
            f"order of the loss error in η, T = {config.num_steps}",
            orders(law.loss_errors)[-1], "=", 2, config.order_tolerance, "2",
        ),
        Check(
            "order of the meta-gradient's relative error in η",
            orders(law.gradient_errors)[-1], "=", 1, config.order_tolerance, "2",
        ),
        Check("1 − cosine of the meta-gradients, smallest η", 1 - law.cosines[-1], "≤",
              1 - law.cosines[0], 0.0, "2"),
        Check(
            f"order of the loss error in T, η = {config.length_lr:g}",
            math.log2(law.length_errors[-1] / law.length_errors[-2]), "=", 1,
            config.order_tolerance, "2",
        ),
    ]  # fmt: skip
    cosines = ", ".join(f"{c:.5f}" for c in law.cosines)
    return Section(
        "Proposition 1: Eqs. 1, 3, 9–11",
        r"$$\ell(\mathcal T;\theta_T)\approx\ell(\mathcal T;\theta_0)-\eta\sum_{t=0}^{T-1}"
        r"\langle g_{\mathcal T}(\theta_t),g_{\mathcal S}(\theta_t)\rangle,\qquad"
        r"\theta_{t+1}=\theta_t-\eta\,g_{\mathcal S}(\theta_t)$$"
        "\n\nThe error is $O(T\\eta^2)$, for parabolas exactly "
        r"$\tfrac12\eta^2\sum_t g_{\mathcal S}(\theta_t)^2$. With every $\theta_t$ a constant "
        "(Eq. 11) the meta-gradient has an error of its own, of relative order $\\eta$.",
        "By hand: two steps of η = 0.1 on ½(θ − 2)² from θ = 0, real loss ½(θ − 1)². Then a tanh "
        f"network (4-8-3) with 6 synthetic and 60 real samples, T = {config.num_steps}, η from "
        f"{config.step_sizes[0]:g} to {config.step_sizes[-1]:g}. Cosines of exact and first-order "
        f"meta-gradient along the way: {cosines}.",
        tuple(checks), "error",
        "Error of the first-order expansion against η and T, with the slopes of the claim.",
    )  # fmt: skip


def _parabola(theta: Tensor, optimum: Tensor) -> Tensor:
    return 0.5 * (theta - optimum).square().sum()
