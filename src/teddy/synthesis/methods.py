"""How images are optimised, whatever the method: the iterations of an item, the items of a set.

A method is a subclass of :class:`ImageMaker` that says how it starts and what it does in a step.

Dimensions: ``N`` images of an item, ``C H W`` image shape, ``K`` classes, ``T`` terms of a loss.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, NoReturn, TypeVar

import torch
from torch import Tensor

from teddy.core.artifacts import WorkDir, read_tensors, write_tensors
from teddy.core.distributed import leave_to_first, world_size
from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.core.memory import OutOfMemory, memory_watch
from teddy.core.runtime import (
    append_log,
    for_each,
    log,
    peak_mib,
    progress,
    save_interval,
    workers_for,
)
from teddy.core.seeding import stream
from teddy.data.datasets import ImageDataset, select_random
from teddy.settings.configs import SynthesizeConfig
from teddy.synthesis.batches import Item, Place, join_items
from teddy.synthesis.engine.lanes import Lane, Lanes, Turn
from teddy.teachers.optimizers import Optimizer, restore

CHECK_EVERY = 50
"""Iterations between looks at the losses, each a host–device sync."""

_KIND, _RESUME_KIND = "teddy.item.v2", "teddy.item-state.v3"
_FINITE_KIND = "teddy.item-images.v1"
_CURVE_POINTS = 100

_T = TypeVar("_T")


@dataclass(slots=True)
class ItemRun:
    """An item being optimised, and how it is saved and continued."""

    images: Tensor
    optimizer: Optimizer
    losses: Tensor
    """``(iterations, …)``, a row per iteration."""
    kept: Json = field(default_factory=dict)
    """What was chosen for it that its bytes depend on; recorded with the set."""
    lane: Lane = field(default_factory=Lane)

    def save(self, path: Path, done: int) -> None:
        """Write a resume point: everything the next iteration needs."""
        tensors = {"images": self.images, "losses": self.losses}
        tensors |= {f"optimizer.{i}": value for i, value in enumerate(self.optimizer.state())}
        record: Json = {"done": done, "kept": self.kept}
        write_tensors(path, tensors, kind=_RESUME_KIND, record=record)

    def restore(self, path: Path) -> int:
        """Continue from a file, in place; the number of iterations that are done."""
        tensors, record = read_tensors(path, kind=_RESUME_KIND)
        with torch.no_grad():
            self.images.copy_(tensors["images"])
            self.losses.copy_(tensors["losses"])
        state = [tensors[f"optimizer.{i}"] for i in range(len(self.optimizer.state()))]
        restore(self.optimizer, state)
        self.kept = record["kept"]
        return int(record["done"])

    def speed(self, iterations: int, seconds: float) -> Json:
        """How it ran; iterations of an earlier, interrupted run are not counted."""
        rate = iterations / seconds if seconds else 0.0
        return {
            "images": len(self.images),
            "iterations": iterations,
            "ms_per_iteration": round(1e3 * seconds / max(1, iterations), 3),
            "images_per_second": round(rate * len(self.images), 1),
            "peak_mib": round(peak_mib(), 1),
            "items_at_a_time": self.lane.beside + 1,
        }


class ImageMaker(ABC):
    """A method that optimises images item by item: Eq. 7, or distribution matching.

    Args:
        config: of the synthesize stage.
        data: where real images come from, and what images are like.
        seed: experiment seed.
        device: where to work.
    """

    terms: ClassVar[tuple[str, ...]]
    """Names of what :meth:`combine` gives."""
    rate: ClassVar[str]
    """Setting that is too large where a loss is not finite."""

    def __init__(
        self, config: SynthesizeConfig, data: ImageDataset, seed: int, device: torch.device
    ) -> None:
        self.config, self.data, self.seed, self.device = config, data, seed, device
        self.facts: Json = {}
        """How the item ran that was finished last: speed, memory, and what :meth:`how` says."""
        self.kept: Json = {}
        """Its :attr:`ItemRun.kept`."""
        self._lanes: set[int] = set()

    @abstractmethod
    def items(self, ipc: int) -> list[Item]:
        """Items of a set of ``ipc`` images per class; together they have every image."""

    @abstractmethod
    def load(self, items: Sequence[Item]) -> None:
        """Load what the items need, once for all of them."""

    @abstractmethod
    def begin(self, item: Item, images: Tensor) -> ItemRun:
        """A run of its images before the first step: optimiser, and zeros for the losses."""

    @abstractmethod
    def steps(self, item: Item, run: ItemRun, iterations: range) -> Iterator[Tensor]:
        """Per iteration, leave the images' gradient in their ``grad`` and yield the losses.

        They stay on the device: an iteration must not wait for it. If memory is exhausted, this is
        asked again, beginning with the same iteration.
        """

    @abstractmethod
    def lr(self, iteration: int) -> float:
        """Learning rate of an iteration."""

    def free(self, lanes: Callable[[int], bool]) -> bool:
        """Give back memory that is held for later in lanes of such numbers; whether there was any.

        Nothing may depend on it but speed.
        """
        return False

    def smaller(self, run: ItemRun) -> str:
        """Let a run that has all memory for itself go on with less; how, or nothing if it cannot.

        May change rounding; what it changes is noted in ``run.kept``.
        """
        return ""

    def combine(self, losses: Tensor) -> Tensor:
        """Terms ``(…, T)`` of the loss, of rows that :meth:`steps` yields; they add up to it."""
        return losses

    def blame(self, item: Item, iteration: int, losses: Tensor) -> str:
        """What a row of losses that is not finite tells about its cause, for the error."""
        return ""

    def how(self, run: ItemRun) -> Json:
        """Facts of a finished run that are the method's own."""
        return {}

    def record(self, item: Item, curve: Tensor, kept: Json) -> Json:
        """What a set's record says of an item; ``kept`` is :attr:`ItemRun.kept`."""
        return curve_record(item, curve, ("iteration", *self.terms)) | kept

    def initial_images(self, item: Item) -> Tensor:
        """Images before the first step, normalised float32 ``(N, C, H, W)`` on the CPU.

        ``noise`` is N(0, 1) of each image's own stream; ``real`` are the images that the random
        baseline selects.
        """
        data = self.data
        if self.config.initialise == "real":
            chosen = select_random(data.train.labels, data.num_classes, item.indices, self.seed)
            pixels = data.train.pick(chosen[:, list(item.classes)].flatten())
            return data.normalisation.apply(pixels)
        return torch.stack(
            [
                torch.randn(data.image_shape, generator=stream(self.seed, "noise", label, index))
                for index in item.indices
                for label in item.classes
            ]
        )

    def run(
        self,
        item: Item,
        resume: Path,
        save_every_seconds: float | None = None,
        place: Place | None = None,
    ) -> dict[str, Tensor]:
        """Do :meth:`advance` to the end, with nothing beside it."""
        steps = self.advance(item, resume, save_every_seconds, place)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                finished: dict[str, Tensor] = end.value
                return finished

    def advance(
        self,
        item: Item,
        resume: Path,
        save_every_seconds: float | None = None,
        place: Place | None = None,
        lane: Lane | None = None,
    ) -> Generator[Turn, None, dict[str, Tensor]]:
        """Optimise one item, a step per iteration, continuing from ``resume`` if it exists.

        How it ran is left in :attr:`facts`.

        Args:
            item: what to optimise.
            resume: file for unfinished work.
            save_every_seconds: least time between two writes of it; None asks the environment.
            place: of the item among others, for the progress bar; None for no bar.
            lane: where it runs.

        Returns:
            ``images`` uint8 ``(N, C, H, W)`` ordered by index, then class, and ``curve`` float32
            ``(points, 1 + T)``: iteration, terms of the loss.

        Raises:
            TeddyError: a loss is not finite; names the item and the step, and where the last finite
                images are.
        """
        normalisation, shown, place = self.data.normalisation, place is not None, place or Place()
        save_every = save_interval() if save_every_seconds is None else save_every_seconds
        lane = lane or Lane()
        self._lanes.add(lane.number)
        run = yield from self._patient(lambda: self._begun(item, lane), item, lane, lambda: "")
        images = run.images
        start, total = run.restore(resume) if resume.exists() else 0, len(run.losses)
        finite, finite_at = images.detach().clone(), start
        low, high = normalisation.bounds(self.device)
        steps: Iterator[Tensor] | None = None

        def take() -> Tensor:
            nonlocal steps
            if steps is None:
                steps = self.steps(item, run, range(iteration, total))
            try:
                return next(steps)
            except BaseException:
                steps, images.grad = None, None
                raise

        began = saved = time.monotonic()
        title, row = place.title(item), run.lane.number
        with progress(total, title, "it", start, row, shown=shown) as bar:
            for iteration in range(start, total):
                run.losses[iteration] = yield from self._patient(
                    take, item, lane, lambda: self.smaller(run)
                )
                run.optimizer.step(self.lr(iteration))
                if self.config.clip:
                    with torch.no_grad():
                        torch.clamp(images, low, high, out=images)
                done = iteration + 1
                if done % CHECK_EVERY == 0 or done == total:
                    bad = first_non_finite(run.losses[finite_at:done])
                    if bad is not None:
                        self._refuse(item, finite_at + bad, run.losses, resume, finite, finite_at)
                    if not images.detach().isfinite().all():  # of a finite loss's gradient
                        self._refuse(item, done - 1, run.losses, resume, finite, finite_at)
                    finite.copy_(images.detach())
                    finite_at = done
                    place.show(bar, done, start, total, len(images), began)
                    if time.monotonic() - saved >= save_every:
                        run.save(resume, done)
                        saved = time.monotonic()
                yield Turn.DONE
        self.facts = {**self.how(run), **run.speed(total - start, time.monotonic() - began)}
        self.kept = run.kept
        self._lanes.discard(lane.number)
        pixels = normalisation.to_uint8(images.detach())
        return {"images": pixels.cpu(), "curve": thin(self.combine(run.losses.cpu()))}

    def _begun(self, item: Item, lane: Lane) -> ItemRun:
        run = self.begin(item, self.initial_images(item).to(self.device).requires_grad_())
        run.lane = lane
        return run

    def _patient(
        self, work: Callable[[], _T], item: Item, lane: Lane, smaller: Callable[[], str]
    ) -> Generator[Turn, None, _T]:
        """Do work that leaves nothing behind where memory does not suffice.

        It is tried again without what other items have left behind, then when fewer items run, then
        in a smaller way.

        Raises:
            TeddyError: memory is exhausted by this item alone.
        """
        while True:
            try:
                with memory_watch():
                    return work()
            except OutOfMemory as error:
                reason = str(error)
            # Outside the handler, which holds on to the tensors of what failed.
            if self.free(lambda number: number not in self._lanes):
                continue
            self.free(lambda number: True)
            if lane.beside:
                yield Turn.CROWDED
            elif how := smaller():
                log(f"synthesize: no memory left for {item.name}, which goes on {how}")
            else:
                raise TeddyError(
                    f"synthesize: no memory left for {item.name} ({reason}); take fewer images at "
                    "a time by synthesize.classes_per_batch or indices_per_batch"
                )

    def _refuse(
        self, item: Item, at: int, losses: Tensor, resume: Path, finite: Tensor, finite_at: int
    ) -> NoReturn:
        """Refuse a loss that is not finite, or images after a finite one; leave the images of the
        last look beside ``resume``.
        """
        row = losses[at].cpu()
        value, what, blame = float(self.combine(row).sum()), "images are not finite by", ""
        if not math.isfinite(value):
            what, blame = f"loss is {value} at", self.blame(item, at, row)
        path = resume.with_suffix(".last-finite.safetensors")
        write_tensors(path, {"images": finite}, kind=_FINITE_KIND, record={"iterations": finite_at})
        raise TeddyError(
            f"synthesize: {what} iteration {at + 1} of {item.name}{blame}; the images "
            f"after iteration {finite_at} are in {path}; try a smaller {self.rate}"
        )


def synthesise(maker: ImageMaker, ipc: int, work: WorkDir) -> tuple[Tensor, Tensor, list[Json]]:
    """All items of a set, skipping those finished in ``work``; only the first process returns.

    Returns:
        uint8 images ``(ipc·K, C, H, W)`` and int64 labels, ordered by index, then class; and per
        item its name, loss curve and whatever else the maker records.
    """
    items, lanes = maker.items(ipc), Lanes(maker.device)
    paths = [work / f"item-{item.group:04d}-{item.chunk:04d}.safetensors" for item in items]
    workers = workers_for(len(items), maker.device)

    def load() -> None:
        maker.load([item for item, path in zip(items, paths, strict=True) if not path.exists()])

    def place() -> Place:
        done = sum(path.exists() for path in paths)
        at_a_time = world_size() * (workers if workers > 1 else lanes.limit)
        return Place(done, len(items), math.ceil((len(items) - done) / at_a_time) - 1)

    def finish(index: int, lane: Lane) -> Iterator[Turn]:
        path, item = paths[index], items[index]
        if path.exists():
            return
        resume = path.with_suffix(".resume")
        result = yield from maker.advance(item, resume, place=place(), lane=lane)
        write_tensors(path, result, kind=_KIND, record=maker.kept)
        resume.unlink(missing_ok=True)
        append_log("synthesize-items", {"work": work.path.name, "item": item.name, **maker.facts})

    def together(indices: Sequence[int]) -> None:
        lanes.run(partial(finish, index) for index in indices)

    for_each(len(items), lambda index: together([index]), maker.device, load, together)
    leave_to_first()
    results = [read_tensors(path, kind=_KIND) for path in paths]
    images = join_items(items, [tensors["images"] for tensors, _ in results], ipc)
    records = [
        maker.record(item, tensors["curve"], kept)
        for item, (tensors, kept) in zip(items, results, strict=True)
    ]
    labels = torch.arange(maker.data.num_classes).repeat(ipc)
    return images, labels, records


def curve_record(item: Item, curve: Tensor, columns: tuple[str, ...]) -> Json:
    """Name and loss curve of an item; ``columns`` of the curve are the iteration and losses."""
    points = [dict(zip(columns, _rounded(row), strict=True)) for row in curve.tolist()]
    return {"item": item.name, "curve": points}


def _rounded(row: list[float]) -> list[float | int]:
    return [int(row[0]), *(float(f"{value:.5g}") for value in row[1:])]


def thin(losses: Tensor) -> Tensor:
    """At most ``_CURVE_POINTS`` evenly spaced iterations (1-based), the last one included."""
    total = len(losses)
    kept = torch.linspace(0, total - 1, min(total, _CURVE_POINTS)).round().to(torch.int64)
    return torch.cat([(kept + 1)[:, None].float(), losses[kept]], dim=1)


def first_non_finite(losses: Tensor) -> int | None:
    """Row of the first loss that is not finite; the one host–device sync of so many steps."""
    bad = torch.nonzero(~losses.isfinite().all(1))[:1, 0].tolist()
    return bad[0] if bad else None
