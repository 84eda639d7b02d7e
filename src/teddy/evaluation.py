"""Distilled set in, test accuracy of fresh networks out (§4.4, appendix D.3)."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from teddy.artifacts import Json
from teddy.config import EvaluateConfig
from teddy.data import LabelledImages
from teddy.labels import Batch, SoftLabels, TrainingViews
from teddy.networks import build
from teddy.objectives import mixed_cross_entropy, soft_label_loss
from teddy.seeding import derive, permutation
from teddy.training import Run, Step, accuracy, equal_parts, fit


def train_student(
    config: EvaluateConfig,
    views: TrainingViews,
    soft: SoftLabels | None,
    held_out: LabelledImages,
    num_classes: int,
    seed: int,
    name: str,
    resume: Path,
) -> Json:
    """Train one fresh student and measure it.

    Args:
        config: network, optimiser and loss.
        views: augmented images of every epoch.
        soft: soft labels, or None for hard labels. Both train on the same views by the same
            recipe; only the loss differs.
        held_out: real images that accuracy is measured on.
        num_classes: K.
        seed: of this student: initialisation and order of the images.
        name: of the run, for progress and errors.
        resume: file that an unfinished run's state is kept in.

    Returns:
        ``top1_last`` (the result), ``top1_best`` and ``best_epoch`` (chosen on ``held_out``,
        optimistic), and the ``curve`` of both loss and accuracy; percent.
    """
    device = views.images.labels.device
    channels, height, width = views.images.images.shape[1:]
    network = build(config.network, (channels, height, width), num_classes, derive(seed, "student"))
    epochs = views.config.epochs

    def after_epoch(epoch: int) -> Json:
        if (epoch + 1) % config.eval_epochs and epoch + 1 < epochs:
            return {}
        return {"top1": accuracy(network, held_out, views.normalisation, config.precision)}

    run = Run(
        name=name,
        seed=seed,
        epochs=epochs,
        steps_per_epoch=math.ceil(len(views) / config.batch_size),
        batches=partial(_batches, config, views, soft, seed),
        after_epoch=after_epoch,
        precision=config.precision,
        resume=resume,
    )
    history = [record for record in fit(network, config.optimizer, run, device) if "top1" in record]
    best = max(history, key=lambda record: (record["top1"], -record["epoch"]))
    return {
        "seed": seed,
        "top1_last": history[-1]["top1"],
        "top1_best": best["top1"],
        "best_epoch": best["epoch"],
        "curve": history,
    }


def _batches(
    config: EvaluateConfig, views: TrainingViews, soft: SoftLabels | None, seed: int, epoch: int
) -> Iterator[Step]:
    device = views.images.labels.device
    order = permutation(len(views), seed, "student order", epoch).to(device)
    parts = equal_parts(order, config.batch_size)
    logits = soft.epoch(epoch) if soft else None
    for part, batch in zip(parts, views.batches(epoch, parts), strict=True):
        if logits is None:
            yield batch.inputs, partial(_hard_loss, batch)
        else:
            yield batch.inputs, partial(_soft_loss, config, logits[part])


def _hard_loss(batch: Batch, outputs: Tensor) -> Tensor:
    return mixed_cross_entropy(outputs, batch.labels, batch.partner_labels, batch.kept)


def _soft_loss(config: EvaluateConfig, teacher: Tensor, outputs: Tensor) -> Tensor:
    return soft_label_loss(outputs, teacher, config.temperature, squared=config.temperature_squared)


def mean_and_std(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n − 1; 0 for a single value)."""
    tensor = torch.tensor(values, dtype=torch.float64)
    std = tensor.std().item() if len(values) > 1 else 0.0
    return tensor.mean().item(), std
