"""Known answers and properties of the paper's equations; float64, no data, no GPU.

`kat01` to `kat09` and `kat23` are the known-answer tests of the specification, by its numbering.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_equations import first_order_meta_loss
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from teddy.objectives import pool_class_statistics
from teddy.theory import equations as theory
from teddy.theory import unrolled
from teddy.theory.equations import Weights
from teddy.theory.unrolled import Batch, InnerLoop

repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=60)
step_sizes = (0.2, 0.1, 0.05, 0.025)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Run on one thread: on a busy machine these tiny products wait for each other otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def f64(*values: Any) -> Tensor:
    """Float64 tensor of the arguments."""
    return torch.tensor(values, dtype=torch.float64)


def scalar(value: float) -> Tensor:
    """Float64 scalar."""
    return torch.tensor(value, dtype=torch.float64)


def normal(seed: int) -> Callable[..., Tensor]:
    """Standard normal draws, one after another, from one seeded stream."""
    stream = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=stream, dtype=torch.float64)


def matrices(rows: int, columns: int) -> st.SearchStrategy[Tensor]:
    """Matrices of moderate entries."""
    entries = st.lists(st.floats(-8, 8), min_size=rows * columns, max_size=rows * columns)
    return entries.map(lambda values: f64(*values).reshape(rows, columns))


def distance(a: Weights, b: Weights) -> float:
    """Euclidean distance."""
    return theory.squared_distance(a, b).sqrt().item()


def named(tensor: Tensor) -> Weights:
    """One tensor as weights or a gradient."""
    return {"theta": tensor}


def half_square(theta: Weights, batch: Batch) -> Tensor:
    """Quadratic loss whose data is its own optimum."""
    return 0.5 * (theta["theta"] - batch[0]).square().sum()


PARABOLAS = named(scalar(0)), (scalar(2),), (scalar(1),)
"""theta_0, S and T of the one-dimensional example."""


def network_loss(theta: Weights, batch: Batch) -> Tensor:
    """Cross-entropy of a network with one tanh layer."""
    images, labels = batch
    hidden = torch.tanh(images @ theta["w1"] + theta["b1"])
    return cross_entropy(hidden @ theta["w2"] + theta["b2"], labels)


def network_problem() -> tuple[Weights, Batch, Batch]:
    """Initial parameters, a synthetic set of 6 and a real set of 60 samples in 3 classes."""
    draw = normal(1)
    labels = torch.arange(60) % 3
    real = (draw(60, 4) + 2 * one_hot(labels, 4), labels)
    synthetic = (draw(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))
    theta = {
        "w1": draw(4, 8) / 2,
        "b1": draw(8) / 10,
        "w2": draw(8, 3) / 8**0.5,
        "b2": draw(3) / 10,
    }
    return theta, synthetic, real


# --- Known answers -------------------------------------------------------------------------------


def test_kat01_two_steps_on_quadratics() -> None:
    """Every number of the one-dimensional example, the remainder and all three gradients."""
    inner, (start, synthetic, _) = InnerLoop(half_square, 0.1, 2), PARABOLAS
    (theta_0, g_0), (theta_1, g_1) = inner.steps(start, synthetic)
    path = [theta["theta"] for theta in (theta_0, theta_1, inner.end(start, synthetic))]
    assert torch.stack(path).tolist() == pytest.approx([0, 0.2, 0.38])

    exact = unrolled.exact(inner, *PARABOLAS)
    detached = unrolled.first_order(inner, *PARABOLAS)
    assert exact.value.item() == pytest.approx(0.1922)
    assert detached.value.item() == pytest.approx(0.156)
    remainder = 0.1**2 / 2 * sum(g["theta"].item() ** 2 for g in (g_0, g_1))
    assert remainder == pytest.approx(0.0362)
    assert (exact.value - detached.value).item() == pytest.approx(remainder)
    assert exact.gradient.item() == pytest.approx(-0.1178)
    assert detached.gradient.item() == pytest.approx(-0.18)


def test_kat01_without_constant_weights_the_gradient_is_another() -> None:
    """Eq. 10 differentiated through the training: the value of Eq. 11, but not its gradient."""
    start, (optimum,), real = PARABOLAS
    leaf = optimum.clone().requires_grad_()
    run = (half_square, start, (leaf,), real)
    attached = first_order_meta_loss(*run, lr=0.1, num_steps=2, detach=False)
    assert attached.item() == pytest.approx(0.156)
    assert torch.autograd.grad(attached, leaf)[0].item() == pytest.approx(-0.154)


@pytest.mark.parametrize(
    ("lr", "ratio", "tolerance"),
    [(0.1, 1.528, 5e-4), (0.05, 1.210, 5e-4), (0.01, 1.036, 5e-4), (1e-5, 1, 1e-4)],
)
def test_kat01_meta_gradient_ratio_tends_to_one(lr: float, ratio: float, tolerance: float) -> None:
    """Detached (Eq. 11) over exact meta-gradient, for smaller and smaller steps."""
    inner = InnerLoop(half_square, lr, 2)
    exact, first_order = (f(inner, *PARABOLAS) for f in (unrolled.exact, unrolled.first_order))
    found = (first_order.gradient / exact.gradient).item()
    assert found == pytest.approx(ratio, abs=tolerance)


def test_kat02_first_order_error_of_a_network_shrinks_with_the_step() -> None:
    """T = 5: loss error falls 4-fold, gradient error 2-fold per halving; the cosine tends to 1."""
    errors = [
        unrolled.expansion_error(InnerLoop(network_loss, lr, 5), *network_problem())
        for lr in step_sizes
    ]
    loss_errors = [abs(error.exact_loss - error.first_order_loss) for error in errors]
    gradient_errors = [error.gradient_error for error in errors]
    cosines = [error.cosine for error in errors]
    loss_ratios = [big / small for big, small in pairwise(loss_errors)]
    assert loss_ratios == sorted(loss_ratios)
    assert 3 < loss_ratios[0] < 3.7 < loss_ratios[-1] < 4
    assert gradient_errors[-2] / gradient_errors[-1] == pytest.approx(2, abs=0.1)
    assert cosines == sorted(cosines)
    assert 0.9 < cosines[0] < 0.99 and 0.998 < cosines[-1] < 1


def test_kat03_negative_inner_product_from_squared_norms() -> None:
    """Eq. 12 at a = (1, 2), b = (3, -1): both sides are -1."""
    a, b = named(f64(1, 2)), named(f64(3, -1))
    norms = theory.inner_product(a, a).item(), theory.inner_product(b, b).item()
    assert (theory.squared_distance(a, b).item(), *norms) == (13, 5, 10)
    assert theory.negative_inner_product(a, b).item() == -1
    assert -theory.inner_product(a, b).item() == -1


def test_kat04_last_layer_gradient_equals_autograd() -> None:
    """Eq. 14 against the gradient of the squared loss it is derived from."""
    draw = normal(4)
    features, targets, weight = draw(12, 5), draw(12, 3), draw(5, 3).requires_grad_()
    loss = (features @ weight - targets).square().sum() / (2 * 12)
    (expected,) = torch.autograd.grad(loss, weight)
    got = theory.last_layer_gradient(features, targets, weight.detach())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_kat05_gradient_gap_bound() -> None:
    """Eq. 15 at the hand-worked case: sqrt(2) against 3 sqrt(2); and at 200 random draws."""
    ones, identity = torch.ones(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    gap = theory.last_layer_gap(ones, identity, identity)
    bound = theory.last_layer_gap_bound(ones, identity, identity)
    assert gap.item() == pytest.approx(1.4142, abs=5e-5)
    assert bound.item() == pytest.approx(4.2426, abs=5e-5)

    draw = normal(5)
    for _ in range(200):
        real, synthetic, weight = (draw(20, 4), draw(20, 3)), (draw(6, 4), draw(6, 3)), draw(4, 3)
        delta_a = theory.second_moment(real[0]) - theory.second_moment(synthetic[0])
        delta_m = theory.class_moment(*real) - theory.class_moment(*synthetic)
        gap = theory.last_layer_gap(delta_a, delta_m, weight)
        slopes = [theory.last_layer_gradient(*data, weight) for data in (real, synthetic)]
        expected = (slopes[0] - slopes[1]).norm().item()
        assert gap.item() == pytest.approx(expected, rel=1e-12)
        assert gap < theory.last_layer_gap_bound(delta_a, delta_m, weight)


def test_kat06_isotropic_identity() -> None:
    """The expected squared gap agrees with 2e5 draws of W, to 4 standard errors."""
    draw, tau = normal(6), 0.7
    delta_a, delta_m = draw(5, 5), draw(5, 3)
    squares = theory.last_layer_gap(delta_a, delta_m, tau * draw(200_000, 5, 3)).square()
    error = squares.std().item() / 200_000**0.5
    expected = theory.expected_gap_isotropic(delta_a, delta_m, tau).item()
    assert error < 2e-3 * expected
    assert squares.mean().item() == pytest.approx(expected, abs=4 * error)


def test_kat07_diagonal_of_the_second_moment() -> None:
    """A_ii is the biased variance plus the squared mean; the diagonal gap is part of the gap."""
    draw = normal(7)
    real, synthetic = draw(30, 4) + 1, draw(8, 4)
    a, b = theory.second_moment(real), theory.second_moment(synthetic)
    torch.testing.assert_close(a.diagonal(), real.var(0, correction=0) + real.mean(0).square())
    assert 0 < theory.diagonal_gap(a, b) < theory.moment_gap(a, b)
    # Equal variances do not mean equal covariances: the converse of Eq. 16 fails.
    tilted = f64([2, 1], [1, 2])
    straight = f64([2, 0], [0, 2])
    assert theory.diagonal_gap(tilted, straight).item() == 0
    assert theory.moment_gap(tilted, straight).item() == 2


def test_kat07_class_and_global_mean_gaps() -> None:
    """The 1-D example: Eq. 17 = Eq. 18 = 1, global gap 1 <= 2 * 1."""
    real, real_targets = f64([1], [3], [5], [7]), one_hot(torch.tensor([0, 0, 1, 1])).double()
    synthetic, targets = f64([2], [4]), one_hot(torch.tensor([0, 1])).double()
    real_moment = theory.class_moment(real, real_targets)
    moment = theory.class_moment(synthetic, targets)
    assert real_moment.tolist() == [[1, 3]]
    assert moment.tolist() == [[1, 2]]
    assert theory.moment_gap(real_moment, moment).item() == 1
    real_means = theory.class_means(real, real_targets)
    means = theory.class_means(synthetic, targets)
    assert real_means.tolist() == [[2], [6]]
    assert means.tolist() == [[2], [4]]
    assert theory.class_mean_gap(real_means, means).item() == 1
    assert theory.global_mean_gap(real, synthetic).item() == 1


def test_kat07_imbalance_breaks_the_class_mean_form() -> None:
    """Class means agree, so Eq. 18 is 0, but Eq. 17 and the global means see the mixture."""
    real, real_targets = f64([2], [2], [2], [4]), one_hot(torch.tensor([0, 0, 0, 1])).double()
    synthetic, targets = f64([2], [4]), one_hot(torch.tensor([0, 1])).double()
    means = [theory.class_means(real, real_targets), theory.class_means(synthetic, targets)]
    moments = [theory.class_moment(real, real_targets), theory.class_moment(synthetic, targets)]
    assert theory.class_mean_gap(*means).item() == 0
    assert theory.moment_gap(*moments).item() == pytest.approx(0.5**2 + 1**2)
    assert theory.global_mean_gap(real, synthetic).item() == pytest.approx(0.5**2)


def test_kat07_equal_global_means_do_not_match_classes() -> None:
    """The relaxation: a global gap of 0 leaves the class-wise gap open."""
    targets = one_hot(torch.tensor([0, 1])).double()
    real, synthetic = f64([1], [3]), f64([3], [1])
    assert theory.global_mean_gap(real, synthetic).item() == 0
    means = [theory.class_means(features, targets) for features in (real, synthetic)]
    assert theory.class_mean_gap(*means).item() == 2


@pytest.mark.parametrize("lr", [0.05, 0.2, 0.25, 0.26, 0.5, 2.0])
def test_kat08_descent_bounds_on_a_quadratic(lr: float) -> None:
    """L theta^2 / 2, L = 4: the first is an equality, the second holds exactly up to lr = 1 / L."""
    theta, g_s, smoothness = scalar(1.5), scalar(-0.8), 4.0

    def real_loss(value: Tensor) -> Tensor:
        return 0.5 * smoothness * value.square()

    g_t = smoothness * theta
    after = real_loss(theta - lr * g_s).item()
    bounds = theory.descent_bounds(
        real_loss(theta), named(g_t), named(g_s), lr=lr, smoothness=smoothness
    )
    assert bounds.smooth.item() == pytest.approx(after, rel=1e-12)
    if lr == 1 / smoothness:
        assert bounds.matched.item() == pytest.approx(after, rel=1e-12)
    else:
        assert (after < bounds.matched.item()) == (lr < 1 / smoothness)


def test_kat09_a_student_segment_approaches_one_teacher_step() -> None:
    """At k = 5 the error quarters per halving of eta; against the real data it only halves."""
    theta, synthetic, real = network_problem()
    own, teacher = [], []
    for lr in step_sizes:
        inner = InnerLoop(network_loss, lr, 5)
        student = inner.end(theta, synthetic)
        own.append(distance(student, unrolled.teacher_step(inner, theta, synthetic)))
        teacher.append(distance(student, unrolled.teacher_step(inner, theta, real)))
    assert own[-2] / own[-1] == pytest.approx(4, abs=0.2)
    assert own[0] / own[1] > 3.4
    assert teacher[-2] / teacher[-1] == pytest.approx(2, abs=0.05)
    g_s, g_t = (inner.gradient(theta, data) for data in (synthetic, real))
    assert teacher[-1] == pytest.approx(5 * step_sizes[-1] * distance(g_s, g_t), rel=0.05)


def test_kat23_pooled_class_statistics_of_a_balanced_set() -> None:
    """They are the direct mean and biased variance; an imbalanced set has others."""
    draw = normal(23)
    features = draw(6, 10, 4) * draw(6, 1, 4) + 3 * draw(6, 1, 4)  # class, sample, feature
    mean, variance = pool_class_statistics(features.mean(1), features.var(1, correction=0))
    direct = features.reshape(60, 4)
    torch.testing.assert_close(mean, direct.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(variance, direct.var(0, correction=0), rtol=1e-12, atol=0)

    imbalanced = direct[:-8]
    assert not torch.allclose(mean, imbalanced.mean(0), rtol=1e-3)
    # Repeating the two samples left in the last class restores the balance, and the equality.
    shrunk = features.clone()
    shrunk[-1] = features[-1, :2].repeat(5, 1)
    last = features[-1, :2]
    mean, variance = pool_class_statistics(
        torch.cat([features[:-1].mean(1), last.mean(0, keepdim=True)]),
        torch.cat([features[:-1].var(1, correction=0), last.var(0, correction=0, keepdim=True)]),
    )
    torch.testing.assert_close(mean, shrunk.reshape(60, 4).mean(0))
    torch.testing.assert_close(variance, shrunk.reshape(60, 4).var(0, correction=0))


def test_kat23_pooled_variance_survives_a_large_mean() -> None:
    """Subtracting squared means near 1e8 would lose every digit of a variance of 2."""
    means, variances = f64([1e8 - 1], [1e8 + 1]), f64([0.5], [1.5])
    mean, variance = pool_class_statistics(means, variances)
    assert mean.item() == 1e8
    assert variance.item() == 2


# --- The rest of the training equations ----------------------------------------------------------


def test_gradient_matching_on_quadratics() -> None:
    """Eq. 13: the gradients of the two parabolas differ by 1 at each of the two steps."""
    found = unrolled.gradient_matching(InnerLoop(half_square, 0.1, 2), *PARABOLAS)
    assert found.value.item() == pytest.approx(2)
    assert found.gradient.item() == pytest.approx(4)


def test_gradient_matching_differs_from_the_inner_product_by_the_norms() -> None:
    """Eqs. 12 and 13 along one trajectory of a network."""
    theta, synthetic, real = network_problem()
    inner, norms = InnerLoop(network_loss, 0.1, 4), scalar(0)
    aligned = unrolled.first_order(inner, theta, synthetic, real).value - network_loss(theta, real)
    for step, g_s in inner.steps(theta, synthetic):
        for g in (g_s, inner.gradient(step, real)):
            norms = norms + theory.inner_product(g, g)
    matched = unrolled.gradient_matching(inner, theta, synthetic, real).value
    torch.testing.assert_close(aligned / 0.1, (matched - norms) / 2)


def test_trajectory_is_theta_0_minus_the_summed_gradients() -> None:
    """Eq. 9, and the exact objective is the real loss at its end (Eq. 1)."""
    theta, synthetic, real = network_problem()
    inner = InnerLoop(network_loss, 0.3, 4)
    steps, end = list(inner.steps(theta, synthetic)), inner.end(theta, synthetic)
    assert len(steps) == 4
    for name, value in end.items():
        expected = theta[name] - 0.3 * torch.stack([g_s[name] for _, g_s in steps]).sum(0)
        torch.testing.assert_close(value.detach(), expected)
    exact = unrolled.exact(inner, theta, synthetic, real)
    torch.testing.assert_close(exact.value, network_loss(end, real).detach())


# --- Properties ----------------------------------------------------------------------------------


@repeatable
@given(a=matrices(2, 3), b=matrices(2, 3))
def test_inner_product_identity_holds_for_any_gradients(a: Tensor, b: Tensor) -> None:
    """Eq. 12 for gradients spread over several tensors."""
    found = theory.negative_inner_product({"x": a[0], "y": a[1:]}, {"x": b[0], "y": b[1:]})
    expected = -torch.dot(a.flatten(), b.flatten())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


@repeatable
@given(delta_a=matrices(3, 3), delta_m=matrices(3, 2), weight=matrices(3, 2))
def test_gradient_gap_never_exceeds_its_bound(
    delta_a: Tensor, delta_m: Tensor, weight: Tensor
) -> None:
    """Eq. 15."""
    gap = theory.last_layer_gap(delta_a, delta_m, weight).item()
    assert gap <= theory.last_layer_gap_bound(delta_a, delta_m, weight).item() + 1e-10


@repeatable
@given(delta_a=matrices(3, 3), delta_m=matrices(3, 2))
def test_isotropic_expectation_equals_the_sum_over_coordinate_draws(
    delta_a: Tensor, delta_m: Tensor
) -> None:
    """W uniform over +-tau sqrt(d C) E_ij has the isotropic covariance, so the mean is exact."""
    tau = 0.5
    axes = tau * 6**0.5 * torch.eye(6, dtype=torch.float64).reshape(6, 3, 2)
    draws = torch.cat([axes, -axes])
    mean = theory.last_layer_gap(delta_a, delta_m, draws).square().mean()
    torch.testing.assert_close(mean, theory.expected_gap_isotropic(delta_a, delta_m, tau))


@repeatable
@given(real=matrices(5, 3), synthetic=matrices(4, 3))
def test_diagonal_gap_never_exceeds_the_full_gap(real: Tensor, synthetic: Tensor) -> None:
    """Eq. 16."""
    a, b = theory.second_moment(real), theory.second_moment(synthetic)
    assert theory.diagonal_gap(a, b) <= theory.moment_gap(a, b)


@repeatable
@given(
    real=matrices(5, 2),
    synthetic=matrices(4, 2),
    classes=st.lists(st.integers(0, 2), min_size=9, max_size=9),
)
def test_global_gap_is_at_most_c_times_the_class_gap(
    real: Tensor, synthetic: Tensor, classes: list[int]
) -> None:
    """The relaxation after Eq. 18, for balanced and imbalanced sets."""
    targets = one_hot(torch.tensor(classes), 3).double()
    moments = theory.class_moment(real, targets[:5]), theory.class_moment(synthetic, targets[5:])
    class_gap = theory.moment_gap(*moments).item()
    assert theory.global_mean_gap(real, synthetic).item() <= 3 * class_gap + 1e-9


@repeatable
@given(real=matrices(6, 2), synthetic=matrices(3, 2))
def test_class_mean_form_equals_the_moment_form_for_balanced_sets(
    real: Tensor, synthetic: Tensor
) -> None:
    """Eq. 17 = Eq. 18."""
    targets = one_hot(torch.tensor([0, 1, 2, 2, 1, 0])).double()
    moments = theory.class_moment(real, targets), theory.class_moment(synthetic, targets[:3])
    means = theory.class_means(real, targets), theory.class_means(synthetic, targets[:3])
    torch.testing.assert_close(theory.class_mean_gap(*means), theory.moment_gap(*moments))


@repeatable
@given(
    root=matrices(3, 3),
    vectors=matrices(2, 3),
    fraction=st.floats(0.01, 1),
)
def test_descent_bounds_hold_for_any_quadratic(
    root: Tensor, vectors: Tensor, fraction: float
) -> None:
    """Eq. 22 for a random convex quadratic, any g_S and lr up to 1 / L."""
    hessian = root.T @ root
    smoothness = hessian.trace().item() + 1  # at least the largest eigenvalue
    theta, g_s = vectors
    lr = fraction / smoothness

    def real_loss(value: Tensor) -> Tensor:
        return 0.5 * value @ hessian @ value

    bounds = theory.descent_bounds(
        real_loss(theta), named(hessian @ theta), named(g_s), lr=lr, smoothness=smoothness
    )
    after = real_loss(theta - lr * g_s).item()
    assert after <= bounds.smooth.item() + 1e-8
    assert bounds.smooth.item() <= bounds.matched.item() + 1e-8


@repeatable
@given(means=matrices(4, 2), roots=matrices(4, 2))
def test_pooled_variance_equals_the_printed_formula(means: Tensor, roots: Tensor) -> None:
    """mean_c(var_c + mu_c^2) - mean^2."""
    variances = roots.square()
    mean, variance = pool_class_statistics(means, variances)
    expected = (variances + means.square()).mean(0) - means.mean(0).square()
    torch.testing.assert_close(mean, means.mean(0))
    torch.testing.assert_close(variance, expected, rtol=1e-9, atol=1e-9)
    assert (variance >= 0).all()


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lr", "num_steps", "message"),
    [
        (0.0, 1, "lr must be positive and finite, got 0.0"),
        (float("nan"), 1, "lr must be positive and finite, got nan"),
        (float("inf"), 1, "lr must be positive and finite, got inf"),
        (0.1, 0, "num_steps must be at least 1, got 0"),
    ],
)
def test_inner_loop_settings_out_of_range_are_refused(
    lr: float, num_steps: int, message: str
) -> None:
    """The message names the setting and its value."""
    with pytest.raises(ValueError, match=message):
        InnerLoop(half_square, lr, num_steps)


def zeros(*shape: int) -> Tensor:
    """Float64 zeros."""
    return torch.zeros(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.inner_product({"a": zeros(2)}, {"a": zeros(3)}), r"'a': \(2,\).* \(3,\)"),
        (lambda: theory.inner_product({"a": zeros(2)}, {"b": zeros(2)}), "same names"),
        (lambda: theory.inner_product({}, {}), r"got \[\{\}, \{\}\]"),
        (lambda: theory.squared_distance({"a": zeros(2)}, {"a": zeros(1)}), "same names"),
        (lambda: theory.second_moment(zeros(0, 3)), r"features .* \(any, any\), got \(0, 3\)"),
        (lambda: theory.second_moment(zeros(3)), r"features .* got \(3,\)"),
        (lambda: theory.class_moment(zeros(4, 2), zeros(3, 2)), r"targets .* \(4, any\), got \(3"),
        (
            lambda: theory.last_layer_gradient(zeros(4, 2), zeros(4, 3), zeros(3, 2)),
            r"weight must have shape \(2, 3\), got \(3, 2\)",
        ),
        (lambda: theory.last_layer_gap(zeros(2, 3), zeros(2, 1), zeros(2, 1)), "delta_a"),
        (lambda: theory.last_layer_gap_bound(zeros(2, 2), zeros(2), zeros(2, 1)), "delta_m"),
        (lambda: theory.last_layer_gap(zeros(2, 2), zeros(2, 1), zeros(2, 2)), "of weight"),
        (lambda: theory.expected_gap_isotropic(zeros(2, 2), zeros(2, 1), -1), "tau .* got -1"),
        (lambda: theory.moment_gap(zeros(2, 2), zeros(3, 3)), "synthetic"),
        (lambda: theory.diagonal_gap(zeros(2, 3), zeros(2, 3)), r"real .* \(2, 2\), got \(2, 3\)"),
        (lambda: theory.class_means(zeros(2, 1), zeros(2, 2) + 0.5), "one-hot"),
        (lambda: theory.class_means(zeros(1, 1), f64([1, 0])), r"got counts \[1.0, 0.0\]"),
        (lambda: theory.class_mean_gap(zeros(2, 3), zeros(3, 3)), r"\(2, 3\), got \(3, 3\)"),
        (lambda: theory.global_mean_gap(zeros(2, 3), zeros(0, 3)), "synthetic"),
        (lambda: pool_class_statistics(zeros(2, 3), zeros(2, 1)), "variances"),
        (
            lambda: theory.descent_bounds(scalar(0), {}, {}, lr=0.1, smoothness=0),
            "smoothness must be positive and finite, got 0",
        ),
        (
            lambda: theory.descent_bounds(scalar(0), {}, {}, lr=-1, smoothness=1),
            "lr must be positive",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call: Callable[[], Any], message: str) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        call()
