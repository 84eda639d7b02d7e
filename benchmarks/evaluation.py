"""Student training and relabelling beside plain loops that do the same."""

import argparse
import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from benchmarks.command import (
    SEED,
    Benchmark,
    Result,
    Side,
    add_workload_options,
    each_workload,
    machine,
    median,
    pick_device_and_threads,
    positive,
    ratio,
    seconds,
    shared_settings,
    take_turns,
)
from teddy.core.files import Json
from teddy.core.seeding import derive, rng
from teddy.core.tables import Column, Table
from teddy.data.images import Images, Normalisation
from teddy.settings.configs import (
    DsaConfig,
    EvaluateConfig,
    NetworkConfig,
    OptimizerConfig,
    RelabelConfig,
    ViewConfig,
)
from teddy.settings.schema import to_json
from teddy.students.evaluation import train_student
from teddy.students.labels import OnlineLabels, TrainingViews
from teddy.teachers.networks import build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OURS, _PER_IMAGE, _PER_BATCH = (
    "ours",
    "plain, transforms per image",
    "plain, one transform a batch",
)
_PROGRAMS = (_OURS, _PER_IMAGE, _PER_BATCH)
_TEACHERS = 3  # of the pool that relabels; its cost is in proportion


_UNUSED_DSA = DsaConfig(
    operations=("flip",), scale=1, rotate=0, crop=0, cutout=0, brightness=0, saturation=0,
    contrast=0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Workload:
    """A distilled set and its students; numbers as in ``params.yaml`` where it has such a set."""

    title: str
    shape: tuple[int, int, int]
    images: int
    classes: int
    batch: int
    epochs: int
    """Enough that start-up does not show."""
    network: NetworkConfig
    views: ViewConfig


_CROPS = ViewConfig(crop_scale=0.5, hflip=False, roll=(0, 0))
WORKLOADS = {
    "digits": Workload(
        "8×8 grey, convnet3 width 32, BatchNorm", (1, 8, 8), 100, 10, 50, 10,
        NetworkConfig(arch="convnet3", width=32, norm="batch"), _CROPS,
    ),
    "cifar": Workload(
        "32×32, convnet3 width 32, GroupNorm", (3, 32, 32), 100, 10, 50, 3,
        NetworkConfig(arch="convnet3", width=32, norm="group"), _CROPS,
    ),
    "tiny": Workload(
        "64×64, ResNet18", (3, 64, 64), 10, 200, 10, 1,
        NetworkConfig(arch="resnet18", width=64, norm="batch"), _CROPS,
    ),
}  # fmt: skip
_OPTIMIZER = OptimizerConfig(
    name="adamw", lr=1e-3, momentum=0.9, betas=(0.9, 0.999), weight_decay=0.01, decay_1d=False,
    schedule="cosine", step_epochs=1, step_factor=1.0, warmup_epochs=0,
)  # fmt: skip


def _options(command: argparse.ArgumentParser) -> None:
    add_workload_options(command, WORKLOADS)
    command.add_argument("--batch", type=positive, help="images (default: the workload's)")
    command.add_argument("--epochs", type=positive, help="of a round (default: the workload's)")
    command.add_argument(
        "--seeds", type=positive, default=3, help="students of a set (%(default)s)"
    )


def _measure(args: argparse.Namespace) -> Result:
    device = pick_device_and_threads(args)

    def measure(workload: Workload, sides: dict[bool, Side]) -> Json:
        wanted = replace(
            workload, batch=args.batch or workload.batch, epochs=args.epochs or workload.epochs
        )
        return _measured(wanted, args.seeds, args.repeats, device, sides)

    measured = each_workload(args, WORKLOADS, measure)
    settings = {"optimizer": to_json(_OPTIMIZER), "teachers": _TEACHERS}
    record = {"settings": shared_settings(args, device) | settings, "workloads": measured}
    notes = (
        f"Median of {args.repeats} rounds, {machine(device)}. Ratios are medians of ratios within "
        "a round.",
        f"Evaluate: {args.seeds} students of one set, from uint8 images in memory to the last "
        "step; augmentation and soft labels included, testing not. Relabel: soft labels of "
        f"every view by {_TEACHERS} teachers, an image counting once. The plain loops are float32, "
        "NCHW, with torchvision's transforms for each image or one for the whole batch, one CutMix "
        "box per batch, KL divergence and torch.optim.AdamW.",
    )
    return Result(record, (_table(measured, notes),), partial(_draw, measured))


def _measured(
    workload: Workload, seeds: int, repeats: int, device: torch.device, sides: dict[bool, Side]
) -> Json:
    record: Json = {
        "title": workload.title, "images": workload.images, "batch": workload.batch,
        "epochs": workload.epochs, "students": seeds,
    }  # fmt: skip
    seen = workload.images * workload.epochs
    for work, count in (("evaluate", seen * seeds), ("relabel", seen)):
        job = (workload, seeds, str(device), work)
        programs = {
            program: partial(_speed, sides[program == _OURS], count, (*job, program))
            for program in _PROGRAMS
        }
        record[work] = _compared(take_turns(programs, repeats))
    return record


def _speed(side: Side, images: int, job: tuple[Any, ...], turn: int) -> float:
    """Images per second."""
    return images / float(side.call(_seconds, *job))


def _compared(speeds: dict[str, list[float]]) -> Json:
    return {
        name: {
            "images_per_second": values,
            "median": median(values),
            "ours_over_this": ratio(speeds[_OURS], values),
        }
        for name, values in speeds.items()
    }


# ------------------------------------------------------------------------------------ the programs


class Task:
    """What students and teachers of a workload have to do, in our way and in the plain ones.

    Args:
        workload: of what size.
        seeds: number of students.
        device: where.
    """

    def __init__(self, workload: Workload, seeds: int, device: torch.device) -> None:
        self.workload, self.device = workload, device
        self.seeds = range(seeds)
        self.seen = workload.images * workload.epochs
        generator = rng(SEED, "bench evaluation")
        shape, classes = (workload.images, *workload.shape), workload.classes
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self.images = Images(pixels, torch.arange(len(pixels)) % classes).to(device)
        logits = torch.randn(workload.epochs, len(pixels), classes, generator=generator)
        self.logits = logits.half().to(device)
        channels = workload.shape[0]
        self.normalisation = Normalisation((0.5,) * channels, (0.25,) * channels)
        self.relabel = RelabelConfig(
            epochs=workload.epochs, augmentation="views", views=workload.views, dsa=_UNUSED_DSA,
            cutmix=True, ensemble="logits", precision="float32", store=True,
            label_epochs=0, label_bits=16, label_top_k=0,
        )  # fmt: skip
        self.config = EvaluateConfig(
            network=workload.network, batch_size=workload.batch, optimizer=_OPTIMIZER,
            temperature=20.0, temperature_squared=False, seeds=tuple(self.seeds),
            eval_epochs=workload.epochs, precision="float32", divergence=False,
        )  # fmt: skip
        teachers = replace(workload.network, norm="batch")  # the only ones that statistics match
        self.teachers = [
            self._network(1000 + seed, teachers).eval().requires_grad_(False)
            for seed in range(_TEACHERS)
        ]
        self.laid_out = [
            copy.deepcopy(teacher).to(memory_format=torch.channels_last)
            for teacher in self.teachers
        ]

    def train_ours(self) -> None:
        """As the evaluate stage does in one process."""
        views = self._views()
        held_out = Images(self.images.images[:1], self.images.labels[:1])
        with tempfile.TemporaryDirectory() as folder:
            for seed in self.seeds:
                train_student(
                    self.config, views, Stored(self.logits), held_out, self.workload.classes,
                    derive(SEED, "student", seed), "bench", Path(folder) / "resume",
                )  # fmt: skip

    def train_plainly(self, transform: "Transform") -> None:
        """Every student makes its own views."""
        config = self.config
        for seed in self.seeds:
            network = self._network(seed)
            optimizer = torch.optim.AdamW(
                network.parameters(), lr=config.optimizer.lr, betas=config.optimizer.betas,
                weight_decay=config.optimizer.weight_decay,
            )  # fmt: skip
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.workload.epochs)
            for epoch in range(self.workload.epochs):
                network.train()
                for part in self._order().split(config.batch_size):
                    inputs = self._plain_inputs(part, transform)
                    target = self.logits[epoch][part].float() / config.temperature
                    loss = kl_div(
                        (network(inputs) / config.temperature).log_softmax(1),
                        target.softmax(1),
                        reduction="batchmean",
                    )
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                schedule.step()

    def label_ours(self) -> None:
        """As the relabel stage does in one process."""
        labels = OnlineLabels(self._views(), self.laid_out)
        for epoch in range(self.workload.epochs):
            labels.epoch(epoch)

    @torch.no_grad()
    def label_plainly(self, transform: "Transform") -> None:
        """In batches of the size that students train on, as the peers' files demand."""
        for _ in range(self.workload.epochs):
            for part in self._order().split(self.config.batch_size):
                inputs = self._plain_inputs(part, transform)
                torch.stack([teacher(inputs) for teacher in self.teachers]).mean(0).half()

    def _views(self) -> TrainingViews:
        return TrainingViews(self.images, self.normalisation, self.relabel, SEED)

    def _network(self, seed: int, config: NetworkConfig | None = None) -> nn.Module:
        workload = self.workload
        config = config or workload.network
        return build(config, workload.shape, workload.classes, seed).to(self.device)

    def _order(self) -> Tensor:
        return torch.randperm(len(self.images), device=self.device)

    def _plain_inputs(self, part: Tensor, transform: "Transform") -> Tensor:
        return _cutmix(transform(self, self.images.images[part]))


@lru_cache(maxsize=1)
def _task(workload: Workload, seeds: int, device: str) -> Task:
    return Task(workload, seeds, torch.device(device))


def _seconds(workload: Workload, seeds: int, device: str, work: str, program: str) -> float:
    """Seconds of a program in this process."""
    task = _task(workload, seeds, device)
    transform = per_image if program == _PER_IMAGE else per_batch
    if program == _OURS:
        run = task.train_ours if work == "evaluate" else task.label_ours
    else:
        plainly = task.train_plainly if work == "evaluate" else task.label_plainly
        run = partial(plainly, transform)
    return seconds(run, task.device)


class Stored:
    """Soft labels in memory."""

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def epoch(self, epoch: int) -> Tensor:
        """Logits ``(N, K)`` of an epoch."""
        return self._logits[epoch]


Transform = Callable[[Task, Tensor], Tensor]


def per_batch(task: Task, images: Tensor) -> Tensor:
    """uint8 images to normalised float32 ones, all with the same crop and flip."""
    from torchvision.transforms import v2

    views, normalisation = task.workload.views, task.normalisation
    transform = v2.Compose([
        v2.RandomResizedCrop(images.shape[-1], (views.crop_scale, 1.0)),
        v2.RandomHorizontalFlip(0.5 if views.hflip else 0.0),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(normalisation.mean, normalisation.std),
    ])  # fmt: skip
    made: Tensor = transform(images)
    return made


def per_image(task: Task, images: Tensor) -> Tensor:
    """The same with a crop and flip for each image, as a data loader of the peers does."""
    return torch.stack([per_batch(task, image) for image in images])


def _cutmix(images: Tensor) -> Tensor:
    """One box for the whole batch, from a permutation of it."""
    height, width = images.shape[-2:]
    side = (1 - torch.rand(()).item()) ** 0.5
    row, column = (int(torch.randint(size, ()).item()) for size in (height, width))
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    rows = slice(max(0, row - half_height), row + half_height)
    columns = slice(max(0, column - half_width), column + half_width)
    order = torch.randperm(len(images), device=images.device)
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[order, :, rows, columns]
    return mixed


# ------------------------------------------------------------------------------------ for a reader


def _table(measured: dict[str, Json], notes: tuple[str, ...]) -> Table:
    rows = tuple(
        (f"{found['title']}, batch {found['batch']}", task, name, program["median"],
         program["ours_over_this"])
        for found in measured.values()
        for task in ("evaluate", "relabel")
        for name, program in found[task].items()
    )  # fmt: skip
    columns = (
        Column("workload", text=True), Column("stage", text=True), Column("program", text=True),
        Column("images/s", spec=",.0f"), Column("ours ÷ this", spec=".2f"),
    )  # fmt: skip
    return Table("Evaluation and relabelling", columns, rows, notes)


def _draw(measured: dict[str, Json], figure: "Figure") -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, task in zip(panels, ("evaluate", "relabel"), strict=True):
        for place, name in enumerate((_OURS, _PER_BATCH, _PER_IMAGE)):
            values = [
                found[task][name]["median"] / found[task][_PER_IMAGE]["median"]
                for found in measured.values()
            ]
            at = [row + (place - 1) * 0.27 for row in range(len(values))]
            bars = axes.barh(at, values, 0.27, label=name, color=f"C{place}")
            axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=6)
        axes.set_title(task)
        axes.set_xlabel("speed over plain, per image")
        axes.margins(x=0.15)
    titles = [f"{found['title']}\nbatch {found['batch']}" for found in measured.values()]
    panels[0].set_yticks(range(len(titles)), titles)
    panels[0].invert_yaxis()
    panels[1].legend(fontsize=6)


BENCHMARK = Benchmark(
    "student training and relabelling, beside plain loops", _options, _measure, repeats=3
)
