"""Train fresh students on a distilled set and measure them on real images."""

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import leave_to_first
from teddy.core.errors import TeddyError
from teddy.core.files import Json, digest, manifest_digest, read_json, write_json
from teddy.core.hardware import processor
from teddy.core.runtime import computed_in, for_each, pick_device
from teddy.core.seeding import derive, of_synthesis
from teddy.data.datasets import ImageDataset, LabelledImages, read_dataset
from teddy.settings.configs import EvaluateConfig
from teddy.settings.rows import Evaluation
from teddy.settings.schema import to_json
from teddy.settings.sets import synthesis_file
from teddy.settings.stages import EvaluateSettings
from teddy.students.evaluation import recipe_record, train_student
from teddy.students.label_budget import label_bytes
from teddy.students.labels import (
    MANIFEST,
    FixedLabels,
    KeptLabels,
    OnlineLabels,
    SoftLabels,
    StoredLabels,
    TrainingViews,
)
from teddy.students.sets import check_of_dataset, load
from teddy.teachers.pools import Pool, evenly, open_pool

_KEEP_BYTES = 256 * 2**20  # of labels that are computed while training: kept in memory up to this


def main(settings: EvaluateSettings, args: Namespace) -> str:
    """Run the stage."""
    evaluation, config = settings.evaluation, settings.config
    dataset, pool, device = read_dataset(args.data), open_pool(args.pool), pick_device()
    files = [synthesis_file(args.set, number) for number in range(settings.syntheses)]
    sets = [load(file) for file in files]
    for file, distilled in zip(files, sets, strict=True):
        check_of_dataset(file, distilled, dataset)
    work = WorkDir(
        "evaluate", evaluation.name, config=to_json(config), relabel=to_json(settings.relabel),
        seed=settings.seed, sets=[digest(file) for file in files], data=manifest_digest(args.data),
        pool=manifest_digest(args.pool), split=args.split, members=evaluation.members,
        computed_in=computed_in(device, config.precision),
    ).claim()  # fmt: skip
    held_out = dataset.split(args.split).to(device)
    record = _identity(evaluation, pool) | {
        "arch": config.network.arch,
        "computed_in": computed_in(device, config.precision),
        "split": args.split,
        "images_held_out": len(held_out),
        "num_classes": dataset.num_classes,
        "largest_class": int(held_out.labels.bincount().max()),
        "machine": machine(device),
        "epochs": settings.relabel.epochs,
        "recipe": recipe_record(evaluation.recipe, settings.relabel, config),
        "labels": {kind: [] for kind in evaluation.labels},
    }
    waiting = list[Students]()
    for number, (file, distilled) in enumerate(zip(files, sets, strict=True)):
        seed = of_synthesis(settings.seed, number)
        images = distilled.as_images().to(device)
        views = TrainingViews(images, distilled.normalisation, settings.relabel, seed)
        students = Students(
            evaluation.name, number, config, evaluation.labels, seed, views,
            _labels_of_views(settings, number, file, args, pool, dataset, views),
            _measured_against(evaluation, config, pool, device), held_out, dataset.num_classes,
            work,
        )  # fmt: skip
        waiting.append(students)
        size = label_bytes(settings.relabel, len(views), dataset.num_classes)
        fixed = 2 * len(views) * dataset.num_classes
        record["bytes"] = {"images": distilled.images.numel(), "labels": size, "fixed": fixed}
        record["synthesis"] = distilled.provenance.get("settings")
    for students in waiting:  # all were checked before the first is trained
        for_each(len(students.runs), students.finish, device)
        students.views.forget()
    leave_to_first()
    for students in waiting:
        for kind, results in students.results().items():
            record["labels"][kind] += results
    write_json(args.out, record)
    work.discard()
    return f"{evaluation.name}: {_summary(record['labels'])}"


@dataclass(frozen=True, slots=True)
class Students:
    """The students of one synthesis: one for each kind of labels and seed."""

    name: str
    """Of the evaluation."""
    synthesis: int
    """Its number."""
    config: EvaluateConfig
    labels: tuple[str, ...]
    """Kinds of labels."""
    seed: int
    """Of the synthesis."""
    views: TrainingViews
    labels_of_views: dict[str, SoftLabels]
    """Those of all kinds but hard ones."""
    teachers: list[nn.Module]
    """Those whose divergence from students with soft labels is measured."""
    held_out: LabelledImages
    num_classes: int
    work: WorkDir
    """Where finished results are kept."""

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Labels and seed of every student."""
        return [(kind, seed) for kind in self.labels for seed in self.config.seeds]

    def finish(self, index: int) -> None:
        """Train and measure a student, unless that is done."""
        kind, seed = self.runs[index]
        path = self._path(kind, seed)
        if path.exists():
            return
        result = train_student(
            self.config, self.views, self.labels_of_views.get(kind), self.held_out,
            self.num_classes, derive(self.seed, "student", seed),
            f"evaluate {self.name}, synthesis {self.synthesis}, {kind} labels, seed {seed}",
            path.with_suffix(".resume"),
            self.teachers if kind == "soft" else (),
        )  # fmt: skip
        write_json(path, result | {"synthesis": self.synthesis, "seed": seed})

    def results(self) -> dict[str, list[Json]]:
        """What was measured of all of them, by kind of labels."""
        found: dict[str, list[Json]] = {}
        for kind, seed in self.runs:
            found.setdefault(kind, []).append(read_json(self._path(kind, seed)))
        return found

    def _path(self, kind: str, seed: int) -> Path:
        return self.work / f"{self.synthesis}-{kind}-{seed}.json"


def machine(device: torch.device) -> str:
    """The processor or GPU that students were trained on, and the version of PyTorch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return f"{name}, PyTorch {torch.__version__}"


def _labels_of_views(
    settings: EvaluateSettings, number: int, file: Path, args: Namespace, pool: Pool,
    dataset: ImageDataset, views: TrainingViews,
) -> dict[str, SoftLabels]:  # fmt: skip
    """What students of a synthesis learn from, but for hard labels.

    Soft labels are stored ones, or else computed.
    """
    evaluation, device = settings.evaluation, views.images.labels.device
    folder = args.labels / str(number)
    own = _stored(settings, number, len(pool), file, args.pool, folder)
    found: dict[str, SoftLabels] = {}
    if "fixed" in evaluation.labels:
        pool.check(dataset.image_shape, dataset.num_classes, args.data)
        members = _members(evaluation, pool, device)
        found["fixed"] = FixedLabels(views, members, settings.config.temperature)
    if "soft" not in evaluation.labels:
        return found
    if settings.config.divergence or not own:
        pool.check(dataset.image_shape, dataset.num_classes, args.data)
    if own:
        shape = (settings.relabel.epochs, len(views), dataset.num_classes)
        return found | {"soft": StoredLabels(folder, own, device, shape)}
    labels = OnlineLabels(views, _members(evaluation, pool, device))
    keep = label_bytes(settings.relabel, len(views), dataset.num_classes) <= _KEEP_BYTES
    return found | {"soft": KeptLabels(labels) if keep else labels}


def _members(evaluation: Evaluation, pool: Pool, device: torch.device) -> list[nn.Module]:
    """The members of the pool that an evaluation asks for."""
    return [pool.member(index, device) for index in evenly(len(pool), evaluation.members)]


def _measured_against(
    evaluation: Evaluation, config: EvaluateConfig, pool: Pool, device: torch.device
) -> list[nn.Module]:
    if not config.divergence or "soft" not in evaluation.labels:
        return []
    return [pool.member(index, device) for index in range(len(pool))]


def _identity(evaluation: Evaluation, pool: Pool) -> Json:
    """What was evaluated, and the teachers that labelled."""
    keys = ("set", "dataset", "data", "method", "ipc", "pool")
    return {
        "evaluation": evaluation.name,
        **{key: getattr(evaluation, key) for key in keys},
        "members": evaluation.members or len(pool),
        "teachers": [{key: e.get(key) for key in ("epoch", "val_top1")} for e in pool.entries],
    }


def _stored(
    settings: EvaluateSettings, number: int, pool_size: int, made: Path, pool: Path, labels: Path
) -> Json | None:
    """Manifest of the synthesis's own stored labels if the students are to learn from these.

    An evaluation may have fewer epochs than its set, whose first epochs are then the same labels.

    Raises:
        TeddyError: they are to be, but are not of this set, pool, seed or these settings.
    """
    evaluation = settings.evaluation
    wanted, own = to_json(settings.relabel), to_json(settings.own.relabel)
    epochs = wanted["epochs"] <= own["epochs"]
    same = wanted | {"epochs": 0, "store": True} == own | {"epochs": 0, "store": True}
    all_members = evaluation.members in (0, pool_size)
    manifest = read_json(labels / MANIFEST)
    _refuse_other(labels, manifest, "set", digest(made))
    if evaluation.pool != settings.own.pool or not (epochs and same and all_members):
        return None
    _refuse_other(labels, manifest, "pool", manifest_digest(pool))
    # As it reads in the manifest: JSON has lists where Python has tuples.
    _refuse_other(labels, manifest, "settings", _plain(own))
    _refuse_other(labels, manifest, "seed", of_synthesis(settings.seed, number))
    return manifest if own["store"] else None


def _plain(value: Json) -> Json:
    return json.loads(json.dumps(value))  # type: ignore[no-any-return]


def _refuse_other(labels: Path, manifest: Json, key: str, expected: object) -> None:
    if manifest.get(key) != expected:
        what = {"set": "another set", "pool": "another pool"}.get(key, f"other relabel {key}")
        raise TeddyError(f"{labels}: labels are of {what}; run the relabel stage again")


def _summary(results: dict[str, list[Json]]) -> str:
    parts = []
    for kind, runs in results.items():
        last = torch.tensor([run["top1_last"] for run in runs], dtype=torch.float64)
        parts.append(f"{kind} {last.mean():.1f} %")
    return f"top-1 {', '.join(parts)} (n = {len(runs)})"
