"""Make a distilled set by the algorithm of its method: Eq. 7, another, or real images."""

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import first_alone, leave_to_first
from teddy.core.files import Json, manifest_digest, write_json
from teddy.core.runtime import pick_device
from teddy.core.seeding import of_synthesis
from teddy.core.version import VERSION
from teddy.data.datasets import ImageDataset, read_dataset, without_repeats
from teddy.data.distilled import DistilledSet, save_distilled
from teddy.settings.schema import from_json
from teddy.settings.sets import synthesis_file
from teddy.settings.stages import SynthesizeSettings
from teddy.synthesis.methods import Ingredients, method_class
from teddy.teachers.experts import check_data
from teddy.teachers.pools import open_pool, training_views


def main(settings: SynthesizeSettings, args: Namespace) -> str:
    """Run the stage."""
    dataset, records = read_dataset(args.data), list[Json]()
    works, made = list[WorkDir](), list[DistilledSet]()
    for number in range(settings.syntheses):
        with first_alone():
            distilled, batches = _synthesis(settings, args, dataset, number, works)
            save_distilled(synthesis_file(args.out, number), distilled)
            records += [{"synthesis": number, **batch} for batch in batches]
            made.append(distilled)
    leave_to_first()
    write_json(args.history, {"set": settings.name, "batches": records})
    for work in works:  # whatever is killed before goes on from them
        work.discard()
    return f"{settings.name}: {settings.syntheses} × {made[0]}"


def _synthesis(
    settings: SynthesizeSettings, args: Namespace, dataset: ImageDataset, number: int,
    works: list[WorkDir],
) -> tuple[DistilledSet, list[Json]]:  # fmt: skip
    """One synthesis, whose work is added to ``works``; and records of its batches."""
    cls, seed = method_class(settings.algorithm), of_synthesis(settings.seed, number)
    provenance: Json = {
        "set": settings.name,
        "dataset": settings.dataset,
        "method": settings.method,
        "synthesis": number,
        "algorithm": settings.algorithm,
        "seed": seed,
        "data": manifest_digest(args.data),
        "pool": manifest_digest(args.pool) if cls.by_pool else None,
        "settings": settings.config,
        "small_classes": settings.small_classes,
        "software": {"teddy": VERSION, "torch": torch.__version__},
    }
    config: Any = from_json(cls.Config, settings.config, f"{args.settings}: config")
    given = _ingredients(dataset, args.data, args.pool if cls.by_pool else None, seed)
    given = dataclasses.replace(given, small_classes=settings.small_classes)
    work = WorkDir("synthesize", settings.name, code=settings.code, **provenance).claim()
    works.append(work)
    made = cls(config, given).make(settings.ipc, work)
    if settings.small_classes == "fewer":
        kept = without_repeats(made.labels, dataset.train.labels.cpu())
        made = dataclasses.replace(made, images=made.images[kept], labels=made.labels[kept])
    distilled = DistilledSet(
        made.images, made.labels, dataset.class_names, dataset.normalisation, provenance,
        made.partition,
    )  # fmt: skip
    return distilled, made.records


def _ingredients(dataset: ImageDataset, data: Path, pool: Path | None, seed: int) -> Ingredients:
    if pool is None:
        return Ingredients(dataset, seed, pick_device())
    teachers = open_pool(pool)
    teachers.check(dataset.image_shape, dataset.num_classes, data)
    check_data(teachers, data)
    return Ingredients(dataset, seed, pick_device(), teachers, training_views(pool))
