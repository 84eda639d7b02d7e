"""Prepare a dataset: load, check, split by class, and write it with a manifest."""

from collections.abc import Sequence

from teddy.core.console import parse
from teddy.core.errors import TeddyError
from teddy.core.files import check_writable
from teddy.core.runtime import run_stage
from teddy.data.datasets import SPLITS, ImageDataset
from teddy.data.preparation import prepare, write_dataset
from teddy.settings.params import Params


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(__doc__, argv, "key of prepared in params.yaml", out="folder to write")

    def stage() -> str:
        params = Params(args.params)
        config = params.prepare(args.name)
        check_writable(args.out / "manifest.json")
        try:
            dataset, facts = prepare(config, params.seed)
        except TeddyError as error:
            where = params.row("prepared", args.name).dataset
            raise TeddyError(f"{params.path}: datasets.{where}: {error}") from error
        _refuse_large_ipc(params, args.name, dataset)
        write_dataset(args.out, dataset, facts)
        counts = ", ".join(f"{len(dataset.split(split))} {split}" for split in SPLITS)
        return f"{args.name}: {counts} images in {dataset.num_classes} classes"

    run_stage("prepare", stage)


def _refuse_large_ipc(params: Params, name: str, dataset: ImageDataset) -> None:
    """Refuse sets that need more real images per class than there are, before hours are spent."""
    smallest = int(dataset.train.labels.bincount(minlength=dataset.num_classes).min())
    for key, row in params.sets.items():
        if row.data != name:
            continue
        config = params.synthesize(key)
        images = params.methods[row.method].images
        if images != "random" and config.initialise != "real":
            continue
        grouped, needed = "", row.ipc
        if images == "synthesised":  # the last group of indices is made whole
            size = config.indices_per_batch
            grouped = f" (groups of synthesize.indices_per_batch {size})"
            needed = -(-row.ipc // size) * size
        if needed > smallest:
            raise TeddyError(
                f"{params.path}: sets.{key} needs {needed} real images per class{grouped}, but the "
                f"smallest class of {name} has {smallest} for training; choose a smaller ipc"
            )


if __name__ == "__main__":
    main()
