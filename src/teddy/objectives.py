"""One pure function per equation of the synthesis objective (Eq. 7) and of student training.

Dimensions: ``M`` teachers, ``N`` images, ``K`` classes, ``C`` channels of a layer, ``H W`` pixels.
All losses are computed in float32 or wider, whatever the networks ran in.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Moments(NamedTuple):
    """Per-channel statistics of a layer's input, each ``(C,)`` in activation units."""

    mean: Tensor
    var: Tensor


def moments(features: Tensor, variance: Literal["biased", "unbiased"] = "biased") -> Moments:
    """Mean and variance over images and pixels, in one pass and without a copy.

    Args:
        features: ``(N, C, H, W)``.
        variance: divide by n, as SRe2L's loss does, or by n − 1, as BatchNorm's buffers do.
    """
    correction = 0 if variance == "biased" else 1
    var, mean = torch.var_mean(_wide(features), dim=(0, 2, 3), correction=correction)
    return Moments(mean, var)


def batchnorm_gap(
    batch: Moments, stored: Moments, norm: Literal["l2", "l2_squared"] = "l2"
) -> Tensor:
    """Distance of a batch's statistics from those a BatchNorm layer stored: one term of Eq. 7.

    Args:
        batch: statistics of the synthetic batch.
        stored: the layer's running mean and variance; PyTorch's variance is the unbiased one.
        norm: un-squared L2 over channels (SRe2L's code, §8-3) or squared.

    Returns:
        Scalar ≥ 0; grows with C because norms are not averaged.

    Raises:
        ValueError: the two have different channel counts.
    """
    if batch.mean.shape != stored.mean.shape:
        got, want = batch.mean.shape, stored.mean.shape
        raise ValueError(f"expected statistics of shape {tuple(want)}, got {tuple(got)}")
    gaps = (batch.mean - stored.mean, batch.var - stored.var)
    if norm == "l2_squared":
        return torch.stack([gap.square().sum() for gap in gaps]).sum()
    return torch.stack([torch.linalg.vector_norm(gap) for gap in gaps]).sum()


def statistics_loss(
    batch: Sequence[Moments],
    stored: Sequence[Moments],
    first_weight: float,
    norm: Literal["l2", "l2_squared"] = "l2",
) -> Tensor:
    """R_BN of one teacher (Eq. 7): the layers' gaps summed, the first one weighted.

    Args:
        batch: statistics of the synthetic batch, one pair of ``(C,)`` per BatchNorm layer.
        stored: what is matched, likewise and in the same order.
        first_weight: weight of the first layer (§8-5).
        norm: as for :func:`batchnorm_gap`.

    Returns:
        Scalar ≥ 0.

    Raises:
        ValueError: different numbers of layers, or of channels in one.
    """
    if len(batch) != len(stored):
        raise ValueError(f"expected statistics of {len(stored)} layers, got {len(batch)}")
    gaps = [batchnorm_gap(b, s, norm) for b, s in zip(batch, stored, strict=True)]
    return first_weight * gaps[0] + sum(gaps[1:], torch.zeros_like(gaps[0]))


def ensemble_cross_entropy(
    logits_MNK: Tensor, labels: Tensor, ensemble: Literal["logits", "probs", "loss"]
) -> Tensor:
    """Classifier prior of Eq. 7: cross-entropy of the ensemble, mean over images.

    Args:
        logits_MNK: ``(M, N, K)``.
        labels: int64 ``(N,)``.
        ensemble: average logits (default of §8-7), probabilities, or the members' losses.
            CE(mean logits) and CE(mean probs) are both at most the mean loss.
    """
    logits_MNK = _wide(logits_MNK)
    if ensemble == "logits":
        return functional.cross_entropy(logits_MNK.mean(0), labels)
    log_probs_MNK = logits_MNK.log_softmax(-1)
    if ensemble == "probs":
        log_mean = log_probs_MNK.logsumexp(0) - math.log(len(logits_MNK))
        return functional.nll_loss(log_mean, labels)
    members = log_probs_MNK.shape[0]
    return functional.nll_loss(log_probs_MNK.flatten(0, 1), labels.repeat(members))


def ensemble_logits(logits_MNK: Tensor, ensemble: Literal["logits", "probs"]) -> Tensor:
    """Soft label of a pool as logits ``(N, K)``: mean logits, or log of mean probabilities."""
    logits_MNK = _wide(logits_MNK)
    if ensemble == "logits":
        return logits_MNK.mean(0)
    return logits_MNK.log_softmax(-1).logsumexp(0) - math.log(len(logits_MNK))


def pool_class_statistics(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a set in which every class weighs the same, from each class's
    own (§8-21, variant B).

    The mean is mean_c mu_c, the variance mean_c(var_c + mu_c^2) - mean^2. These are the direct
    statistics of a balanced set, and the class-balanced target for an imbalanced one.

    Args:
        means: mean of each feature in each class, (C, d).
        variances: biased variance, likewise, (C, d).

    Returns:
        Mean and biased variance, each (d,).

    Raises:
        ValueError: not (C, d), or two shapes.
    """
    if means.ndim != 2 or variances.shape != means.shape:
        raise ValueError(
            "expected means and variances (C, d) of one shape, got "
            f"{tuple(means.shape)} and {tuple(variances.shape)}"
        )
    # Within-class plus between-class variance: the same number without subtracting two large ones.
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


def soft_label_loss(
    student: Tensor, teacher: Tensor, temperature: float, *, squared: bool = False
) -> Tensor:
    """KL(softmax(teacher/τ) ‖ softmax(student/τ)), mean over images (§4.4).

    Args:
        student: logits ``(N, K)``.
        teacher: logits ``(N, K)``.
        temperature: τ; 20 in SRe2L and its family.
        squared: multiply by τ², as SRe2L's Tiny-ImageNet code does and its ImageNet code does not.
    """
    target = (_wide(teacher) / temperature).log_softmax(-1)
    prediction = (_wide(student) / temperature).log_softmax(-1)
    loss = functional.kl_div(prediction, target, reduction="batchmean", log_target=True)
    return loss * temperature**2 if squared else loss


def mixed_cross_entropy(
    student: Tensor, labels: Tensor, partner_labels: Tensor, kept: Tensor
) -> Tensor:
    """Hard-label loss of CutMixed images: λ·CE(own) + (1−λ)·CE(partner), mean over images.

    Args:
        student: logits ``(N, K)``.
        labels: int64 ``(N,)`` of the images themselves.
        partner_labels: int64 ``(N,)`` of the images that boxes were pasted from.
        kept: λ, float ``(N,)``: share of each image that is its own.
    """
    student = _wide(student)
    own = functional.cross_entropy(student, labels, reduction="none")
    partner = functional.cross_entropy(student, partner_labels, reduction="none")
    return (kept * own + (1 - kept) * partner).mean()


def cosine_lr(lr: float, step: int, steps: int) -> float:
    """Rate lr · ½(1 + cos(π·step/steps)), ``step`` counted from 0."""
    return lr * 0.5 * (1 + math.cos(math.pi * step / steps))


def smallest_crop(final: float, curriculum: str, progress: Tensor) -> Tensor:
    """Smallest area fraction of a crop, from 1 (easy) down to ``final`` (hard), by CDA.

    Args:
        final: the fraction from the milestone on.
        curriculum: ``cosine``, ``linear`` or ``step``, which keeps 1 until the milestone.
        progress: iterations, counted from 0, over those until the milestone; any shape.

    Returns:
        Of the shape of ``progress``.

    Source: Yin & Shen, "Dataset distillation via curriculum data synthesis in large data era" (TMLR
    2024), and the authors' code.
    """
    left = {
        "cosine": 0.5 * (1 + (math.pi * progress).cos()),
        "linear": 1 - progress,
        "step": torch.ones_like(progress),
    }[curriculum]
    return final + (1 - final) * torch.where(progress < 1, left, 0.0)


def _wide(x: Tensor) -> Tensor:
    """float32, or float64 where it came in as that."""
    return x if x.dtype == torch.float64 else x.float()
