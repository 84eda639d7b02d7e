"""Label every augmented, CutMixed view of a distilled set with the whole pool's ensemble."""

from argparse import Namespace

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import first_alone, leave_to_first
from teddy.core.files import Json, digest, manifest_digest, write_json
from teddy.core.runtime import computed_in, pick_device
from teddy.core.seeding import of_synthesis
from teddy.settings.schema import to_json
from teddy.settings.sets import synthesis_file
from teddy.settings.stages import RelabelSettings
from teddy.students.label_budget import check_fits
from teddy.students.labels import MANIFEST, OnlineLabels, TrainingViews, store_labels
from teddy.students.sets import load
from teddy.teachers.pools import open_pool


def main(settings: RelabelSettings, args: Namespace) -> str:
    """Run the stage."""
    config, works = settings.config, list[WorkDir]()
    for number in range(settings.syntheses):
        with first_alone():
            size = _label(settings, args, number, works)
    leave_to_first()
    for work in works:  # whatever is killed before goes on from them
        work.discard()
    how = "stored" if config.store else "left to be computed while training"
    times = f"{settings.syntheses} × {config.epochs} epochs of {size} labels"
    return f"{settings.name}: {times} {how}"


def _label(settings: RelabelSettings, args: Namespace, number: int, works: list[WorkDir]) -> int:
    """Label one synthesis, whose work is added to ``works``; its number of images."""
    config, path = settings.config, synthesis_file(args.set, number)
    distilled, pool, device = load(path), open_pool(args.pool), pick_device()
    if config.store:
        pool.check(distilled.images.shape[1:], distilled.num_classes, path)
        check_fits(config, len(distilled.as_images()), distilled.num_classes, args.out)
    manifest: Json = {
        "set": digest(path),
        "pool": manifest_digest(args.pool),
        "settings": to_json(config),
        "computed_in": computed_in(device, config.precision),
        "seed": of_synthesis(settings.seed, number),
        "shards": [],
    }
    work = WorkDir("relabel", settings.name, **manifest).claim()
    works.append(work)
    if config.store:
        views = TrainingViews(
            distilled.as_images().to(device), distilled.normalisation, config, manifest["seed"]
        )
        teachers = [pool.member(index, device) for index in range(len(pool))]
        labels = OnlineLabels(views, teachers)
        manifest["shards"] = store_labels(labels, distilled.num_classes, work)
    leave_to_first()
    out = args.out / str(number)
    work.publish(out, [shard["file"] for shard in manifest["shards"]])
    write_json(out / MANIFEST, manifest)
    return len(distilled)
