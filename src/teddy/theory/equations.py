"""The paper's equations and propositions as small pure functions.

Symbols are the paper's: T is the real and S the synthetic set, g_D(theta) the gradient of the
loss on set D, eta (`lr`) the inner learning rate. The term lambda * l(S; theta_T) that Eqs. 2, 11
and 13 share is left out throughout. `loss(theta, data)` returns a scalar; `theta` is any pytree of
tensors, and `data` is handed to `loss` untouched.

A tensor of the wrong shape, an `lr` that is not positive and finite and fewer than one step raise
ValueError everywhere; a docstring lists only what a function refuses besides.

Dimensions: n samples of one set, d features, C classes.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree  # what torch.func.grad accepts; it has no public name

Params = TypeVar("Params")
Data = TypeVar("Data")
Loss = Callable[[Params, Data], Tensor]


class InnerProductPieces(NamedTuple):
    """The squared norms that make up a negative inner product (Eq. 12); scalars, at least 0."""

    gap: Tensor
    """Squared norm of a - b, the piece that Eq. 13 keeps."""
    norm_a: Tensor
    """Squared norm of a."""
    norm_b: Tensor
    """Squared norm of b."""

    @property
    def negative_inner_product(self) -> Tensor:
        """Right-hand side of Eq. 12, equal to -<a, b>."""
        return 0.5 * (self.gap - self.norm_a - self.norm_b)


class DescentBounds(NamedTuple):
    """Upper bounds on the real loss after one step along g_S (Eq. 22), in the equation's order."""

    smooth: Tensor
    """First inequality: holds at any step size if the real loss is L-smooth."""
    matched: Tensor
    """Second inequality: at least `smooth` whenever lr <= 1 / L."""


# --- Gradients and training: Eqs. 1, 3, 9-13 -----------------------------------------------------


def gradient(loss: Loss[Params, Data], theta: Params, data: Data) -> Params:
    """Gradient g_D(theta), a tree like `theta`, differentiable in both `theta` and `data`."""
    value: Params = torch.func.grad(loss)(theta, data)
    return value


def inner_product(a: Params, b: Params) -> Tensor:
    """Inner product <a, b> over all leaves of two trees; a scalar."""
    leaves_a, tree_a = pytree.tree_flatten(a)
    leaves_b, tree_b = pytree.tree_flatten(b)
    shapes_a = [tuple(leaf.shape) for leaf in leaves_a]
    shapes_b = [tuple(leaf.shape) for leaf in leaves_b]
    if not leaves_a or tree_a != tree_b or shapes_a != shapes_b:
        raise ValueError(
            f"expected two equal trees with leaves, got {tree_a} with shapes {shapes_a} "
            f"and {tree_b} with shapes {shapes_b}"
        )
    return torch.stack([(x * y).sum() for x, y in zip(leaves_a, leaves_b, strict=True)]).sum()


def inner_product_pieces(a: Params, b: Params) -> InnerProductPieces:
    """Pieces of -<a, b> = (||a - b||^2 - ||a||^2 - ||b||^2) / 2 (Eq. 12)."""
    inner_product(a, b)  # refuses unequal trees before they are subtracted
    gap = _step(a, b, 1.0)
    return InnerProductPieces(inner_product(gap, gap), inner_product(a, a), inner_product(b, b))


def training_trajectory(
    loss: Loss[Params, Data], theta_0: Params, data: Data, *, lr: float, num_steps: int
) -> list[Params]:
    """Parameters theta_0, ..., theta_T of plain gradient descent on `data` (Eqs. 1 and 9).

    Nothing is detached: each entry is differentiable in `data` and `theta_0`, at a memory cost
    that grows with `num_steps`.
    """
    _check_steps(lr, num_steps)
    trajectory = [theta_0]
    for _ in range(num_steps):
        theta = trajectory[-1]
        trajectory.append(_step(theta, gradient(loss, theta, data), lr))
    return trajectory


def meta_loss(
    loss: Loss[Params, Data],
    theta_0: Params,
    synthetic: Data,
    real: Data,
    *,
    lr: float,
    num_steps: int,
) -> Tensor:
    """Exact bi-level objective l(T; theta_T), by unrolling the training on S (Eq. 1)."""
    return loss(training_trajectory(loss, theta_0, synthetic, lr=lr, num_steps=num_steps)[-1], real)


def first_order_meta_loss(
    loss: Loss[Params, Data],
    theta_0: Params,
    synthetic: Data,
    real: Data,
    *,
    lr: float,
    num_steps: int,
    detach: bool = True,
) -> Tensor:
    """First-order objective l(T; theta_0) - eta sum_t <g_T(theta_t), g_S(theta_t)> (Eqs. 3, 10).

    With `detach` (Eq. 11) every theta_t is a constant of the graph, so S is reached only through
    g_S(theta_t). The value is the same either way; the gradient is not.
    """
    pairs = _gradient_pairs(loss, theta_0, synthetic, real, lr, num_steps, detach)
    start = loss(_detached(theta_0) if detach else theta_0, real)
    return start - lr * torch.stack([inner_product(g_t, g_s) for g_t, g_s in pairs]).sum()


def gradient_matching_loss(
    loss: Loss[Params, Data],
    theta_0: Params,
    synthetic: Data,
    real: Data,
    *,
    lr: float,
    num_steps: int,
    detach: bool = True,
) -> Tensor:
    """Squared distance of the gradients, sum_t ||g_T(theta_t) - g_S(theta_t)||^2 (Eq. 13).

    `detach` as in `first_order_meta_loss`.
    """
    pairs = _gradient_pairs(loss, theta_0, synthetic, real, lr, num_steps, detach)
    return torch.stack([inner_product_pieces(g_t, g_s).gap for g_t, g_s in pairs]).sum()


# --- Last-layer gradient and feature statistics: Eqs. 4, 14-18 -----------------------------------


def second_moment(features: Tensor) -> Tensor:
    """Uncentred second moment A = F^T F / n of features (n, d); (d, d) (Eqs. 4, 14).

    Its diagonal is the biased variance plus the squared mean of each feature.
    """
    _check_shape("features", features.shape, None, None)
    return features.T @ features / len(features)


def class_moment(features: Tensor, targets: Tensor) -> Tensor:
    """Feature-target moment M_Y = F^T Y / n of features (n, d), targets (n, C); (d, C) (Eq. 14).

    For one-hot targets, column k is the mean of class k weighted by its share of the set.
    """
    _check_shape("features", features.shape, None, None)
    _check_shape("targets", targets.shape, len(features), None)
    return features.T @ targets / len(features)


def last_layer_gradient(features: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Gradient A W - M_Y of ||F W - Y||_F^2 / (2 n) in the last layer W; (d, C) (Eqs. 4, 14).

    Args:
        features: F, (n, d).
        targets: Y, (n, C).
        weight: W, (d, C).

    The form holds for the squared loss only, which the paper takes from its kernel setting; with
    cross-entropy the first term is not A W.
    """
    moment = class_moment(features, targets)
    _check_shape("weight", weight.shape, *moment.shape)
    return second_moment(features) @ weight - moment


def last_layer_gap(delta_a: Tensor, delta_m: Tensor, weight: Tensor) -> Tensor:
    """Distance of the last-layer gradients, ||dA W - dM||_F (left side of Eq. 15).

    Args:
        delta_a: difference of the second moments, A_t - A_s, (d, d).
        delta_m: difference of the class moments, M_t - M_s, (d, C).
        weight: W, (..., d, C); leading dimensions are independent draws of W.

    Returns:
        One distance per draw, (...).
    """
    _check_gaps(delta_a, delta_m, weight)
    return _frobenius_norm(delta_a @ weight - delta_m)


def last_layer_gap_bound(delta_a: Tensor, delta_m: Tensor, weight: Tensor) -> Tensor:
    """Upper bound ||dA||_F ||W||_F + ||dM||_F on `last_layer_gap`, same arguments (Eq. 15)."""
    _check_gaps(delta_a, delta_m, weight)
    return _frobenius_norm(delta_a) * _frobenius_norm(weight) + _frobenius_norm(delta_m)


def expected_gap_isotropic(delta_a: Tensor, delta_m: Tensor, tau: float) -> Tensor:
    """Mean squared `last_layer_gap` over isotropic W: C tau^2 ||dA||_F^2 + ||dM||_F^2.

    Exact if the entries of W are independent with mean 0 and standard deviation `tau`: matching
    gradients is then the same as matching first- and second-order statistics (Prop. 2).

    Raises:
        ValueError: `tau` is negative.
    """
    _check_gaps(delta_a, delta_m, delta_m)
    if not tau >= 0:
        raise ValueError(f"tau must be at least 0, got {tau}")
    return delta_m.shape[1] * tau**2 * delta_a.square().sum() + delta_m.square().sum()


def moment_gap(real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared Frobenius distance of two moments: of A (Eq. 16, left) or of M_Y (Eq. 17)."""
    _check_shape("synthetic", synthetic.shape, *real.shape)
    return (real - synthetic).square().sum()


def diagonal_gap(real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared distance of the diagonals of two second moments (d, d), the variance part (Eq. 16).

    At most the `moment_gap` of the same pair.
    """
    _check_shape("real", real.shape, None, None)
    _check_shape("real", real.shape, len(real), len(real))
    _check_shape("synthetic", synthetic.shape, *real.shape)
    return moment_gap(real.diagonal(), synthetic.diagonal())


def class_means(features: Tensor, targets: Tensor) -> Tensor:
    """Mean feature of each class, (C, d), for features (n, d) and one-hot targets (n, C).

    Raises:
        ValueError: `targets` is not one-hot, or a class has no sample.
    """
    sums = class_moment(features, targets).T * len(features)
    if not (((targets == 0) | (targets == 1)).all() and (targets.sum(1) == 1).all()):
        raise ValueError("targets must be one-hot: zeros and a single 1 per row")
    counts = targets.sum(0)
    if (counts == 0).any():
        raise ValueError(f"every class needs a sample, got counts {counts.tolist()}")
    return sums / counts[:, None]


def class_mean_gap(real: Tensor, synthetic: Tensor) -> Tensor:
    """Class-wise mean distance sum_k ||mu_k^t - mu_k^s||^2 / C^2 of class means (C, d) (Eq. 18).

    Equals the `moment_gap` of the class moments (Eq. 17) if both sets are balanced, and in general
    only then.
    """
    _check_shape("real", real.shape, None, None)
    return moment_gap(real, synthetic) / len(real) ** 2


def global_mean_gap(real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared distance of the mean features of two sets, (N, d) and (M, d) (after Eq. 18).

    A relaxation: at most C times the `moment_gap` of the class moments (Eq. 17), which it does
    not imply.
    """
    _check_shape("real", real.shape, None, None)
    _check_shape("synthetic", synthetic.shape, None, None)
    return moment_gap(real.mean(0), synthetic.mean(0))


# --- Teacher segments and the descent bound: Eqs. 6, 20, 22 --------------------------------------


def student_segment(
    loss: Loss[Params, Data], theta: Params, synthetic: Data, *, lr: float, num_steps: int
) -> Params:
    """End point theta^S_(i+k) of a k-step student segment on S, k = `num_steps` (Eqs. 6, 20)."""
    return training_trajectory(loss, theta, synthetic, lr=lr, num_steps=num_steps)[-1]


def teacher_step(
    loss: Loss[Params, Data], theta: Params, data: Data, *, lr: float, num_steps: int
) -> Params:
    """One step theta - k eta g(theta) in place of a k-step segment, k = `num_steps` (Eqs. 6, 20).

    On T it is the teacher theta^T_(i+1). On S it is the middle member of Eq. 20, and differs from
    `student_segment` by O(k^2 eta^2).
    """
    _check_steps(lr, num_steps)
    return _step(theta, gradient(loss, theta, data), num_steps * lr)


def descent_bounds(
    real_loss: Tensor,
    real_gradient: Params,
    synthetic_gradient: Params,
    *,
    lr: float,
    smoothness: float,
) -> DescentBounds:
    """Both upper bounds on l(T; theta_t - eta g_S) for an L-smooth real loss (Eq. 22, Prop. 3).

    Args:
        real_loss: l(T; theta_t), scalar.
        real_gradient: g_T(theta_t), any tree.
        synthetic_gradient: g_S(theta_t), a tree like it.
        lr: eta. Above 1 / `smoothness` the second bound is still returned, but need not hold.
        smoothness: L, a Lipschitz constant of the real gradient.

    Raises:
        ValueError: `smoothness` is not positive and finite.

    The paper states the first inequality; the second is ours, and makes Eq. 13 a bound.
    """
    _check_steps(lr, 1)
    if not (math.isfinite(smoothness) and smoothness > 0):
        raise ValueError(f"smoothness must be positive and finite, got {smoothness}")
    pieces = inner_product_pieces(real_gradient, synthetic_gradient)
    aligned = inner_product(real_gradient, synthetic_gradient)
    smooth = real_loss - lr * aligned + smoothness * lr**2 / 2 * pieces.norm_b
    return DescentBounds(smooth, real_loss - lr / 2 * pieces.norm_a + lr / 2 * pieces.gap)


def _step(theta: Params, direction: Params, size: float) -> Params:
    moved: Params = pytree.tree_map(lambda x, g: x - size * g, theta, direction)
    return moved


def _detached(theta: Params) -> Params:
    constant: Params = pytree.tree_map(torch.detach, theta)
    return constant


def _gradient_pairs(
    loss: Loss[Params, Data],
    theta_0: Params,
    synthetic: Data,
    real: Data,
    lr: float,
    num_steps: int,
    detach: bool,
) -> Iterator[tuple[Params, Params]]:
    """Yield (g_T, g_S) at theta_0, ..., theta_(T-1) of the training on S."""
    _check_steps(lr, num_steps)
    theta = theta_0
    for _ in range(num_steps):
        if detach:
            theta = _detached(theta)
        g_s = gradient(loss, theta, synthetic)
        yield gradient(loss, theta, real), g_s
        theta = _step(theta, g_s, lr)


def _frobenius_norm(matrices: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.matrix_norm(matrices)
    return norms


def _check_steps(lr: float, num_steps: int) -> None:
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")


def _check_shape(name: str, got: torch.Size, *expected: int | None) -> None:
    """Refuse a shape other than `expected`, where None stands for any size of at least 1."""
    fits = len(got) == len(expected) and all(
        size == want if want is not None else size > 0
        for size, want in zip(got, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in expected)
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(got)}")


def _check_gaps(delta_a: Tensor, delta_m: Tensor, weight: Tensor) -> None:
    _check_shape("delta_m", delta_m.shape, None, None)
    _check_shape("delta_a", delta_a.shape, len(delta_m), len(delta_m))
    _check_shape("the last two dimensions of weight", weight.shape[-2:], *delta_m.shape)
