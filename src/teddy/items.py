"""The items that a distilled set is cut into: what they are, how they are kept and put together.

An item is a group of IPC indices × a chunk of classes. It has its own random streams, so its images
do not depend on which other items exist, on their order or on which process optimises it.

Dimensions: ``N`` images of an item, ``C H W`` image shape, ``K`` classes.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from teddy.artifacts import Json, WorkDir, read_tensors, write_tensors
from teddy.data import ImageDataset, select_random
from teddy.distributed import leave_to_first, world_size
from teddy.optimizers import Optimizer, restore
from teddy.runtime import append_log, for_each, peak_mib, workers_for
from teddy.seeding import stream
from teddy.settings import SynthesizeConfig

CHECK_EVERY = 50
"""Iterations between looks at the losses, each a host–device sync."""

_KIND, _RESUME_KIND = "teddy.item.v2", "teddy.item-state.v2"
_CURVE_POINTS = 100


@dataclass(frozen=True, slots=True)
class Item:
    """One independent optimisation: some IPC indices of some classes."""

    group: int
    """Which group of IPC indices; teachers are drawn once for it."""
    chunk: int
    """Which chunk of classes."""
    indices: range
    classes: range

    @property
    def name(self) -> str:
        """Named in progress, errors and files."""
        return f"indices {self.indices[0]}-{self.indices[-1]}, classes " + (
            f"{self.classes[0]}-{self.classes[-1]}"
        )

    def labels(self) -> Tensor:
        """Class of every image, ordered by index, then class; int64 ``(N,)``."""
        return torch.tensor(self.classes).repeat(len(self.indices))


def cut_items(ipc: int, num_classes: int, config: SynthesizeConfig) -> list[Item]:
    """Items of a set. The last group is synthesised whole and cut to ``ipc`` afterwards, so that
    an image does not depend on how many are asked for.
    """
    size, width = config.indices_per_batch, config.classes_per_batch
    return [
        Item(
            group,
            chunk,
            range(group * size, (group + 1) * size),
            range(chunk * width, min((chunk + 1) * width, num_classes)),
        )
        for group in range(math.ceil(ipc / size))
        for chunk in range(math.ceil(num_classes / width))
    ]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item stands among those of a set, for who watches."""

    finished: int = 0
    total: int = 1
    ahead: int = 0
    """Further items that this process has to wait for."""

    def title(self, item: Item) -> str:
        """Label of the progress bar."""
        return f"synthesize {self.finished}/{self.total} items, now {item.name}"

    def show(
        self, bar: "tqdm[Any]", done: int, start: int, iterations: int, images: int, began: float
    ) -> None:
        """Move the bar; add images per second, and the time until all items are finished."""
        rate = (done - start) / max(time.monotonic() - began, 1e-9)
        left = (iterations - done + self.ahead * iterations) / rate
        speed = f"{rate * images:.0f} images/s, all in {tqdm.format_interval(left)}"
        bar.set_postfix_str(speed, refresh=False)
        bar.update(done - bar.n)


def initial_images(initialise: str, data: ImageDataset, item: Item, seed: int) -> Tensor:
    """Images before the first step, normalised float32 ``(N, C, H, W)`` on the CPU.

    Args:
        initialise: ``noise``, N(0, 1) of each image's own stream, or ``real``, the images that the
            random baseline selects.
        data: where real images come from.
        item: which images.
        seed: experiment seed.
    """
    if initialise == "real":
        chosen = select_random(data.train.labels, data.num_classes, item.indices, seed)
        return data.normalisation.apply(data.train.pick(chosen[:, list(item.classes)].flatten()))
    return torch.stack(
        [
            torch.randn(data.image_shape, generator=stream(seed, "noise", label, index))
            for index in item.indices
            for label in item.classes
        ]
    )


class ImageMaker(Protocol):
    """A method that optimises images item by item: Eq. 7, or distribution matching."""

    data: ImageDataset
    device: torch.device
    facts: Json
    """How the last item ran: speed, memory, and what :meth:`record` keeps of it."""

    def items(self, ipc: int) -> list[Item]:
        """Items of a set of ``ipc`` images per class; together they have every image."""
        ...

    def load(self, items: Sequence[Item]) -> None:
        """Load what the items need, once for all of them."""
        ...

    def run(
        self,
        item: Item,
        resume: Path,
        save_every_seconds: float | None = None,
        place: Place | None = None,
    ) -> dict[str, Tensor]:
        """``images`` and ``curve`` of one item, continuing from ``resume`` if it exists."""
        ...

    def record(self, item: Item, curve: Tensor, facts: Json) -> Json:
        """What is kept of an item besides its images; ``facts`` holds those of ``KEPT`` names."""
        ...


KEPT = ("gradient",)
"""Facts of an item that its bytes depend on."""


def synthesise(maker: ImageMaker, ipc: int, work: WorkDir) -> tuple[Tensor, Tensor, list[Json]]:
    """All items of a set, skipping those finished in ``work``; only the first process returns.

    Returns:
        uint8 images ``(ipc·K, C, H, W)`` and int64 labels, ordered by index, then class; and per
        item its name, loss curve and whatever else the maker records.
    """
    items = maker.items(ipc)
    paths = [work / f"item-{item.group:04d}-{item.chunk:04d}.safetensors" for item in items]

    def load() -> None:
        maker.load([item for item, path in zip(items, paths, strict=True) if not path.exists()])

    def finish(index: int) -> None:
        path, item = paths[index], items[index]
        if path.exists():
            return
        resume = path.with_suffix(".resume")
        done = sum(other.exists() for other in paths)
        at_a_time = world_size() * workers_for(len(items), maker.device)
        place = Place(done, len(items), math.ceil((len(items) - done) / at_a_time) - 1)
        result = maker.run(item, resume, place=place)
        kept = {name: maker.facts[name] for name in KEPT if name in maker.facts}
        write_tensors(path, result, kind=_KIND, record=kept)
        resume.unlink(missing_ok=True)
        append_log("synthesize-items", {"work": work.path.name, "item": item.name, **maker.facts})

    for_each(len(items), finish, maker.device, before=load)
    leave_to_first()
    results = [read_tensors(path, kind=_KIND) for path in paths]
    images = join_items(items, [tensors["images"] for tensors, _ in results], ipc)
    records = [
        maker.record(item, tensors["curve"], kept)
        for item, (tensors, kept) in zip(items, results, strict=True)
    ]
    labels = torch.arange(maker.data.num_classes).repeat(ipc)
    return images, labels, records


def join_items(items: Sequence[Item], images: Sequence[Tensor], ipc: int) -> Tensor:
    """Images of a set, uint8 ``(ipc·K, C, H, W)`` ordered by index, then class, from its items'."""
    indices = max(item.indices[-1] for item in items) + 1
    classes = max(item.classes[-1] for item in items) + 1
    joined = torch.empty(indices, classes, *images[0].shape[1:], dtype=torch.uint8)
    for item, own in zip(items, images, strict=True):
        block = own.unflatten(0, (len(item.indices), len(item.classes)))
        joined[list(item.indices), item.classes[0] : item.classes[-1] + 1] = block
    return joined[:ipc].flatten(0, 1)


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


@dataclass(slots=True)
class ItemRun:
    """An item being optimised, and how it is saved and continued."""

    images: Tensor
    optimizer: Optimizer
    losses: Tensor
    """``(iterations, …)``, a row per iteration."""
    mode: Literal["", "two_pass", "joint"] = ""
    """How the gradient of Eq. 7 is computed; empty for other methods."""

    def save(self, path: Path, done: int) -> None:
        """Write a resume point: everything the next iteration needs."""
        tensors = {"images": self.images, "losses": self.losses}
        tensors |= {f"optimizer.{i}": value for i, value in enumerate(self.optimizer.state())}
        record: Json = {"done": done, "mode": self.mode}
        write_tensors(path, tensors, kind=_RESUME_KIND, record=record)

    def restore(self, path: Path) -> int:
        """Continue from a file, in place; the number of iterations that are done."""
        tensors, record = read_tensors(path, kind=_RESUME_KIND)
        with torch.no_grad():
            self.images.copy_(tensors["images"])
            self.losses.copy_(tensors["losses"])
        state = [tensors[f"optimizer.{i}"] for i in range(len(self.optimizer.state()))]
        restore(self.optimizer, state)
        self.mode = record["mode"]
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
        }
