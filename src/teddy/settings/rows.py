"""Rows of the experiment files: what is made, of what, and where it is shown.

A row's name is its path in every folder. Sets, evaluations and learners are named
``<dataset>/<table or figure>/…``, which is where they are shown; ``main`` is Table 1.
"""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Annotated, Literal

from teddy.settings.configs import Count, Whole
from teddy.settings.schema import check, settings, shown

KINDS = ("hard", "fixed", "soft")
"""Labels that students learn from: classes, one soft label for each image, or one for each view; in
the order of tables."""
Labels = tuple[Literal["hard", "fixed", "soft"], ...]
OF_STUDENTS = ("relabel", "evaluate")
"""Sections of labels and students: what a recipe has, and rows override by keys of these names."""


@dataclass(frozen=True, slots=True)
class RowOf:
    """Marks a key that names a row of another section, which must be there."""

    section: str


Data = Annotated[str, RowOf("prepared")]
Base = Annotated[str, RowOf("bases")]
Pool = Annotated[str, RowOf("pools")]
Set = Annotated[str, RowOf("sets")]


def parents(row: type) -> dict[str, str]:
    """Keys of a kind of row that name rows of other sections, and these sections."""
    hints = typing.get_type_hints(row, include_extras=True)
    return {
        field.name: mark.section
        for field in dataclasses.fields(row)
        for mark in getattr(hints[field.name], "__metadata__", ())
        if isinstance(mark, RowOf)
    }


def _check_labels(labels: Labels) -> None:
    check(
        len(labels) == len(set(labels)) > 0,
        f"labels must be some of {', '.join(KINDS)}, each once, got {list(labels)}",
    )


def _check_title(title: str) -> None:
    check(
        title.isprintable() and title.strip() == title != "",
        f"title must be one line of text, without blanks around it; got {shown(title)}",
    )


@settings
class DatasetRow:
    """Facts about a dataset that no result depends on; its settings lie beside them."""

    title: str
    """Name shown in tables and figures."""
    paper: str = ""
    """Name of the dataset in the paper's tables, or "" if it is not there."""

    def __post_init__(self) -> None:
        _check_title(self.title)


@settings
class MethodRow:
    """A line of the tables."""

    title: str
    """Name shown in tables and figures."""
    algorithm: str
    """What makes its images: a name in :data:`~teddy.settings.algorithms.ALGORITHMS`, or a class of
    your own, ``path/to/file.py:Name``."""
    labels: Labels
    """Kinds of labels that students are trained with."""
    paper: str = ""
    """Name of the method in the paper's tables, or "" if it is not there."""

    def __post_init__(self) -> None:
        _check_title(self.title)
        _check_labels(self.labels)


@settings
class PreparedRow:
    """Prepared images, ``data/prepared/<name>``; further keys override ``prepare``."""

    dataset: str
    """Whose settings hold."""


@settings
class BaseRow:
    """A base training run, ``models/<name>``; further keys override ``train_teacher``."""

    data: Data
    """Key of ``prepared``: the images to train on."""


@settings
class ExpertsRow:
    """A pool of experts with their trajectories, ``models/<name>``.

    Further keys override the defaults of :class:`~teddy.settings.baselines.ExpertsConfig`.
    """

    data: Data
    """Key of ``prepared``: the images to train on."""


@settings
class PoolRow:
    """A pool of teachers, ``models/<name>``; further keys override ``pool``."""

    data: Data
    """Key of ``prepared``."""
    base: Base
    """Key of ``bases``."""
    curve: Base
    """Key of ``bases`` whose accuracy curve post members imitate; usually ``base`` itself."""
    kind: Literal["converged", "prior", "post"]
    """The last checkpoint alone (SRe2L), checkpoints of the trajectory, or pruned copies."""


@settings
class SetRow:
    """A distilled set with its labels and its own evaluation.

    Further keys override the settings of its method's algorithm; the keys ``relabel`` and
    ``evaluate`` override those stages for its own labels and students.
    """

    data: Data
    """Key of ``prepared``: real images for random sets, real initialisation and statistics, and
    the test images."""
    method: Annotated[str, RowOf("methods")]
    """Key of ``methods``."""
    pool: Pool
    """Key of ``pools``, or of ``experts`` for methods that match trajectories: the teachers that
    make the images and label them."""
    ipc: Count
    """Images per class."""
    syntheses: Whole = 0
    """How often it is made, labelled and learnt from, with other random numbers every time; 0 takes
    the key ``syntheses`` of params.yaml."""
    recipe: str = ""
    """Key of ``recipes``, for what it does not say itself of its own labels and students; "" takes
    the dataset's."""


@settings
class EvaluationRow:
    """A set evaluated again, with other labels or other students.

    Its only further keys are ``relabel`` and ``evaluate``, which override those stages on top of
    what its set says; of its recipe, if it names one.
    """

    data: Data
    """Key of ``prepared``: the test images."""
    set: Set
    """Key of ``sets``: the images."""
    pool: Pool
    """Key of ``pools``: the teachers that label them."""
    labels: Labels
    """Kinds of labels that students are trained with."""
    members: Whole = 0
    """Label with so many members, evenly spaced over the pool (Fig. 3b); 0 takes all."""
    recipe: str = ""
    """Key of ``recipes``, in place of all that its set says of labels and students; "" keeps
    that."""

    def __post_init__(self) -> None:
        _check_labels(self.labels)


@settings
class StepTeachersRow:
    """Base runs on the classes of each step of continual learning alone, ``models/<name>``.

    Further keys override ``train_teacher``.
    """

    data: Data
    """Key of ``prepared``: the images to train on."""


@settings
class LearnerRow:
    """Continual learning on a set, ``metrics/learners/<name>.json``.

    Its only further keys are ``relabel`` and ``evaluate``, which override those stages; what its
    set overrides of them does not hold here.
    """

    data: Data
    """Key of ``prepared``: the test images, and real ones for strict teachers."""
    set: Set
    """Key of ``sets``: the images, or how they are made by strict teachers."""
    pool: Pool
    """Key of ``pools``: the teachers that label, or the epochs of strict ones."""
    teachers: str
    """``pool`` itself (paper-like), or a key of ``step_teachers`` (strict)."""
    labels: Labels
    """Kinds of labels that students are trained with."""
    recipe: str = ""
    """Key of ``recipes``, for what it does not say itself; "" takes the dataset's."""

    def __post_init__(self) -> None:
        _check_labels(self.labels)

    @property
    def strict(self) -> bool:
        """Whether teachers only know the classes of their own step."""
        return self.teachers != self.pool


@settings
class TargetRow:
    """A table or figure of one dataset: it shows the rows that are named after it, and others."""

    beside: tuple[str, ...] = ()
    """What it shows beside its own rows: rows, or folders of rows, below ``<dataset>/``."""
    after: str = ""
    """Path below ``<dataset>/`` that DVC waits for because of these: a row's record,
    ``main/ipc10/prior.json``, or the folder that all of them lie in."""
    data: Data = ""
    """Of Fig. 3d: key of ``prepared`` that its sets need."""
    converged: Pool = ""
    """Of Fig. 3d: key of ``pools``, SRe2L's."""
    prior: Pool = ""
    """Of Fig. 3d: key of ``pools``, Teddy's."""


ROWS: dict[str, tuple[type, str, tuple[str, ...]]] = {
    "prepared": (PreparedRow, "prepare", ()),
    "bases": (BaseRow, "train_teacher", ()),
    "pools": (PoolRow, "pool", ()),
    "experts": (ExpertsRow, "experts", ()),
    "sets": (SetRow, "algorithm", OF_STUDENTS),
    "evaluations": (EvaluationRow, "", OF_STUDENTS),
    "step_teachers": (StepTeachersRow, "train_teacher", ()),
    "learners": (LearnerRow, "", OF_STUDENTS),
}
"""Sections of rows: their type, the stage that further keys override, and the stages that keys of
their own names override."""


@settings
class Evaluation:
    """What students are trained on: a set under its own labels, or a row of ``evaluations``."""

    name: str
    """The row, and the path of its record in ``metrics/evaluations``."""
    dataset: str
    data: str
    set: str
    method: str
    ipc: Count
    pool: str
    members: Whole
    labels: Labels
    recipe: str = ""
    """Key of ``recipes`` that holds for its labels and students; "" for none."""
