"""Train fresh students on a distilled set and measure them on real images."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from teddy.artifacts import Json, WorkDir, check_writable, digest, read_json, write_json
from teddy.config import Params, to_json
from teddy.data import read_dataset
from teddy.distilled import load
from teddy.distributed import leave_to_first
from teddy.errors import TeddyError
from teddy.evaluation import train_student
from teddy.labels import MANIFEST, OnlineLabels, SoftLabels, StoredLabels, TrainingViews
from teddy.pool import open_pool
from teddy.runtime import for_each, pick_device, run_stage
from teddy.seeding import derive
from teddy.stages.command import manifest_digest, parse


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        "key of sets in params.yaml",
        split=True,
        data="prepared dataset",
        set="distilled set",
        labels="folder of the soft labels",
        pool="folder of the pool (used if labels are not stored)",
        out="JSON to write with the accuracy of every student",
    )

    def stage() -> str:
        params = Params(args.params)
        row, config = params.row("sets", args.name), params.evaluate(args.name)
        check_writable(args.out)
        distilled, dataset, device = load(args.set), read_dataset(args.data), pick_device()
        relabel = params.relabel(args.name)
        expected = {
            "set": digest(args.set),
            "pool": manifest_digest(args.pool),
            "settings": json.loads(json.dumps(to_json(relabel))),
            "seed": params.seed,
        }
        _refuse_mismatch(args.labels, expected)
        views = TrainingViews(
            distilled.as_images().to(device), distilled.normalisation, relabel, params.seed
        )
        held_out = dataset.split(args.split).to(device)
        soft = _soft_labels(args.labels, args.pool, views, device)
        work = WorkDir(
            "evaluate", args.name, config=to_json(config), relabel=to_json(relabel),
            seed=params.seed, set=digest(args.set), labels=manifest_digest(args.labels),
            data=manifest_digest(args.data), split=args.split,
        ).claim()  # fmt: skip
        runs = [(kind, n) for kind in params.methods[row.method].labels for n in config.seeds]

        def finish(index: int) -> None:
            kind, seed = runs[index]
            if not _path(work, kind, seed).exists():
                result = train_student(
                    config, views, soft if kind == "soft" else None, held_out,
                    dataset.num_classes, derive(params.seed, "student", seed),
                    f"evaluate {args.name}, {kind} labels, seed {seed}",
                    _path(work, kind, seed).with_suffix(".resume"),
                )  # fmt: skip
                write_json(_path(work, kind, seed), result | {"seed": seed})

        for_each(len(runs), finish, device)
        leave_to_first()
        results: dict[str, list[Json]] = {}
        for kind, seed in runs:
            results.setdefault(kind, []).append(read_json(_path(work, kind, seed)))
        record = {
            "set": args.name,
            "dataset": row.dataset,
            "method": row.method,
            "ipc": row.ipc,
            "arch": config.network.arch,
            "split": args.split,
            "images_held_out": len(held_out),
            "epochs": relabel.epochs,
            "labels": results,
        }
        write_json(args.out, record)
        work.discard()
        return f"{args.name}: {_summary(results)}"

    run_stage("evaluate", stage, parallel=True)


def _path(work: WorkDir, kind: str, seed: int) -> Path:
    return work / f"{kind}-{seed}.json"


def _refuse_mismatch(labels: Path, expected: Json) -> None:
    manifest = read_json(labels / MANIFEST)
    what = {"set": "another set", "pool": "another pool"}
    for key, value in expected.items():
        if manifest.get(key) != value:
            other = what.get(key, f"other relabel {key}")
            raise TeddyError(f"{labels}: labels are of {other}; run the relabel stage again")


def _soft_labels(
    folder: Path, pool: Path, views: TrainingViews, device: torch.device
) -> SoftLabels:
    manifest = read_json(folder / MANIFEST)
    if manifest["shards"]:
        return StoredLabels(folder, manifest, device)
    members = open_pool(pool)
    return OnlineLabels(views, [members.member(index, device) for index in range(len(members))])


def _summary(results: dict[str, list[Json]]) -> str:
    parts = []
    for kind, runs in results.items():
        last = torch.tensor([run["top1_last"] for run in runs], dtype=torch.float64)
        parts.append(f"{kind} {last.mean():.1f} %")
    return f"top-1 {', '.join(parts)} (n = {len(runs)})"


if __name__ == "__main__":
    main()
