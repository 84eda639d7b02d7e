"""Records of the stages in, rows of :mod:`~teddy.report.results` out; means and spreads alone.

What is read are the rows declared in ``params.yaml``, in its order, never what happens to lie in a
folder.
"""

import contextlib
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

from teddy.core.errors import TeddyError
from teddy.core.files import Json, read_json
from teddy.report.results import (
    Base,
    Cost,
    Epoch,
    History,
    ImageGrid,
    Kept,
    LossCurve,
    Member,
    PaperResult,
    PoolFacts,
    Score,
    StreamScore,
    grouped,
    spread,
)
from teddy.settings.schema import read_yaml
from teddy.settings.stages import ShownBase, ShownEvaluation, ShownLearner, ShownPool, ShownSet

CLASSES_SHOWN, IMAGES_SHOWN = 10, 10


def read_scores(rows: Sequence[ShownEvaluation], runs: Path) -> list[Score]:
    """Scores of declared evaluations, one for every kind of labels.

    Args:
        rows: the declarations.
        runs: folder of the records.

    Raises:
        TeddyError: a record is missing or of another row than declared, or two scores of a dataset
            were measured on different splits.
    """
    scores: list[Score] = []
    for row in rows:
        keys = ("set", "dataset", "data", "method", "ipc", "pool")
        declared = {"score": row.name} | {key: getattr(row, key) for key in keys}
        stage = "evaluate" if row.name == row.set else "score"
        with _opened(runs / f"{row.name}.json", stage, row.name, declared) as record:
            scores += [_score(record | declared_facts(row), kind) for kind in row.labels]
    for dataset, own in grouped(scores, "dataset").items():
        splits = {score.split: score.name for score in own}
        if len(splits) > 1:
            where = ", ".join(f"{name} on {split}" for split, name in sorted(splits.items()))
            raise TeddyError(
                f"{runs}: sets of {dataset} were measured on different splits ({where}); run the "
                "evaluate stage again"
            )
    return scores


def declared_facts(row: ShownEvaluation) -> Json:
    """What a score is of that its record does not say."""
    return {"repeat": row.repeat, "keep": list(row.keep), "default": row.default}


def _score(record: Json, labels: str) -> Score:
    runs = record["labels"][labels]
    same = (
        "set", "dataset", "data", "method", "ipc", "arch", "pool", "split", "images_held_out",
        "epochs", "members",
    )  # fmt: skip
    synthesis = record["synthesis"] or {}
    epochs = [teacher["epoch"] for teacher in record["teachers"] if teacher["epoch"] is not None]
    top1, f1 = [run["top1_last"] for run in runs], [run["macro_f1"] for run in runs]
    return Score(
        **{key: record[key] for key in same},
        name=record["score"],
        labels=labels,
        num_classes=record.get("num_classes"),
        n=len(runs),
        top1_mean=statistics.fmean(top1),
        top1_std=spread(top1),
        top1_best_mean=statistics.fmean(run["top1_best"] for run in runs),
        f1_mean=statistics.fmean(f1),
        f1_std=spread(f1),
        kl_student_teacher=_mean_of(runs, "kl_student_teacher"),
        kl_teacher_student=_mean_of(runs, "kl_teacher_student"),
        pool_size=len(record["teachers"]),
        stages=(epochs[0], epochs[-1]) if epochs else None,
        draw=synthesis.get("draw"),
        ensemble=synthesis.get("ensemble"),
        first_bn_weight=synthesis.get("first_bn_weight"),
        precision=synthesis.get("precision"),
        repeat=record["repeat"],
        default=record.get("default", False),
        keep=tuple(record["keep"]),
        init=synthesis.get("initialise"),
        image_bytes=record["bytes"]["images"],
        label_bytes=record["bytes"]["labels"] if labels == "soft" else 0,
    )


def read_streams(rows: Sequence[ShownLearner], streams: Path) -> list[StreamScore]:
    """Continual learning of declared rows, one for every kind of labels.

    Raises:
        TeddyError: a record is missing, or of another row than declared.
    """
    found: list[StreamScore] = []
    for row in rows:
        keys = ("dataset", "data", "set", "pool", "teachers")
        declared = {"stream": row.name} | {key: getattr(row, key) for key in keys}
        with _opened(streams / f"{row.name}.json", "continual", row.name, declared) as record:
            found += [_stream(record, labels, row.strict) for labels in row.labels]
    return found


def _stream(record: Json, labels: str, strict: bool) -> StreamScore:
    own = [result for result in record["results"] if result["labels"] == labels]
    orders = list(dict.fromkeys(result["order"] for result in own))
    by_step = [[r for r in own if r["step"] == step + 1] for step in range(record["steps"])]
    means = [
        [statistics.fmean(r["top1"] for r in results if r["order"] == order) for order in orders]
        for results in by_step
    ]
    return StreamScore(
        **{key: record[key] for key in ("dataset", "method", "ipc", "arch", "split", "epochs")},
        name=record["stream"],
        strict=strict,
        labels=labels,
        orders=len(orders),
        seeds=len({result["seed"] for result in own}),
        classes=tuple(len(results[0]["classes"]) for results in by_step),
        top1_mean=tuple(statistics.fmean(values) for values in means),
        top1_std=tuple(spread(values) for values in means),
    )


def _mean_of(runs: Sequence[Json], key: str) -> float | None:
    values = [run[key] for run in runs if key in run]
    return statistics.fmean(values) if values else None


def read_bases(rows: Sequence[ShownBase], teachers: Path) -> list[Base]:
    """Declared base runs."""
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
    """Declared pools."""
    pools = []
    for row in rows:
        path = folder / f"{row.name}.json"
        declared = {"pool": row.name, "base": row.base, "kind": row.kind}
        with _opened(path, "build_pool", row.name, declared) as record:
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
    """Loss curves of those of some declared sets that Eq. 7 has made; other images have none."""
    histories = []
    for row in rows:
        if not row.by_eq7:
            continue
        with _opened(
            syntheses / f"{row.name}.json", "synthesize", row.name, {"set": row.name}
        ) as record:
            items = tuple(_curve(item["curve"]) for item in record["items"])
        keys = ("dataset", "method", "ipc")
        histories.append(
            History(set=row.name, items=items, **{key: getattr(row, key) for key in keys})
        )
    return histories


def _curve(points: Sequence[Json]) -> LossCurve:
    return LossCurve(
        iterations=tuple(point["iteration"] for point in points),
        classifier_prior=tuple(point["classifier_prior"] for point in points),
        statistics=tuple(point["statistics"] for point in points),
    )


def read_grids(rows: Sequence[ShownSet], sets: Path) -> list[ImageGrid]:
    """Images of some declared sets, the same classes of all sets of a dataset."""
    return [_grid(row, sets) for row in rows]


def _grid(row: ShownSet, sets: Path) -> ImageGrid:
    path = sets / f"{row.name}.safetensors"
    _refuse_missing(path, "synthesize", row.name)
    with safe_open(path, framework="np") as file:  # not by teddy.load, which needs PyTorch
        pixels, labels = file.get_tensor("images"), file.get_tensor("labels")
        record = json.loads((file.metadata() or {})["teddy"])
    count = len(record["class_names"])
    shown = np.unique(np.linspace(0, count - 1, CLASSES_SHOWN).round().astype(int)).tolist()
    rows = np.stack([np.flatnonzero(labels == c)[:IMAGES_SHOWN] for c in shown], axis=1)
    images = np.stack([pixels[one] for one in rows])
    return ImageGrid(
        dataset=row.dataset,
        method=row.method,
        ipc=record["ipc"],
        num_classes=count,
        class_names=tuple(record["class_names"][c] for c in shown),
        images=np.moveaxis(images, 2, -1),
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
    """Measured costs of some declared sets.

    Raises:
        TeddyError: one was not measured.
    """
    record = read_json(path)
    costs = []
    keys = ("draw", "epochs", "pretraining_seconds", "synthesis_seconds", "peak_mib")
    for row in rows:
        if row.name not in record["sets"]:
            raise TeddyError(f"{path}: lacks {row.name!r}; run the measure_costs stage again")
        own = {key: record["sets"][row.name][key] for key in keys}
        named = {key: getattr(row, key) for key in ("name", "dataset", "method", "ipc")}
        costs.append(Cost(**named, **own))
    return costs


def read_kept(folder: Path) -> list[Kept]:
    """Runs that need other hardware and are kept as files beside the paper's numbers.

    These files are input, like the paper's, and not declared by rows: all that are there count.

    Raises:
        TeddyError: a file is of another kind.
    """
    kept = []
    for path in sorted(folder.glob("*.json")):
        try:
            kept.append(kept_run(read_json(path)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TeddyError(
                f"{path}: expected the record of `python -m tools.keep_run`: {error}"
            ) from error
    return kept


def kept_run(record: Json) -> Kept:
    """The run that a record of :mod:`tools.keep_run` keeps."""
    scores = tuple(
        _score(own, labels) for own in record["scores"].values() for labels in own["labels"]
    )
    keys = ("dataset", "target", "date", "commit", "command")
    hardware = {key: record["hardware"][key] for key in ("gpus", "cores", "cpu")}
    return Kept(**{key: record[key] for key in keys}, hardware=hardware, scores=scores)


@contextlib.contextmanager
def _opened(path: Path, stage: str, name: str, declared: Json) -> Iterator[Json]:
    """Record of a stage for a declared row, refused if missing, incomplete or of another row."""
    _refuse_missing(path, stage, name)
    record = read_json(path)
    try:
        for key, expected in declared.items():
            if record[key] != expected:
                raise TeddyError(
                    f"{path}: {key} is {record[key]!r}, but {name!r} is declared with "
                    f"{expected!r}; run the {stage} stage for it again"
                )
        yield record
    except KeyError as error:
        raise TeddyError(
            f"{path}: lacks {error}; run the {stage} stage for {name!r} again"
        ) from error


def _refuse_missing(path: Path, stage: str, name: str) -> None:
    if not path.is_file():
        raise TeddyError(f"{path}: missing; run the {stage} stage for {name!r} first")
