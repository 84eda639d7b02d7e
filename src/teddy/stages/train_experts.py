"""Train experts from fresh starts, keeping their parameters after every epoch (MTT, FTD, TESLA)."""

from argparse import Namespace

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import first_alone, leave_to_first
from teddy.core.files import manifest_digest, write_json
from teddy.core.runtime import for_each, pick_device
from teddy.core.seeding import derive
from teddy.data.datasets import read_dataset
from teddy.settings.schema import to_json
from teddy.settings.stages import ExpertsSettings
from teddy.teachers.experts import (
    check_room,
    manifest,
    member_name,
    train_expert,
    trajectory_name,
)
from teddy.teachers.pools import MANIFEST


def main(settings: ExpertsSettings, args: Namespace) -> str:
    """Run the stage."""
    name, config = settings.name, settings.config
    dataset, device = read_dataset(args.data), pick_device()
    work = WorkDir(
        "train_experts", name, settings=to_json(settings), data=manifest_digest(args.data)
    ).claim()
    with first_alone():
        check_room(config, dataset, work.path, args.out)

    def finish(index: int) -> None:
        if not (work / member_name(index)).exists():
            seed = derive(settings.seed, "expert", name, index)
            train_expert(config, dataset, index, seed, work, device)

    for_each(config.count, finish, device)
    leave_to_first()
    record = manifest(name, config, args.data, work)
    for index in range(config.count):
        work.publish(args.out, [trajectory_name(index), member_name(index)])
    write_json(args.out / MANIFEST, record)
    work.discard()
    top1 = [entry["val_top1"] for entry in record["members"]]
    return f"{name}: {len(top1)} experts, {min(top1):.1f} to {max(top1):.1f} % held-out"
