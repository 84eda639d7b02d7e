"""Eqs. 4 and 12–15: from the inner product of gradients to a bound on their distance."""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, one_hot

from teddy.settings.theory import TheoryConfig
from teddy.theory import equations as theory
from teddy.theory import unrolled
from teddy.theory.checks import (
    Check,
    Section,
    equals,
    f64,
    network_loss,
    network_problem,
    normal,
    printed,
)
from teddy.theory.unrolled import InnerLoop


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


def bound_curves(config: TheoryConfig, seed: int) -> Bounds:
    """Both sides of Eq. 15 for random features, and of Eq. 22 for a parabola and any rate."""
    draw, gaps, gap_bounds = normal(seed, "bounds"), [], []
    for _ in range(config.bound_draws):
        real, synthetic, weight = (draw(20, 4), draw(20, 3)), (draw(6, 4), draw(6, 3)), draw(4, 3)
        delta_a = theory.second_moment(real[0]) - theory.second_moment(synthetic[0])
        delta_m = theory.class_moment(*real) - theory.class_moment(*synthetic)
        gaps.append(theory.last_layer_gap(delta_a, delta_m, weight).item())
        gap_bounds.append(theory.last_layer_gap_bound(delta_a, delta_m, weight).item())
    smoothness, theta, g_s = 4.0, f64([1.5]), f64([4.0])
    rates = [i / 20 for i in range(1, 41)]
    after, smooth, matched = [], [], []
    for rate in rates:
        lr = rate / smoothness
        start, g_t = smoothness / 2 * theta.square().sum(), smoothness * theta
        bounds = theory.descent_bounds(
            start, {"theta": g_t}, {"theta": g_s}, lr=lr, smoothness=smoothness
        )
        after.append((smoothness / 2 * (theta - lr * g_s).square().sum()).item())
        smooth.append(bounds.smooth.item())
        matched.append(bounds.matched.item())
    return Bounds(
        tuple(gaps), tuple(gap_bounds), tuple(rates), tuple(after), tuple(smooth), tuple(matched)
    )


def equations_12_13(config: TheoryConfig, seed: int) -> Section:
    """The inner product as squared norms, by hand and along a trajectory."""
    a, b = {"g": f64([1.0, 2.0])}, {"g": f64([3.0, -1.0])}
    theta, synthetic, real = network_problem(seed)
    inner = InnerLoop(network_loss, config.step_sizes[0], config.num_steps)
    aligned = unrolled.first_order(inner, theta, synthetic, real).value
    aligned = (aligned - network_loss(theta, real)) / inner.lr
    matched = unrolled.gradient_matching(inner, theta, synthetic, real).value
    norms = sum(
        theory.inner_product(g, g).item()
        for theta_t, g_s in inner.steps(theta, synthetic)
        for g in (g_s, inner.gradient(theta_t, real))
    )
    return Section(
        "Eqs. 12 and 13: from the inner product to the squared distance",
        r"$$-\langle a,b\rangle=\tfrac12\left(\lVert a-b\rVert^2-\lVert a\rVert^2-"
        r"\lVert b\rVert^2\right)$$"
        "\n\nEq. 13 keeps the first norm. Dropping the other two is not an identity; the gap is "
        "computed here and closed by Eq. 22.",
        "a = (1, 2), b = (3, −1); then both sides summed along a trajectory of the network "
        f"(η = {inner.lr:g}, T = {inner.num_steps}).",
        (
            Check("−⟨a, b⟩", -theory.inner_product(a, b).item(), "=", -1, 0.0, "3"),
            Check("right side", theory.negative_inner_product(a, b).item(), "=", -1, 0.0, "3"),
            equals(
                config, "−Σ⟨g_T, g_S⟩ against ½(Eq. 13 − Σ‖g_T‖² − Σ‖g_S‖²)", aligned.item(),
                0.5 * (matched.item() - norms),
            ),
        ),
    )  # fmt: skip


def equation_14(config: TheoryConfig, seed: int) -> Section:
    """The last-layer gradient of the squared loss against autograd."""
    draw = normal(seed, "last layer")
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
            printed("left side by hand, √2", gap, "1.4142", "5"),
            printed("right side by hand, 3√2", bound, "4.2426", "5"),
            Check("largest left / right of the draws", max(ratios), "≤", 1, 0.0, "5"),
            Check("draws that break it", sum(r > 1 for r in ratios), "=", 0, 0.0, "5"),
        ),
        "bounds",
        "Value and bound: Eq. 15 for random cases, Eq. 22 for a parabola.",
    )
