"""Eqs. 4, 12, 14–18 and 22 as small pure functions; :mod:`teddy.theory.unrolled` has the training.

Symbols are the paper's: T is the real and S the synthetic set, g_D(theta) the gradient of the
loss on set D, eta (`lr`) the inner learning rate. Gradients and weights are tensors by name.

A tensor of the wrong shape and an `lr` that is not positive and finite raise ValueError
everywhere; a docstring lists only what a function refuses besides.

Dimensions: n samples of one set, d features, C classes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

Weights = dict[str, Tensor]


class DescentBounds(NamedTuple):
    """Upper bounds on the real loss after one step along g_S (Eq. 22), in the equation's order."""

    smooth: Tensor
    """First inequality: holds at any step size if the real loss is L-smooth."""
    matched: Tensor
    """Second inequality: at least `smooth` whenever lr <= 1 / L."""


# --- Inner product and distance of gradients: Eq. 12 ---------------------------------------------


def inner_product(a: Weights, b: Weights) -> Tensor:
    """Inner product <a, b> over all tensors; a scalar."""
    _check_alike(a, b)
    return torch.stack([(x * b[name]).sum() for name, x in a.items()]).sum()


def squared_distance(a: Weights, b: Weights) -> Tensor:
    """||a - b||^2, the term of Eq. 13; a scalar."""
    _check_alike(a, b)
    gap = {name: x - b[name] for name, x in a.items()}
    return inner_product(gap, gap)


def negative_inner_product(a: Weights, b: Weights) -> Tensor:
    """Right-hand side of Eq. 12, -<a, b> = (||a - b||^2 - ||a||^2 - ||b||^2) / 2."""
    return 0.5 * (squared_distance(a, b) - inner_product(a, a) - inner_product(b, b))


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


# --- Descent bound: Eq. 22 ------------------------------------------------------------------------


def descent_bounds(
    real_loss: Tensor,
    real_gradient: Weights,
    synthetic_gradient: Weights,
    *,
    lr: float,
    smoothness: float,
) -> DescentBounds:
    """Both upper bounds on l(T; theta_t - eta g_S) for an L-smooth real loss (Eq. 22, Prop. 3).

    Args:
        real_loss: l(T; theta_t), scalar.
        real_gradient: g_T(theta_t).
        synthetic_gradient: g_S(theta_t).
        lr: eta. Above 1 / `smoothness` the second bound is still returned, but need not hold.
        smoothness: L, a Lipschitz constant of the real gradient.

    Raises:
        ValueError: `smoothness` is not positive and finite.

    The paper states the first inequality; the second is ours, and makes Eq. 13 a bound.
    """
    _check_positive("lr", lr)
    _check_positive("smoothness", smoothness)
    aligned = inner_product(real_gradient, synthetic_gradient)
    norm_t = inner_product(real_gradient, real_gradient)
    norm_s = inner_product(synthetic_gradient, synthetic_gradient)
    gap = squared_distance(real_gradient, synthetic_gradient)
    smooth = real_loss - lr * aligned + smoothness * lr**2 / 2 * norm_s
    return DescentBounds(smooth, real_loss - lr / 2 * norm_t + lr / 2 * gap)


def _frobenius_norm(matrices: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.matrix_norm(matrices)
    return norms


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _check_alike(a: Weights, b: Weights) -> None:
    shapes = [{name: tuple(x.shape) for name, x in tensors.items()} for tensors in (a, b)]
    if not a or shapes[0] != shapes[1]:
        raise ValueError(f"expected tensors of the same names and shapes, got {shapes}")


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
