"""Prepare a dataset: load, check, split by class, and write it with a manifest."""

from argparse import Namespace

import torch

from teddy.core.errors import TeddyError
from teddy.core.runtime import log
from teddy.data.datasets import SPLITS, ImageDataset
from teddy.data.preparation import prepare, write_dataset
from teddy.settings.schema import shown
from teddy.settings.stages import Demand, PrepareSettings

_SHOWN = 5  # the first classes of a long list, and as many of the smallest and of the largest


def main(settings: PrepareSettings, args: Namespace) -> str:
    """Run the stage."""
    try:
        dataset, facts = prepare(settings.config, settings.seed)
    except TeddyError as error:
        raise TeddyError(f"{settings.where}: {error}") from error
    if settings.demand:
        _warn_of_large_ipc(settings.demand, settings.name, dataset)
    write_dataset(args.out, dataset, facts)
    counts = ", ".join(f"{len(dataset.split(split))} {split}" for split in SPLITS)
    log(f"{settings.name}: images per class: {_classes(dataset)}")
    return f"{settings.name}: {counts} images in {dataset.num_classes} classes"


def _warn_of_large_ipc(demand: Demand, name: str, dataset: ImageDataset) -> None:
    """Warn of a set that needs more real images per class than there are.

    Its own stage refuses it; other rows, which may need none, are made all the same.
    """
    counts = dataset.train.labels.bincount(minlength=dataset.num_classes)
    smallest = int(counts.min())
    if demand.images > smallest:
        size = demand.indices_per_batch
        grouped = f" (groups of synthesize.indices_per_batch {size})" if size else ""
        few = dataset.class_names[int(counts.argmin())]
        log(
            f"warning: sets.{demand.row} needs {demand.images} real images per class{grouped}, "
            f"but class {shown(few)} of {name} has {smallest} for training: its stage synthesize "
            "will refuse it; choose a smaller ipc, or prepare.small_classes: repeat "
            "or fewer"
        )


def _classes(dataset: ImageDataset) -> str:
    """Classes with their images in all splits; of many the first, the smallest and the largest."""
    labels = torch.cat([dataset.split(split).labels for split in SPLITS])
    counts = labels.bincount(minlength=dataset.num_classes).tolist()
    each = [
        f"{shown(name)} {count}" for name, count in zip(dataset.class_names, counts, strict=True)
    ]
    if len(each) <= 3 * _SHOWN:
        return ", ".join(each)
    by_count = sorted(range(len(each)), key=counts.__getitem__)
    few, many = by_count[:_SHOWN], by_count[: -_SHOWN - 1 : -1]
    return (
        f"{', '.join(each[:_SHOWN])}, …; fewest {', '.join(each[i] for i in few)}; "
        f"most {', '.join(each[i] for i in many)}"
    )
