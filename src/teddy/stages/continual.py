"""Learn classes in steps from a distilled set, and test on the classes seen so far (Fig. 3e)."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from teddy.core.artifacts import WorkDir, read_tensors, write_tensors
from teddy.core.distributed import leave_to_first
from teddy.core.files import (
    Json,
    digest,
    manifest_digest,
    read_json,
    write_json,
)
from teddy.core.runtime import for_each, pick_device
from teddy.core.seeding import derive
from teddy.data.datasets import ImageDataset, read_dataset, without_repeats
from teddy.data.distilled import DistilledSet
from teddy.data.images import Images
from teddy.settings.configs import ViewConfig
from teddy.settings.schema import from_json, to_json
from teddy.settings.sets import synthesis_file
from teddy.settings.stages import ContinualSettings
from teddy.students.continual import (
    UnionLabels,
    UnionViews,
    class_steps,
    of_classes,
    only_classes,
    places,
    seen_classes,
    step_folder,
    step_pool,
    synthesise_step,
)
from teddy.students.evaluation import recipe_record, train_student
from teddy.students.labels import KeptLabels, OnlineLabels, SoftLabels, TrainingViews
from teddy.students.sets import check_of_dataset, load
from teddy.synthesis.methods import Ingredients
from teddy.teachers.making import RECORD
from teddy.teachers.pools import MANIFEST, Pool, open_pool

_KIND = "teddy.step-images.v1"


def main(settings: ContinualSettings, args: Namespace) -> str:
    """Run the stage."""
    manifest = args.teachers / (RECORD if settings.strict else MANIFEST)
    file = synthesis_file(args.set, 0)
    distilled, dataset = load(file), read_dataset(args.data)
    check_of_dataset(file, distilled, dataset)
    if not settings.strict and "soft" in settings.labels:
        open_pool(args.teachers).check(dataset.image_shape, dataset.num_classes, args.data)
    work = WorkDir(
        "continual", settings.name, settings=to_json(settings), set=digest(file),
        teachers=digest(manifest), data=manifest_digest(args.data), split=args.split,
    ).claim()  # fmt: skip
    learner = Learner(settings, distilled, dataset, args.teachers, work)
    orders, split = settings.continual.orders, args.split
    tasks = [(order, step) for order in orders for step in range(settings.continual.steps)]
    if settings.synthesize is not None:
        for_each(len(tasks), lambda i: learner.synthesise(*tasks[i]), learner.device)
    for_each(len(orders), lambda i: learner.learn(orders[i], split), learner.device)
    leave_to_first()
    record = _identity(settings) | {
        "split": args.split,
        "results": [result for task in tasks for result in learner.results(*task)],
    }
    write_json(args.out, record)
    work.discard()
    return f"{settings.name}: {_summary(record)}"


class Learner:
    """Runs the steps of a learner.

    Args:
        settings: of the stage.
        distilled: the set.
        data: real images.
        teachers: folder of the pool, or of the teachers of each step.
        work: where finished results are kept.
    """

    def __init__(
        self,
        settings: ContinualSettings,
        distilled: DistilledSet,
        data: ImageDataset,
        teachers: Path,
        work: WorkDir,
    ) -> None:
        self.settings, self.distilled, self.data = settings, distilled, data
        self.teachers, self.work, self.device = teachers, work, pick_device()
        # Steps of the order that is being learnt: later ones find earlier ones as they were.
        self._parts: list[tuple[TrainingViews, tuple[SoftLabels, list[int]]]] = []

    def synthesise(self, order: int, step: int) -> None:
        """Make the images of a step by its own teachers, unless they are there."""
        path = self._images_path(order, step)
        if path.exists():
            return
        assert self.settings.synthesize is not None, "else nothing is synthesised"
        views = read_json(self.teachers / RECORD)["views"]
        given = Ingredients(
            only_classes(self.data, self._steps(order)[step]), self._seed(order, step),
            self.device, self._step_pool(order, step),
            from_json(ViewConfig, views, f"{self.teachers / RECORD}: views"),
            self.settings.small_classes,
        )  # fmt: skip
        resume = path.with_suffix(".resume")
        images = synthesise_step(self.settings.synthesize, given, self.distilled.ipc, resume)
        write_tensors(path, {"images": images}, kind=_KIND, record={})

    def learn(self, order: int, split: str) -> None:
        """Train and test every student of an order, unless that is done."""
        self._parts = []
        for step in range(self.settings.continual.steps):
            runs = [run for run in self._runs() if not self._path(order, step, *run).exists()]
            if runs:
                self._learn_step(order, step, runs, split)

    def _learn_step(
        self, order: int, step: int, runs: Sequence[tuple[str, int]], split: str
    ) -> None:
        seen = seen_classes(self._steps(order), step)
        held_out = of_classes(getattr(self.data, split), seen).to(self.device)
        views, soft = self._buffer(order, step)
        for kind, seed in runs:
            path = self._path(order, step, kind, seed)
            result = train_student(
                self.settings.evaluate, views, soft if kind == "soft" else None, held_out,
                self.data.num_classes, derive(self.settings.seed, "stream", order, step, seed),
                f"continual {self.settings.name}, order {order}, step {step + 1}, {kind} labels",
                path.with_suffix(".resume"),
            )  # fmt: skip
            write_json(
                path, {"order": order, "step": step + 1, "classes": list(seen), "labels": kind,
                       "seed": seed, "images": len(views), "images_held_out": len(held_out),
                       "top1": result["top1_last"]},
            )  # fmt: skip

    def results(self, order: int, step: int) -> list[Json]:
        """Records of the students of a step."""
        return [read_json(self._path(order, step, *run)) for run in self._runs()]

    def _buffer(self, order: int, step: int) -> tuple[TrainingViews, SoftLabels]:
        """Views and soft labels of everything seen up to a step."""
        if not self.settings.strict:
            seen = of_classes(self.distilled.as_images(), seen_classes(self._steps(order), step))
            views = self._views(seen.pick(torch.arange(len(seen))), seen.labels, self.settings.seed)
            pool = open_pool(self.teachers)
            return views, KeptLabels(OnlineLabels(views, self._members(pool)))
        for earlier in range(len(self._parts), step + 1):
            classes = self._steps(order)[earlier]
            part = self._views(*self._images_of(order, earlier), self._seed(order, earlier))
            labels = OnlineLabels(part, self._members(self._step_pool(order, earlier)))
            outputs = places(self.data.num_classes, classes)
            self._parts.append((part, (KeptLabels(labels), outputs)))
        return UnionViews([part for part, _ in self._parts]), UnionLabels(
            [labels for _, labels in self._parts]
        )

    def _images_of(self, order: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of a step under strict teachers."""
        classes = self._steps(order)[step]
        if self.settings.synthesize is None:  # they do not depend on teachers
            own = of_classes(self.distilled.as_images(), classes)
            return own.pick(torch.arange(len(own))), own.labels
        tensors, _ = read_tensors(self._images_path(order, step), kind=_KIND)
        images, labels = tensors["images"], torch.tensor(classes).repeat(self.distilled.ipc)
        if self.settings.small_classes == "fewer":
            kept = without_repeats(labels, self.data.train.labels.cpu())
            images, labels = images[kept], labels[kept]
        return images, labels

    def _views(self, images: torch.Tensor, labels: torch.Tensor, seed: int) -> TrainingViews:
        own = Images(images, labels).to(self.device)
        return TrainingViews(own, self.distilled.normalisation, self.settings.relabel, seed)

    def _members(self, pool: Pool) -> list[nn.Module]:
        if "soft" not in self.settings.labels:
            return []
        return [pool.member(index, self.device) for index in range(len(pool))]

    def _step_pool(self, order: int, step: int) -> Pool:
        folder = self.teachers / step_folder(order, step)
        return step_pool(folder, self.settings.epochs)

    def _steps(self, order: int) -> list[tuple[int, ...]]:
        return class_steps(self.data.num_classes, self.settings.continual.steps, order)

    def _seed(self, order: int, step: int) -> int:
        return derive(self.settings.seed, "step", order, step)

    def _runs(self) -> list[tuple[str, int]]:
        return [
            (kind, seed) for kind in self.settings.labels for seed in self.settings.evaluate.seeds
        ]

    def _path(self, order: int, step: int, kind: str, seed: int) -> Path:
        return self.work / f"{step_folder(order, step)}-{kind}-{seed}.json"

    def _images_path(self, order: int, step: int) -> Path:
        return self.work / f"{step_folder(order, step)}.safetensors"


def _identity(settings: ContinualSettings) -> Json:
    keys = ("dataset", "data", "set", "method", "ipc", "pool", "teachers")
    return {
        "learner": settings.name,
        **{key: getattr(settings, key) for key in keys},
        "arch": settings.evaluate.network.arch,
        "epochs": settings.relabel.epochs,
        "steps": settings.continual.steps,
        "recipe": recipe_record(settings.recipe, settings.relabel, settings.evaluate),
    }


def _summary(record: Json) -> str:
    steps = []
    for step in range(1, record["steps"] + 1):
        own = [result["top1"] for result in record["results"] if result["step"] == step]
        steps.append(f"{sum(own) / len(own):.1f}")
    return f"top-1 {', '.join(steps)} % after each step"
