"""What makes distilled images: every algorithm is a :class:`Method`, in a file of its own.

Adding one takes a subclass in a file of your own and a row of ``methods`` whose ``algorithm`` names
it, ``path/to/file.py:Name``; ``examples/nearest_to_mean.py`` is one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from teddy.core import user_code
from teddy.core.artifacts import WorkDir
from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.core.seeding import rng
from teddy.data.datasets import ImageDataset, select_random
from teddy.settings.algorithms import ALGORITHMS
from teddy.settings.configs import SmallClasses, ViewConfig
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.engine.runs import optimise_all, run_alone
from teddy.synthesis.engine.state import State
from teddy.teachers.pools import Pool


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What every method may use."""

    data: ImageDataset
    """Real images, and what images are like."""
    seed: int
    """Of this set: everything random is derived from it."""
    device: torch.device
    """Where to work."""
    pool: Pool | None = None
    """Teachers, if the method asks for them by ``by_pool``."""
    training_views: ViewConfig | None = None
    """Augmentation that the teachers were trained with."""
    small_classes: SmallClasses | None = None
    """What to do with a class of fewer real images than are needed; None if none are."""


@dataclass(frozen=True, slots=True)
class Made:
    """A distilled set, as a method returns it."""

    images: Tensor
    """uint8 ``(ipc·K, C, H, W)``."""
    labels: Tensor
    """int64 ``(ipc·K,)``, IPC of every class, ordered by index, then class."""
    records: list[Json]
    """For the set's history: what is worth keeping of every batch, its loss curve say."""
    partition: int = 1
    """Smaller images along a side of each image, which students see enlarged."""


class Method(ABC):
    """An algorithm that makes the images of a distilled set.

    Args:
        config: of type :attr:`Config`.
        given: real images, teachers, seed, device.
    """

    Config: ClassVar[type]
    """Settings: a class of :func:`teddy.settings.schema.settings`."""
    by_pool: ClassVar[bool] = False
    """Whether teachers have a part in the images."""
    real: ClassVar[bool] = False
    """Whether the images are real ones, of which a class must have enough."""

    def __init__(self, config: Any, given: Ingredients) -> None:
        self.config, self.given = config, given
        self.data, self.seed, self.device = given.data, given.seed, given.device

    @abstractmethod
    def make(self, ipc: int, work: WorkDir) -> Made:
        """Make a set of ``ipc`` images per class, in all processes that torchrun started.

        Only the first one returns; :func:`teddy.core.distributed.leave_to_first` ends the others.

        Args:
            ipc: images per class.
            work: folder for unfinished work, which a killed run finds again.
        """


def method_class(name: str) -> type[Method]:
    """The method that a row names, of this package or of the user's own file.

    Raises:
        TeddyError: a class of the user's own is no method.
    """
    if not user_code.is_reference(name):
        module, cls = ALGORITHMS[name].code.split(":")
        found: type[Method] = getattr(import_module(module), cls)
        return found
    made = user_code.load(name)
    if not (isinstance(made, type) and issubclass(made, Method)):
        raise TeddyError(f"{name}: expected a subclass of teddy.synthesis.methods.Method")
    return made


class OptimisedMethod(Method):
    """A method that optimises images batch by batch, in steps.

    The engine (:mod:`teddy.synthesis.engine.runs`) schedules batches, keeps and restores unfinished
    ones, looks at losses and answers exhausted memory; a method says what a step is.
    """

    terms: ClassVar[tuple[str, ...]]
    """Names of what :meth:`combine` gives."""
    rate: ClassVar[str]
    """Setting that is too large where a loss is not finite."""
    size: ClassVar[str] = "its settings"
    """Settings that are too large where memory is exhausted."""

    def __init__(self, config: Any, given: Ingredients) -> None:
        super().__init__(config, given)
        self.kept: Json = {}
        """What was chosen for the batch that was finished last, see :attr:`State.kept`."""
        self.facts: Json = {}
        """How that batch ran: speed, memory, and what :meth:`how` says."""

    def make(self, ipc: int, work: WorkDir) -> Made:
        """Optimise all batches, skipping those finished in ``work``."""
        images, records = optimise_all(self, ipc, work)
        return Made(images, torch.arange(self.data.num_classes).repeat(ipc), records)

    @abstractmethod
    def batches(self, ipc: int) -> list[Batch]:
        """Batches of a set of ``ipc`` images per class; together they have every image."""

    @abstractmethod
    def start(self, batch: Batch, images: Tensor) -> State:
        """A state of its images before the first step: optimiser, and zeros for the losses."""

    @abstractmethod
    def optimise(self, batch: Batch, state: State) -> Iterator[None]:
        """The algorithm, from where the state is; yields after every step.

        A step must not wait for the device. If memory is exhausted within one, this is called
        again.
        """

    def load(self, batches: Sequence[Batch]) -> None:
        """Load what the batches need, once for all of them."""

    def free(self, lanes: Callable[[int], bool]) -> bool:
        """Give back memory that is held for later in lanes of such numbers; whether there was any.

        Nothing may depend on it but speed.
        """
        return False

    def smaller(self, state: State) -> str:
        """Let a batch that has all memory for itself go on with less; how, or "" if it cannot.

        May change rounding; what it changes is noted in ``state.kept``.
        """
        return ""

    def combine(self, losses: Tensor) -> Tensor:
        """Terms ``(…, T)`` of the loss, of rows of the state's losses; they add up to it."""
        return losses

    def blame(self, batch: Batch, step: int, losses: Tensor) -> str:
        """What a row of losses that is not finite tells about its cause, for the error."""
        return ""

    def how(self, state: State) -> Json:
        """Facts of a finished batch that are the method's own."""
        return {}

    def record(self, batch: Batch, curve: Tensor, kept: Json) -> Json:
        """What a set's history says of a batch; ``kept`` is its :attr:`State.kept`."""
        columns = ("iteration", *self.terms)
        points = [dict(zip(columns, _rounded(row), strict=True)) for row in curve.tolist()]
        return {"batch": batch.name, "curve": points} | kept

    def initial_images(self, batch: Batch) -> Tensor:
        """Images before the first step, normalised float32 ``(N, C, H, W)`` on the CPU.

        ``noise`` is N(0, 1), each image its own; ``real`` are the images that the random
        baseline selects.
        """
        data = self.data
        if self.config.initialise == "real":
            chosen = select_random(
                data.train.labels, data.class_names, batch.indices, self.seed,
                self.given.small_classes,
            )  # fmt: skip
            pixels = data.train.pick(chosen[:, list(batch.classes)].flatten())
            return data.normalisation.apply(pixels)
        return torch.stack(
            [
                torch.randn(data.image_shape, generator=rng(self.seed, "noise", label, index))
                for index in batch.indices
                for label in batch.classes
            ]
        )

    def run(
        self, batch: Batch, resume: Path, save_every_seconds: float | None = None
    ) -> dict[str, Tensor]:
        """One batch alone; see :func:`~teddy.synthesis.engine.runs.run_alone`."""
        return run_alone(self, batch, resume, save_every_seconds)


def _rounded(row: list[float]) -> list[float | int]:
    return [int(row[0]), *(float(f"{value:.5g}") for value in row[1:])]
