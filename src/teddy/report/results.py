"""What was measured, as small frozen rows; :mod:`teddy.report.records` reads them."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from teddy.core.files import Json
from teddy.settings.stages import TableSettings

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Students trained on one set with one kind of labels; accuracies in percent."""

    name: str
    """Row of ``evaluations``, or of ``sets`` for its own evaluation."""
    set: str
    dataset: str
    data: str
    """Prepared images, which differ from the dataset's where classes are thinned out."""
    keep: tuple[float, float]
    """Bounds of the share of its training images that each class keeps."""
    method: str
    ipc: int
    arch: str
    pool: str
    """Teachers that label."""
    labels: str
    split: str
    """Split of real images that accuracy was measured on."""
    images_held_out: int
    num_classes: int | None
    """None in kept runs from before it was recorded."""
    largest_class: int | None
    """Held-out images of the most frequent class; None in runs from before it was recorded."""
    machine: str | None
    """Processor or GPU and version of PyTorch; None in runs from before it was recorded."""
    epochs: int
    recipe: str | None
    """That students follow, "" for none; None in runs from before it was recorded."""
    n: int
    """Students: seeds of all syntheses."""
    syntheses: int
    """Independent repeats of making, labelling and learning from the set."""
    top1_mean: float
    """Mean over students of the accuracy after the last epoch."""
    top1_std: float
    """Sample standard deviation (n − 1) over syntheses of the mean over their students; of a single
    synthesis that over its students, 0 if there is one."""
    top1_best_mean: float
    """Mean of each student's best epoch, chosen on the same images and therefore optimistic."""
    f1_mean: float
    """Mean over students of the macro-averaged F1 after the last epoch; percent."""
    f1_std: float
    kl_student_teacher: float | None
    """KL(student ‖ teacher), nats; None if it was not measured."""
    kl_teacher_student: float | None
    members: int
    """Teachers that label."""
    pool_size: int
    stages: tuple[int, int] | None
    """First and last epoch of the pool's checkpoints; None for pruned copies."""
    teachers_drawn: int | None
    """At a time for synthesis; None for images that no teacher made."""
    ensemble: str | None
    """What the classifier prior averages; None for images not made by Eq. 7."""
    first_bn_weight: float | None
    precision: str | None
    """Autocast dtype of synthesis; None for images not made by Eq. 7."""
    default: bool
    """Whether Table 1 shows it too, as the figures along an axis mark."""
    init: str | None
    """What synthesis started from; None for real images."""
    image_bytes: int
    """Of the set's uint8 pixels."""
    label_bytes: int
    """Of soft labels, float16: of all epochs, or of one each if fixed; 0 for hard labels."""


Results = Sequence[EvaluationResult]


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """State of a base run after an epoch."""

    epoch: int
    loss: float
    """Mean training loss of the epoch; NaN for a network that was not trained here."""
    val_top1: float
    """Accuracy on the validation split; percent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A base training run."""

    name: str
    dataset: str
    epochs: tuple[Epoch, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A teacher of a pool; what does not apply to its kind is None."""

    index: int
    epoch: int | None
    seed: int | None
    lr: float | None
    finetune_epochs: float | None
    target_top1: float | None
    """Accuracy at which fine-tuning was to stop; percent."""
    val_top1: float
    """Accuracy on the validation split; percent."""
    parameters: int
    macs: int
    """Multiply-accumulates for one image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolFacts:
    """A pool of teachers."""

    name: str
    dataset: str
    base: str
    kind: str
    method: str | None
    """First declared method that makes images by this pool; lends it its colour."""
    members: tuple[Member, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossCurve:
    """The two terms of Eq. 7 during the synthesis of a batch; one entry per recorded iteration."""

    iterations: tuple[int, ...]
    classifier_prior: tuple[float, ...]
    statistics: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """How a synthesised set came about."""

    set: str
    dataset: str
    method: str
    ipc: int
    batches: tuple[LossCurve, ...]

    def mean(self) -> LossCurve:
        """Mean over the batches, which record the same iterations."""
        terms = ("classifier_prior", "statistics")
        means = {
            term: tuple(
                statistics.fmean(values)
                for values in zip(*(getattr(batch, term) for batch in self.batches), strict=True)
            )
            for term in terms
        }
        return LossCurve(iterations=self.batches[0].iterations, **means)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageGrid:
    """Some images of one set."""

    dataset: str
    method: str
    ipc: int
    num_classes: int
    """Classes of the dataset, of which ``class_names`` are those shown."""
    class_names: tuple[str, ...]
    images: NDArray[np.uint8]
    """``(I, K, H, W, C)``: I images of each of the K classes shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperResult:
    """A number printed in the paper, in percent; None where the paper prints "-"."""

    table: str
    dataset: str
    ipc: int | None
    method: str
    arch: str
    metric: str
    mean: float | None
    std: float | None
    delta: float | None
    """Gain over SRe2L as printed; points."""
    downsized: bool
    """Printed with a star: measured on downsized images."""
    keep: str
    """Share of training images that classes keep, as printed in Table 3; else ""."""
    init: str
    """Initialisation of the images, as printed in Table 5; else ""."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a set cost on the machine it was measured on (Fig. 3d)."""

    name: str
    dataset: str
    method: str
    ipc: int
    teachers_drawn: int
    epochs: int
    """Of the base run that its pool needs."""
    pretraining_seconds: float
    synthesis_seconds: float
    peak_mib: float
    """Peak memory of synthesis above the process's start; MiB."""

    @property
    def seconds(self) -> float:
        """Of both together."""
        return self.pretraining_seconds + self.synthesis_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerResult:
    """Continual learning on one set with one kind of labels (Fig. 3e); accuracies in percent."""

    name: str
    dataset: str
    method: str
    ipc: int
    arch: str
    strict: bool
    """Whether teachers only know the classes of their own step."""
    labels: str
    split: str
    epochs: int
    recipe: str | None
    """That students follow, "" for none; None in runs from before it was recorded."""
    orders: int
    """Orders of the classes, each a run."""
    seeds: int
    """Students of each step and order."""
    classes: tuple[int, ...]
    """Seen classes after each step."""
    top1_mean: tuple[float, ...]
    """After each step, on seen classes alone: mean over orders."""
    top1_std: tuple[float, ...]
    """Sample standard deviation over orders of their mean over students; 0 for a single order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A table or figure of a dataset that is kept in ``metrics/reference``, and its origin."""

    settings: TableSettings
    """What it shows, and the names of all of that; so the dataset need not be switched on."""
    date: str
    commit: str
    command: str
    hardware: Json
    results: tuple[EvaluationResult, ...]


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation (n − 1); 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def grouped(rows: Iterable[T], *attributes: str) -> dict[Any, list[T]]:
    """Rows by the value of an attribute (or tuple of several), in order of first appearance."""
    groups: dict[Any, list[T]] = {}
    for row in rows:
        values = tuple(getattr(row, attribute) for attribute in attributes)
        groups.setdefault(values if len(values) > 1 else values[0], []).append(row)
    return groups
