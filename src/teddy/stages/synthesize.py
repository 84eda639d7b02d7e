"""Make a distilled set: by Eq. 7, by distribution matching, or of random real images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import teddy
from teddy.core.artifacts import WorkDir
from teddy.core.console import parse
from teddy.core.distributed import leave_to_first
from teddy.core.files import Json, check_writable, manifest_digest, read_json, write_json
from teddy.core.runtime import pick_device, run_stage
from teddy.core.seeding import derive
from teddy.data.datasets import ImageDataset, read_dataset, select_random
from teddy.data.distilled import DistilledSet, save_distilled
from teddy.settings.configs import KINDS, SynthesizeConfig, ViewConfig, settings_of_images
from teddy.settings.schema import from_json
from teddy.settings.stages import SynthesizeSettings, read_settings
from teddy.synthesis.distribution_matching import DistributionMatcher
from teddy.synthesis.eq7 import Synthesiser
from teddy.synthesis.methods import ImageMaker, synthesise
from teddy.teachers.pools import MANIFEST, open_pool


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        data="prepared dataset",
        pool="folder of the pool",
        out="distilled set to write",
        history="JSON to write with the loss curve of every item",
    )

    def stage() -> str:
        settings = read_settings(SynthesizeSettings, args.settings)
        name, config, made = settings.name, settings.config, settings.images
        seed = settings.seed
        if settings.repeat:
            seed = derive(seed, "repeat", settings.repeat)
        check_writable(args.out, args.history)
        dataset = read_dataset(args.data)
        provenance: Json = {
            "set": name,
            "dataset": settings.dataset,
            "method": settings.method,
            "images": made,
            "seed": seed,
            "data": manifest_digest(args.data),
            "software": {"teddy": teddy.__version__, "torch": torch.__version__},
        }
        records: list[Json] = []
        if made == "random":
            leave_to_first()
            images, labels = _random(dataset, settings.ipc, seed)
        else:
            provenance |= {"settings": settings_of_images(config, made)}
            if KINDS[made].by_pool:
                provenance |= {"pool": manifest_digest(args.pool)}
            maker = MAKERS[made](config, dataset, args.pool, seed)
            work = WorkDir("synthesize", name, **provenance).claim()
            images, labels, records = synthesise(maker, settings.ipc, work)
        distilled = DistilledSet(
            images, labels, dataset.class_names, dataset.normalisation, provenance
        )
        save_distilled(args.out, distilled)
        write_json(args.history, {"set": name, "items": records})
        if records:
            work.discard()
        return f"{name}: {distilled}"

    run_stage("synthesize", stage, parallel=True)


def _random(dataset: ImageDataset, ipc: int, seed: int) -> tuple[Tensor, Tensor]:
    chosen = select_random(dataset.train.labels, dataset.num_classes, range(ipc), seed).flatten()
    return dataset.train.pick(chosen), dataset.train.labels[chosen]


def _synthesiser(
    config: SynthesizeConfig, dataset: ImageDataset, pool: Path, seed: int
) -> ImageMaker:
    record = read_json(pool / MANIFEST)["training_views"]
    views = from_json(ViewConfig, record, f"{pool / MANIFEST}: training_views")
    return Synthesiser(config, open_pool(pool), dataset, views, seed, pick_device())


def _matcher(config: SynthesizeConfig, dataset: ImageDataset, pool: Path, seed: int) -> ImageMaker:
    return DistributionMatcher(config, dataset, seed, pick_device())


Make = Callable[[SynthesizeConfig, ImageDataset, Path, int], ImageMaker]
MAKERS: dict[str, Make] = {"synthesised": _synthesiser, "dm": _matcher}
"""What optimises images of a kind, given settings, real images, the pool's folder and a seed."""


if __name__ == "__main__":
    main()
