"""Prepare a dataset: load, check, split by class, and write it with a manifest."""

from argparse import Namespace

from teddy.core.errors import TeddyError
from teddy.data.datasets import SPLITS, ImageDataset
from teddy.data.preparation import prepare, write_dataset
from teddy.settings.stages import Demand, PrepareSettings


def main(settings: PrepareSettings, args: Namespace) -> str:
    """Run the stage."""
    try:
        dataset, facts = prepare(settings.config, settings.seed)
    except TeddyError as error:
        raise TeddyError(f"{settings.where}: {error}") from error
    if settings.demand:
        _refuse_large_ipc(settings.demand, settings.name, dataset)
    write_dataset(args.out, dataset, facts)
    counts = ", ".join(f"{len(dataset.split(split))} {split}" for split in SPLITS)
    return f"{settings.name}: {counts} images in {dataset.num_classes} classes"


def _refuse_large_ipc(demand: Demand, name: str, dataset: ImageDataset) -> None:
    """Refuse sets that need more real images per class than there are, before hours are spent."""
    smallest = int(dataset.train.labels.bincount(minlength=dataset.num_classes).min())
    if demand.images > smallest:
        size = demand.indices_per_batch
        grouped = f" (groups of synthesize.indices_per_batch {size})" if size else ""
        raise TeddyError(
            f"sets.{demand.row} needs {demand.images} real images per class{grouped}, but the "
            f"smallest class of {name} has {smallest} for training; choose a smaller ipc"
        )
