"""Synthesis: optimise images so that weak teachers see the training set's statistics (Eq. 7).

Dimensions: ``N`` images of an item, ``C H W`` image shape, ``K`` classes, ``M`` drawn teachers.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from teddy.core.files import Json
from teddy.core.memory import OutOfMemory, memory_watch
from teddy.core.runtime import log
from teddy.data.augmentation import Resampling, draw_views
from teddy.data.datasets import ImageDataset
from teddy.data.dsa import DsaViews, draw_dsa, draw_shared_dsa
from teddy.objectives import Moments, cosine_lr, pool_class_statistics
from teddy.settings.configs import SynthesizeConfig, ViewConfig
from teddy.synthesis.batches import Item, cut_items
from teddy.synthesis.class_statistics import class_moments
from teddy.synthesis.engine import fused
from teddy.synthesis.engine.cuda_graphs import Graphs, choose_passes
from teddy.synthesis.engine.frozen import Teacher
from teddy.synthesis.engine.passes import MakePasses
from teddy.synthesis.gradient import Mode, choose_mode, combined, losses_of_teachers
from teddy.synthesis.methods import ImageMaker, ItemRun
from teddy.teachers.optimizers import Adam, Group
from teddy.teachers.pools import Pool, draw_teachers

_VIEW_BLOCK = 64  # shared views drawn at a time; drawing them singly costs more than using them

Augmentation = Resampling | DsaViews
"""What images go through before teachers see them."""


class Synthesiser(ImageMaker):
    """Optimises items with the teachers of one pool; see :class:`ImageMaker`.

    Args:
        config: conventions and hyper-parameters.
        pool: where teachers are drawn from.
        data: for real initialisation and class-wise statistics.
        training_views: augmentation that the teachers were trained with.
        seed: experiment seed.
        device: where to work.
        passes: how teachers are run (default: what pays, see :func:`choose_passes`).
    """

    terms = ("classifier_prior", "statistics")
    rate = "synthesize.lr"

    def __init__(
        self,
        config: SynthesizeConfig,
        pool: Pool,
        data: ImageDataset,
        training_views: ViewConfig,
        seed: int,
        device: torch.device,
        passes: MakePasses | None = None,
    ) -> None:
        super().__init__(config, data, seed, device)
        self.pool, self._training_views = pool, training_views
        self._teachers: dict[int, Teacher] = {}
        self._passes = {0: passes or choose_passes(config, len(pool), device)}
        self._class_moments: dict[int, list[Moments]] = {}
        self._class_targets: dict[tuple[int, range], list[Moments]] = {}
        self._modes: dict[tuple[int, ...], Mode] = {}

    def items(self, ipc: int) -> list[Item]:
        """Items of a set of ``ipc`` images per class."""
        return cut_items(ipc, self.data.num_classes, self.config)

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
        for item in items:  # now, when no other item takes memory
            self._mode(item)

    def begin(self, item: Item, images: Tensor) -> ItemRun:
        """Adam, the gradient's mode, and losses as :func:`losses_of_teachers` returns them."""
        config, group = self.config, Group([images], self.config.weight_decay)
        optimizer = Adam([group], config.betas, config.eps, decoupled=False)
        losses = torch.zeros(config.iterations, 1 + 2 * config.draw, device=self.device)
        return ItemRun(images, optimizer, losses, {"gradient": self._mode(item)})

    def steps(self, item: Item, run: ItemRun, iterations: range) -> Iterator[Tensor]:
        """Gradients of Eq. 7, each by the teachers and through the view of its iteration."""
        labels = item.labels().to(self.device)
        views = self._views(item, iterations.start)
        for iteration in iterations:
            drawn = self.draw(item, iteration)
            yield self._gradient(run, labels, next(views), drawn, item)

    def lr(self, iteration: int) -> float:
        """Cosine decay over the iterations."""
        return cosine_lr(self.config.lr, iteration, self.config.iterations)

    def combine(self, losses: Tensor) -> Tensor:
        """Classifier prior and statistics term."""
        return combined(losses, self.config)

    def blame(self, item: Item, iteration: int, losses: Tensor) -> str:
        """The teachers whose statistics or logits are not finite, or else all that were drawn."""
        drawn = self.draw(item, iteration)
        gaps, sizes = losses[1:].unflatten(0, (2, len(drawn)))
        bad = [m for m, ok in zip(drawn, (gaps + sizes).isfinite().tolist(), strict=True) if not ok]
        return ", by teacher " + ", ".join(self.pool.entries[m]["file"] for m in bad or drawn)

    def how(self, run: ItemRun) -> Json:
        """Precision, mode of the gradient, teachers of an iteration, and how they were run."""
        passes = self._passes_of(run)
        graphs = isinstance(passes, Graphs) and passes.on
        return {
            "precision": self.config.precision,
            "gradient": run.kept["gradient"],
            "teachers": self.config.draw,
            "cuda_graphs": graphs,
            "fused_kernels": fused.usable(self.device),
        }

    def record(self, item: Item, curve: Tensor, kept: Json) -> Json:
        """What a set's record says of an item."""
        record = super().record(item, curve, kept)
        if self.config.draw_per == "index":
            record["drawn"] = self.draw(item, 0)
        return record

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

    def free(self, lanes: Callable[[int], bool]) -> bool:
        """Drop the recordings of lanes; they are made again when asked for."""
        chosen = [p for n, p in self._passes.items() if isinstance(p, Graphs) and lanes(n)]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # they may be replaying
        held = [graphs.clear() for graphs in chosen]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return any(held)

    def smaller(self, run: ItemRun) -> str:
        """``two_pass``, then passes without recordings, of this and all later items."""
        if run.kept["gradient"] == "joint":
            run.kept["gradient"] = "two_pass"
            return "by gradient two_pass"
        recorded = [p for p in self._passes.values() if isinstance(p, Graphs) and p.on]
        for graphs in recorded:
            graphs.on = False
        return "without CUDA graphs" if recorded else ""

    def _gradient(
        self, run: ItemRun, labels: Tensor, view: Augmentation, drawn: list[int], item: Item
    ) -> Tensor:
        """Leave the gradient of Eq. 7 in the images' ``grad``; return the teachers' losses."""
        augmented = view(run.images)
        leaf = augmented.detach().to(memory_format=torch.channels_last).requires_grad_()
        teachers = [self._teacher(member) for member in drawn]
        targets = [self._targets(member, item) for member in drawn]
        mode, passes = run.kept["gradient"], self._passes_of(run)
        losses = losses_of_teachers(leaf, labels, teachers, targets, self.config, mode, passes)
        augmented.backward(leaf.grad)
        return losses

    def _passes_of(self, run: ItemRun) -> MakePasses:
        """Items that run beside each other have recordings, and memory, of their own."""
        first, number = self._passes[0], run.lane.number
        if isinstance(first, Graphs) and number not in self._passes:
            self._passes[number] = first.another()
        return self._passes.get(number, first)

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
            drawn = draw_views(self.config.views, *size, self.seed, *key, indices=counters)
            views = drawn.resampling(*size)
            yield from (views[i * count : (i + 1) * count] for i in range(block))

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
