"""Records of the stages in, small frozen rows out; nothing is computed but means and spreads.

Rows are those declared in ``params.yaml``, in its order, never what happens to lie in a folder.
"""

import contextlib
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from teddy.config import Params
from teddy.errors import TeddyError
from teddy.files import Json, read_json
from teddy.schema import read_yaml

T = TypeVar("T")
CLASSES_SHOWN, IMAGES_SHOWN = 10, 10

# -------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Students trained on one set with one kind of labels; accuracies in percent."""

    name: str
    """Row of ``scores``, or of ``sets`` for its default score."""
    set: str
    dataset: str
    data: str
    """Prepared images, which differ from the dataset's where classes are thinned out."""
    method: str
    ipc: int
    arch: str
    pool: str
    """Teachers that label."""
    labels: str
    split: str
    """Split of real images that accuracy was measured on."""
    images_held_out: int
    epochs: int
    n: int
    """Students, one per seed."""
    top1_mean: float
    """Mean over students of the accuracy after the last epoch."""
    top1_std: float
    """Its sample standard deviation (n − 1); 0 for a single student."""
    top1_best_mean: float
    """Mean of each student's best epoch, chosen on the same images and therefore optimistic."""
    f1_mean: float
    """Mean over students of the macro-averaged F1 after the last epoch; percent."""
    f1_std: float
    kl_student_teacher: float | None
    """KL(student ‖ teacher), nats; None if it was not measured."""
    kl_teacher_student: float | None
    members: int
    """Teachers that label."""
    pool_size: int
    stages: tuple[int, int] | None
    """First and last epoch of the pool's checkpoints; None for pruned copies."""
    draw: int | None
    """Teachers drawn at a time for synthesis; None for real images."""
    ensemble: str | None
    """What the classifier prior averages; None for real images."""
    first_bn_weight: float | None
    precision: str | None
    """Autocast dtype of synthesis; None for real images."""
    repeat: int
    """Which synthesis of these settings it is; 0 is the experiment's own."""
    init: str | None
    """What synthesis started from; None for real images."""
    image_bytes: int
    """Of the set's uint8 pixels."""
    label_bytes: int
    """Of the soft labels of all epochs, float16; 0 for hard labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """State of a base run after an epoch."""

    epoch: int
    loss: float
    """Mean training loss of the epoch; NaN for a network that was not trained here."""
    val_top1: float
    """Accuracy on the validation split; percent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A base training run."""

    name: str
    dataset: str
    epochs: tuple[Epoch, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A teacher of a pool; what does not apply to its kind is None."""

    index: int
    epoch: int | None
    seed: int | None
    lr: float | None
    finetune_epochs: float | None
    target_top1: float | None
    """Accuracy at which fine-tuning was to stop; percent."""
    val_top1: float
    """Accuracy on the validation split; percent."""
    parameters: int
    macs: int
    """Multiply-accumulates for one image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolFacts:
    """A pool of teachers."""

    name: str
    dataset: str
    base: str
    kind: str
    method: str | None
    """First declared method that synthesises from this pool; lends it its colour."""
    members: tuple[Member, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LossCurve:
    """The two terms of Eq. 7 during the synthesis of one item; one entry per recorded iteration."""

    iterations: tuple[int, ...]
    classifier_prior: tuple[float, ...]
    statistics: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """How a synthesised set came about."""

    set: str
    dataset: str
    method: str
    ipc: int
    items: tuple[LossCurve, ...]

    def mean(self) -> LossCurve:
        """Mean over the items, which record the same iterations."""
        terms = ("classifier_prior", "statistics")
        means = {
            term: tuple(
                statistics.fmean(values)
                for values in zip(*(getattr(item, term) for item in self.items), strict=True)
            )
            for term in terms
        }
        return LossCurve(iterations=self.items[0].iterations, **means)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageGrid:
    """Some images of one set."""

    dataset: str
    method: str
    ipc: int
    num_classes: int
    """Classes of the dataset, of which ``class_names`` are those shown."""
    class_names: tuple[str, ...]
    images: NDArray[np.uint8]
    """``(I, K, H, W, C)``: I images of each of the K classes shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperResult:
    """A number printed in the paper, in percent; None where the paper prints "-"."""

    table: str
    dataset: str
    ipc: int | None
    method: str
    arch: str
    metric: str
    mean: float | None
    std: float | None
    delta: float | None
    """Gain over SRe2L as printed; points."""
    downsized: bool
    """Printed with a star: measured on downsized images."""
    keep: str
    """Share of training images that classes keep, as printed in Table 3; else ""."""
    init: str
    """Initialisation of the images, as printed in Table 5; else ""."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a set cost on the machine it was measured on (Fig. 3d)."""

    name: str
    dataset: str
    method: str
    ipc: int
    draw: int
    epochs: int
    """Of the base run that its pool needs."""
    pretraining_seconds: float
    synthesis_seconds: float
    peak_mib: float
    """Peak memory of synthesis above the process's start; MiB."""

    @property
    def seconds(self) -> float:
        """Of both together."""
        return self.pretraining_seconds + self.synthesis_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamScore:
    """Continual learning on one set with one kind of labels (Fig. 3e); accuracies in percent."""

    name: str
    dataset: str
    method: str
    ipc: int
    arch: str
    strict: bool
    """Whether teachers only know the classes of their own step."""
    labels: str
    split: str
    epochs: int
    orders: int
    """Orders of the classes, each a run."""
    seeds: int
    """Students of each step and order."""
    classes: tuple[int, ...]
    """Seen classes after each step."""
    top1_mean: tuple[float, ...]
    """After each step, on seen classes alone: mean over orders."""
    top1_std: tuple[float, ...]
    """Sample standard deviation over orders of their mean over students; 0 for a single order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptScore:
    """A score of a run that is kept in ``metrics/reference``; percent."""

    name: str
    method: str
    ipc: int
    arch: str
    labels: str
    n: int
    top1_mean: float
    top1_std: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A run that is kept, and what it was made with."""

    dataset: str
    date: str
    commit: str
    command: str
    hardware: Json
    scores: tuple[KeptScore, ...]


@dataclass(frozen=True, slots=True)
class Titles:
    """Names for the reader, in the order of ``params.yaml``."""

    datasets: Mapping[str, str]
    methods: Mapping[str, str]


# ------------------------------------------------------------------------------------- records in


def read_titles(params: Params) -> Titles:
    """Titles of the declared datasets and methods."""
    return Titles(
        {name: row.title for name, row in params.datasets.items()},
        {name: row.title for name, row in params.methods.items()},
    )


def read_scores(params: Params, runs: Path, names: Sequence[str]) -> list[Score]:
    """Scores of declared rows, one for every kind of labels.

    Args:
        params: the declarations.
        runs: folder of the records.
        names: rows of ``sets`` or ``scores``.

    Raises:
        TeddyError: there is no row, a record is missing or of another row than declared, or two
            scores of a dataset were measured on different splits.
    """
    if not names:
        raise TeddyError(f"{params.path}: no row is declared, so there is nothing to report")
    scores: list[Score] = []
    for name in names:
        leaf = params.leaf(name)
        keys = ("set", "dataset", "data", "method", "ipc", "pool")
        declared = {"score": name} | {key: getattr(leaf, key) for key in keys}
        stage = "score" if name in params.scores else "evaluate"
        with _opened(runs / f"{name}.json", stage, name, declared) as record:
            repeat = params.sets[leaf.set].repeat
            scores += [_score(record, kind, record["labels"][kind], repeat) for kind in leaf.labels]
    for dataset, own in grouped(scores, "dataset").items():
        splits = {score.split: score.name for score in own}
        if len(splits) > 1:
            where = ", ".join(f"{name} on {split}" for split, name in sorted(splits.items()))
            raise TeddyError(
                f"{runs}: sets of {dataset} were measured on different splits ({where}); run the "
                "evaluate stage again"
            )
    return scores


def _score(record: Json, labels: str, runs: Sequence[Json], repeat: int) -> Score:
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
        repeat=repeat,
        init=synthesis.get("initialise"),
        image_bytes=record["bytes"]["images"],
        label_bytes=record["bytes"]["labels"] if labels == "soft" else 0,
    )


def read_streams(params: Params, streams: Path, names: Sequence[str]) -> list[StreamScore]:
    """Continual learning of declared rows, one for every kind of labels.

    Raises:
        TeddyError: a record is missing, or of another row than declared.
    """
    found: list[StreamScore] = []
    for name in names:
        row = params.row("streams", name)
        keys = ("dataset", "data", "set", "pool", "teachers")
        declared = {"stream": name} | {key: getattr(row, key) for key in keys}
        with _opened(streams / f"{name}.json", "continual", name, declared) as record:
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


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation (n − 1); 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _mean_of(runs: Sequence[Json], key: str) -> float | None:
    values = [run[key] for run in runs if key in run]
    return statistics.fmean(values) if values else None


def read_bases(params: Params, teachers: Path, names: Iterable[str] | None = None) -> list[Base]:
    """Every declared base run, or those named."""
    bases = []
    for name in params.bases if names is None else names:
        row = params.bases[name]
        path = teachers / f"{name}.json"
        with _opened(path, "train_teacher", name, {"base": name}) as record:
            epochs = tuple(
                Epoch(
                    epoch=entry["epoch"],
                    loss=entry.get("loss", math.nan),
                    val_top1=entry["val_top1"],
                )
                for entry in record["epochs"]
            )
        bases.append(Base(name=name, dataset=row.dataset, epochs=epochs))
    return bases


def read_pools(params: Params, folder: Path) -> list[PoolFacts]:
    """Every declared pool."""
    pools = []
    for name, row in params.pools.items():
        path = folder / f"{name}.json"
        declared = {"pool": name, "base": row.base, "kind": row.kind}
        with _opened(path, "build_pool", name, declared) as record:
            members = tuple(_member(i, entry) for i, entry in enumerate(record["members"]))
        pools.append(
            PoolFacts(
                name=name,
                dataset=row.dataset,
                base=row.base,
                kind=row.kind,
                method=_method_of_pool(params, name),
                members=members,
            )
        )
    return pools


def _member(index: int, entry: Json) -> Member:
    optional = ("epoch", "seed", "lr", "finetune_epochs", "target_top1")
    always = ("val_top1", "parameters", "macs")
    facts: Json = {key: entry.get(key) for key in optional} | {key: entry[key] for key in always}
    return Member(index=index, **facts)


def _method_of_pool(params: Params, pool: str) -> str | None:
    methods = (row.method for row in params.sets.values() if row.pool == pool)
    made = (name for name in methods if params.methods[name].images == "synthesised")
    return next(made, None)


def read_histories(params: Params, syntheses: Path, names: Iterable[str]) -> list[History]:
    """Loss curves of those of some declared sets that Eq. 7 has made; other images have none."""
    histories = []
    for name in names:
        row = params.sets[name]
        if params.methods[row.method].images == "dm":
            continue  # its loss is another
        with _opened(syntheses / f"{name}.json", "synthesize", name, {"set": name}) as record:
            items = tuple(_curve(item["curve"]) for item in record["items"])
        if items:
            histories.append(
                History(set=name, dataset=row.dataset, method=row.method, ipc=row.ipc, items=items)
            )
    return histories


def _curve(points: Sequence[Json]) -> LossCurve:
    return LossCurve(
        iterations=tuple(point["iteration"] for point in points),
        classifier_prior=tuple(point["classifier_prior"] for point in points),
        statistics=tuple(point["statistics"] for point in points),
    )


def read_grids(params: Params, sets: Path, names: Sequence[str]) -> list[ImageGrid]:
    """Images of some declared scores' sets, the same classes of all sets of a dataset."""
    return [_grid(params, sets, params.leaf(name).set) for name in names]


def _grid(params: Params, sets: Path, name: str) -> ImageGrid:
    path, row = sets / f"{name}.safetensors", params.sets[name]
    _refuse_missing(path, "synthesize", name)
    with safe_open(path, framework="np") as file:  # not by teddy.load, which needs PyTorch
        pixels, labels = file.get_tensor("images"), file.get_tensor("labels")
        record = json.loads((file.metadata() or {})["teddy"])
    count = len(record["class_names"])
    shown = np.unique(np.linspace(0, count - 1, CLASSES_SHOWN).round().astype(int)).tolist()
    rows = np.stack([np.flatnonzero(labels == c)[:IMAGES_SHOWN] for c in shown], axis=1)
    images = np.stack([pixels[row] for row in rows])
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


def read_costs(params: Params, path: Path, names: Sequence[str]) -> list[Cost]:
    """Measured costs of some declared sets.

    Raises:
        TeddyError: one was not measured.
    """
    record = read_json(path)
    costs = []
    keys = ("draw", "epochs", "pretraining_seconds", "synthesis_seconds", "peak_mib")
    for name in names:
        row = params.sets[params.leaf(name).set]
        if name not in record["sets"]:
            raise TeddyError(f"{path}: lacks {name!r}; run the measure_costs stage again")
        own = {key: record["sets"][name][key] for key in keys}
        costs.append(Cost(name=name, dataset=row.dataset, method=row.method, ipc=row.ipc, **own))
    return costs


def read_kept(folder: Path) -> list[Kept]:
    """Runs that need other hardware and are kept as files beside the paper's numbers.

    These files are input, like the paper's, and not declared by rows: all that are there count.
    """
    kept = []
    for path in sorted(folder.glob("*.json")):
        record = read_json(path)
        try:
            scores = tuple(
                KeptScore(
                    name=name,
                    method=own["method"],
                    ipc=own["ipc"],
                    arch=own["arch"],
                    labels=labels,
                    n=len(runs),
                    top1_mean=statistics.fmean(run["top1_last"] for run in runs),
                    top1_std=spread([run["top1_last"] for run in runs]),
                )
                for name, own in record["sets"].items()
                for labels, runs in own["labels"].items()
            )
            facts = {key: record[key] for key in ("dataset", "date", "commit", "command")}
            kept.append(Kept(**facts, hardware=record["hardware"], scores=scores))
        except (KeyError, TypeError, AttributeError) as error:
            raise TeddyError(
                f"{path}: expected the record of `python -m teddy.reference`: {error}"
            ) from error
    return kept


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


def grouped(rows: Iterable[T], *attributes: str) -> dict[Any, list[T]]:
    """Rows by the value of an attribute (or tuple of several), in order of first appearance."""
    groups: dict[Any, list[T]] = {}
    for row in rows:
        values = tuple(getattr(row, attribute) for attribute in attributes)
        groups.setdefault(values if len(values) > 1 else values[0], []).append(row)
    return groups
