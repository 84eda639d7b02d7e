"""Train the one base model of a dataset; its checkpoints are what pools are made from."""

from argparse import Namespace
from pathlib import Path

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import leave_to_first, team, world_size
from teddy.core.files import digest, manifest_digest, write_json
from teddy.core.runtime import pick_device, use_threads
from teddy.core.seeding import derive
from teddy.data.datasets import read_dataset
from teddy.settings.schema import to_json
from teddy.settings.stages import TrainTeacherSettings
from teddy.teachers.making import RECORD, checkpoint_name, take_base, train_base


def main(settings: TrainTeacherSettings, args: Namespace) -> str:
    """Run the stage."""
    name, config = settings.name, settings.config
    dataset, device = read_dataset(args.data), pick_device()
    use_threads(device, dataset.image_shape)
    seed, checkpoint = derive(settings.seed, "base", name), Path(config.checkpoint).expanduser()
    work = WorkDir(
        "train_teacher", name, config=to_json(config), seed=seed,
        data=manifest_digest(args.data), processes=world_size(),
        checkpoint=digest(checkpoint) if checkpoint.is_file() else config.checkpoint,
    ).claim()  # fmt: skip
    with team(device) as processes:
        if config.checkpoint:
            epochs = take_base(config, dataset, work, device, processes)
        else:
            epochs = train_base(config, dataset, seed, work, device, processes)
    leave_to_first()
    work.publish(args.out, [checkpoint_name(record["epoch"]) for record in epochs])
    record = {
        "base": name,
        "views": to_json(config.views),
        "network": to_json(config.network),
        "epochs": epochs,
    }
    write_json(args.out / RECORD, record)
    write_json(args.curve, {"base": name, "epochs": epochs})
    work.discard()
    return f"{name}: {epochs[-1]['val_top1']:.1f} % held-out after {len(epochs)} epochs"
