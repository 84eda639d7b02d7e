"""Rows of ``params.yaml``: what is made, of what, and what it is called in tables."""

from typing import Literal

from teddy.settings.configs import Count, Whole, check_epochs
from teddy.settings.schema import check, settings


@settings
class PreparedRow:
    """Prepared images, ``data/prepared/<name>``; further keys override ``prepare``."""

    dataset: str
    """Key of ``datasets``."""


@settings
class BaseRow:
    """A base training run, ``models/<name>``; further keys override ``train_teacher``."""

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``: the images to train on."""


@settings
class PoolRow:
    """A pool of teachers, ``models/<name>``; further keys override ``pool``."""

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``."""
    base: str
    """Key of ``bases``."""
    curve: str
    """Key of ``bases`` whose accuracy curve post members imitate; usually ``base`` itself."""
    kind: Literal["converged", "prior", "post"]
    """The last checkpoint alone (SRe2L), checkpoints of the trajectory, or pruned copies."""


@settings
class SetRow:
    """A distilled set with its labels and score; further keys override ``synthesize``.

    The keys ``relabel`` and ``evaluate`` override those stages for its own labels and score.
    """

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``: real images for random sets, real initialisation and statistics, and
    the test images."""
    method: str
    """Key of ``methods``."""
    pool: str
    """Key of ``pools``: the teachers that make the images and label them."""
    ipc: Count
    """Images per class."""
    repeat: Whole = 0
    """0, which rows need not say, is the experiment's own synthesis; other numbers are repeats, all
    of whose randomness differs."""


@settings
class ScoreRow:
    """Another score of a set: other labels or other students, without another synthesis.

    Its only further keys are ``relabel`` and ``evaluate``, which override those stages.
    """

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``: the test images."""
    set: str
    """Key of ``sets``: the images."""
    pool: str
    """Key of ``pools``: the teachers that label them."""
    members: Whole
    """Label with so many members, evenly spaced over the pool (Fig. 3b); 0 takes all."""
    labels: tuple[Literal["hard", "soft"], ...]
    """Kinds of labels that students are trained with."""

    def __post_init__(self) -> None:
        _check_labels(self.labels)


@settings
class StepTeachersRow:
    """Base runs on the classes of each step of continual learning alone, ``models/<name>``; further
    keys override ``train_teacher``.
    """

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``: the images to train on."""
    checkpoints: tuple[int, ...]
    """1-based epochs whose checkpoints are kept, ascending."""

    def __post_init__(self) -> None:
        check_epochs("checkpoints", self.checkpoints)


@settings
class StreamRow:
    """Continual learning on a set, ``metrics/streams/<name>.json``.

    Its only further keys are ``relabel`` and ``evaluate``, which override those stages; what its
    set overrides of them does not hold here.
    """

    dataset: str
    """Key of ``datasets``."""
    data: str
    """Key of ``prepared``: the test images, and real ones for strict teachers."""
    set: str
    """Key of ``sets``: the images, or how they are made by strict teachers."""
    pool: str
    """Key of ``pools``: the teachers that label, or the epochs of strict ones."""
    teachers: str
    """``pool`` itself (paper-like), or a key of ``step_teachers`` (strict)."""
    labels: tuple[Literal["hard", "soft"], ...]
    """Kinds of labels that students are trained with."""

    def __post_init__(self) -> None:
        _check_labels(self.labels)

    @property
    def strict(self) -> bool:
        """Whether teachers only know the classes of their own step."""
        return self.teachers != self.pool


@settings
class Evaluation:
    """What a score is of: a row of ``scores``, or the default score of a row of ``sets``."""

    name: str
    """The row, and the path of its record in ``metrics/runs``."""
    dataset: str
    data: str
    set: str
    method: str
    ipc: Count
    pool: str
    members: Whole
    labels: tuple[Literal["hard", "soft"], ...]


def _check_labels(labels: tuple[str, ...]) -> None:
    check(
        len(labels) == len(set(labels)) > 0,
        f"labels must be hard, soft or both, got {list(labels)}",
    )


@settings
class MethodRow:
    """A line of the tables."""

    title: str
    """Name shown in tables and figures."""
    images: Literal["synthesised", "random", "dm"]
    """Optimised by Eq. 7, a random subset of the training images, or distribution matching."""
    labels: tuple[Literal["hard", "soft"], ...]
    """Kinds of labels that students are trained with."""
    paper: str
    """Name of the method in the paper's tables, or "" if it is not there."""

    def __post_init__(self) -> None:
        _check_labels(self.labels)


@settings
class DatasetRow:
    """Facts about a dataset that no stage depends on."""

    title: str
    """Name shown in tables and figures."""
    paper: str
    """Name of the dataset in the paper's tables, or "" if it is not there."""


ROWS: dict[str, tuple[type, str, tuple[str, ...]]] = {
    "prepared": (PreparedRow, "prepare", ()),
    "bases": (BaseRow, "train_teacher", ()),
    "pools": (PoolRow, "pool", ()),
    "sets": (SetRow, "synthesize", ("relabel", "evaluate")),
    "scores": (ScoreRow, "", ("relabel", "evaluate")),
    "step_teachers": (StepTeachersRow, "train_teacher", ()),
    "streams": (StreamRow, "", ("relabel", "evaluate")),
}
"""Sections of rows: their type, the stage that further keys override, and the stages that keys of
their own names override."""
