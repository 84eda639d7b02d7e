"""The objectives against slow loops, hand-worked cases and numerical derivatives.

`katNN` are the known-answer tests of the specification, by its numbering. No data, no GPU.
"""

import math
from typing import Any, Literal, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from teddy.objectives import (
    Moments,
    batchnorm_gap,
    cosine_lr,
    ensemble_cross_entropy,
    ensemble_logits,
    mixed_cross_entropy,
    moments,
    soft_label_loss,
    statistics_loss,
)

Ensemble = Literal["logits", "probs", "loss"]
ENSEMBLES: tuple[Ensemble, ...] = get_args(Ensemble)
seeds = st.integers(0, 2**31)


def f64(*values: Any) -> Tensor:
    """Float64 tensor of the arguments."""
    return torch.tensor(values, dtype=torch.float64)


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal float64 numbers of their own stream."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def softmax(row: list[float]) -> list[float]:
    """Probabilities, the slow way."""
    total = math.fsum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def gradcheck(function: Any, *inputs: Tensor) -> bool:
    """Whether autograd agrees with finite differences."""
    return torch.autograd.gradcheck(function, inputs)


# ------------------------------------------------------------------------------- known answers


def test_kat10_biased_variance_is_the_default_and_unbiased_is_a_choice() -> None:
    values = f64(0, 2, 4, 6).reshape(4, 1, 1, 1)
    mean, biased = moments(values)
    assert (mean.item(), biased.item()) == (3, 5)
    assert moments(values, "unbiased").var.item() == pytest.approx(20 / 3, rel=1e-15)


def test_kat11_value_of_the_statistics_loss() -> None:
    batch = moments(f64(0, 2, 4, 6).reshape(4, 1, 1, 1))
    stored = Moments(f64(0), f64(1))
    assert batchnorm_gap(batch, stored).item() == pytest.approx(7, rel=1e-14)
    loss = statistics_loss([batch], [stored], first_weight=10)
    assert loss.item() == pytest.approx(70, rel=1e-14)
    assert 0.01 * loss.item() == pytest.approx(0.70, rel=1e-14)
    assert statistics_loss([batch, batch], [stored, stored], 10).item() == pytest.approx(77)
    assert batchnorm_gap(batch, stored, "l2_squared").item() == pytest.approx(16 + 9)


def test_kat11_two_channels_give_the_norm_and_not_its_square() -> None:
    batch, stored = Moments(f64(3, 4), f64(1, 2)), Moments(f64(0, 0), f64(1, 2))
    assert batchnorm_gap(batch, stored).item() == 5
    assert batchnorm_gap(batch, stored, "l2_squared").item() == 25


@pytest.mark.parametrize(
    ("ensemble", "value"), [("logits", 0.126928), ("probs", 0.299745), ("loss", 0.355649)]
)
def test_kat14_cross_entropy_of_an_ensemble(ensemble: Ensemble, value: float) -> None:
    logits_MNK = f64([[4, 0]], [[0, 0]])
    loss = ensemble_cross_entropy(logits_MNK, torch.tensor([0]), ensemble)
    assert loss.item() == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize(("classes", "value"), [(10, 2.302585), (200, 5.298317), (1000, 6.907755)])
def test_kat16_chance_is_the_logarithm_of_the_classes(
    ensemble: Ensemble, classes: int, value: float
) -> None:
    logits_MNK = torch.full((3, 2, classes), 1.5, dtype=torch.float64)
    loss = ensemble_cross_entropy(logits_MNK, torch.tensor([0, classes - 1]), ensemble)
    assert loss.item() == pytest.approx(value, abs=5e-7)


def test_kat17_distillation_loss_at_temperature_20() -> None:
    teacher, student = f64([20 * math.log(3), 0]), f64([0, 0])
    assert soft_label_loss(student, teacher, 20).item() == pytest.approx(0.130812, abs=5e-7)
    squared = soft_label_loss(student, teacher, 20, squared=True)
    assert squared.item() == pytest.approx(400 * 0.1308120, abs=4e-4)


@pytest.mark.parametrize(
    ("step", "value"), [(0, 0.25), (1500, 0.213388), (3000, 0.125), (4500, 0.036612)]
)
def test_kat18_cosine_schedule(step: int, value: float) -> None:
    assert cosine_lr(0.25, step, 6000) == pytest.approx(value, abs=5e-7)


# ------------------------------------------------------------------------ statistics of a layer


@given(seeds, st.integers(2, 4), st.integers(1, 3), st.integers(1, 4))
def test_moments_equal_a_loop_over_the_channels(seed: int, n: int, c: int, side: int) -> None:
    features = normal(seed, n, c, side, side)
    for variance, correction in (("biased", 0), ("unbiased", 1)):
        got = moments(features, variance)  # type: ignore[arg-type]
        for channel in range(c):
            values = features[:, channel].flatten().tolist()
            mean = math.fsum(values) / len(values)
            var = math.fsum((v - mean) ** 2 for v in values) / (len(values) - correction)
            assert got.mean[channel].item() == pytest.approx(mean, abs=1e-12)
            assert got.var[channel].item() == pytest.approx(var, abs=1e-12)


def test_moments_of_half_precision_are_taken_in_float32() -> None:
    features = torch.full((2, 1, 64, 64), 300.0).half()  # the sum overflows float16
    mean, var = moments(features)
    assert mean.dtype == var.dtype == torch.float32
    assert (mean.item(), var.item()) == (300, 0)


@given(seeds, st.integers(1, 5))
def test_statistics_loss_is_zero_only_for_equal_statistics(seed: int, channels: int) -> None:
    draw = normal(seed, 4, channels)
    stored = Moments(draw[0], draw[1].square())
    for norm in ("l2", "l2_squared"):
        assert batchnorm_gap(stored, stored, norm).item() == 0
        for other in (
            Moments(draw[2], stored.var),
            Moments(stored.mean, draw[3].square()),
        ):
            assert batchnorm_gap(other, stored, norm).item() > 0


@given(seeds)
def test_statistics_loss_weights_the_first_layer_alone(seed: int) -> None:
    layers = [Moments(*normal(seed + i, 2, 3)) for i in range(6)]
    batch, stored = layers[:3], layers[3:]
    slow = 0.0
    for i in range(3):
        for a, b in zip(batch[i], stored[i], strict=True):
            gap = math.sqrt(math.fsum((p - q) ** 2 for p, q in zip(a, b, strict=True)))
            slow += (10 if i == 0 else 1) * gap
    assert statistics_loss(batch, stored, 10).item() == pytest.approx(slow, rel=1e-12)


def test_statistics_of_other_shapes_are_refused() -> None:
    two, three = Moments(f64(0, 0), f64(1, 1)), Moments(f64(0, 0, 0), f64(1, 1, 1))
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(2,\)"):
        batchnorm_gap(two, three)
    with pytest.raises(ValueError, match="2 layers, got 1"):
        statistics_loss([two], [two, two], 10)


@pytest.mark.parametrize("norm", ["l2", "l2_squared"])
@pytest.mark.parametrize("variance", ["biased", "unbiased"])
def test_gradient_of_the_statistics_loss(norm: Any, variance: Any) -> None:
    stored = Moments(f64(0.1, -0.2), f64(0.5, 2.0))

    def loss(features: Tensor) -> Tensor:
        return statistics_loss([moments(features, variance)], [stored], 10, norm)

    assert gradcheck(loss, normal(3, 3, 2, 2, 2).requires_grad_())


def test_gradient_is_finite_where_the_statistics_agree() -> None:
    features = normal(5, 4, 2, 3, 3).requires_grad_()
    stored = Moments(*(value.detach() for value in moments(features)))
    loss = statistics_loss([moments(features)], [stored], 10)
    (gradient,) = torch.autograd.grad(loss, features)
    assert loss.item() == 0
    assert gradient.isfinite().all()


# ---------------------------------------------------------------------------------- ensembles


def slow_ensemble_loss(logits_MNK: Tensor, labels: Tensor, ensemble: str) -> float:
    """Cross-entropy of an ensemble, one image and one member at a time."""
    losses = []
    for image, label in enumerate(labels.tolist()):
        rows = logits_MNK[:, image].tolist()
        members = len(rows)
        if ensemble == "logits":
            mean = [math.fsum(column) / members for column in zip(*rows, strict=True)]
            losses.append(-math.log(softmax(mean)[label]))
        elif ensemble == "probs":
            losses.append(-math.log(math.fsum(softmax(row)[label] for row in rows) / members))
        else:
            losses.append(-math.fsum(math.log(softmax(row)[label]) for row in rows) / members)
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
@given(seed=seeds, m=st.integers(1, 4), n=st.integers(1, 4), k=st.integers(2, 5))
def test_ensemble_loss_equals_a_loop(ensemble: Ensemble, seed: int, m: int, n: int, k: int) -> None:
    logits_MNK, labels = 3 * normal(seed, m, n, k), torch.arange(n) % k
    got = ensemble_cross_entropy(logits_MNK, labels, ensemble).item()
    assert got == pytest.approx(slow_ensemble_loss(logits_MNK, labels, ensemble), rel=1e-10)
    reverse = ensemble_cross_entropy(logits_MNK.flip(0), labels, ensemble).item()
    assert got == pytest.approx(reverse, rel=1e-12)


@given(seeds, st.integers(1, 4))
def test_loss_of_an_ensemble_is_at_most_the_mean_loss(seed: int, m: int) -> None:
    logits_MNK, labels = 3 * normal(seed, m, 4, 3), torch.tensor([0, 1, 2, 0])
    mean_loss = ensemble_cross_entropy(logits_MNK, labels, "loss").item()
    for ensemble in ("logits", "probs"):
        got = ensemble_cross_entropy(logits_MNK, labels, ensemble).item()
        assert got <= mean_loss + 1e-12
        if m == 1:
            assert got == pytest.approx(mean_loss, rel=1e-12)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_gradient_of_the_ensemble_loss(ensemble: Ensemble) -> None:
    labels = torch.tensor([0, 2])
    assert gradcheck(
        lambda z: ensemble_cross_entropy(z, labels, ensemble), normal(7, 3, 2, 3).requires_grad_()
    )


@given(seeds, st.integers(1, 4))
def test_soft_labels_have_the_probabilities_of_the_ensemble(seed: int, m: int) -> None:
    logits_MNK = 3 * normal(seed, m, 3, 4)
    probs = ensemble_logits(logits_MNK, "probs").exp()
    torch.testing.assert_close(probs, logits_MNK.softmax(-1).mean(0), rtol=1e-12, atol=1e-14)
    mean = ensemble_logits(logits_MNK, "logits")
    torch.testing.assert_close(mean, sum(logits_MNK, torch.zeros(3, 4)) / m, rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------------------------- students


@given(seeds, st.floats(0.5, 20))
def test_distillation_loss_equals_a_loop(seed: int, temperature: float) -> None:
    student, teacher = 5 * normal(seed, 3, 4), 5 * normal(seed + 1, 3, 4)
    slow = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softmax([v / temperature for v in t]), softmax([v / temperature for v in s])
        slow += math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 3
    got = soft_label_loss(student, teacher, temperature).item()
    assert got == pytest.approx(slow, rel=1e-9, abs=1e-13)
    squared = soft_label_loss(student, teacher, temperature, squared=True).item()
    assert squared == pytest.approx(temperature**2 * got, rel=1e-12)


def test_distillation_loss_is_zero_for_the_teacher_itself() -> None:
    logits = normal(2, 3, 4)
    assert soft_label_loss(logits, logits, 20).item() == pytest.approx(0, abs=1e-15)
    shifted = soft_label_loss(logits + 7, logits, 20).item()
    assert shifted == pytest.approx(0, abs=1e-15)


def test_gradient_of_the_distillation_loss() -> None:
    teacher = normal(4, 2, 3)
    assert gradcheck(lambda s: soft_label_loss(s, teacher, 2.0), normal(3, 2, 3).requires_grad_())


@given(seeds)
def test_mixed_loss_equals_a_loop(seed: int) -> None:
    student, kept = normal(seed, 4, 3), normal(seed + 1, 4).sigmoid()
    own, partner = torch.tensor([0, 1, 2, 0]), torch.tensor([2, 1, 0, 0])
    slow = 0.0
    for i, row in enumerate(student.tolist()):
        p, share = softmax(row), kept[i].item()
        slow -= share * math.log(p[int(own[i])]) / 4
        slow -= (1 - share) * math.log(p[int(partner[i])]) / 4
    got = mixed_cross_entropy(student, own, partner, kept).item()
    assert got == pytest.approx(slow, rel=1e-10)


def test_gradient_of_the_mixed_loss() -> None:
    own, partner, kept = torch.tensor([0, 1]), torch.tensor([2, 1]), f64(0.25, 0.5)
    assert gradcheck(
        lambda s: mixed_cross_entropy(s, own, partner, kept), normal(3, 2, 3).requires_grad_()
    )


def test_losses_of_bfloat16_logits_are_float32() -> None:
    logits, labels = torch.zeros(2, 3, 4).bfloat16(), torch.tensor([0, 1, 2])
    for ensemble in ENSEMBLES:
        assert ensemble_cross_entropy(logits, labels, ensemble).dtype == torch.float32
    assert soft_label_loss(logits[0], logits[1], 2).dtype == torch.float32
    assert mixed_cross_entropy(logits[0], labels, labels, torch.ones(3)).dtype == torch.float32


@given(st.floats(1e-3, 10), st.integers(1, 200))
def test_cosine_schedule_falls_from_the_base_rate_towards_zero(lr: float, steps: int) -> None:
    rates = [cosine_lr(lr, step, steps) for step in range(steps + 1)]
    assert rates[0] == lr
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-12 * lr)
