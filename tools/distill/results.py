"""What a run has shown: a short table, a contact sheet and a bundle."""

import json
import math
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from teddy.core.console import logs_folder
from teddy.core.files import Json, atomic_path, read_json, write_json
from teddy.core.hardware import describe
from teddy.core.runtime import pick_device
from teddy.core.tables import Cell, Column, Table, percent, write_text
from teddy.report.records import by_synthesis, spread_of
from teddy.settings.declared import Declared
from teddy.settings.rows import KINDS
from teddy.sharing.packing import pack
from teddy.sharing.training_set import accuracy
from teddy.teachers.making import checkpoint_name
from teddy.teachers.networks import load_network
from tools.distill.estimate import by_part, duration
from tools.distill.plan import PARTS, sets_of

TABLE, SHEET, BUNDLE = "results.md", "images.png", "bundle"


def write_results(name: str, ipc: int, predicted: Mapping[str, float]) -> list[Path]:
    """Write everything that a run is for, in the checkout that it was made in.

    Args:
        name: of the dataset.
        ipc: images per class.
        predicted: seconds of every stage, for comparison.

    Returns:
        The table, the contact sheet, the bundle and the prepared images.
    """
    out, rows, declared = Path(f"ipc{ipc}"), sets_of(name, ipc), Declared(Path())
    out.mkdir(exist_ok=True)
    seconds = last_seconds(logs_folder())
    _write_costs(name, rows["teddy-plus"], declared, seconds)
    records = {
        method: read_json(Path("metrics/evaluations", f"{row}.json"))
        for method, row in rows.items()
    }
    manifest = read_json(Path("data/prepared", name, "manifest.json"))
    made = {method: declared.methods[method].title for method in rows}
    table = accuracies(
        {made[method]: record for method, record in records.items()},
        _all_real(name, declared), declared, name, manifest,
    )  # fmt: skip
    own = {stage: sum(of_rows.values()) for stage, of_rows in seconds.items()}
    page = f"# {declared.datasets[name].title}, distilled to {ipc} per class\n\n"
    write_text(
        out / TABLE,
        page + table.markdown() + "\n" + times(by_part(own), by_part(predicted)).markdown(),
    )
    _write_sheet(out / SHEET, [Path("plots/figures", name, "fig4-6-7", f"{name}_{method}.png")
                               for method in rows])  # fmt: skip
    shutil.rmtree(out / BUNDLE, ignore_errors=True)
    pack(Path("data/distilled", rows["teddy-plus"]), out / BUNDLE)
    return [out / TABLE, out / SHEET, out / BUNDLE, Path("data/prepared", name)]


def _write_sheet(path: Path, pictures: list[Path]) -> None:
    """Pictures beside each other in one."""
    images = [Image.open(picture).convert("RGB") for picture in pictures]
    sheet = Image.new(
        "RGB",
        (sum(image.width for image in images), max(image.height for image in images)),
        "white",
    )
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def accuracies(
    records: Mapping[str, Json],
    all_real: float,
    declared: Declared,
    name: str,
    manifest: Json,
) -> Table:
    """A line for each set, and one for all real images.

    Args:
        records: of the students, by title of the method.
        all_real: accuracy of a network trained on all training images, percent.
        declared: settings of the run.
        name: of the dataset.
        manifest: of the prepared images.
    """
    counts, pixels = manifest["images_per_class"], math.prod(manifest["image_shape"])
    kinds = [kind for kind in KINDS if any(kind in own["labels"] for own in records.values())]
    lines: list[tuple[Cell, ...]] = []
    for title, record in records.items():
        students = next(iter(record["labels"].values()))
        groups = by_synthesis(students, "top1_last")
        images = record["bytes"]["images"] // pixels
        cells = (_cell(record["labels"].get(kind)) for kind in kinds)
        lines.append((title, images, *cells, f"{len(groups)} × {len(groups[0])}"))
    base = declared.train_teacher(f"{name}/base")
    train, tested = sum(counts["train"]), sum(counts["test"])
    only_hard = (percent(all_real, None) if kind == "hard" else None for kind in kinds)
    lines.append(("All real images", train, *only_hard, "1"))
    first = next(iter(records.values()))
    chance = 100 * max(counts["test"]) / tested
    width = 100 * 1.96 * math.sqrt(0.25 / tested)
    notes = (
        f"Top-1, percent, on {tested:,} real test images that nothing was trained or chosen on: "
        "mean ± sample standard deviation over syntheses of their students' means (over students "
        f"where there is one synthesis), after the last of {first['epochs']} epochs of "
        f"{first['arch']}. n: syntheses × students of each. Students learn from classes (hard), "
        "from one soft label for each image (fixed) or for each of its views (soft); the same "
        "teachers label both sets.",
        f"All real images: the base run, from which the teachers are taken, measured on the same "
        f"test images after its last of {base.epochs} epochs: {base.network.arch} with BatchNorm, "
        "by its own recipe, not the students'.",
        f"Of {tested:,} test images one is {100 / tested:.2g} points; chance alone moves an "
        f"accuracy measured on so few by up to {width:.2g} points (95 %), and always saying the "
        f"most frequent class has {chance:.1f} %.",
    )
    columns = (
        Column("trained on", text=True), Column("images", spec=","),
        *(Column(f"{kind} labels") for kind in kinds), Column("n"),
    )  # fmt: skip
    return Table("Accuracy", columns, tuple(lines), notes)


def _cell(students: list[Json] | None) -> str | None:
    if not students:
        return None
    groups = by_synthesis(students, "top1_last")
    several = len(students) > 1
    mean = statistics.fmean(map(statistics.fmean, groups))
    return percent(mean, spread_of(groups) if several else None)


def _all_real(name: str, declared: Declared) -> float:
    """Test accuracy of the base run's last checkpoint; its record has that on validation images."""
    last = declared.train_teacher(f"{name}/base").epochs
    network, _ = load_network(Path("models", name, "base", checkpoint_name(last)))
    return accuracy(network.to(pick_device()), Path("data/prepared", name))


def times(measured: Mapping[str, float], predicted: Mapping[str, float]) -> Table:
    """Seconds of every part, as predicted and as they were."""
    columns = (Column("part", text=True), Column("predicted"), Column("took"))
    lines = [
        (part, duration(predicted[part]), duration(measured.get(part, 0.0))) for part in predicted
    ]
    lines.append(("all", duration(sum(predicted.values())), duration(sum(measured.values()))))
    hardware = describe()
    where = ", ".join(hardware["gpus"]) or f"{hardware['cores']} cores of {hardware['cpu']}"
    note = (
        f"On {where}. Labels and students are those of both sets. What a run that was stopped had "
        "done before is not counted."
    )
    return Table("Time", columns, tuple(lines), (note,))


def last_seconds(logs: Path) -> dict[str, dict[str, float]]:
    """Seconds of the last run of every stage and row, as ``logs/<stage>.jsonl`` have them."""
    found: dict[str, dict[str, float]] = {}
    for stage in PARTS:
        path = logs / f"{stage}.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            record = json.loads(line)
            found.setdefault(stage, {})[record["summary"].partition(": ")[0]] = record["seconds"]
    return found


def _write_costs(
    name: str, row: str, declared: Declared, seconds: Mapping[str, Mapping[str, float]]
) -> None:
    """What the set took to build, where a bundle's card looks for it."""
    of_base = {"prepare": name, "train_teacher": f"{name}/base", "build_pool": f"{name}/prior"}
    teachers = [seconds.get(stage, {}).get(own) for stage, own in of_base.items()]
    images, labels = (seconds.get(stage, {}).get(row) for stage in ("synthesize", "relabel"))
    if images is None or labels is None or None in teachers:  # logs that were cleaned away
        return
    syntheses = declared.syntheses(row)
    own = {
        "teachers": round(sum(value for value in teachers if value is not None), 1),
        "images": round(images / syntheses, 1), "labels": round(labels / syntheses, 1),
    }  # fmt: skip
    record = {"hardware": describe(), "sets": {row: own}}
    write_json(Path("metrics/bench", f"{name}-builds.json"), record)
