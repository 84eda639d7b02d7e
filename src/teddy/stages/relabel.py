"""Label every augmented, CutMixed view of a distilled set with the whole pool's ensemble."""

from argparse import Namespace

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import leave_to_first
from teddy.core.files import Json, digest, manifest_digest, write_json
from teddy.core.runtime import computed_in, pick_device
from teddy.settings.schema import to_json
from teddy.settings.stages import RelabelSettings
from teddy.students.labels import MANIFEST, OnlineLabels, TrainingViews, store_labels
from teddy.students.sets import load
from teddy.teachers.pools import open_pool


def main(settings: RelabelSettings, args: Namespace) -> str:
    """Run the stage."""
    name, config = settings.name, settings.config
    distilled, pool, device = load(args.set), open_pool(args.pool), pick_device()
    if config.store:
        pool.check(distilled.images.shape[1:], distilled.num_classes, args.set)
    manifest: Json = {
        "set": digest(args.set),
        "pool": manifest_digest(args.pool),
        "settings": to_json(config),
        "computed_in": computed_in(device, config.precision),
        "seed": settings.seed,
        "shards": [],
    }
    work = WorkDir("relabel", name, **manifest).claim()
    if config.store:
        views = TrainingViews(
            distilled.as_images().to(device), distilled.normalisation, config, settings.seed
        )
        teachers = [pool.member(index, device) for index in range(len(pool))]
        labels = OnlineLabels(views, teachers)
        manifest["shards"] = store_labels(labels, distilled.num_classes, work)
    leave_to_first()
    work.publish(args.out, [shard["file"] for shard in manifest["shards"]])
    write_json(args.out / MANIFEST, manifest)
    work.discard()
    how = "stored" if config.store else "left to be computed while training"
    return f"{name}: {config.epochs} epochs of {len(distilled)} labels {how}"
