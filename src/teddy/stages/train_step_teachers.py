"""Train a base model on the classes of each step of continual learning alone (Fig. 3e, strict)."""

from argparse import Namespace

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import leave_to_first
from teddy.core.files import Json, manifest_digest, read_json, write_json
from teddy.core.runtime import for_each, pick_device
from teddy.core.seeding import derive
from teddy.data.datasets import read_dataset
from teddy.settings.schema import to_json
from teddy.settings.stages import StepTeachersSettings
from teddy.students.continual import class_steps, only_classes, step_folder
from teddy.teachers.making import RECORD, checkpoint_name, train_base


def main(settings: StepTeachersSettings, args: Namespace) -> str:
    """Run the stage."""
    name, config, checkpoints = settings.name, settings.config, settings.checkpoints
    dataset, device = read_dataset(args.data), pick_device()
    work = WorkDir(
        "train_step_teachers", name, settings=to_json(settings),
        data=manifest_digest(args.data),
    ).claim()  # fmt: skip
    steps = [
        (order, step, classes)
        for order in settings.continual.orders
        for step, classes in enumerate(
            class_steps(dataset.num_classes, settings.continual.steps, order)
        )
    ]

    def finish(index: int) -> None:
        order, step, classes = steps[index]
        folder = work.path / step_folder(order, step)
        if (folder / RECORD).exists():
            return
        seed = derive(settings.seed, "step teacher", name, order, step)
        own = only_classes(dataset, classes, all_outputs=True)
        epochs = train_base(config, own, seed, folder, device)
        for record in epochs:
            if record["epoch"] not in checkpoints:
                (folder / checkpoint_name(record["epoch"])).unlink(missing_ok=True)
        write_json(
            folder / RECORD, {"order": order, "step": step, "classes": list(classes),
                              "epochs": epochs},
        )  # fmt: skip

    for_each(len(steps), finish, device)
    leave_to_first()
    records: list[Json] = []
    for order, step, _ in steps:
        folder = step_folder(order, step)
        work.publish(args.out, [f"{folder}/{checkpoint_name(e)}" for e in checkpoints])
        records.append(read_json(work.path / folder / RECORD))
    whole = {"step_teachers": name, "views": to_json(config.views), "steps": records}
    write_json(args.out / RECORD, whole)
    work.discard()
    top1 = [record["epochs"][-1]["val_top1"] for record in records]
    return f"{name}: {len(top1)} runs, {min(top1):.1f} to {max(top1):.1f} % held-out"
