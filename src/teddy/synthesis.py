"""Synthesis: optimise images so that weak teachers see the training set's statistics (Eq. 7).

Dimensions: ``N`` images of an item, ``C H W`` image shape, ``K`` classes, ``M`` drawn teachers.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from teddy.acceleration import Graphs, choose_passes
from teddy.artifacts import Json, write_tensors
from teddy.augmentation import Views, draw_views
from teddy.class_statistics import class_moments
from teddy.data import ImageDataset
from teddy.dsa import DsaViews, draw_dsa, draw_shared_dsa
from teddy.errors import TeddyError
from teddy.frozen import Teacher
from teddy.gradient import (
    Mode,
    OutOfMemory,
    choose_mode,
    combined,
    losses_of_teachers,
    memory_watch,
)
from teddy.items import (
    CHECK_EVERY,
    Item,
    ItemRun,
    Place,
    curve_record,
    cut_items,
    first_non_finite,
    initial_images,
    thin,
)
from teddy.objectives import Moments, cosine_lr
from teddy.optimizers import Adam, Group
from teddy.pool import Pool, draw_teachers
from teddy.runtime import log, progress, save_interval
from teddy.settings import SynthesizeConfig, ViewConfig
from teddy.theory import pool_class_statistics

_FINITE_KIND = "teddy.item-images.v1"
_VIEW_BLOCK = 64  # shared views drawn at a time; drawing them singly costs more than using them

Augmentation = Views | DsaViews
"""What images go through before teachers see them."""


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
        self._passes = choose_passes(config, len(pool), device)
        self._class_moments: dict[int, list[Moments]] = {}
        self._class_targets: dict[tuple[int, range], list[Moments]] = {}
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
        place: Place | None = None,
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
        run = ItemRun(
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
                if done % CHECK_EVERY == 0 or done == config.iterations:
                    bad = first_non_finite(run.losses[finite_at:done])
                    if bad is not None:
                        self._refuse(item, finite_at + bad, run.losses, resume, finite, finite_at)
                    finite.copy_(images.detach())
                    finite_at = done
                    place.show(bar, done, start, config.iterations, len(images), began)
                    if time.monotonic() - saved >= save_every:
                        run.save(resume, done)
                        saved = time.monotonic()
        self.facts = {
            "gradient": run.mode, "precision": config.precision, "teachers": config.draw,
            "cuda_graphs": isinstance(self._passes, Graphs) and self._passes.on,
            **run.speed(config.iterations - start, time.monotonic() - began),
        }  # fmt: skip
        pixels = self.data.normalisation.to_uint8(images.detach())
        return {"images": pixels.cpu(), "curve": thin(combined(run.losses.cpu(), config))}

    def items(self, ipc: int) -> list[Item]:
        """Items of a set of ``ipc`` images per class."""
        return cut_items(ipc, self.data.num_classes, self.config)

    def record(self, item: Item, curve: Tensor, facts: Json) -> Json:
        """What is kept of an item besides its images."""
        record = curve_record(item, curve, ("iteration", "classifier_prior", "statistics")) | facts
        if self.config.draw_per == "index":
            record["drawn"] = self.draw(item, 0)
        return record

    def initial_images(self, item: Item) -> Tensor:
        """Images before the first step; see :func:`initial_images`."""
        return initial_images(self.config.initialise, self.data, item, self.seed)

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
        self, run: ItemRun, labels: Tensor, view: Augmentation, drawn: list[int], item: Item
    ) -> Tensor:
        """Leave the gradient of Eq. 7 in the images' ``grad``; return the teachers' losses."""
        augmented = view(run.images)
        leaf = augmented.detach().to(memory_format=torch.channels_last).requires_grad_()
        teachers = [self._teacher(member) for member in drawn]
        targets = [self._targets(member, item) for member in drawn]
        assert run.mode, "chosen before the first step"
        try:
            with memory_watch():
                losses = losses_of_teachers(
                    leaf, labels, teachers, targets, self.config, run.mode, self._passes
                )
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
            if isinstance(self._passes, Graphs):
                self._passes.clear()
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

    def _views(self, item: Item, start: int) -> Iterator[Augmentation]:
        """Views from iteration ``start`` on; each depends on its iteration alone."""
        size = self.data.image_shape[1:]
        key = ("synthesis view", item.group, item.chunk)
        per_image = self.config.views_per == "image"
        count = len(item.indices) * len(item.classes) if per_image else 1
        if self.config.augmentation == "dsa":
            everyone = torch.arange(count, device=self.device)
            for iteration in range(start, self.config.iterations):
                moment = (self.config.dsa, self.seed, *key, iteration)
                if per_image:
                    yield draw_dsa(*moment, indices=everyone)
                else:
                    yield draw_shared_dsa(*moment, device=self.device)
            return
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
        """Statistics that a teacher's layers are matched to (§8-21 for the class-wise ones).

        The same list for the same item, which is what recordings know it by.
        """
        if self.config.class_statistics == "none":
            return self._teacher(member).running
        per_class = self.config.class_statistics == "per_class"
        key = (member, item.classes if per_class else range(0))
        if key not in self._class_targets:
            self._class_targets[key] = self._class_target(member, item)
        return self._class_targets[key]

    def _class_target(self, member: int, item: Item) -> list[Moments]:
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
