"""Synthesis: optimise images so that weak teachers see the training set's statistics (Eq. 7).

Work is cut into items: a group of IPC indices × a chunk of classes. An item has its own random
streams, so its images do not depend on which other items exist or on their order.

Dimensions: ``N`` images of an item, ``C H W`` image shape, ``K`` classes, ``M`` drawn teachers.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from teddy.artifacts import Json, WorkDir, read_tensors, write_tensors
from teddy.augmentation import Views, draw_views
from teddy.config import SynthesizeConfig, ViewConfig
from teddy.data import ImageDataset, LabelledImages, select_random
from teddy.distributed import leave_to_first
from teddy.dsa import DsaViews, draw_dsa, draw_shared_dsa
from teddy.errors import TeddyError
from teddy.images import Normalisation
from teddy.networks import batchnorms
from teddy.objectives import (
    Moments,
    cosine_lr,
    ensemble_cross_entropy,
    moments,
    statistics_loss,
)
from teddy.optimizers import Adam, Group, Optimizer, restore
from teddy.pool import Pool, draw_teachers
from teddy.runtime import autocast, for_each, progress, save_interval
from teddy.seeding import stream
from teddy.theory import pool_class_statistics

CHECK_EVERY = 50
"""Iterations between looks at the losses, each a host–device sync."""

_KIND, _RESUME_KIND = "teddy.item.v1", "teddy.item-state.v1"
_VIEW_BLOCK = 64  # shared views drawn at a time; drawing them singly costs more than using them
_CURVE_POINTS = 100


# ---------------------------------------------------------------------------------- one teacher


class Teacher:
    """A frozen network in eval mode that reports the statistics of its BatchNorm inputs.

    Args:
        network: frozen, in eval mode.
        variance: convention of the batch variance, see :func:`teddy.objectives.moments`.
    """

    def __init__(self, network: nn.Module, variance: str) -> None:
        self.network = network
        self._variance = variance
        self._seen: list[Moments] | None = None
        layers = batchnorms(network)
        if not layers:
            raise TeddyError("a teacher needs BatchNorm layers: Eq. 7 matches their statistics")
        self.running = [Moments(_known(n.running_mean), _known(n.running_var)) for n in layers]
        for layer in layers:
            layer.register_forward_pre_hook(self._look)

    def logits(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` alone."""
        output: Tensor = self.network(images)
        return output

    def observe(self, images: Tensor) -> tuple[Tensor, list[Moments]]:
        """Logits ``(N, K)`` and the input statistics of every BatchNorm layer, in module order."""
        self._seen = []
        output: Tensor = self.network(images)
        seen, self._seen = self._seen, None
        return output, seen

    def _look(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._seen is not None:
            # mypy: the literal is checked where the configuration is read
            self._seen.append(moments(inputs[0], self._variance))  # type: ignore[arg-type]


def _known(buffer: Tensor | None) -> Tensor:
    if buffer is None:
        raise TeddyError("a teacher's BatchNorm layers must keep running statistics")
    return buffer


def class_moments(
    teacher: Teacher,
    images: LabelledImages,
    normalisation: Normalisation,
    views: ViewConfig,
    num_classes: int,
    seed: int,
    batch_size: int = 256,
) -> list[Moments]:
    """Exact statistics of every BatchNorm input for every class, over one pass (§8-21).

    Streaming sums in float64 of the biased variance, in eval mode, with the augmentation of
    training.

    Returns:
        Per layer: means and variances, each ``(K, channels)`` float32.
    """
    teacher = Teacher(teacher.network, "biased")  # whichever variance the loss compares
    device = images.labels.device
    means: list[list[Tensor]] = []
    variances: list[list[Tensor]] = []
    for label in range(num_classes):
        members = torch.nonzero(images.labels == label)[:, 0]
        total = 0
        sums: list[tuple[Tensor, Tensor]] = []
        batches = images.train_batches(
            members.split(batch_size), views, normalisation, seed, "class statistics"
        )
        for inputs, labels in batches:
            with torch.inference_mode():
                _, seen = teacher.observe(inputs)
            total += len(labels)
            new = [_sums(batch, len(labels)) for batch in seen]
            if sums:
                new = [(a + c, b + d) for (a, b), (c, d) in zip(sums, new, strict=True)]
            sums = new
        means.append([first / total for first, _ in sums])
        variances.append([second / total - (first / total) ** 2 for first, second in sums])
    layers = range(len(teacher.running))
    return [
        Moments(
            torch.stack([of_class[layer] for of_class in means]).float().to(device),
            torch.stack([of_class[layer] for of_class in variances]).float().to(device),
        )
        for layer in layers
    ]


def _sums(batch: Moments, count: int) -> tuple[Tensor, Tensor]:
    """First and second moment times the number of images; pixels per image cancel."""
    mean, var = batch.mean.double(), batch.var.double()
    return count * mean, count * (var + mean**2)


# ------------------------------------------------------------------------------------- objective


def eq7_gradient(
    view: Tensor,
    labels: Tensor,
    teachers: Sequence[Teacher],
    targets: Sequence[Sequence[Moments]],
    config: SynthesizeConfig,
) -> Tensor:
    """Gradient of Eq. 7 with respect to the augmented images, left in ``view.grad``.

    ``two_pass`` is exact and keeps one teacher's graph at a time. The classifier prior couples
    the teachers only through their logits, so with G_m = ∂CE/∂z_m known from a pass without a
    graph, the gradient is the sum over teachers of that of ⟨G_m, z_m⟩ + α·R_m/M. The last
    teacher keeps the graph of its first pass, so M teachers cost 2M − 1 forwards.

    Args:
        view: normalised float ``(N, C, H, W)``, a leaf that requires grad.
        labels: int64 ``(N,)``.
        teachers: the M drawn teachers.
        targets: per teacher, the statistics each BatchNorm layer is matched to.
        config: conventions of the loss.

    Returns:
        ``(2,)`` detached: classifier prior, and statistics term before α.
    """
    share = 1 / len(teachers) if config.over_teachers == "mean" else 1.0
    if config.gradient == "joint":
        return _joint(view, labels, teachers, targets, config, share)
    with torch.no_grad():
        known = [_forward(teacher.logits, view, config) for teacher in teachers[:-1]]
    last, gap = _observed(teachers[-1], targets[-1], view, config)
    logits_MNK = torch.stack([*known, last.detach()]).requires_grad_()
    prior = ensemble_cross_entropy(logits_MNK, labels, config.ensemble)
    (grad_MNK,) = torch.autograd.grad(prior, logits_MNK)
    _backward(last, gap, grad_MNK[-1], config.alpha_bn * share)
    gaps = [gap.detach()]
    for index, teacher in enumerate(teachers[:-1]):
        logits, gap = _observed(teacher, targets[index], view, config)
        _backward(logits, gap, grad_MNK[index], config.alpha_bn * share)
        gaps.append(gap.detach())
    return torch.stack([prior.detach(), torch.stack(gaps).sum() * share])


def _joint(
    view: Tensor,
    labels: Tensor,
    teachers: Sequence[Teacher],
    targets: Sequence[Sequence[Moments]],
    config: SynthesizeConfig,
    share: float,
) -> Tensor:
    observed = [_observed(t, s, view, config) for t, s in zip(teachers, targets, strict=True)]
    logits_MNK = torch.stack([logits for logits, _ in observed])
    prior = ensemble_cross_entropy(logits_MNK, labels, config.ensemble)
    statistics = torch.stack([gap for _, gap in observed]).sum() * share
    (prior + config.alpha_bn * statistics).backward()
    return torch.stack([prior.detach(), statistics.detach()])


def _backward(logits: Tensor, gap: Tensor, grad: Tensor, weight: float) -> None:
    torch.autograd.backward([logits, gap], [grad, torch.full_like(gap, weight)])


def _observed(
    teacher: Teacher, target: Sequence[Moments], view: Tensor, config: SynthesizeConfig
) -> tuple[Tensor, Tensor]:
    """Logits and R_BN of one teacher."""
    logits, seen = _forward(teacher.observe, view, config)
    gap = statistics_loss(seen, target, config.first_bn_weight, config.norm)
    return logits if logits.dtype == torch.float64 else logits.float(), gap


def _forward(forward: Callable[[Tensor], Any], view: Tensor, config: SynthesizeConfig) -> Any:
    with autocast(view.device, config.precision):
        return forward(view)


# ----------------------------------------------------------------------------------------- items


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


Augmentation = Views | DsaViews
"""What images go through before teachers see them."""


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

    def items(self, ipc: int) -> list[Item]:
        """Items of a set of ``ipc`` images per class; together they have every image."""
        ...

    def run(self, item: Item, resume: Path) -> dict[str, Tensor]:
        """``images`` and ``curve`` of one item, continuing from ``resume`` if it exists."""
        ...

    def record(self, item: Item, curve: Tensor) -> Json:
        """What is kept of an item besides its images."""
        ...


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

    def run(
        self, item: Item, resume: Path, save_every_seconds: float | None = None
    ) -> dict[str, Tensor]:
        """Optimise one item, continuing from ``resume`` if it exists.

        Returns:
            ``images`` uint8 ``(N, C, H, W)``, and ``curve`` float32 ``(points, 3)``: iteration,
            classifier prior, statistics term.

        Raises:
            TeddyError: a loss is not finite; names the item and the step.
        """
        config = self.config
        save_every = save_interval() if save_every_seconds is None else save_every_seconds
        images = self.initial_images(item).to(self.device).requires_grad_()
        optimizer = Adam(
            [Group([images], config.weight_decay)], config.betas, config.eps, decoupled=False
        )
        losses = torch.zeros(config.iterations, 2, device=self.device)
        start = restore_item(resume, images, optimizer, losses) if resume.exists() else 0
        labels = item.labels().to(self.device)
        low, high = self.data.normalisation.bounds(self.device)
        views = self._views(item, start)
        saved = time.monotonic()
        with progress(config.iterations, f"synthesize {item.name}", "it", start) as bar:
            for iteration in range(start, config.iterations):
                drawn = self.draw(item, iteration)
                losses[iteration] = self._gradient(images, labels, next(views), drawn, item)
                optimizer.step(cosine_lr(config.lr, iteration, config.iterations))
                if config.clip:
                    with torch.no_grad():
                        torch.clamp(images, low, high, out=images)
                done = iteration + 1
                if done % CHECK_EVERY == 0 or done == config.iterations:
                    refuse_non_finite(losses, iteration, item, "synthesize.lr")
                    bar.update(done - bar.n)
                    if time.monotonic() - saved >= save_every:
                        save_item(resume, images, optimizer, losses, done)
                        saved = time.monotonic()
        pixels = self.data.normalisation.to_uint8(images.detach())
        return {"images": pixels.cpu(), "curve": thin(losses.cpu())}

    def items(self, ipc: int) -> list[Item]:
        """Items of a set of ``ipc`` images per class."""
        return cut_items(ipc, self.data.num_classes, self.config)

    def record(self, item: Item, curve: Tensor) -> Json:
        """What is kept of an item besides its images."""
        record = curve_record(item, curve, ("iteration", "classifier_prior", "statistics"))
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

    def _gradient(
        self, images: Tensor, labels: Tensor, view: Augmentation, drawn: list[int], item: Item
    ) -> Tensor:
        """Leave the gradient of Eq. 7 in ``images.grad``; return the two losses."""
        augmented = view(images)
        leaf = augmented.detach().to(memory_format=torch.channels_last).requires_grad_()
        teachers = [self._teacher(member) for member in drawn]
        targets = [self._targets(member, item) for member in drawn]
        losses = eq7_gradient(leaf, labels, teachers, targets, self.config)
        augmented.backward(leaf.grad)
        return losses

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


def synthesise(maker: ImageMaker, ipc: int, work: WorkDir) -> tuple[Tensor, Tensor, list[Json]]:
    """All items of a set, skipping those finished in ``work``; only the first process returns.

    Returns:
        uint8 images ``(ipc·K, C, H, W)`` and int64 labels, ordered by index, then class; and per
        item its name, loss curve and whatever else the maker records.
    """
    items = maker.items(ipc)

    def finish(index: int) -> None:
        path = _item_path(work, items[index])
        if not path.exists():
            resume = path.with_suffix(".resume")
            result = maker.run(items[index], resume)
            write_tensors(path, result, kind=_KIND, record={})
            resume.unlink(missing_ok=True)

    for_each(len(items), finish, maker.device)
    leave_to_first()
    results = [read_tensors(_item_path(work, item), kind=_KIND)[0] for item in items]
    images = join_items(items, [result["images"] for result in results], ipc)
    records = [
        maker.record(item, result["curve"]) for item, result in zip(items, results, strict=True)
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


def _item_path(work: WorkDir, item: Item) -> Path:
    return work / f"item-{item.group:04d}-{item.chunk:04d}.safetensors"


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


def refuse_non_finite(losses: Tensor, iteration: int, item: Item, setting: str) -> None:
    """Look at the losses since the last look; the one host–device sync of so many steps."""
    first = max(0, iteration + 1 - CHECK_EVERY)
    recent = losses[first : iteration + 1].sum(1).tolist()
    for offset, value in enumerate(recent):
        if not math.isfinite(value):
            raise TeddyError(
                f"synthesize: loss is {value} at iteration {first + offset + 1} of {item.name}; "
                f"try a smaller {setting}"
            )


def save_item(path: Path, images: Tensor, optimizer: Optimizer, losses: Tensor, done: int) -> None:
    """Write a resume point: everything the next iteration needs."""
    tensors = {"images": images, "losses": losses}
    tensors |= {f"optimizer.{i}": value for i, value in enumerate(optimizer.state())}
    write_tensors(path, tensors, kind=_RESUME_KIND, record={"done": done})


def restore_item(path: Path, images: Tensor, optimizer: Optimizer, losses: Tensor) -> int:
    """Continue from a resume point, in place; the number of finished iterations."""
    tensors, record = read_tensors(path, kind=_RESUME_KIND)
    with torch.no_grad():
        images.copy_(tensors["images"])
        losses.copy_(tensors["losses"])
    restore(optimizer, [tensors[f"optimizer.{i}"] for i in range(len(optimizer.state()))])
    return int(record["done"])
