"""Records of the stages in, rows of :mod:`~teddy.report.results` out; means and spreads alone.

What is read are the rows that a stage's settings name, in their order, never what happens to lie in
a folder.
"""

import contextlib
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from teddy.core.errors import TeddyError
from teddy.core.files import Json, read_json
from teddy.report.results import (
    Base,
    Cost,
    Epoch,
    EvaluationResult,
    History,
    ImageGrid,
    Kept,
    LearnerResult,
    LossCurve,
    Member,
    PaperResult,
    PoolFacts,
    grouped,
    spread,
)
from teddy.settings.schema import from_json, read_yaml
from teddy.settings.sets import AGAIN, set_record, synthesis_file
from teddy.settings.stages import (
    ShownBase,
    ShownEvaluation,
    ShownLearner,
    ShownPool,
    ShownSet,
    TableSettings,
)

CLASSES_SHOWN, IMAGES_SHOWN = 10, 10


def read_evaluations(rows: Sequence[ShownEvaluation], folder: Path) -> list[EvaluationResult]:
    """Results of evaluations, one for every kind of labels.

    Args:
        rows: the evaluations.
        folder: of their records.

    Raises:
        TeddyError: a record is missing or of another row, or two results of a dataset were measured
            on different splits.
    """
    results: list[EvaluationResult] = []
    for row in rows:
        keys = ("set", "dataset", "data", "method", "ipc", "pool")
        expected = {"evaluation": row.name} | {key: getattr(row, key) for key in keys}
        stage = "evaluate" if row.name == row.set else "reevaluate"
        with _opened(folder / f"{row.name}.json", stage, row.name, expected) as record:
            results += [_evaluated(record, row, labels) for labels in row.labels]
    for dataset, own in grouped(results, "dataset").items():
        splits = {result.split: result.name for result in own}
        if len(splits) > 1:
            where = ", ".join(f"{name} on {split}" for split, name in sorted(splits.items()))
            raise TeddyError(
                f"{folder}: sets of {dataset} were measured on different splits ({where}); run the "
                "stages evaluate and reevaluate again"
            )
    return results


def _evaluated(record: Json, row: ShownEvaluation, labels: str) -> EvaluationResult:
    students = record["labels"][labels]
    of_row = ("name", "set", "dataset", "data", "method", "ipc", "pool", "keep",
              "default")  # fmt: skip
    of_record = ("arch", "split", "images_held_out", "epochs", "members")
    synthesis = record["synthesis"] or {}
    epochs = [teacher["epoch"] for teacher in record["teachers"] if teacher["epoch"] is not None]
    top1, f1 = (by_synthesis(students, key) for key in ("top1_last", "macro_f1"))
    return EvaluationResult(
        **{key: getattr(row, key) for key in of_row},
        **{key: record[key] for key in of_record},
        labels=labels,
        num_classes=record.get("num_classes"),
        largest_class=record.get("largest_class"),
        machine=record.get("machine"),
        recipe=_recipe(record),
        n=len(students),
        syntheses=len(top1),
        top1_mean=statistics.fmean(map(statistics.fmean, top1)),
        top1_std=spread_of(top1),
        top1_best_mean=statistics.fmean(student["top1_best"] for student in students),
        f1_mean=statistics.fmean(map(statistics.fmean, f1)),
        f1_std=spread_of(f1),
        kl_student_teacher=_mean_of(students, "kl_student_teacher"),
        kl_teacher_student=_mean_of(students, "kl_teacher_student"),
        pool_size=len(record["teachers"]),
        stages=(epochs[0], epochs[-1]) if epochs else None,
        teachers_drawn=synthesis.get("draw"),
        ensemble=synthesis.get("ensemble"),
        first_bn_weight=synthesis.get("first_bn_weight"),
        precision=synthesis.get("precision"),
        init=synthesis.get("initialise"),
        image_bytes=record["bytes"]["images"],
        label_bytes=_label_bytes(record["bytes"], labels),
    )


def _recipe(record: Json) -> str | None:
    return record["recipe"]["name"] if "recipe" in record else None


def _label_bytes(sizes: Json, labels: str) -> int:
    own = {"soft": "labels", "fixed": "fixed"}
    return int(sizes[own[labels]]) if labels in own else 0


def by_synthesis(students: Sequence[Json], key: str) -> list[list[float]]:
    """A number of every student, a list for each synthesis."""
    found: dict[int, list[float]] = {}
    for student in students:
        found.setdefault(student["synthesis"], []).append(student[key])
    return list(found.values())


def spread_of(values: list[list[float]]) -> float:
    """Spread of the means of syntheses; of a single synthesis, that of its students."""
    if len(values) == 1:
        return spread(values[0])
    return spread([statistics.fmean(own) for own in values])


def read_learners(rows: Sequence[ShownLearner], folder: Path) -> list[LearnerResult]:
    """Results of continual learning, one for every kind of labels.

    Raises:
        TeddyError: a record is missing, or of another row.
    """
    results: list[LearnerResult] = []
    for row in rows:
        keys = ("dataset", "data", "set", "pool", "teachers")
        expected = {"learner": row.name} | {key: getattr(row, key) for key in keys}
        with _opened(folder / f"{row.name}.json", "continual", row.name, expected) as record:
            results += [_learnt(record, row, labels) for labels in row.labels]
    return results


def _learnt(record: Json, row: ShownLearner, labels: str) -> LearnerResult:
    own = [result for result in record["results"] if result["labels"] == labels]
    orders = list(dict.fromkeys(result["order"] for result in own))
    by_step = [[r for r in own if r["step"] == step + 1] for step in range(record["steps"])]
    means = [
        [statistics.fmean(r["top1"] for r in results if r["order"] == order) for order in orders]
        for results in by_step
    ]
    return LearnerResult(
        **{key: getattr(row, key) for key in ("name", "dataset", "strict")},
        **{key: record[key] for key in ("method", "ipc", "arch", "split", "epochs")},
        labels=labels,
        recipe=_recipe(record),
        orders=len(orders),
        seeds=len({result["seed"] for result in own}),
        classes=tuple(len(results[0]["classes"]) for results in by_step),
        top1_mean=tuple(statistics.fmean(values) for values in means),
        top1_std=tuple(spread(values) for values in means),
    )


def _mean_of(students: Sequence[Json], key: str) -> float | None:
    values = [student[key] for student in students if key in student]
    return statistics.fmean(values) if values else None


def read_bases(rows: Sequence[ShownBase], teachers: Path) -> list[Base]:
    """Base runs, in the order of the rows; NaN is the loss of an epoch that was not trained.

    Raises:
        TeddyError: a record is missing, incomplete or of another row.
    """
    bases = []
    for row in rows:
        path = teachers / f"{row.name}.json"
        with _opened(path, "train_teacher", row.name, {"base": row.name}) as record:
            epochs = tuple(
                Epoch(
                    epoch=entry["epoch"],
                    loss=entry.get("loss", math.nan),
                    val_top1=entry["val_top1"],
                )
                for entry in record["epochs"]
            )
        bases.append(Base(name=row.name, dataset=row.dataset, epochs=epochs))
    return bases


def read_pools(rows: Sequence[ShownPool], folder: Path) -> list[PoolFacts]:
    """Pools of teachers, in the order of the rows.

    Raises:
        TeddyError: a record is missing, incomplete or of another row.
    """
    pools = []
    for row in rows:
        path = folder / f"{row.name}.json"
        expected = {"pool": row.name, "base": row.base, "kind": row.kind}
        with _opened(path, "build_pool", row.name, expected) as record:
            members = tuple(_member(i, entry) for i, entry in enumerate(record["members"]))
        keys = ("name", "dataset", "base", "kind", "method")
        pools.append(PoolFacts(**{key: getattr(row, key) for key in keys}, members=members))
    return pools


def _member(index: int, entry: Json) -> Member:
    optional = ("epoch", "seed", "lr", "finetune_epochs", "target_top1")
    always = ("val_top1", "parameters", "macs")
    facts: Json = {key: entry.get(key) for key in optional} | {key: entry[key] for key in always}
    return Member(index=index, **facts)


def read_histories(rows: Sequence[ShownSet], syntheses: Path) -> list[History]:
    """Loss curves of those of some sets that Eq. 7 has made; other images have none.

    Raises:
        TeddyError: a record is missing, incomplete or of another row.
    """
    histories = []
    for row in rows:
        if not row.by_eq7:
            continue
        path = syntheses / f"{row.name}.json"
        with _opened(path, "synthesize", row.name, {"set": row.name}) as record:
            batches = tuple(_curve(batch["curve"]) for batch in record["batches"])
        keys = ("dataset", "method", "ipc")
        histories.append(
            History(set=row.name, batches=batches, **{key: getattr(row, key) for key in keys})
        )
    return histories


def _curve(points: Sequence[Json]) -> LossCurve:
    return LossCurve(
        iterations=tuple(point["iteration"] for point in points),
        classifier_prior=tuple(point["classifier_prior"] for point in points),
        statistics=tuple(point["statistics"] for point in points),
    )


def read_grids(rows: Sequence[ShownSet], sets: Path) -> list[ImageGrid]:
    """Images of some sets, the same classes of all sets of a dataset."""
    return [_grid(row, sets) for row in rows]


def _grid(row: ShownSet, sets: Path) -> ImageGrid:
    path = synthesis_file(sets / row.name, 0)
    _refuse_missing(path, "synthesize", row.name)
    try:
        with safe_open(path, framework="np") as file:  # not by teddy.load, which needs PyTorch
            pixels, labels = file.get_tensor("images"), file.get_tensor("labels")
            raw = dict(json.loads((file.metadata() or {})["teddy"]))
        record = set_record(raw, path)
        count = len(record.class_names)
        shown = np.unique(np.linspace(0, count - 1, CLASSES_SHOWN).round().astype(int)).tolist()
        columns = [np.flatnonzero(labels == c)[:IMAGES_SHOWN] for c in shown]
        # White where a class has fewer images than the others.
        images = np.full((max(map(len, columns)), len(shown), *pixels.shape[1:]), 255, np.uint8)
        for place, column in enumerate(columns):
            images[: len(column), place] = pixels[column]
        images = np.moveaxis(images, 2, -1)
    except TeddyError:
        raise
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise TeddyError(f"{path}: damaged, or no distilled set ({reason}); {AGAIN}") from None
    return ImageGrid(
        dataset=row.dataset,
        method=row.method,
        ipc=record.ipc,
        num_classes=count,
        class_names=tuple(record.class_names[c] for c in shown),
        images=images,
    )


def read_paper(path: Path) -> list[PaperResult]:
    """The paper's printed results.

    Raises:
        TeddyError: missing, not YAML, or a result lacks a key.
    """
    record = read_yaml(path)
    keys = ("dataset", "ipc", "method", "arch", "metric", "mean", "std", "delta")
    try:
        return [
            PaperResult(
                table=str(entry["table"]),
                downsized=entry.get("downsized", False),
                keep=entry.get("keep", ""),
                init=entry.get("init", ""),
                **{key: entry[key] for key in keys},
            )
            for entry in record["results"]
        ]
    except (KeyError, TypeError) as error:
        raise TeddyError(f"{path}: expected a list 'results' of {', '.join(keys)}") from error


def read_costs(rows: Sequence[ShownSet], path: Path) -> list[Cost]:
    """Measured costs of some sets.

    Raises:
        TeddyError: one was not measured.
    """
    record = read_json(path)
    costs = []
    keys = ("epochs", "pretraining_seconds", "synthesis_seconds", "peak_mib")
    for row in rows:
        if row.name not in record["sets"]:
            raise TeddyError(f"{path}: lacks {row.name!r}; run the measure_costs stage again")
        own = record["sets"][row.name]
        named = {key: getattr(row, key) for key in ("name", "dataset", "method", "ipc")}
        measured = {key: own[key] for key in keys}
        costs.append(Cost(**named, **measured, teachers_drawn=own["draw"]))
    return costs


def read_kept(folder: Path) -> list[Kept]:
    """Tables that need other hardware and are kept as files beside the paper's numbers.

    These files are input, like the paper's, and no settings name them: all that are there count,
    but for those of :mod:`tools.gpu`.

    Raises:
        TeddyError: a file is of another kind.
    """
    kept = []
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("gpu-"):
            continue
        record = read_json(path)
        try:
            kept.append(kept_run(record))
        except (KeyError, TypeError, ValueError, AttributeError, TeddyError) as error:
            raise TeddyError(
                f"{path}: expected the record of `python -m tools.keep_run`: {error}"
            ) from error
    return kept


def kept_run(record: Json) -> Kept:
    """The run that a record of :mod:`tools.keep_run` keeps.

    Raises:
        TeddyError: its settings are not those of a table, or do not name what they show.
        KeyError: a part of the record is missing.
    """
    settings = from_json(TableSettings, record["settings"], "settings")
    named = {*settings.catalogue.datasets, *settings.catalogue.methods}
    for row in settings.evaluations:
        if unknown := {settings.dataset, row.dataset, row.method} - named:
            raise TeddyError(f"settings do not name {', '.join(sorted(unknown))}")
    results = tuple(
        _evaluated(record["evaluations"][row.name], row, labels)
        for row in settings.evaluations
        for labels in row.labels
    )
    keys = ("date", "commit", "command")
    hardware = {key: record["hardware"][key] for key in ("gpus", "cores", "cpu")}
    own = {key: record[key] for key in keys}
    return Kept(settings=settings, hardware=hardware, results=results, **own)


@contextlib.contextmanager
def _opened(path: Path, stage: str, name: str, expected: Json) -> Iterator[Json]:
    """Record of a stage for a row, refused if missing, incomplete or of another row."""
    _refuse_missing(path, stage, name)
    record = read_json(path)
    try:
        for key, value in expected.items():
            if record[key] != value:
                raise TeddyError(
                    f"{path}: {key} is {record[key]!r}, but {name!r} is declared with "
                    f"{value!r}; run the {stage} stage for it again"
                )
        yield record
    except KeyError as error:
        raise TeddyError(
            f"{path}: lacks {error}; run the {stage} stage for {name!r} again"
        ) from error


def _refuse_missing(path: Path, stage: str, name: str) -> None:
    if not path.is_file():
        raise TeddyError(f"{path}: missing; run the {stage} stage for {name!r} first")
