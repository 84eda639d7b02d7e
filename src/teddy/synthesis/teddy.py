"""Teddy: images in which weak teachers see the training set's statistics (Algorithm 1, Eq. 7).

With the converged model alone as its pool this is SRe2L, and with a curriculum of its crops CDA.

Dimensions: ``N`` images of a batch, ``C H W`` image shape, ``K`` classes, ``M`` drawn teachers.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.core.memory import OutOfMemory, memory_watch
from teddy.core.runtime import log
from teddy.data.augmentation import draw_views
from teddy.data.dsa import draw_dsa, draw_shared_dsa
from teddy.objectives import Moments, cosine_lr, pool_class_statistics, smallest_crop
from teddy.settings.configs import SynthesizeConfig
from teddy.synthesis.class_statistics import class_moments
from teddy.synthesis.engine import fused
from teddy.synthesis.engine.batches import Batch, cut_batches
from teddy.synthesis.engine.cuda_graphs import Graphs, choose_passes
from teddy.synthesis.engine.frozen import Teacher
from teddy.synthesis.engine.passes import MakePasses
from teddy.synthesis.engine.state import State
from teddy.synthesis.gradient import Mode, choose_mode, combined, losses_of_teachers
from teddy.synthesis.methods import Ingredients, OptimisedMethod
from teddy.teachers.optimizers import Adam, Group
from teddy.teachers.pools import draw_teachers

_VIEW_BLOCK = 64  # shared views drawn at a time; drawing them singly costs more than using them

Augmentation = Callable[[Tensor], Tensor]
"""What images go through before teachers see them."""


class Teddy(OptimisedMethod):
    """Optimises images with teachers of one pool; see :class:`teddy.synthesis.methods.Method`.

    Args:
        config: conventions and hyper-parameters.
        given: real images, for a real start and class-wise statistics; the pool.
        passes: how teachers are run (default: what pays, see :func:`choose_passes`).
    """

    Config = SynthesizeConfig
    config: SynthesizeConfig
    by_pool = True
    terms = ("classifier_prior", "statistics")
    rate = "synthesize.lr"
    size = "synthesize.classes_per_batch or indices_per_batch"

    def __init__(
        self, config: SynthesizeConfig, given: Ingredients, passes: MakePasses | None = None
    ) -> None:
        super().__init__(config, given)
        if given.pool is None or given.training_views is None:
            raise TeddyError("Eq. 7 needs a pool of teachers")
        self.pool, self._training_views = given.pool, given.training_views
        self._teachers: dict[int, Teacher] = {}
        self._passes = {0: passes or choose_passes(config, len(self.pool), self.device)}
        self._class_moments: dict[int, list[Moments]] = {}
        self._class_targets: dict[tuple[int, range], list[Moments]] = {}
        self._modes: dict[tuple[int, ...], Mode] = {}

    # ----------------------------------------------------------------------------- Algorithm 1

    def optimise(self, batch: Batch, state: State) -> Iterator[None]:
        """Algorithm 1, line 3 and lines 6 to 9, for one batch, from ``state.done`` on.

        Line numbers are those of docs/method.md; lines 2 and 4, the loops over IPC indices and
        chunks of classes, are :meth:`batches`.
        """
        config, x, y = self.config, state.images, batch.labels().to(self.device)
        low, high = self.data.normalisation.bounds(self.device)
        views = self._views(batch, state.done)
        for i in range(state.done, config.iterations):
            lr = cosine_lr(config.lr, i, config.iterations)  # line 6
            members = self.teachers_drawn(batch, i)  # line 3
            view = next(views)(x)  # line 7
            # line 8: L = CE(ens) + α·mean R_BN, and its gradient
            losses = self._eq7(view, y, members, batch, state)
            state.update(lr)  # line 9: Adam
            if config.clip:  # line 9: clip
                with torch.no_grad():
                    torch.clamp(x, low, high, out=x)
            self.after(i + 1, state)
            state.finish_step(losses)
            yield  # to other batches, and to who saves this one (line 10)

    def _eq7(
        self, view: Tensor, y: Tensor, members: Sequence[int], batch: Batch, state: State
    ) -> Tensor:
        """Leave the gradient of Eq. 7 in the images; the teachers' losses.

        Args:
            view: augmented images ``(N, C, H, W)``, x̃.
            y: their classes.
            members: the drawn teachers.
            batch: whose statistics are matched, if they are of classes.
            state: which mode of the gradient, and where it is computed.
        """
        leaf = view.detach().to(memory_format=torch.channels_last).requires_grad_()
        teachers = [self._teacher(member) for member in members]
        targets = [self._targets(member, batch) for member in members]
        mode, passes = state.kept["gradient"], self._passes_of(state)
        losses = losses_of_teachers(leaf, y, teachers, targets, self.config, mode, passes)
        view.backward(leaf.grad)
        return losses

    def teachers_drawn(self, batch: Batch, iteration: int) -> list[int]:
        """Pool members used at an iteration; the same for all chunks of classes."""
        moment: tuple[str | int, ...] = ("index", batch.group)
        if self.config.draw_per == "iteration":
            moment = ("iteration", batch.group, iteration)
        return draw_teachers(len(self.pool), self.config.draw, self.seed, *moment)

    def batches(self, ipc: int) -> list[Batch]:
        """Groups of IPC indices × chunks of classes."""
        return cut_batches(
            ipc, self.data.num_classes, indices_per_batch=self.config.indices_per_batch,
            classes_per_batch=self.config.classes_per_batch,
        )  # fmt: skip

    def start(self, batch: Batch, images: Tensor) -> State:
        """Adam, the gradient's mode, and losses as :func:`losses_of_teachers` returns them."""
        config, group = self.config, Group([images], self.config.weight_decay)
        optimizer = Adam([group], config.betas, config.eps, decoupled=False)
        losses = torch.zeros(config.iterations, 1 + 2 * config.draw, device=self.device)
        return State(images, optimizer, losses, kept={"gradient": self._mode(batch)})

    def after(self, done: int, state: State) -> None:
        """What else becomes of the images when so many iterations are done: nothing."""

    def _views(self, batch: Batch, start: int) -> Iterator[Augmentation]:
        """Views from iteration ``start`` on; each depends on its iteration alone."""
        height, width = self.data.image_shape[1:]
        return self._views_of(batch, range(start, self.config.iterations), height, width)

    def _views_of(
        self, batch: Batch, iterations: range, height: int, width: int
    ) -> Iterator[Augmentation]:
        """Views of some iterations, of images of a size."""
        key = ("synthesis view", batch.group, batch.chunk)
        per_image = self.config.views_per == "image"
        count = len(batch.indices) * len(batch.classes) if per_image else 1
        if self.config.augmentation == "dsa":
            everyone = torch.arange(count, device=self.device)
            for iteration in iterations:
                moment = (self.config.dsa, self.seed, *key, iteration)
                if per_image:
                    yield draw_dsa(*moment, indices=everyone)
                else:
                    yield draw_shared_dsa(*moment, device=self.device)
            return
        block = max(1, _VIEW_BLOCK // count)
        for first in iterations[::block]:
            last = min(first + block, iterations.stop)
            counters = torch.arange(first * count, last * count, device=self.device)
            drawn = draw_views(
                self.config.views, height, width, self.seed, *key, indices=counters,
                crop_scale=self._smallest_crops(counters // count),
            )  # fmt: skip
            views = drawn.resampling(height, width)
            yield from (views[i * count : (i + 1) * count] for i in range(last - first))

    def _smallest_crops(self, iterations: Tensor) -> Tensor | None:
        """Smallest area fraction of crops at iterations; None has that of the settings."""
        config = self.config
        if config.curriculum == "none":
            return None
        progress = iterations.double() / (config.milestone * config.iterations)
        return smallest_crop(config.views.crop_scale, config.curriculum, progress)

    # ---------------------------------------------------------------- teachers, and what they match

    def load(self, batches: Sequence[Batch]) -> None:
        """Load and rewrite the teachers that batches draw, once for all of them.

        Where they are drawn anew at every iteration, that is the whole pool.
        """
        once = self.config.draw_per == "index"
        members = (
            {m for b in batches for m in self.teachers_drawn(b, 0)}
            if once
            else range(len(self.pool))
        )
        for member in sorted(members):
            self._teacher(member)
            if batches and self.config.class_statistics != "none":
                self._targets(member, batches[0])
        for batch in batches:  # now, when no other batch takes memory
            self._mode(batch)

    def _teacher(self, member: int) -> Teacher:
        if member not in self._teachers:
            network = self.pool.member(member, self.device)
            self._teachers[member] = Teacher(network, self.config.variance)
        return self._teachers[member]

    def _targets(self, member: int, batch: Batch) -> list[Moments]:
        """Statistics that a teacher's layers are matched to (§8-21 for the class-wise ones).

        The same list for the same batch, which is what recordings know it by.
        """
        if self.config.class_statistics == "none":
            return self._teacher(member).running
        per_class = self.config.class_statistics == "per_class"
        key = (member, batch.classes if per_class else range(0))
        if key not in self._class_targets:
            self._class_targets[key] = self._class_target(member, batch)
        return self._class_targets[key]

    def _class_target(self, member: int, batch: Batch) -> list[Moments]:
        if member not in self._class_moments:
            self._class_moments[member] = class_moments(
                self._teacher(member), self.data.train.to(self.device), self.data.normalisation,
                self._training_views, self.data.num_classes, self.seed,
            )  # fmt: skip
        layers = self._class_moments[member]
        if self.config.class_statistics == "per_class":
            (label,) = batch.classes
            return [Moments(layer.mean[label], layer.var[label]) for layer in layers]
        return [Moments(*pool_class_statistics(layer.mean, layer.var)) for layer in layers]

    # -------------------------------------------------------------------------- memory and passes

    def _mode(self, batch: Batch) -> Mode:
        """Mode of the gradient; ``auto`` decides by the teachers of the first iteration."""
        if self.config.gradient != "auto":
            return self.config.gradient
        teachers = tuple(self.teachers_drawn(batch, 0))
        key = (*teachers, len(batch.labels()))
        if key not in self._modes:
            shape = (len(batch.labels()), *self.data.image_shape)
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

    def _passes_of(self, state: State) -> MakePasses:
        """Batches that run beside each other have recordings, and memory, of their own."""
        first, number = self._passes[0], state.lane.number
        if isinstance(first, Graphs) and number not in self._passes:
            self._passes[number] = first.another()
        return self._passes.get(number, first)

    def free(self, lanes: Callable[[int], bool]) -> bool:
        """Drop the recordings of lanes; they are made again when asked for."""
        chosen = [p for n, p in self._passes.items() if isinstance(p, Graphs) and lanes(n)]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # they may be replaying
        held = [graphs.clear() for graphs in chosen]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return any(held)

    def smaller(self, state: State) -> str:
        """``two_pass``, then passes without recordings, of this and all later batches."""
        if state.kept["gradient"] == "joint":
            state.kept["gradient"] = "two_pass"
            return "by gradient two_pass"
        recorded = [p for p in self._passes.values() if isinstance(p, Graphs) and p.on]
        for graphs in recorded:
            graphs.on = False
        return "without CUDA graphs" if recorded else ""

    # ------------------------------------------------------------------------------------ records

    def combine(self, losses: Tensor) -> Tensor:
        """Classifier prior and statistics term."""
        return combined(losses, self.config)

    def blame(self, batch: Batch, step: int, losses: Tensor) -> str:
        """The teachers whose statistics or logits are not finite, or else all that were drawn."""
        drawn = self.teachers_drawn(batch, step)
        gaps, sizes = losses[1:].unflatten(0, (2, len(drawn)))
        bad = [m for m, ok in zip(drawn, (gaps + sizes).isfinite().tolist(), strict=True) if not ok]
        return ", by teacher " + ", ".join(self.pool.entries[m]["file"] for m in bad or drawn)

    def how(self, state: State) -> Json:
        """Precision, mode of the gradient, teachers of an iteration, and how they were run."""
        passes = self._passes_of(state)
        return {
            "precision": self.config.precision,
            "gradient": state.kept["gradient"],
            "teachers": self.config.draw,
            "cuda_graphs": isinstance(passes, Graphs) and passes.on,
            "fused_kernels": fused.usable(self.device),
        }

    def record(self, batch: Batch, curve: Tensor, kept: Json) -> Json:
        """What a set's history says of a batch."""
        record = super().record(batch, curve, kept)
        if self.config.draw_per == "index":
            record["drawn"] = self.teachers_drawn(batch, 0)
        return record
