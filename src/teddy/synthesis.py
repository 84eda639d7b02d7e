"""Synthesis: optimise images so that weak teachers see the training set's statistics (Eq. 7).

Work is cut into items: a group of IPC indices × a chunk of classes. An item has its own random
streams, so its images do not depend on which other items exist or on their order.

Dimensions: ``N`` images of an item, ``C H W`` image shape, ``K`` classes, ``M`` drawn teachers.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from teddy.artifacts import Json, WorkDir, read_tensors, write_tensors
from teddy.augmentation import Views, draw_views
from teddy.config import SynthesizeConfig, ViewConfig
from teddy.data import ImageDataset, select_random
from teddy.distributed import leave_to_first, world_size
from teddy.errors import TeddyError
from teddy.frozen import Teacher
from teddy.gradient import (
    Mode,
    OutOfMemory,
    choose_mode,
    combined,
    eq7_gradient,
    losses_of_teachers,
    memory_watch,
)
from teddy.objectives import Moments, cosine_lr
from teddy.optimizers import Adam, Group, restore
from teddy.pool import Pool, draw_teachers
from teddy.runtime import append_log, for_each, log, peak_mib, progress, save_interval, workers_for
from teddy.seeding import stream
from teddy.targets import class_moments
from teddy.theory import pool_class_statistics

_KIND, _RESUME_KIND = "teddy.item.v2", "teddy.item-state.v2"
_FINITE_KIND = "teddy.item-images.v1"
_CHECK_EVERY = 50  # iterations between looks at the losses, each a host–device sync
_VIEW_BLOCK = 64  # shared views drawn at a time; drawing them singly costs more than using them
_CURVE_POINTS = 100

__all__ = ["Item", "Synthesiser", "Teacher", "cut_items", "eq7_gradient", "synthesise"]


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


class Synthesiser:
    """Optimises items with the teachers of one pool.

    Args:
        config: conventions and hyper-parameters.
        pool: where teachers are drawn from.
        data: for real initialisation and class-wise statistics.
        training_views: augmentation that the teachers were trained with.
        seed: experiment seed.
        device: where to work.
    """

    def __init__(
        self,
        config: SynthesizeConfig,
        pool: Pool,
        data: ImageDataset,
        training_views: ViewConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config, self.pool, self.data = config, pool, data
        self.seed, self.device = seed, device
        self._training_views = training_views
        self._teachers: dict[int, Teacher] = {}
        self._class_moments: dict[int, list[Moments]] = {}
        self._modes: dict[tuple[int, ...], Mode] = {}
        self.facts: Json = {}
        """How the last item ran: gradient mode, speed, memory."""

    def load(self, items: Sequence[Item]) -> None:
        """Load and rewrite the teachers that items draw, once for all of them.

        Where they are drawn anew at every iteration, that is the whole pool.
        """
        once = self.config.draw_per == "index"
        members = (
            {m for item in items for m in self.draw(item, 0)} if once else range(len(self.pool))
        )
        for member in sorted(members):
            self._teacher(member)
            if items and self.config.class_statistics != "none":
                self._targets(member, items[0])
        if items:
            self._mode(items[0])  # said once, not by every worker

    def run(
        self,
        item: Item,
        resume: Path,
        save_every_seconds: float | None = None,
        place: "Place | None" = None,
    ) -> dict[str, Tensor]:
        """Optimise one item, continuing from ``resume`` if it exists.

        How it ran is left in :attr:`facts`.

        Args:
            item: what to optimise.
            resume: file for unfinished work.
            save_every_seconds: least time between two writes of it; None asks the environment.
            place: of the item among others, for the progress bar.

        Returns:
            ``images`` uint8 ``(N, C, H, W)``, and ``curve`` float32 ``(points, 3)``: iteration,
            classifier prior, statistics term.

        Raises:
            TeddyError: a loss is not finite; names the item, the step and the teacher, and where
                the last finite images are. Or memory is exhausted.
        """
        config, place = self.config, place or Place()
        save_every = save_interval() if save_every_seconds is None else save_every_seconds
        images = self.initial_images(item).to(self.device).requires_grad_()
        run = _Run(
            images,
            Adam([Group([images], config.weight_decay)], config.betas, config.eps, decoupled=False),
            torch.zeros(config.iterations, 1 + 2 * config.draw, device=self.device),
            self._mode(item),
        )
        start = run.restore(resume) if resume.exists() else 0
        finite, finite_at = images.detach().clone(), start
        labels = item.labels().to(self.device)
        low, high = self.data.normalisation.bounds(self.device)
        views = self._views(item, start)
        began = saved = time.monotonic()
        with progress(config.iterations, place.title(item), "it", start) as bar:
            for iteration in range(start, config.iterations):
                drawn = self.draw(item, iteration)
                run.losses[iteration] = self._gradient(run, labels, next(views), drawn, item)
                run.optimizer.step(cosine_lr(config.lr, iteration, config.iterations))
                if config.clip:
                    with torch.no_grad():
                        torch.clamp(images, low, high, out=images)
                done = iteration + 1
                if done % _CHECK_EVERY == 0 or done == config.iterations:
                    bad = _first_non_finite(run.losses[finite_at:done])
                    if bad is not None:
                        self._refuse(item, finite_at + bad, run.losses, resume, finite, finite_at)
                    finite.copy_(images.detach())
                    finite_at = done
                    place.show(bar, done, start, config.iterations, len(images), began)
                    if time.monotonic() - saved >= save_every:
                        run.save(resume, done)
                        saved = time.monotonic()
        self.facts = self._facts(run, config.iterations - start, time.monotonic() - began)
        pixels = self.data.normalisation.to_uint8(images.detach())
        return {"images": pixels.cpu(), "curve": _curve(combined(run.losses.cpu(), config))}

    def initial_images(self, item: Item) -> Tensor:
        """Images before the first step, normalised float32 ``(N, C, H, W)`` on the CPU."""
        if self.config.initialise == "real":
            chosen = select_random(
                self.data.train.labels, self.data.num_classes, item.indices, self.seed
            )[:, list(item.classes)]
            return self.data.normalisation.apply(self.data.train.pick(chosen.flatten()))
        shape = self.data.image_shape
        return torch.stack(
            [
                torch.randn(shape, generator=stream(self.seed, "noise", label, index))
                for index in item.indices
                for label in item.classes
            ]
        )

    def draw(self, item: Item, iteration: int) -> list[int]:
        """Pool members used at an iteration; the same for all chunks of classes."""
        moment = ("index", item.group)
        if self.config.draw_per == "iteration":
            moment = ("iteration", item.group, iteration)  # type: ignore[assignment]
        return draw_teachers(len(self.pool), self.config.draw, self.seed, *moment)

    def _mode(self, item: Item) -> Mode:
        """Mode of the gradient; ``auto`` decides by the teachers of the first iteration."""
        if self.config.gradient != "auto":
            return self.config.gradient
        teachers = tuple(self.draw(item, 0))
        key = (*teachers, len(item.labels()))
        if key not in self._modes:
            shape = (len(item.labels()), *self.data.image_shape)
            view = torch.zeros(shape, device=self.device).to(memory_format=torch.channels_last)
            try:
                with memory_watch():
                    mode = choose_mode(view, [self._teacher(m) for m in teachers], self.config)
            except OutOfMemory:
                mode = "two_pass"
            if len(teachers) > 1 and mode not in self._modes.values():
                log(f"synthesize: gradient of {len(teachers)} teachers by {mode} (auto)")
            self._modes[key] = mode
        return self._modes[key]

    def _gradient(
        self, run: "_Run", labels: Tensor, view: Views, drawn: list[int], item: Item
    ) -> Tensor:
        """Leave the gradient of Eq. 7 in the images' ``grad``; return the teachers' losses."""
        augmented = view(run.images)
        leaf = augmented.detach().to(memory_format=torch.channels_last).requires_grad_()
        teachers = [self._teacher(member) for member in drawn]
        targets = [self._targets(member, item) for member in drawn]
        try:
            with memory_watch():
                losses = losses_of_teachers(leaf, labels, teachers, targets, self.config, run.mode)
        except OutOfMemory as error:
            if run.mode == "two_pass":
                raise TeddyError(
                    f"synthesize: no memory left for {item.name} ({error}); take fewer images at a "
                    "time by synthesize.classes_per_batch or indices_per_batch"
                ) from None
            losses = None
        if losses is None:  # outside the handler, which holds on to the tensors of what failed
            log(f"synthesize: no memory left for gradient joint, two_pass goes on with {item.name}")
            run.mode = "two_pass"
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            return self._gradient(run, labels, view, drawn, item)
        augmented.backward(leaf.grad)
        return losses

    def _refuse(
        self, item: Item, at: int, losses: Tensor, resume: Path, finite: Tensor, finite_at: int
    ) -> None:
        """Refuse a loss that is not finite; leave the images of the last look beside ``resume``."""
        drawn = self.draw(item, at)
        row = losses[at].cpu()
        gaps, sizes = row[1:].unflatten(0, (2, len(drawn)))
        bad = [m for m, ok in zip(drawn, (gaps + sizes).isfinite().tolist(), strict=True) if not ok]
        names = ", ".join(self.pool.entries[member]["file"] for member in bad or drawn)
        value = float(combined(row, self.config).sum())
        path = resume.with_suffix(".last-finite.safetensors")
        write_tensors(path, {"images": finite}, kind=_FINITE_KIND, record={"iterations": finite_at})
        raise TeddyError(
            f"synthesize: loss is {value} at iteration {at + 1} of {item.name}, by teacher "
            f"{names}; the images after iteration {finite_at} are in {path}; try a smaller "
            "synthesize.lr"
        )

    def _facts(self, run: "_Run", iterations: int, seconds: float) -> Json:
        """How an item ran; iterations of an earlier, interrupted run are not counted."""
        rate = iterations / seconds if seconds else 0.0
        return {
            "gradient": run.mode,
            "precision": self.config.precision,
            "teachers": self.config.draw,
            "images": len(run.images),
            "iterations": iterations,
            "ms_per_iteration": round(1e3 * seconds / max(1, iterations), 3),
            "images_per_second": round(rate * len(run.images), 1),
            "peak_mib": round(peak_mib(), 1),
        }

    def _views(self, item: Item, start: int) -> Iterator[Views]:
        """Views from iteration ``start`` on; each depends on its iteration alone."""
        size = self.data.image_shape[1:]
        key = ("synthesis view", item.group, item.chunk)
        per_image = self.config.views_per == "image"
        count = len(item.indices) * len(item.classes) if per_image else 1
        block = max(1, _VIEW_BLOCK // count)
        for first in range(start, self.config.iterations, block):
            counters = torch.arange(first * count, (first + block) * count, device=self.device)
            views = draw_views(self.config.views, *size, self.seed, *key, indices=counters)
            yield from (views[slice(i * count, (i + 1) * count)] for i in range(block))

    def _teacher(self, member: int) -> Teacher:
        if member not in self._teachers:
            network = self.pool.member(member, self.device)
            self._teachers[member] = Teacher(network, self.config.variance)
        return self._teachers[member]

    def _targets(self, member: int, item: Item) -> list[Moments]:
        """Statistics that a teacher's layers are matched to (§8-21 for the class-wise ones)."""
        if self.config.class_statistics == "none":
            return self._teacher(member).running
        if member not in self._class_moments:
            self._class_moments[member] = class_moments(
                self._teacher(member), self.data.train.to(self.device), self.data.normalisation,
                self._training_views, self.data.num_classes, self.seed,
            )  # fmt: skip
        layers = self._class_moments[member]
        if self.config.class_statistics == "per_class":
            (label,) = item.classes
            return [Moments(layer.mean[label], layer.var[label]) for layer in layers]
        return [Moments(*pool_class_statistics(layer.mean, layer.var)) for layer in layers]


def synthesise(
    synthesiser: Synthesiser, ipc: int, work: WorkDir
) -> tuple[Tensor, Tensor, list[Json]]:
    """All items of a set, skipping those finished in ``work``; only the first process returns.

    Returns:
        uint8 images ``(ipc·K, C, H, W)`` and int64 labels, ordered by index, then class; and per
        item its name, drawn members and loss curve.
    """
    num_classes, shape = synthesiser.data.num_classes, synthesiser.data.image_shape
    items = cut_items(ipc, num_classes, synthesiser.config)
    size = synthesiser.config.indices_per_batch

    paths = [_item_path(work, item) for item in items]

    def load() -> None:
        synthesiser.load([i for i, path in zip(items, paths, strict=True) if not path.exists()])

    def finish(index: int) -> None:
        path, item = paths[index], items[index]
        if not path.exists():
            resume = path.with_suffix(".resume")
            done = sum(other.exists() for other in paths)
            at_a_time = world_size() * workers_for(len(items), synthesiser.device)
            place = Place(done, len(items), math.ceil((len(items) - done) / at_a_time) - 1)
            result = synthesiser.run(item, resume, place=place)
            facts = synthesiser.facts
            write_tensors(path, result, kind=_KIND, record={"gradient": facts["gradient"]})
            resume.unlink(missing_ok=True)
            append_log("synthesize-items", {"work": work.path.name, "item": item.name, **facts})

    for_each(len(items), finish, synthesiser.device, before=load)
    leave_to_first()
    images = torch.empty(math.ceil(ipc / size) * size, num_classes, *shape, dtype=torch.uint8)
    records = []
    for item in items:
        result, facts = read_tensors(_item_path(work, item), kind=_KIND)
        block = result["images"].unflatten(0, (len(item.indices), len(item.classes)))
        images[list(item.indices), item.classes[0] : item.classes[-1] + 1] = block
        records.append(_item_record(synthesiser, item, result["curve"], facts["gradient"]))
    labels = torch.arange(num_classes).repeat(ipc)
    return images[:ipc].flatten(0, 1), labels, records


def _item_path(work: WorkDir, item: Item) -> Path:
    return work / f"item-{item.group:04d}-{item.chunk:04d}.safetensors"


def _item_record(synthesiser: Synthesiser, item: Item, curve: Tensor, gradient: str) -> Json:
    columns = ("iteration", "classifier_prior", "statistics")
    points = [dict(zip(columns, _rounded(row), strict=True)) for row in curve.tolist()]
    record: Json = {"item": item.name, "gradient": gradient, "curve": points}
    if synthesiser.config.draw_per == "index":
        record["drawn"] = synthesiser.draw(item, 0)
    return record


def _rounded(row: list[float]) -> list[float | int]:
    return [int(row[0]), *(float(f"{value:.5g}") for value in row[1:])]


def _curve(losses: Tensor) -> Tensor:
    """At most ``_CURVE_POINTS`` evenly spaced iterations (1-based), the last one included."""
    total = len(losses)
    kept = torch.linspace(0, total - 1, min(total, _CURVE_POINTS)).round().to(torch.int64)
    return torch.cat([(kept + 1)[:, None].float(), losses[kept]], dim=1)


def _first_non_finite(losses: Tensor) -> int | None:
    """Row of the first loss that is not finite; the one host–device sync of so many steps."""
    bad = torch.nonzero(~losses.isfinite().all(1))[:1, 0].tolist()
    return bad[0] if bad else None


@dataclass(slots=True)
class _Run:
    """An item being optimised, and how it is saved and continued."""

    images: Tensor
    optimizer: Adam
    losses: Tensor
    """``(iterations, 1 + 2M)``, see :func:`teddy.gradient.losses_of_teachers`."""
    mode: Mode

    def save(self, path: Path, done: int) -> None:
        tensors = {"images": self.images, "losses": self.losses}
        tensors |= {f"optimizer.{i}": value for i, value in enumerate(self.optimizer.state())}
        record: Json = {"done": done, "gradient": self.mode}
        write_tensors(path, tensors, kind=_RESUME_KIND, record=record)

    def restore(self, path: Path) -> int:
        """Continue from a file; the number of iterations that are done."""
        tensors, record = read_tensors(path, kind=_RESUME_KIND)
        with torch.no_grad():
            self.images.copy_(tensors["images"])
            self.losses.copy_(tensors["losses"])
        state = [tensors[f"optimizer.{i}"] for i in range(len(self.optimizer.state()))]
        restore(self.optimizer, state)
        self.mode = record["gradient"]
        return int(record["done"])
