"""All that a stage knows of the parameter files: what its ``--settings`` file holds.

The stage ``resolve`` writes one such file for every stage and row, and no other stage reads a
parameter file. So what a stage reads is what DVC watches, and nothing needs to be listed twice.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeVar

from teddy.core.errors import TeddyError
from teddy.core.files import Json, read_json
from teddy.settings.baselines import ExpertsConfig
from teddy.settings.configs import (
    ContinualConfig,
    Count,
    EvaluateConfig,
    PoolConfig,
    PrepareConfig,
    RelabelConfig,
    Seed,
    SmallClasses,
    SynthesizeConfig,
    TrainTeacherConfig,
    Whole,
)
from teddy.settings.rows import DatasetRow, Evaluation, Labels, MethodRow
from teddy.settings.schema import config_keys, from_json, settings
from teddy.settings.theory import Fig1Config, Fig5Config, TheoryConfig

T = TypeVar("T")
Code = dict[str, str]
"""Checksums of what a stage runs: packages of this one, and files of the user's own."""


def read_settings(cls: type[T], path: Path) -> T:
    """The settings of a stage.

    Raises:
        TeddyError: not readable, not of this stage, or of a row that is refused.
    """
    raw = read_json(path)
    refuse_row(raw)
    return from_json(cls, raw, f"{path} (of another stage? run: dvc repro resolve)")


def refuse_row(raw: Json) -> None:
    """Raise a :class:`~teddy.core.errors.TeddyError` if a settings file says why there are none."""
    if raw.keys() == config_keys(Refused):
        raise TeddyError(str(raw["error"]))


@settings
class Stage:
    """What the settings of every stage have."""

    code: Code = dataclasses.field(default_factory=dict)


@settings
class Refused(Stage):
    """In place of the settings of a row that do not fit each other, for any stage."""

    error: str
    """Why, in one line."""


# ------------------------------------------------------------------------- stages that compute


@settings
class Demand:
    """The most real images of a class that any row asks for."""

    row: str
    images: Count
    indices_per_batch: Whole
    """Above 0 where groups of so many indices are made whole."""


@settings
class PrepareSettings(Stage):
    """Of a row of ``prepared``."""

    name: str
    seed: Seed
    where: str
    """File and key that settings of the dataset stand in, for messages."""
    config: PrepareConfig
    demand: Demand | None


@settings
class TrainTeacherSettings(Stage):
    """Of a row of ``bases``."""

    name: str
    seed: Seed
    config: TrainTeacherConfig


@settings
class BuildPoolSettings(Stage):
    """Of a row of ``pools``; of its config, what its kind reads."""

    name: str
    seed: Seed
    kind: Literal["converged", "prior", "post"]
    config: PoolConfig


@settings
class ExpertsSettings(Stage):
    """Of a row of ``experts``."""

    name: str
    seed: Seed
    config: ExpertsConfig


@settings
class SynthesizeSettings(Stage):
    """Of a row of ``sets``."""

    name: str
    seed: Seed
    dataset: str
    method: str
    algorithm: str
    """What makes the images."""
    ipc: Count
    syntheses: Count
    config: dict[str, Any]
    """Settings of the algorithm."""
    small_classes: SmallClasses | None
    """What to do with a class of too few real images; None where none are needed."""


@settings
class RelabelSettings(Stage):
    """Of the labels of a row of ``sets``."""

    name: str
    seed: Seed
    syntheses: Count
    config: RelabelConfig


@settings
class OwnLabels:
    """Labels that a set has: by which pool, and how."""

    pool: str
    relabel: RelabelConfig


@settings
class EvaluateSettings(Stage):
    """Of the students of a set, or of another evaluation of it."""

    evaluation: Evaluation
    seed: Seed
    syntheses: Count
    relabel: RelabelConfig
    own: OwnLabels
    """Those of the set, which serve if they are the same."""
    config: EvaluateConfig


@settings
class StepTeachersSettings(Stage):
    """Of a row of ``step_teachers``."""

    name: str
    seed: Seed
    continual: ContinualConfig
    checkpoints: tuple[Count, ...]
    """Epochs whose checkpoints are kept: those that learners need."""
    config: TrainTeacherConfig


@settings
class ContinualSettings(Stage):
    """Of a row of ``learners``."""

    name: str
    seed: Seed
    dataset: str
    data: str
    set: str
    pool: str
    teachers: str
    method: str
    ipc: Count
    labels: Labels
    strict: bool
    """Whether teachers only know the classes of their own step."""
    epochs: tuple[Count, ...]
    """Of strict teachers; else none."""
    continual: ContinualConfig
    relabel: RelabelConfig
    evaluate: EvaluateConfig
    recipe: str
    """Key of ``recipes`` that holds for these two; "" for none."""
    synthesize: SynthesizeConfig | None
    """Where strict teachers make the images anew."""
    small_classes: SmallClasses | None
    """As of the set."""


@settings
class MeasuredSet:
    """A set whose synthesis is timed."""

    data: str
    pool: str
    ipc: Count
    config: SynthesizeConfig
    small_classes: SmallClasses | None
    """As of the set."""


@settings
class MeasuredPool:
    """A pool whose base run is timed, up to the epoch that the pool needs."""

    base: str
    epochs: Count


@settings
class MeasuredBase:
    """A base run, some epochs of which are timed."""

    data: str
    config: TrainTeacherConfig


@settings
class MeasureCostsSettings(Stage):
    """Of Fig. 3d: what is timed."""

    dataset: str
    seed: Seed
    sets: dict[str, MeasuredSet]
    pools: dict[str, MeasuredPool]
    bases: dict[str, MeasuredBase]


@settings
class Fig1Settings(Stage):
    """Of Figure 1."""

    seed: Seed
    title: str
    config: Fig1Config
    synthesize: SynthesizeConfig


@settings
class Fig5Settings(Stage):
    """Of Figure 5."""

    seed: Seed
    title: str
    config: Fig5Config


@settings
class TheorySettings(Stage):
    """Of the appendix."""

    seed: Seed
    config: TheoryConfig


# ------------------------------------------------------------- stages that show what is recorded


@settings
class Catalogue:
    """Names for the reader, in the order that tables have."""

    datasets: dict[str, DatasetRow]
    methods: dict[str, MethodRow]


@settings
class ShownEvaluation(Evaluation):
    """Students of a set, and what their record does not say."""

    syntheses: Count
    keep: tuple[float, float]
    """Bounds of the share of its training images that each class keeps."""
    default: bool
    """Whether Table 1 shows it too, as the figures along an axis mark."""


@settings
class ShownLearner:
    """Continual learning on a set."""

    name: str
    dataset: str
    data: str
    set: str
    pool: str
    teachers: str
    method: str
    ipc: Count
    labels: Labels
    strict: bool


@settings
class ShownSet:
    """A distilled set."""

    name: str
    dataset: str
    method: str
    ipc: Count
    by_eq7: bool
    """Whether its record has the two terms of Eq. 7."""


@settings
class ShownBase:
    """A base run."""

    name: str
    dataset: str


@settings
class ShownPool:
    """A pool."""

    name: str
    dataset: str
    base: str
    kind: str
    method: str | None
    """First method that synthesises from it; lends it its colour."""


@settings
class TargetSettings(Stage):
    """What the settings of every table and figure of a dataset have."""

    target: str
    dataset: str
    catalogue: Catalogue


@settings
class TableSettings(TargetSettings):
    """Of a table or figure that shows evaluations."""

    evaluations: tuple[ShownEvaluation, ...]


@settings
class LearnersSettings(TargetSettings):
    """Of Fig. 3e."""

    learners: tuple[ShownLearner, ...]


@settings
class SetsSettings(TargetSettings):
    """Of a figure of sets: what they cost, or their images."""

    sets: tuple[ShownSet, ...]


@settings
class OverviewSettings(Stage):
    """Of the table of pools and the curves of training."""

    catalogue: Catalogue
    pools: tuple[ShownPool, ...]
    sets: tuple[ShownSet, ...]
    """Of Table 1: those whose curves are drawn."""
    bases: tuple[ShownBase, ...]
    """Of the pools that these sets are made by."""
    pools_of_sets: tuple[str, ...]


@settings
class ReportSettings(Stage):
    """Of the summary and the page."""

    catalogue: Catalogue
    evaluations: tuple[ShownEvaluation, ...]
    bases: tuple[ShownBase, ...]
    pools: tuple[ShownPool, ...]
