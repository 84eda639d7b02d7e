"""Propositions 1–3 and the equations behind them, checked numerically and written down.

Every section computes both sides of an equation in float64 on a small made-up problem (or a case
with an answer known by hand) and compares them. ``check_all`` gives the sections and the curves
that figures are drawn from; ``markdown`` writes them for a reader who has the paper open.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from teddy import theory
from teddy.errors import TeddyError
from teddy.experiment_settings import TheoryConfig
from teddy.objectives import (
    Moments,
    batchnorm_gap,
    ensemble_cross_entropy,
    moments,
    statistics_loss,
)
from teddy.seeding import stream
from teddy.tables import Column, Table

Batch = tuple[Tensor, Tensor]
Weights = dict[str, Tensor]
Relation = Literal["=", "≤", ">"]


@dataclass(frozen=True, slots=True)
class Check:
    """Two numbers and how they must be related."""

    what: str
    left: float
    relation: Relation
    right: float
    tolerance: float
    """Absolute error allowed."""
    known: str = ""
    """Number of the known-answer test it belongs to (``kat01`` … in ``tests/test_theory.py``)."""

    @property
    def error(self) -> float:
        """How far the relation is from holding; 0 if an inequality holds, NaN if a number is."""
        difference = self.left - self.right
        if self.relation == "=" or math.isnan(difference):
            return abs(difference)
        return max(0.0, difference if self.relation == "≤" else -difference)

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; not if a number is missing (NaN)."""
        return self.error <= self.tolerance and (self.relation != ">" or self.left > self.right)


@dataclass(frozen=True, slots=True)
class Section:
    """One equation or proposition."""

    title: str
    statement: str
    """What the paper claims, in Markdown with formulas."""
    computed: str
    """What was computed to check it."""
    checks: tuple[Check, ...]
    figure: str = ""
    """File name of its figure, without folder and extension."""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class ErrorLaw:
    """Error of Proposition 1's expansion."""

    step_sizes: tuple[float, ...]
    loss_errors: tuple[float, ...]
    gradient_errors: tuple[float, ...]
    cosines: tuple[float, ...]
    lengths: tuple[int, ...]
    length_errors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Left and right sides of Eqs. 15 and 22."""

    gaps: tuple[float, ...]
    gap_bounds: tuple[float, ...]
    rates: tuple[float, ...]
    """eta times L."""
    after: tuple[float, ...]
    """Real loss after the step."""
    smooth: tuple[float, ...]
    matched: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Isotropic:
    """Monte-Carlo means of the squared last-layer gap over isotropic W."""

    draws: tuple[int, ...]
    means: tuple[float, ...]
    errors: tuple[float, ...]
    """Their standard errors."""
    expected: float


@dataclass(frozen=True, slots=True)
class Segments:
    """Distance of a k-step student segment from one k-fold step (Eq. 20)."""

    step_sizes: tuple[float, ...]
    own: tuple[float, ...]
    """Step along g_S."""
    teacher: tuple[float, ...]
    """Step along g_T."""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was checked, and the curves behind the figures."""

    sections: tuple[Section, ...]
    law: ErrorLaw
    bounds: Bounds
    isotropic: Isotropic
    segments: Segments


def check_all(config: TheoryConfig, seed: int) -> Report:
    """Compute every section, in the order of the paper."""
    law, bounds = error_law(config, seed), bound_curves(config, seed)
    isotropic, segments = isotropic_means(config, seed), segment_errors(config, seed)
    sections = (
        proposition_1(config, law),
        equations_12_13(config, seed),
        equation_14(config, seed),
        equation_15(config, bounds),
        proposition_2(config, seed, isotropic),
        equation_16(config, seed),
        equations_17_18(config, seed),
        equation_19(config, seed),
        equation_20(config, segments),
        equation_21(config, seed),
        equation_22(config, seed, bounds),
    )
    return Report(sections, law, bounds, isotropic, segments)


def refuse_failures(report: Report) -> None:
    """Stop if any check failed.

    Raises:
        TeddyError: names the first that failed with its numbers, and how many did.
    """
    failed = [(s, c) for s in report.sections for c in s.checks if not c.passed]
    if failed:
        section, check = failed[0]
        raise TeddyError(
            f"{len(failed)} of {count(report)} checks failed, the first in {section.title!r}: "
            f"{check.what}: expected {check.left:.6g} {check.relation} {check.right:.6g} within "
            f"{check.tolerance:.1e}, got an error of {check.error:.1e}"
        )


def count(report: Report) -> int:
    """Number of checks."""
    return sum(len(section.checks) for section in report.sections)


# --- The made-up problem -------------------------------------------------------------------------


def _normal(seed: int, *item: str | int) -> Callable[..., Tensor]:
    """Standard normal float64 draws, one after another, from the item's own stream."""
    generator = stream(seed, "theory", *item)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def _f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _network_loss(theta: Weights, batch: Batch) -> Tensor:
    """Cross-entropy of a network with one tanh layer."""
    inputs, labels = batch
    hidden = torch.tanh(inputs @ theta["w1"] + theta["b1"])
    return cross_entropy(hidden @ theta["w2"] + theta["b2"], labels)


def _network_problem(seed: int) -> tuple[Weights, Batch, Batch]:
    """theta_0 of a 4-8-3 network, S with 6 samples and T with 60 in 3 classes."""
    draw = _normal(seed, "network")
    labels = torch.arange(60) % 3
    real = (draw(60, 4) + 2 * one_hot(labels, 4), labels)
    synthetic = (draw(6, 4), torch.arange(6) % 3)
    theta = {"w1": draw(4, 8) / 2, "b1": draw(8) / 10, "w2": draw(8, 3) / 8**0.5,
             "b2": draw(3) / 10}  # fmt: skip
    return theta, synthetic, real


def _parabola(theta: Tensor, optimum: Tensor) -> Tensor:
    return 0.5 * (theta - optimum).square().sum()


def _distance(a: Weights, b: Weights) -> float:
    return theory.inner_product_pieces(a, b).gap.sqrt().item()


def _orders(errors: Sequence[float]) -> list[float]:
    """Measured orders: log2 of the factor between neighbours whose step differs by two."""
    return [math.log2(a / b) if a > 0 and b > 0 else math.nan for a, b in pairwise(errors)]


def _relative(config: TheoryConfig, what: str, left: float, right: float, known: str = "") -> Check:
    """Two forms of one number that may differ by rounding only."""
    return Check(what, left, "=", right, config.exact_tolerance * max(1.0, abs(right)), known)


def _printed(what: str, left: float, right: str, known: str = "") -> Check:
    """A number against a known answer, which is exact to half a unit of its last digit."""
    decimals = len(right.partition(".")[2])
    return Check(what, left, "=", float(right), 0.5 * 10**-decimals, known)


# --- Proposition 1: Eqs. 1, 3, 9–11 ---------------------------------------------------------------


def error_law(config: TheoryConfig, seed: int) -> ErrorLaw:
    """Errors of the expansion for every step size, and for every length of the inner loop."""
    theta, (inputs, labels), real = _network_problem(seed)
    losses, gradients, cosines = [], [], []
    for lr in config.step_sizes:
        inputs = inputs.detach().requires_grad_()
        run = (_network_loss, theta, (inputs, labels), real)
        exact = theory.meta_loss(*run, lr=lr, num_steps=config.num_steps)
        first = theory.first_order_meta_loss(*run, lr=lr, num_steps=config.num_steps)
        a, b = (torch.autograd.grad(loss, inputs)[0].flatten() for loss in (exact, first))
        losses.append((exact - first).abs().item())
        gradients.append(((a - b).norm() / a.norm()).item())
        cosines.append((a @ b / (a.norm() * b.norm())).item())
    growth = []
    for length in config.lengths:
        run = (_network_loss, theta, (inputs.detach(), labels), real)
        exact = theory.meta_loss(*run, lr=config.length_lr, num_steps=length)
        first = theory.first_order_meta_loss(*run, lr=config.length_lr, num_steps=length)
        growth.append((exact - first).abs().item())
    return ErrorLaw(
        config.step_sizes, tuple(losses), tuple(gradients), tuple(cosines),
        config.lengths, tuple(growth),
    )  # fmt: skip


def proposition_1(config: TheoryConfig, law: ErrorLaw) -> Section:
    """The first-order form of the bi-level objective and the size of its error."""
    start, real, synthetic = _f64(0.0), _f64(1.0), _f64(2.0).requires_grad_()
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
        _relative(config, "θ_1 of the parabolas", path[1].item(), 0.2, "1"),
        _relative(config, "θ_2", path[2].item(), 0.38, "1"),
        _relative(config, "exact loss, Eq. 1", exact.item(), 0.1922, "1"),
        _relative(config, "first-order loss, Eq. 10", first.item(), 0.156, "1"),
        _relative(
            config, "exact − first-order, against ½η²Σg_S²", (exact - first).item(),
            0.1**2 / 2 * squares, "1",
        ),
        _relative(config, "its value", (exact - first).item(), 0.0362, "1"),
        _relative(config, "exact meta-gradient", slopes[0], -0.1178, "1"),
        _relative(config, "meta-gradient of Eq. 11, θ_t constant", slopes[1], -0.18, "1"),
        *(
            _printed(f"ratio of the two, η = {lr:g}", ratio, known, "1")
            for lr, ratio, known in zip(
                (0.1, 0.05, 0.01), ratios, ("1.528", "1.210", "1.036"), strict=True
            )
        ),
        Check(
            f"order of the loss error in η, T = {config.num_steps}",
            _orders(law.loss_errors)[-1], "=", 2, config.order_tolerance, "2",
        ),
        Check(
            "order of the meta-gradient's relative error in η",
            _orders(law.gradient_errors)[-1], "=", 1, config.order_tolerance, "2",
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


# --- Eqs. 12–16 and Proposition 2 -----------------------------------------------------------------


def equations_12_13(config: TheoryConfig, seed: int) -> Section:
    """The inner product as squared norms, by hand and along a trajectory."""
    a, b = _f64([1.0, 2.0]), _f64([3.0, -1.0])
    pieces = theory.inner_product_pieces(a, b)
    theta, synthetic, real = _network_problem(seed)
    lr, steps = config.step_sizes[0], config.num_steps
    run = (_network_loss, theta, synthetic, real)
    aligned = theory.first_order_meta_loss(*run, lr=lr, num_steps=steps)
    aligned = (aligned - _network_loss(theta, real)) / lr
    matched = theory.gradient_matching_loss(*run, lr=lr, num_steps=steps)
    path = theory.training_trajectory(_network_loss, theta, synthetic, lr=lr, num_steps=steps)
    norms = sum(
        theory.inner_product(g, g).item()
        for t in path[:-1]
        for data in (synthetic, real)
        for g in [theory.gradient(_network_loss, t, data)]
    )
    return Section(
        "Eqs. 12 and 13: from the inner product to the squared distance",
        r"$$-\langle a,b\rangle=\tfrac12\left(\lVert a-b\rVert^2-\lVert a\rVert^2-"
        r"\lVert b\rVert^2\right)$$"
        "\n\nEq. 13 keeps the first norm. Dropping the other two is not an identity; the gap is "
        "computed here and closed by Eq. 22.",
        "a = (1, 2), b = (3, −1); then both sides summed along a trajectory of the network "
        f"(η = {lr:g}, T = {steps}).",
        (
            Check("−⟨a, b⟩", -theory.inner_product(a, b).item(), "=", -1, 0.0, "3"),
            Check("right side", pieces.negative_inner_product.item(), "=", -1, 0.0, "3"),
            _relative(
                config, "−Σ⟨g_T, g_S⟩ against ½(Eq. 13 − Σ‖g_T‖² − Σ‖g_S‖²)", aligned.item(),
                0.5 * (matched.item() - norms),
            ),
        ),
    )  # fmt: skip


def equation_14(config: TheoryConfig, seed: int) -> Section:
    """The last-layer gradient of the squared loss against autograd."""
    draw = _normal(seed, "last layer")
    features, targets, weight = draw(12, 5), draw(12, 3), draw(5, 3).requires_grad_()
    squared = (features @ weight - targets).square().sum() / (2 * 12)
    (slope,) = torch.autograd.grad(squared, weight)
    found = theory.last_layer_gradient(features, targets, weight.detach())
    labels = one_hot(torch.arange(12) % 3).double()
    entropy = cross_entropy(features @ weight, labels)
    (entropy_slope,) = torch.autograd.grad(entropy, weight)
    softmax = (features @ weight.detach()).softmax(1)
    with_softmax = features.T @ (softmax - labels) / 12
    other = theory.last_layer_gradient(features, labels, weight.detach())
    return Section(
        "Eqs. 4 and 14: gradient of the last layer",
        r"$$\nabla_W\tfrac1{2n}\lVert FW-Y\rVert_F^2=AW-M_Y,\qquad A=\tfrac1nF^\top F,\quad "
        r"M_Y=\tfrac1nF^\top Y$$"
        "\n\nThis needs the squared loss. With cross-entropy the second term is the same and the "
        r"first is $\tfrac1nF^\top\mathrm{softmax}(FW)$, not $AW$.",
        "Random F (12×5), W (5×3) and Y; autograd on one side, the formula on the other. Entries "
        "of the difference, largest first.",
        (
            Check(
                "squared loss: largest difference", (slope - found).abs().max().item(), "≤",
                0, config.exact_tolerance, "4",
            ),
            Check(
                "cross-entropy with softmax(FW): largest difference",
                (entropy_slope - with_softmax).abs().max().item(), "≤", 0, config.exact_tolerance,
            ),
            Check(
                "cross-entropy with AW: largest difference (is not 0)",
                (entropy_slope - other).abs().max().item(), ">", config.exact_tolerance, 0.0,
            ),
        ),
    )  # fmt: skip


def bound_curves(config: TheoryConfig, seed: int) -> Bounds:
    """Both sides of Eq. 15 for random features, and of Eq. 22 for a parabola and any rate."""
    draw, gaps, gap_bounds = _normal(seed, "bounds"), [], []
    for _ in range(config.bound_draws):
        real, synthetic, weight = (draw(20, 4), draw(20, 3)), (draw(6, 4), draw(6, 3)), draw(4, 3)
        delta_a = theory.second_moment(real[0]) - theory.second_moment(synthetic[0])
        delta_m = theory.class_moment(*real) - theory.class_moment(*synthetic)
        gaps.append(theory.last_layer_gap(delta_a, delta_m, weight).item())
        gap_bounds.append(theory.last_layer_gap_bound(delta_a, delta_m, weight).item())
    smoothness, theta, g_s = 4.0, _f64([1.5]), _f64([4.0])
    rates = [i / 20 for i in range(1, 41)]
    after, smooth, matched = [], [], []
    for rate in rates:
        lr = rate / smoothness
        start, g_t = smoothness / 2 * theta.square().sum(), smoothness * theta
        bounds = theory.descent_bounds(start, g_t, g_s, lr=lr, smoothness=smoothness)
        after.append((smoothness / 2 * (theta - lr * g_s).square().sum()).item())
        smooth.append(bounds.smooth.item())
        matched.append(bounds.matched.item())
    return Bounds(
        tuple(gaps), tuple(gap_bounds), tuple(rates), tuple(after), tuple(smooth), tuple(matched)
    )


def equation_15(config: TheoryConfig, bounds: Bounds) -> Section:
    """The bound on the distance of last-layer gradients."""
    ones, identity = torch.ones(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    gap = theory.last_layer_gap(ones, identity, identity).item()
    bound = theory.last_layer_gap_bound(ones, identity, identity).item()
    ratios = [g / b for g, b in zip(bounds.gaps, bounds.gap_bounds, strict=True)]
    return Section(
        "Eq. 15: upper bound on the distance of gradients",
        r"$$\lVert(A_t-A_s)W-(M_t-M_s)\rVert_F\le\lVert A_t-A_s\rVert_F\lVert W\rVert_F+"
        r"\lVert M_t-M_s\rVert_F$$",
        "ΔA all ones (2×2), W = ΔM = I; then random features, targets and weights "
        f"({config.bound_draws} draws of 20 real and 6 synthetic samples, d = 4, C = 3).",
        (
            _printed("left side by hand, √2", gap, "1.4142", "5"),
            _printed("right side by hand, 3√2", bound, "4.2426", "5"),
            Check("largest left / right of the draws", max(ratios), "≤", 1, 0.0, "5"),
            Check("draws that break it", sum(r > 1 for r in ratios), "=", 0, 0.0, "5"),
        ),
        "bounds",
        "Value and bound: Eq. 15 for random cases, Eq. 22 for a parabola.",
    )


def isotropic_means(config: TheoryConfig, seed: int) -> Isotropic:
    """Mean squared gap over the first n of one sequence of draws of W."""
    draw = _normal(seed, "isotropic")
    delta_a, delta_m = draw(5, 5), draw(5, 3)
    weights = config.tau * draw(config.isotropic_draws[-1], 5, 3)
    squares = theory.last_layer_gap(delta_a, delta_m, weights).square()
    parts = [squares[:n] for n in config.isotropic_draws]
    return Isotropic(
        config.isotropic_draws,
        tuple(part.mean().item() for part in parts),
        tuple(part.std().item() / len(part) ** 0.5 for part in parts),
        theory.expected_gap_isotropic(delta_a, delta_m, config.tau).item(),
    )


def proposition_2(config: TheoryConfig, seed: int, isotropic: Isotropic) -> Section:
    """Gradients match if and only if first- and second-order statistics do."""
    draw = _normal(seed, "spanning")
    delta_a, delta_m = draw(4, 4), draw(4, 3)
    origin, weights = draw(4, 3), draw(2, 4, 3)
    residual = [delta_a @ w - delta_m for w in (origin, *weights)]
    steps = torch.cat([w - origin for w in weights], 1)
    changes = torch.cat([r - residual[0] for r in residual[1:]], 1)
    found_a = changes @ torch.linalg.pinv(steps)
    found_m = found_a @ origin - residual[0]
    return Section(
        "Proposition 2: matching gradients is matching statistics",
        r"If the entries of $W$ are independent with mean 0 and variance $\tau^2$, then exactly"
        "\n\n"
        r"$$\mathbb E_W\lVert g_{\mathcal T}-g_{\mathcal S}\rVert_F^2=C\tau^2\lVert A_t-A_s"
        r"\rVert_F^2+\lVert M_t-M_s\rVert_F^2.$$"
        "\n\nAnd residuals for weights whose differences span $\\mathbb R^d$ determine both gaps, "
        "so that they vanish together.",
        f"Mean over {isotropic.draws[-1]:,} draws of W (τ = {config.tau:g}, d = 5, C = 3) in units "
        "of its standard error; and both gaps solved for from the residuals of three W.",
        (
            Check(
                f"Monte-Carlo mean, ± {isotropic.errors[-1]:.2g}", isotropic.means[-1], "=",
                isotropic.expected, config.standard_errors * isotropic.errors[-1], "6",
            ),
            Check(
                "A_t − A_s recovered: largest difference",
                (found_a - delta_a).abs().max().item(), "≤", 0, config.exact_tolerance,
            ),
            Check(
                "M_t − M_s recovered: largest difference",
                (found_m - delta_m).abs().max().item(), "≤", 0, config.exact_tolerance,
            ),
        ),
        "isotropic",
        "Monte-Carlo mean of the squared distance against the exact expectation.",
    )  # fmt: skip


def equation_16(config: TheoryConfig, seed: int) -> Section:
    """Second moments contain variances."""
    draw = _normal(seed, "diagonal")
    real, synthetic = draw(30, 4) + 1, draw(8, 4)
    a, b = theory.second_moment(real), theory.second_moment(synthetic)
    parts = real.var(0, correction=0) + real.mean(0).square()
    tilted, straight = _f64([[2.0, 1.0], [1.0, 2.0]]), _f64([[2.0, 0.0], [0.0, 2.0]])
    return Section(
        "Eq. 16: matching second moments matches variances",
        r"$$\lVert A_t-A_s\rVert_F^2\ge\sum_i(A_{t,ii}-A_{s,ii})^2,\qquad "
        r"A_{ii}=\sigma_i^2+\mu_i^2$$"
        "\n\nNot conversely: equal diagonals leave the rest open. The variance is the biased one.",
        "Random features (30×4 and 8×4); then two matrices with equal diagonals.",
        (
            Check("A_ii − (σ² + μ²): largest difference",
                  (a.diagonal() - parts).abs().max().item(), "≤", 0, config.exact_tolerance, "7"),
            Check("diagonal gap against the full one", theory.diagonal_gap(a, b).item(), "≤",
                  theory.moment_gap(a, b).item(), 0.0, "7"),
            Check("equal diagonals: diagonal gap", theory.diagonal_gap(tilted, straight).item(),
                  "=", 0, 0.0, "7"),
            Check("equal diagonals: full gap", theory.moment_gap(tilted, straight).item(), "=", 2,
                  0.0, "7"),
        ),
    )  # fmt: skip


def equations_17_18(config: TheoryConfig, seed: int) -> Section:
    """Class moments, class means and global means."""
    real, real_targets = _f64([[1.0], [3.0], [5.0], [7.0]]), _classes([0, 0, 1, 1])
    synthetic, targets = _f64([[2.0], [4.0]]), _classes([0, 1])
    by_hand = _class_gaps((real, real_targets), (synthetic, targets))
    mixed = _class_gaps((_f64([[2.0], [2.0], [2.0], [4.0]]), _classes([0, 0, 0, 1])),
                        (synthetic, targets))  # fmt: skip
    swapped = _class_gaps((_f64([[1.0], [3.0]]), targets), (_f64([[3.0], [1.0]]), targets))
    draw = _normal(seed, "class means")
    balanced = _class_gaps((draw(30, 4), _classes([i % 3 for i in range(30)])),
                           (draw(6, 4), _classes([i % 3 for i in range(6)])))  # fmt: skip
    worst = 0.0
    for _ in range(config.bound_draws):
        labels = [int(x) for x in draw(12).mul(7).abs().long() % 3] + [0, 1, 2]
        found = _class_gaps((draw(15, 4), _classes(labels)),
                            (draw(6, 4), _classes([i % 3 for i in range(6)])))  # fmt: skip
        worst = max(worst, found[2] / (3 * found[0]))
    return Section(
        "Eqs. 17 and 18: class means, and their relaxation to the global mean",
        r"$$\lVert M_t-M_s\rVert_F^2=\tfrac1{C^2}\sum_k\lVert\mu^t_k-\mu^s_k\rVert^2"
        r"\ \text{(balanced sets)},\qquad\lVert\mu^t-\mu^s\rVert^2\le C\,\lVert M_t-M_s\rVert_F^2$$"
        "\n\nThe global mean, which Teddy matches, is implied by the class means and does not "
        "imply them. Without balance the first equality fails.",
        "One feature, two classes: real {1, 3 | 5, 7} and synthetic {2 | 4}; an unbalanced real "
        "set with the same class means {2, 2, 2 | 4}; two classes exchanged; random balanced sets; "
        f"{config.bound_draws} random unbalanced sets for the inequality.",
        (
            Check("Eq. 17 by hand", by_hand[0], "=", 1, 0.0, "7"),
            Check("Eq. 18 by hand", by_hand[1], "=", 1, 0.0, "7"),
            Check("global gap against C times Eq. 17", by_hand[2], "≤", 2 * by_hand[0], 0.0, "7"),
            _relative(config, "balanced, random: Eq. 17 against Eq. 18", balanced[0], balanced[1]),
            Check("unbalanced: Eq. 18", mixed[1], "=", 0, 0.0, "7"),
            Check("unbalanced: Eq. 17 (differs)", mixed[0], "=", 1.25, 0.0, "7"),
            Check("classes exchanged: global gap", swapped[2], "=", 0, 0.0, "7"),
            Check("classes exchanged: Eq. 18 (open)", swapped[1], "=", 2, 0.0, "7"),
            Check("largest global gap / (C · Eq. 17)", worst, "≤", 1, 0.0, "7"),
        ),
    )  # fmt: skip


def _classes(labels: Sequence[int]) -> Tensor:
    return one_hot(torch.tensor(labels)).double()


def _class_gaps(real: Batch, synthetic: Batch) -> tuple[float, float, float]:
    """Eq. 17, Eq. 18 and the global mean's gap."""
    return (
        theory.moment_gap(theory.class_moment(*real), theory.class_moment(*synthetic)).item(),
        theory.class_mean_gap(theory.class_means(*real), theory.class_means(*synthetic)).item(),
        theory.global_mean_gap(real[0], synthetic[0]).item(),
    )


# --- Eqs. 19–22 and Proposition 3 -----------------------------------------------------------------


def _hidden(theta: Weights, inputs: Tensor) -> Moments:
    """Statistics of the hidden layer before its tanh, as a BatchNorm layer there would see them."""
    return moments((inputs @ theta["w1"] + theta["b1"])[:, :, None, None])


def equation_19(config: TheoryConfig, seed: int) -> Section:
    """The objective whose trajectory is a constant."""
    theta, (inputs, labels), real = _network_problem(seed)
    lr, steps = config.step_sizes[0], config.num_steps
    path = theory.training_trajectory(
        _network_loss, theta, (inputs, labels), lr=lr, num_steps=steps
    )

    def objective(x: Tensor, start: Sequence[Weights]) -> Tensor:
        gaps = [batchnorm_gap(_hidden(t, x), _hidden(t, real[0])) for t in start[:-1]]
        return torch.stack(gaps).sum() + _network_loss(start[-1], (x, labels))

    leaf, direction = inputs.clone().requires_grad_(), _normal(seed, "direction")(*inputs.shape)
    (slope,) = torch.autograd.grad(objective(leaf, path), leaf)
    size = 1e-6
    moved = [objective(inputs + sign * size * direction, path).item() for sign in (1, -1)]
    twice = (real[0].repeat(2, 1), real[1].repeat(2))
    same = batchnorm_gap(_hidden(theta, twice[0]), _hidden(theta, real[0])).item()
    gap = theory.gradient_matching_loss(_network_loss, theta, twice, real, lr=lr, num_steps=steps)
    apart = batchnorm_gap(_hidden(theta, inputs), _hidden(theta, real[0])).item()
    return Section(
        "Eqs. 5 and 19: statistics along one trajectory",
        r"$$\min_{\mathcal S}\sum_{t=0}^{T-1}\sum_l\lVert\mu_l(\mathcal S;\theta_t)-"
        r"\mu_l(\mathcal T;\theta_t)\rVert_2+\lVert\sigma_l^2(\mathcal S;\theta_t)-"
        r"\sigma_l^2(\mathcal T;\theta_t)\rVert_2+\lambda\,\ell(\mathcal S;\theta_T)$$"
        "\n\nNo graph leads through the training: every $\\theta_t$ is a constant. Sets that give "
        "the same gradients everywhere have a statistics term of 0.",
        "Hidden layer of the network: the gradient against a central difference along a random "
        "direction with the trajectory held fixed; S made of every real sample twice.",
        (
            Check("gradient against the difference quotient", (slope * direction).sum().item(),
                  "=", (moved[0] - moved[1]) / (2 * size), config.difference_tolerance),
            Check("S = T twice: statistics term", same, "≤", 0, config.exact_tolerance),
            Check("S = T twice: Eq. 13", gap.item(), "≤", 0, config.exact_tolerance),
            Check("S of 6 samples: statistics term (is not 0)", apart, ">",
                  config.exact_tolerance, 0.0),
        ),
    )  # fmt: skip


def segment_errors(config: TheoryConfig, seed: int) -> Segments:
    """Distances of Eq. 20's members for every step size."""
    theta, synthetic, real = _network_problem(seed)
    own, teacher = [], []
    for lr in config.step_sizes:
        student = theory.student_segment(
            _network_loss, theta, synthetic, lr=lr, num_steps=config.segment_steps
        )
        steps = [
            theory.teacher_step(_network_loss, theta, data, lr=lr, num_steps=config.segment_steps)
            for data in (synthetic, real)
        ]
        own.append(_distance(student, steps[0]))
        teacher.append(_distance(student, steps[1]))
    return Segments(config.step_sizes, tuple(own), tuple(teacher))


def equation_20(config: TheoryConfig, segments: Segments) -> Section:
    """A k-step segment of the student as one step of a teacher."""
    k = config.segment_steps
    listed = ", ".join(f"{error:.2e}" for error in segments.own)
    return Section(
        "Eqs. 6 and 20: a segment of the student as one step of a teacher",
        r"$$\theta^{\mathcal S}_{i+k}=\theta_i-\eta\sum_{j=0}^{k-1}g_{\mathcal S}("
        r"\theta^{\mathcal S}_{i+j})\approx\theta_i-k\eta\,g_{\mathcal S}(\theta_i)\approx"
        r"\theta_i-k\eta\,g_{\mathcal T}(\theta_i)$$"
        "\n\nThe first ≈ costs $O(k^2\\eta^2)$. The second costs "
        r"$k\eta\lVert g_{\mathcal S}-g_{\mathcal T}\rVert$: it is only as good as the gradients "
        "are matched.",
        f"k = {k} steps of the network against one step of kη, along g_S and along g_T. Errors "
        f"along g_S while η halves: {listed}.",
        (
            Check("order of the first ≈ in η", _orders(segments.own)[-1], "=", 2,
                  config.order_tolerance, "9"),
            Check("order of both ≈ in η, gradients not matched", _orders(segments.teacher)[-1],
                  "=", 1, config.order_tolerance, "9"),
        ),
        "segment",
        "Distance between the end of a k-step segment and one k-fold step.",
    )  # fmt: skip


def equation_21(config: TheoryConfig, seed: int) -> Section:
    """Teddy's objective in its parts, by hand and against Eq. 19."""
    values = _f64([0.0, 2.0, 4.0, 6.0]).reshape(4, 1, 1, 1)
    fresh = Moments(_f64([0.0]), _f64([1.0]))
    one = statistics_loss([moments(values)], [fresh], 1.0).item()
    first = statistics_loss([moments(values)], [fresh], 10.0).item()
    shifted = batchnorm_gap(
        Moments(_f64([3.0, 4.0]), _f64([1.0, 1.0])), Moments(_f64([0.0, 0.0]), _f64([1.0, 1.0]))
    ).item()
    layer = nn.BatchNorm2d(1, momentum=1.0, dtype=torch.float64)
    layer.train()(values)
    stored = Moments(_known(layer.running_mean), _known(layer.running_var))
    stale = batchnorm_gap(moments(values), stored).item()
    theta, (inputs, labels), real = _network_problem(seed)
    teacher = nn.BatchNorm2d(len(theta["b1"]), momentum=1.0, dtype=torch.float64)
    teacher.train()((real[0] @ theta["w1"] + theta["b1"])[:, :, None, None])
    biased = (len(real[0]) - 1) / len(real[0])
    buffers = Moments(_known(teacher.running_mean), biased * _known(teacher.running_var))
    online = batchnorm_gap(_hidden(theta, inputs), _hidden(theta, real[0])).item()
    cached = batchnorm_gap(_hidden(theta, inputs), buffers).item()
    leaf, alpha = inputs.clone().requires_grad_(), 0.01
    statistics = batchnorm_gap(_hidden(theta, leaf), buffers)
    prior = _network_loss(theta, (leaf, labels))
    (a,) = torch.autograd.grad(prior + alpha * statistics, leaf, retain_graph=True)
    (b,) = torch.autograd.grad(statistics + prior / alpha, leaf)
    logits, target = _f64([[[4.0, 0.0]], [[0.0, 0.0]]]), torch.tensor([0])
    entropies = [
        ensemble_cross_entropy(logits, target, kind).item() for kind in ("logits", "probs", "loss")
    ]
    return Section(
        "Eqs. 7 and 21: Teddy's objective",
        r"$$\mathrm{CE}\big(\mathrm{ens}_{m\in K}f_{\theta_m}(\tilde x),y\big)+\alpha_{BN}"
        r"\tfrac1{|K|}\sum_{m\in K}\sum_l w_l\left(\lVert\mu_l-RM_{m,l}\rVert_2+\lVert\sigma^2_l-"
        r"RV_{m,l}\rVert_2\right)$$"
        "\n\nThe running statistics of cached teachers take the place of the real set's at "
        r"$\theta_t$, and $\lambda=1/\alpha_{BN}$.",
        "Channel values {0, 2, 4, 6} against a fresh layer (0, 1); the same values against what a "
        "BatchNorm layer stores of them, which is the unbiased variance; Eq. 19's term with the "
        "real statistics stored; gradients of both forms with α = 0.01; ensembles of the logits "
        "(4, 0) and (0, 0).",
        (
            Check("|1 − 5| + |0 − 3|", one, "=", 7, 0.0),
            Check("as first layer, weight 10", first, "=", 70, 0.0),
            Check("two channels, Δμ = (3, 4), norm not squared", shifted, "=", 5, 0.0),
            _relative(config, "stored after one pass: ‖σ²‖/(n − 1), not 0", stale, 5 / 3),
            _relative(config, "Eq. 19's term against stored statistics, made biased", online,
                      cached),
            _relative(config, "largest of CE + αR over R + CE/α, against α",
                      (a / b).abs().max().item(), alpha),
            _printed("ensemble of logits", entropies[0], "0.126928"),
            _printed("ensemble of probabilities", entropies[1], "0.299745"),
            _printed("ensemble of losses", entropies[2], "0.355649"),
        ),
    )  # fmt: skip


def _known(buffer: Tensor | None) -> Tensor:
    assert buffer is not None, "BatchNorm keeps running statistics unless told otherwise"
    return buffer


def equation_22(config: TheoryConfig, seed: int, bounds: Bounds) -> Section:
    """Both bounds on the real loss after a step, for a parabola and for random quadratics."""
    inside = [i for i, rate in enumerate(bounds.rates) if rate <= 1]
    slack = [bounds.matched[i] - bounds.after[i] for i in inside]
    beyond = [
        after - matched
        for rate, after, matched in zip(bounds.rates, bounds.after, bounds.matched, strict=True)
        if rate > 1
    ]
    equality = max(abs(a - s) for a, s in zip(bounds.after, bounds.smooth, strict=True))
    broken = _broken_bounds(config, seed)
    return Section(
        "Eq. 22 and Proposition 3: an upper bound is minimised",
        r"$$\ell(\mathcal T;\theta_t-\eta g_{\mathcal S})\le\ell-\eta\langle g_{\mathcal T},"
        r"g_{\mathcal S}\rangle+\tfrac{L\eta^2}2\lVert g_{\mathcal S}\rVert^2\le\ell-\tfrac\eta2"
        r"\lVert g_{\mathcal T}\rVert^2+\tfrac\eta2\lVert g_{\mathcal T}-g_{\mathcal S}\rVert^2$$"
        "\n\nThe first inequality is the paper's, for an $L$-smooth loss. The second holds for "
        r"$\eta\le1/L$ and makes Eq. 13 a bound; it is ours.",
        "Parabola with L = 4 and ηL from 0.05 to 2; then random quadratics in three dimensions "
        f"with η between 0 and 1/L ({config.bound_draws} draws).",
        (
            Check("parabola: |loss − first bound|, largest", equality, "≤", 0,
                  config.exact_tolerance, "8"),
            Check("parabola, η ≤ 1/L: loss − second bound, largest", -min(slack), "≤", 0,
                  config.exact_tolerance, "8"),
            Check("parabola, η > 1/L: loss − second bound, smallest (fails)", min(beyond), ">", 0,
                  0.0, "8"),
            Check("random quadratics that break a bound", broken, "=", 0, 0.0),
        ),
    )  # fmt: skip


def _broken_bounds(config: TheoryConfig, seed: int) -> int:
    draw, broken = _normal(seed, "quadratics"), 0
    for _ in range(config.bound_draws):
        root, theta, g_s = draw(3, 3), draw(3), draw(3)
        hessian = root.T @ root
        smoothness = torch.linalg.eigvalsh(hessian)[-1].item()
        lr = torch.sigmoid(draw()).item() / smoothness
        start, after = (0.5 * x @ hessian @ x for x in (theta, theta - lr * g_s))
        bounds = theory.descent_bounds(start, hessian @ theta, g_s, lr=lr, smoothness=smoothness)
        slack = config.exact_tolerance * max(1.0, bounds.matched.abs().item())
        broken += not after - slack <= bounds.smooth <= bounds.matched + slack
    return broken


# --- Writing --------------------------------------------------------------------------------------


def overview(report: Report) -> Table:
    """How many checks every section has, and how many pass."""
    rows = tuple(
        (section.title, len(section.checks), sum(check.passed for check in section.checks))
        for section in report.sections
    )
    columns = Column("section", text=True), Column("checks", spec="d"), Column("passed", spec="d")
    note = "Each check with both sides, error and tolerance: plots/theory.md."
    return Table("Equations checked numerically", columns, rows, (note,))


_COLUMNS = (
    Column("known"), Column("quantity", text=True), Column("computed"), Column("", text=True),
    Column("expected"), Column("error"), Column("tolerance"), Column("verdict", text=True),
)  # fmt: skip


def markdown(report: Report, figures: str) -> str:
    """The report as a document that shows its figures.

    Args:
        report: what was checked.
        figures: folder of the figures, relative to the document.
    """
    failed = sum(not check.passed for section in report.sections for check in section.checks)
    total = count(report)
    verdict = f"All {total} checks pass." if not failed else f"**{failed} of {total} checks fail.**"
    blocks = [
        "# The paper's equations, checked numerically",
        "Written by `dvc repro theory`; do not edit. Everything is computed in float64 from the "
        "functions of `src/teddy/theory.py` and `src/teddy/objectives.py`, with the settings of "
        "`theory:` in `params.yaml`. *Known* is the number of a known-answer test (`kat01` … in "
        "`tests/test_theory.py`). The error is the distance of the two sides, or by how much an "
        "inequality fails.",
        verdict,
        overview(report).body(),
    ]  # fmt: skip
    for section in report.sections:
        blocks += [f"## {section.title}", section.statement, f"*Computed.* {section.computed}"]
        rows = tuple(_row(check) for check in section.checks)
        blocks.append(Table(section.title, _COLUMNS, rows).body())
        if section.figure:
            blocks.append(
                f"![{section.caption}]({figures}/{section.figure}.png)\n\n*{section.caption}*"
            )
    return "\n\n".join(blocks) + "\n"


def _row(check: Check) -> tuple[str, ...]:
    return (
        check.known, check.what, _number(check.left), check.relation, _number(check.right),
        _small(check.error), _small(check.tolerance), "pass" if check.passed else "**FAIL**",
    )  # fmt: skip


def _number(value: float) -> str:
    return f"{value + 0.0:.6g}"  # no negative zero


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
