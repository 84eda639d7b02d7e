"""Proposition 2 and Eqs. 16–18: matching gradients is matching statistics."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from teddy.settings.theory import TheoryConfig
from teddy.theory import equations as theory
from teddy.theory.checks import Check, Section, equals, f64, normal
from teddy.theory.unrolled import Batch


@dataclass(frozen=True, slots=True)
class Isotropic:
    """Monte-Carlo means of the squared last-layer gap over isotropic W."""

    draws: tuple[int, ...]
    means: tuple[float, ...]
    errors: tuple[float, ...]
    """Their standard errors."""
    expected: float


def isotropic_means(config: TheoryConfig, seed: int) -> Isotropic:
    """Mean squared gap over the first n of one sequence of draws of W."""
    draw = normal(seed, "isotropic")
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
    draw = normal(seed, "spanning")
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
    draw = normal(seed, "diagonal")
    real, synthetic = draw(30, 4) + 1, draw(8, 4)
    a, b = theory.second_moment(real), theory.second_moment(synthetic)
    parts = real.var(0, correction=0) + real.mean(0).square()
    tilted, straight = f64([[2.0, 1.0], [1.0, 2.0]]), f64([[2.0, 0.0], [0.0, 2.0]])
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
    real, real_targets = f64([[1.0], [3.0], [5.0], [7.0]]), _classes([0, 0, 1, 1])
    synthetic, targets = f64([[2.0], [4.0]]), _classes([0, 1])
    by_hand = _class_gaps((real, real_targets), (synthetic, targets))
    mixed = _class_gaps((f64([[2.0], [2.0], [2.0], [4.0]]), _classes([0, 0, 0, 1])),
                        (synthetic, targets))  # fmt: skip
    swapped = _class_gaps((f64([[1.0], [3.0]]), targets), (f64([[3.0], [1.0]]), targets))
    draw = normal(seed, "class means")
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
            equals(config, "balanced, random: Eq. 17 against Eq. 18", balanced[0], balanced[1]),
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
