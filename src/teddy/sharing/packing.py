"""``teddy pack``: a set of a checkout as a bundle; ``teddy verify``: whether its number holds."""

import dataclasses
import re
import shlex
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from teddy.core.artifacts import WorkDir, write_tensors
from teddy.core.errors import TeddyError
from teddy.core.files import Json, digest, manifest_digest, read_json, write_json
from teddy.core.runtime import log, pick_device
from teddy.core.seeding import of_synthesis
from teddy.data.datasets import read_dataset
from teddy.data.distilled import DistilledSet
from teddy.data.preparation import prepare, write_dataset
from teddy.objectives import ensemble_logits
from teddy.settings.configs import RelabelConfig
from teddy.settings.schema import from_json, to_json
from teddy.settings.sets import synthesis_file
from teddy.settings.stages import EvaluateSettings, PrepareSettings, RelabelSettings, read_settings
from teddy.sharing import bundles
from teddy.sharing.cards import card
from teddy.sharing.opening import row_of
from teddy.sharing.training_set import (
    FIXED_KIND,
    Recipe,
    accuracy,
    fit,
    refuse_other_classes,
    refuse_other_labels,
)
from teddy.students.label_budget import check_fits, label_bytes
from teddy.students.labels import (
    MANIFEST,
    OnlineLabels,
    StoredLabels,
    TrainingViews,
    store_labels,
)
from teddy.students.sets import load
from teddy.teachers.pools import Pool, open_pool

_WORDNET = re.compile(r"n\d{8}")
_CHUNK = 256
_SHIPPED = "digits"  # the source that a library ships, which ``verify`` prepares itself


# --------------------------------------------------------------------------------------------- pack


def pack(
    path: Path,
    out: Path | None = None,
    synthesis: int | None = None,
    teachers: bool = False,
    kept: Mapping[str, int] | None = None,
) -> Path:
    """Write a bundle of a set that the pipeline has made and evaluated.

    Args:
        path: ``data/distilled/<row>``, or one of its files.
        out: folder or ``.zip`` to write; by default the row's name with dashes, as a folder.
        synthesis: which of the row's; by default the first, or the file's.
        teachers: put the pool's weights into it too.
        kept: ``label_epochs``, ``label_bits`` and ``label_top_k`` of the bundle's soft labels; by
            default those of the pipeline.

    Returns:
        What was written.

    Raises:
        TeddyError: a stage of the set was not run, or ``out`` is there already.
    """
    if path.is_file() and synthesis is not None:
        raise TeddyError(f"{path}: is one synthesis; leave out --synthesis, or name its folder")
    file = path if path.is_file() else synthesis_file(path, synthesis or 0)
    found = row_of(file)
    if found is None or not file.is_file():
        raise TeddyError(
            f"{path}: expected the folder of a set, data/distilled/<row>, with "
            f"{synthesis_file(Path(), synthesis or 0)}; run: dvc repro evaluate@<row>"
        )
    root, row, number = found
    out = out or Path(row.replace("/", "-"))
    evaluated, numbers = _of_stage(root, "evaluate", row), _numbers(root, row, number)
    settings = read_settings(EvaluateSettings, evaluated)
    pool_folder = root / "models" / settings.evaluation.pool
    pool, distilled = open_pool(pool_folder), load(file)
    _refuse_stale(root, row, number, file, pool_folder)
    data = settings.evaluation.data
    prepared = read_settings(PrepareSettings, _of_stage(root, "prepare", data))
    labels = root / "data" / "labels" / row / str(number)
    manifest = read_json(labels / MANIFEST)
    record = {
        "format": bundles.FORMAT,
        "name": row,
        "synthesis": number,
        "method": numbers["method"],
        "classes": list(distilled.class_names),
        "wordnet": wordnet(distilled.class_names),
        "mean": list(distilled.normalisation.mean),
        "std": list(distilled.normalisation.std),
        "recipe": {
            "seed": of_synthesis(settings.seed, number),
            "relabel": _plain(to_json(settings.relabel) | {"store": True, **(kept or {})}),
            "evaluate": _plain(to_json(settings.config)),
        },
        "source": {
            "title": numbers["dataset"],
            "prepare": _plain(_without_place(to_json(prepared.config))),
            "seed": prepared.seed,
            "manifest": manifest_digest(root / "data" / "prepared" / data),
        },
        "teachers": [
            {key: entry.get(key) for key in ("file", "sha256", "epoch", "val_top1")}
            for entry in pool.entries
        ],
        "provenance": distilled.provenance,
        "partition": distilled.partition,
    }
    checked = from_json(bundles.BundleRecord, record, f"{row}: {bundles.RECIPE}")
    again = f"run: dvc repro evaluate@{row}"
    images = distilled.as_images()
    if kept:
        check_fits(checked.recipe.relabel, len(images), distilled.num_classes, out)
    own = dataclasses.replace(checked.recipe, relabel=settings.relabel)
    refuse_other_labels(str(labels), manifest, own, again)
    if manifest.get("shards") != []:  # which there are none of where they are not stored
        shape = (settings.relabel.epochs, len(images), distilled.num_classes)
        StoredLabels(labels, manifest, "cpu", shape)
    _check_size(checked.recipe.relabel, distilled, pool_folder if teachers else None, out)
    with bundles.whole(out) as folder:
        bundles.write_images(folder, distilled)
        bundles.write_record(folder, record)
        _write_labels(folder, root, row, number, manifest, distilled, pool, checked.recipe)
        if teachers:
            shutil.copytree(pool_folder, folder / bundles.TEACHERS)
        numbers["labels_reduced"] = (
            dataclasses.replace(checked.recipe.relabel, store=settings.relabel.store)
            != settings.relabel
        )
        numbers["label_bytes"] = sum(p.stat().st_size for p in (folder / "labels").glob("epochs*"))
        write_json(folder / bundles.NUMBERS, numbers)
        (folder / bundles.CARD).write_text(card(record, numbers), encoding="utf-8")
        bundles.write_sums(folder)
    where = "" if prepared.config.source == _SHIPPED else f" --data data/prepared/{data}"
    log(f"next: teddy verify {shlex.quote(str(out))}{where}")
    return out


def wordnet(names: Sequence[str]) -> list[str]:
    """WordNet ids of classes that are named by them, none for others."""
    return list(names) if all(_WORDNET.fullmatch(name) for name in names) else []


def _of_stage(root: Path, stage: str, row: str) -> Path:
    path = root / "inputs" / stage / f"{row}.json"
    if not path.is_file():
        raise TeddyError(
            f"{path}: not found; name the dataset's experiment file under vars of dvc.yaml, then "
            f"run: dvc repro {stage}@{row}"
        )
    return path


def _numbers(root: Path, row: str, number: int) -> Json:
    """Records of the set's students and of those of random real images, and what they are of."""
    path = root / "metrics" / "evaluations" / f"{row}.json"
    if not path.is_file():
        raise TeddyError(f"{path}: not found; run: dvc repro evaluate@{row}")
    own, titles = read_json(path), _titles(root, row)
    if not any(student.get("synthesis", 0) == number for students in own["labels"].values()
               for student in students):  # fmt: skip
        raise TeddyError(f"{path}: has no students of synthesis {number}")
    beside = (read_json(other) for other in sorted(path.parent.glob("*.json")) if other != path)
    alike = ("method", "ipc", "arch", "epochs", "data")
    wanted = {key: own[key] for key in alike} | {"method": "random"}
    random = next((o for o in beside if {key: o.get(key) for key in alike} == wanted), None)
    if own["method"] == "random":
        random = None
    builds = root / "metrics" / "bench" / f"{own['dataset']}-builds.json"
    seconds = read_json(builds)["sets"].get(row) if builds.is_file() else None
    return {
        **titles, "commit": _commit(root), "students": own, "random": random, "seconds": seconds,
        "build_hardware": read_json(builds)["hardware"] if seconds else None,
    }  # fmt: skip


def _titles(root: Path, row: str) -> Json:
    from teddy.settings.declared import Declared

    declared = Declared(root)
    own = declared.sets.get(row)
    if own is None:
        raise TeddyError(
            f"{row}: no such row is switched on; name its experiment file under vars of dvc.yaml"
        )
    dataset = declared.prepared[own.data].dataset
    return {
        "dataset": declared.datasets[dataset].title,
        "method": declared.methods[own.method].title,
        "ipc": own.ipc,
    }


def _commit(root: Path) -> str | None:
    """Commit of a checkout, with ``-dirty`` after it if files were edited; None without Git."""
    commands = (
        ("git", "rev-parse", "--show-toplevel"),
        ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
    )
    try:
        top, commit = (
            subprocess.run(own, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
            for own in commands
        )
    except (OSError, subprocess.CalledProcessError):  # no Git, or nothing under it
        return None
    return commit if Path(top).resolve() == root.resolve() else None


def _refuse_stale(root: Path, row: str, number: int, file: Path, pool: Path) -> None:
    folder = root / "data" / "labels" / row / str(number)
    if not (folder / MANIFEST).is_file():
        raise TeddyError(f"{folder}: expected labels; run: dvc repro relabel@{row}")
    manifest = read_json(folder / MANIFEST)
    for key, expected in (("set", digest(file)), ("pool", manifest_digest(pool))):
        if manifest.get(key) != expected:
            raise TeddyError(
                f"{folder}: labels are of another {key}; run: dvc repro evaluate@{row}"
            )


def _without_place(config: Json) -> Json:
    """Settings of ``prepare`` without where somebody keeps their data."""
    root = Path(config["root"])
    return config | {"root": "" if root.is_absolute() else config["root"]}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    return [_plain(own) for own in value] if isinstance(value, list | tuple) else value


def _check_size(
    config: RelabelConfig, distilled: DistilledSet, pool: Path | None, out: Path
) -> None:
    """Refuse what the disk has no room for; images are counted without compression."""
    images = len(distilled) * distilled.partition**2
    size = distilled.images.numel() + label_bytes(config, images, distilled.num_classes)
    size += sum(file.stat().st_size for file in pool.iterdir()) if pool else 0
    size *= 2 if out.suffix == ".zip" else 1  # the folder that is packed lies beside it
    there = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        raise TeddyError(
            f"{out}: the bundle takes {size:,} bytes, but {there} has {free:,} left; keep fewer "
            "labels (--label-epochs, --label-bits, --label-top-k), or name another --out"
        )


def _write_labels(
    folder: Path, root: Path, row: str, number: int, manifest: Json, distilled: DistilledSet,
    pool: Pool, recipe: Recipe,
) -> None:  # fmt: skip
    """Copy the soft labels, or compute them as they are to be kept; and one for each image."""
    settings = read_settings(RelabelSettings, _of_stage(root, "relabel", row))
    own, out = root / "data" / "labels" / row / str(number), folder / bundles.LABELS
    out.mkdir()
    images, device = distilled.as_images(), pick_device()
    members = [pool.member(index, device) for index in range(len(pool))]
    wanted = manifest | {"settings": _plain(to_json(recipe.relabel))}
    wanted["content"] = bundles.content_digest(distilled)
    if manifest["shards"] and settings.config == recipe.relabel:
        for shard in manifest["shards"]:
            shutil.copyfile(own / shard["file"], out / shard["file"])
    else:
        views = TrainingViews(
            images.to(device), distilled.normalisation, recipe.relabel, recipe.seed
        )
        work = WorkDir("pack", row, **wanted).claim()
        labels = OnlineLabels(views, members)
        wanted["shards"] = store_labels(labels, distilled.num_classes, work)
        for shard in wanted["shards"]:
            shutil.copyfile(work / shard["file"], out / shard["file"])
        work.discard()
    write_json(out / MANIFEST, wanted)
    parts = []
    for pixels in images.images.split(_CHUNK):
        inputs = distilled.normalisation.apply(pixels.to(device))
        inputs = inputs.to(memory_format=torch.channels_last)
        with torch.no_grad():
            logits = torch.stack([teacher(inputs) for teacher in members])
        parts.append(ensemble_logits(logits, settings.config.ensemble).half().cpu())
    fixed = {"logits": torch.cat(parts)}
    write_tensors(folder / bundles.FIXED, fixed, kind=FIXED_KIND, record={})


# ------------------------------------------------------------------------------------------- verify


def verify(path: Path, data: Path | None = None, *, quick: bool = False, soft: bool = True) -> str:
    """Compare all checksums of a bundle, train a student and compare its accuracy with the record.

    Args:
        path: of the bundle.
        data: prepared real images to test on; None prepares those that a library ships.
        quick: stop at the first epoch whose recorded accuracy tells it from guessing.
        soft: learn from soft labels; otherwise from classes.

    Returns:
        What was found, if the number holds: it is within twice the recorded spread of the students
        (one point at least) of the recorded accuracy of the same seed.

    Raises:
        TeddyError: a file is missing or altered, the images are others, or the number does not
            hold.
    """
    folder, _keep = bundles.unpacked(path)  # what was unpacked goes with its keeper
    with bundles.naming(path, folder):
        return _verified(folder, path, data, quick=quick, soft=soft)


def _verified(folder: Path, path: Path, data: Path | None, *, quick: bool, soft: bool) -> str:
    bundles.check_sums(folder, path)
    record, bundle = bundles.read_record(folder, path), bundles.open_bundle(folder)
    kind = "soft" if soft else "hard"
    students = _students(bundle.facts, kind, path)
    first = next((one for one in students if one.synthesis == record.synthesis), None)
    if first is None:
        raise TeddyError(f"{path}: {bundles.NUMBERS}: has no students with {kind} labels")
    place = _informative(students, first, len(record.classes)) if quick else -1
    epochs, recorded = first.curve[place]
    with tempfile.TemporaryDirectory(prefix="teddy-verify-") as temporary:
        dataset = data or _prepared(record, Path(temporary) / "prepared", path)
        _refuse_other_images(record, dataset, path)
        log(f"training {record.recipe.evaluate.network.arch} for {epochs} epochs")
        network = bundle.network(first.seed)
        network = fit(network, bundle, soft=soft, seed=first.seed, epochs=epochs)
        found = accuracy(network, dataset, bundle)
    allowed = _allowed(students, place)
    text = (
        f"{found:.1f} % after {epochs} of {record.recipe.relabel.epochs} epochs with {kind} "
        f"labels; recorded {recorded:.1f} %, ± {allowed:.1f} allowed"
    )
    if abs(found - recorded) > allowed:
        raise TeddyError(f"{path}: the number does not hold: {text}")
    return f"the number holds: {text}"


def _allowed(students: Sequence["_Student"], place: int) -> float:
    """How far a student may be from the record; points."""
    values = [student.curve[place][1] for student in students]
    return max(1.0, 2 * statistics.stdev(values) if len(values) > 1 else 0.0)


def _informative(students: Sequence["_Student"], first: "_Student", classes: int) -> int:
    """First place of the curve that guessing would not pass, by a quarter of what lies above it."""
    guessing = 100 / classes
    least = guessing + (100 - guessing) / 4
    passed = (
        place for place, (_, recorded) in enumerate(first.curve[:-1])
        if recorded - _allowed(students, place) >= least
    )  # fmt: skip
    return next(passed, -1)


@dataclass(frozen=True, slots=True)
class _Student:
    synthesis: int
    seed: int
    curve: tuple[tuple[int, float], ...]
    """Epochs, and accuracy after them; percent."""


def _students(numbers: Json, kind: str, path: Path) -> list[_Student]:
    """Students whose accuracies a bundle has."""
    try:
        found = [
            _Student(
                int(one.get("synthesis", 0)), int(one["seed"]),
                tuple((int(point["epoch"]), float(point["top1"])) for point in one["curve"]),
            )
            for one in numbers["students"]["labels"].get(kind, [])
        ]  # fmt: skip
        if all(student.curve for student in found):
            return found
        raise ValueError("a curve is empty")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TeddyError(
            f"{path}: {bundles.NUMBERS}: students.labels.{kind} must be a list of keys synthesis, "
            "seed and curve, this with epoch and top1; get the bundle again"
        ) from error


def _prepared(record: bundles.BundleRecord, out: Path, path: Path) -> Path:
    source = record.source
    if source.prepare.source != _SHIPPED:
        raise TeddyError(
            f"{path}: needs real images of {source.title} to test on: prepare them as its "
            "recipe.yaml says (source.prepare) and name the folder with --data data/prepared/<row>"
        )
    dataset, facts = prepare(source.prepare, source.seed)
    write_dataset(out, dataset, facts)
    return out


def _refuse_other_images(record: bundles.BundleRecord, folder: Path, path: Path) -> None:
    dataset = read_dataset(folder)
    refuse_other_classes(dataset.class_names, record.classes, f"{folder}", f"{path}")
    if manifest_digest(folder) != record.source.manifest:
        raise TeddyError(
            f"{folder}: was prepared from other images or by other settings than the set's; "
            f"prepare {record.source.title} as source.prepare in {path}'s recipe.yaml says"
        )
