"""Build a pool of weak teachers from a base run: prior, post, or the converged model alone."""

from collections.abc import Sequence
from pathlib import Path

from teddy.core.artifacts import WorkDir
from teddy.core.console import parse
from teddy.core.distributed import leave_to_first
from teddy.core.files import Json, check_writable, digest, manifest_digest, read_json, write_json
from teddy.core.runtime import pick_device, run_stage, use_threads
from teddy.core.seeding import derive
from teddy.data.datasets import ImageDataset, read_dataset
from teddy.settings.params import Params
from teddy.settings.schema import to_json
from teddy.teachers.making import RECORD, build_converged, build_post, build_prior
from teddy.teachers.pools import MANIFEST


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        "key of pools in params.yaml",
        data="prepared dataset",
        base="folder of the base run",
        curve="record of the base run whose accuracies post members imitate",
        out="folder for the members and their manifest",
        facts="JSON to write with a copy of the manifest, for the report",
    )

    def stage() -> str:
        params = Params(args.params)
        kind, config = params.row("pools", args.name).kind, params.pool(args.name)
        check_writable(args.out / MANIFEST, args.facts)
        base = read_json(args.base / RECORD)
        work = WorkDir(
            "build_pool", args.name, kind=kind, config=to_json(config), seed=params.seed,
            base=digest(args.base / RECORD), curve=digest(args.curve),
            data=manifest_digest(args.data),
        ).claim()  # fmt: skip
        curve = [epoch["val_top1"] for epoch in read_json(args.curve)["epochs"]]
        entries = _build(params, args.name, args.base, curve, read_dataset(args.data), work)
        work.publish(args.out, [entry["file"] for entry in entries])
        manifest = {
            "pool": args.name,
            "kind": kind,
            "base": base["base"],
            "training_views": base["views"],
            "members": entries,
        }
        write_json(args.out / MANIFEST, manifest)
        write_json(args.facts, manifest)
        work.discard()
        top1 = [entry["val_top1"] for entry in entries]
        return f"{args.name}: {len(top1)} members, {min(top1):.1f} to {max(top1):.1f} % held-out"

    run_stage("build_pool", stage, parallel=True)


def _build(
    params: Params,
    name: str,
    base: Path,
    curve: Sequence[float],
    dataset: ImageDataset,
    work: WorkDir,
) -> list[Json]:
    """Make the members; only the first process returns."""
    kind, config = params.row("pools", name).kind, params.pool(name)
    if kind != "post":
        leave_to_first()
    if kind == "prior":
        return build_prior(base, config.prior.epochs, work)
    if kind == "converged":
        return build_converged(base, work)
    device, seed = pick_device(), derive(params.seed, "pool", name)
    use_threads(device, dataset.image_shape)
    return build_post(base, curve, config, dataset, seed, work, device)


if __name__ == "__main__":
    main()
