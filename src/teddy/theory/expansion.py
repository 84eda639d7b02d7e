"""Proposition 1, Eqs. 1, 3 and 9–11: the first-order form of the bi-level objective."""

import math
from dataclasses import dataclass

from torch import Tensor

from teddy.settings.theory import TheoryConfig
from teddy.theory import unrolled
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
from teddy.theory.equations import Weights
from teddy.theory.unrolled import Batch, InnerLoop


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
    problem = network_problem(seed)
    rates = [
        unrolled.expansion_error(InnerLoop(network_loss, lr, config.num_steps), *problem)
        for lr in config.step_sizes
    ]
    lengths = [
        unrolled.expansion_error(InnerLoop(network_loss, config.length_lr, steps), *problem)
        for steps in config.lengths
    ]
    return ErrorLaw(
        config.step_sizes,
        tuple(error.loss_error for error in rates),
        tuple(error.gradient_error for error in rates),
        tuple(error.cosine for error in rates),
        config.lengths,
        tuple(error.loss_error for error in lengths),
    )


def proposition_1(config: TheoryConfig, law: ErrorLaw) -> Section:
    """The first-order form of the bi-level objective and the size of its error."""
    checks = [
        *_parabolas(config),
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


def _parabolas(config: TheoryConfig) -> list[Check]:
    """The worked example: two steps on a parabola about 2 from 0, measured on one about 1."""
    run = {"theta": f64(0.0)}, (f64(2.0),), (f64(1.0),)
    start, synthetic, _ = run
    inner = InnerLoop(_parabola, 0.1, 2)
    exact, first = unrolled.exact(inner, *run), unrolled.first_order(inner, *run)
    (_, g_0), (theta_1, g_1) = inner.steps(start, synthetic)
    theta_2 = inner.end(start, synthetic)
    squares = sum(g["theta"].item() ** 2 for g in (g_0, g_1))
    checks = [
        equals(config, "θ_1 of the parabolas", theta_1["theta"].item(), 0.2, "1"),
        equals(config, "θ_2", theta_2["theta"].item(), 0.38, "1"),
        equals(config, "exact loss, Eq. 1", exact.value.item(), 0.1922, "1"),
        equals(config, "first-order loss, Eq. 10", first.value.item(), 0.156, "1"),
        equals(
            config, "exact − first-order, against ½η²Σg_S²", (exact.value - first.value).item(),
            0.1**2 / 2 * squares, "1",
        ),
        equals(config, "its value", (exact.value - first.value).item(), 0.0362, "1"),
        equals(config, "exact meta-gradient", exact.gradient.item(), -0.1178, "1"),
        equals(config, "meta-gradient of Eq. 11, θ_t constant", first.gradient.item(), -0.18, "1"),
    ]  # fmt: skip
    for lr, known in ((0.1, "1.528"), (0.05, "1.210"), (0.01, "1.036")):
        inner = InnerLoop(_parabola, lr, 2)
        exact, first = unrolled.exact(inner, *run), unrolled.first_order(inner, *run)
        ratio = (first.gradient / exact.gradient).item()
        checks.append(printed(f"ratio of the two, η = {lr:g}", ratio, known, "1"))
    return checks


def _parabola(theta: Weights, batch: Batch) -> Tensor:
    (optimum,) = batch
    return 0.5 * (theta["theta"] - optimum).square().sum()
