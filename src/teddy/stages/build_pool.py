"""Build a pool of weak teachers from a base run: prior, post, or the converged model alone."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import leave_to_first
from teddy.core.errors import TeddyError
from teddy.core.files import Json, digest, manifest_digest, read_json, write_json
from teddy.core.runtime import pick_device, use_threads
from teddy.core.seeding import derive
from teddy.data.datasets import ImageDataset, read_dataset
from teddy.settings.configs import ViewConfig
from teddy.settings.schema import from_json, shown, to_json
from teddy.settings.stages import BuildPoolSettings
from teddy.teachers.making import RECORD, build_converged, build_post, build_prior
from teddy.teachers.pools import MANIFEST

_AGAIN = "run the train_teacher stage again"


def main(settings: BuildPoolSettings, args: Namespace) -> str:
    """Run the stage."""
    name = settings.name
    base, curve = _base(args.base / RECORD), _curve(args.curve)
    work = WorkDir(
        "build_pool", name, settings=to_json(settings), base=digest(args.base / RECORD),
        curve=digest(args.curve), data=manifest_digest(args.data),
    ).claim()  # fmt: skip
    entries = _build(settings, args.base, curve, read_dataset(args.data), work)
    work.publish(args.out, [entry["file"] for entry in entries])
    manifest = {
        "pool": name,
        "kind": settings.kind,
        "base": base["base"],
        "training_views": base["views"],
        "members": entries,
    }
    write_json(args.out / MANIFEST, manifest)
    write_json(args.facts, manifest)
    work.discard()
    top1 = [entry["val_top1"] for entry in entries]
    return f"{name}: {len(top1)} members, {min(top1):.1f} to {max(top1):.1f} % held-out"


def _base(path: Path) -> Json:
    """Record of the base run."""
    record = read_json(path)
    from_json(ViewConfig, record.get("views"), f"{path}: views")
    if not isinstance(record.get("base"), str):
        raise TeddyError(f"{path}: base must be text; got {shown(record.get('base'))}; {_AGAIN}")
    return record


def _curve(path: Path) -> list[float]:
    """Held-out accuracy after every epoch of a base run."""
    epochs = read_json(path).get("epochs")
    try:
        return [float(epoch["val_top1"]) for epoch in epochs or {}]
    except (TypeError, ValueError, LookupError, OverflowError):
        raise TeddyError(
            f"{path}: epochs must be a list, each with val_top1; got {shown(epochs)}; {_AGAIN}"
        ) from None


def _build(
    settings: BuildPoolSettings,
    base: Path,
    curve: Sequence[float],
    dataset: ImageDataset,
    work: WorkDir,
) -> list[Json]:
    """Make the members; only the first process returns."""
    config = settings.config
    if config.post is not None and config.prior is not None:
        device, seed = pick_device(), derive(settings.seed, "pool", settings.name)
        use_threads(device, dataset.image_shape)
        epochs = config.prior.epochs
        return build_post(base, curve, config.post, epochs, dataset, seed, work, device)
    leave_to_first()
    if config.prior is not None:
        return build_prior(base, config.prior.epochs, work)
    return build_converged(base, work)
