"""Distilled set in, test accuracy of fresh networks out (§4.4, appendix D.3)."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from teddy.core.files import Json
from teddy.core.runtime import autocast
from teddy.core.seeding import derive, permutation
from teddy.data.datasets import LabelledImages
from teddy.data.images import Normalisation
from teddy.objectives import mixed_cross_entropy, soft_label_loss
from teddy.settings.configs import EvaluateConfig, RelabelConfig
from teddy.settings.schema import to_json
from teddy.students.labels import Batch, SoftLabels, TrainingViews
from teddy.teachers.networks import build
from teddy.teachers.training import Run, Step, accuracy, equal_parts, fit, inference_batch


def train_student(
    config: EvaluateConfig,
    views: TrainingViews,
    soft: SoftLabels | None,
    held_out: LabelledImages,
    num_classes: int,
    seed: int,
    name: str,
    resume: Path,
    teachers: Sequence[nn.Module] = (),
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
        teachers: networks whose divergence from the student is measured, none by default.

    Returns:
        ``top1_last`` (the result), ``top1_best`` and ``best_epoch`` (chosen on ``held_out``,
        optimistic), the ``curve`` of both loss and accuracy, and what :func:`measure` finds after
        the last epoch; percent.
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
        **measure(network, held_out, views.normalisation, config.precision, teachers),
    }


def recipe_record(name: str, relabel: RelabelConfig, evaluate: EvaluateConfig) -> Json:
    """What records say of how students were trained.

    Returns:
        ``name`` of the recipe, "" for none, and all settings of ``relabel`` and ``evaluate`` but
        ``store``, on which no student depends.
    """
    own = {key: value for key, value in to_json(relabel).items() if key != "store"}
    return {"name": name, "relabel": own, "evaluate": to_json(evaluate)}


def measure(
    network: nn.Module,
    held_out: LabelledImages,
    normalisation: Normalisation,
    precision: str,
    teachers: Sequence[nn.Module],
) -> Json:
    """Macro-averaged F1 of a student, and its divergence from teachers, on real images.

    Returns:
        ``macro_f1`` in percent (Table 3); with teachers also ``kl_student_teacher`` and
        ``kl_teacher_student``, KL(student ‖ teacher) and KL(teacher ‖ student) in nats at
        temperature 1, means over images and teachers (Fig. 2c; the paper prints no direction).
    """
    device = next(network.parameters()).device
    network.eval()
    predicted, true, forward, backward = [], [], 0.0, 0.0
    with torch.inference_mode():
        for part, labels in held_out.test_batches(inference_batch(held_out.shape)):
            inputs = normalisation.apply(part.to(device)).to(memory_format=torch.channels_last)
            with autocast(device, precision):
                logits = network(inputs)
                by_teachers = [teacher(inputs) for teacher in teachers]
            predicted.append(logits.argmax(1).cpu())
            true.append(labels.cpu())
            student = logits.float().log_softmax(1)
            for own in by_teachers:
                theirs = own.float().log_softmax(1)
                forward += kl_div(theirs, student, reduction="sum", log_target=True).item()
                backward += kl_div(student, theirs, reduction="sum", log_target=True).item()
    found: Json = {"macro_f1": macro_f1(torch.cat(predicted), torch.cat(true))}
    if teachers:
        pairs = len(held_out) * len(teachers)
        found |= {"kl_student_teacher": forward / pairs, "kl_teacher_student": backward / pairs}
    return found


def macro_f1(predicted: Tensor, true: Tensor) -> float:
    """Mean over classes of 2·TP / (2·TP + FP + FN), in percent (Table 3).

    Args:
        predicted: int64 ``(N,)``.
        true: int64 ``(N,)``; every class that occurs in either counts, as 0 where it is never
            predicted right.
    """
    size = int(max(predicted.max(), true.max())) + 1
    right = torch.bincount(true[predicted == true], minlength=size)
    # 2·TP + FP + FN counts every image once where it is predicted and once where it belongs.
    occurs = torch.bincount(predicted, minlength=size) + torch.bincount(true, minlength=size)
    present = occurs > 0
    return 100.0 * (2.0 * right[present] / occurs[present]).mean(dtype=torch.float64).item()


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
