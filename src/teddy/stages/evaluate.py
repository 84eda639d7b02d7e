"""Train fresh students on a distilled set and measure them on real images."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from teddy.artifacts import WorkDir
from teddy.config import Params
from teddy.console import parse
from teddy.data import read_dataset
from teddy.distilled import load
from teddy.distributed import leave_to_first
from teddy.errors import TeddyError
from teddy.evaluation import train_student
from teddy.files import Json, check_writable, digest, manifest_digest, read_json, write_json
from teddy.labels import (
    MANIFEST,
    KeptLabels,
    OnlineLabels,
    SoftLabels,
    StoredLabels,
    TrainingViews,
    label_bytes,
)
from teddy.pool import evenly, open_pool
from teddy.rows import Leaf
from teddy.runtime import for_each, pick_device, run_stage
from teddy.schema import to_json
from teddy.seeding import derive

_KEEP_BYTES = 256 * 2**20  # of labels that are computed while training: kept in memory up to this


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        "key of sets or scores in params.yaml",
        split=True,
        data="prepared dataset",
        set="distilled set",
        labels="folder of the set's own soft labels",
        pool="folder of the pool that labels (used if the labels are not those stored)",
        out="JSON to write with the accuracy of every student",
    )

    def stage() -> str:
        params = Params(args.params)
        leaf, config = params.leaf(args.name), params.evaluate(args.name)
        check_writable(args.out)
        distilled, dataset, device = load(args.set), read_dataset(args.data), pick_device()
        relabel = params.relabel(args.name)
        views = TrainingViews(
            distilled.as_images().to(device), distilled.normalisation, relabel, params.seed
        )
        held_out = dataset.split(args.split).to(device)
        pool = open_pool(args.pool)
        own = _stored(params, leaf, args.set, args.pool, args.labels)
        soft: SoftLabels
        if own is not None:
            soft = StoredLabels(args.labels, own, device)
        else:
            chosen = evenly(len(pool), leaf.members)
            soft = OnlineLabels(views, [pool.member(index, device) for index in chosen])
            if label_bytes(views, dataset.num_classes) <= _KEEP_BYTES:
                soft = KeptLabels(soft)
        teachers: list[nn.Module] = []
        if config.divergence and "soft" in leaf.labels:
            teachers = [pool.member(index, device) for index in range(len(pool))]
        work = WorkDir(
            "evaluate", args.name, config=to_json(config), relabel=to_json(relabel),
            seed=params.seed, set=digest(args.set), pool=manifest_digest(args.pool),
            data=manifest_digest(args.data), split=args.split, members=leaf.members,
        ).claim()  # fmt: skip
        runs = [(kind, n) for kind in leaf.labels for n in config.seeds]

        def finish(index: int) -> None:
            kind, seed = runs[index]
            if not _path(work, kind, seed).exists():
                result = train_student(
                    config, views, soft if kind == "soft" else None, held_out,
                    dataset.num_classes, derive(params.seed, "student", seed),
                    f"evaluate {args.name}, {kind} labels, seed {seed}",
                    _path(work, kind, seed).with_suffix(".resume"),
                    teachers if kind == "soft" else (),
                )  # fmt: skip
                write_json(_path(work, kind, seed), result | {"seed": seed})

        for_each(len(runs), finish, device)
        leave_to_first()
        results: dict[str, list[Json]] = {}
        for kind, seed in runs:
            results.setdefault(kind, []).append(read_json(_path(work, kind, seed)))
        record = _identity(leaf) | {
            "arch": config.network.arch,
            "split": args.split,
            "images_held_out": len(held_out),
            "num_classes": dataset.num_classes,
            "epochs": relabel.epochs,
            "members": leaf.members or len(pool),
            "teachers": [_teacher(entry) for entry in pool.entries],
            "synthesis": distilled.provenance.get("settings"),
            "bytes": {
                "images": distilled.images.numel(),
                "labels": label_bytes(views, dataset.num_classes),
            },
            "labels": results,
        }
        write_json(args.out, record)
        work.discard()
        return f"{args.name}: {_summary(results)}"

    run_stage("evaluate", stage, parallel=True)


def _path(work: WorkDir, kind: str, seed: int) -> Path:
    return work / f"{kind}-{seed}.json"


def _identity(leaf: Leaf) -> Json:
    keys = ("set", "dataset", "data", "method", "ipc", "pool")
    return {"score": leaf.name} | {key: getattr(leaf, key) for key in keys}


def _teacher(entry: Json) -> Json:
    """What figures say of a member."""
    return {key: entry.get(key) for key in ("epoch", "val_top1")}


def _stored(params: Params, leaf: Leaf, made: Path, pool: Path, labels: Path) -> Json | None:
    """Manifest of the set's own stored labels if the students are to learn from these.

    A score may have fewer epochs than its set, whose first epochs are then the same labels.

    Raises:
        TeddyError: they are to be, but are not of this set, pool, seed or these settings.
    """
    default = params.leaf(leaf.set)
    settings, own = to_json(params.relabel(leaf.name)), to_json(params.relabel(leaf.set))
    epochs = settings["epochs"] <= own["epochs"]
    same = settings | {"epochs": 0, "store": True} == own | {"epochs": 0, "store": True}
    all_members = leaf.members in (0, params.pool_size(leaf.pool))
    manifest = read_json(labels / MANIFEST)
    _refuse_other(labels, manifest, "set", digest(made))
    if leaf.pool != default.pool or not (epochs and same and all_members):
        return None
    _refuse_other(labels, manifest, "pool", manifest_digest(pool))
    # As it reads in the manifest: JSON has lists where Python has tuples.
    _refuse_other(labels, manifest, "settings", _plain(own))
    _refuse_other(labels, manifest, "seed", params.seed)
    return manifest if manifest["shards"] else None


def _plain(value: Json) -> Json:
    return json.loads(json.dumps(value))  # type: ignore[no-any-return]


def _refuse_other(labels: Path, manifest: Json, key: str, expected: object) -> None:
    if manifest.get(key) != expected:
        what = {"set": "another set", "pool": "another pool"}.get(key, f"other relabel {key}")
        raise TeddyError(f"{labels}: labels are of {what}; run the relabel stage again")


def _summary(results: dict[str, list[Json]]) -> str:
    parts = []
    for kind, runs in results.items():
        last = torch.tensor([run["top1_last"] for run in runs], dtype=torch.float64)
        parts.append(f"{kind} {last.mean():.1f} %")
    return f"top-1 {', '.join(parts)} (n = {len(runs)})"


if __name__ == "__main__":
    main()
