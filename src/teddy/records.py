"""Records of the stages in, small frozen rows out; nothing is computed but means and spreads.

Rows are those declared in ``params.yaml``, in its order, never what happens to lie in a folder.
"""

import contextlib
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from teddy.artifacts import Json, read_json
from teddy.config import Params, read_yaml
from teddy.distilled import load
from teddy.errors import TeddyError

T = TypeVar("T")
CLASSES_SHOWN, IMAGES_SHOWN = 10, 10

# -------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Students trained on one set with one kind of labels; accuracies in percent."""

    set: str
    dataset: str
    method: str
    ipc: int
    arch: str
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


def read_scores(params: Params, runs: Path) -> list[Score]:
    """Scores of every declared set and kind of labels.

    Raises:
        TeddyError: no set is declared, a record is missing, is of another set than declared, or
            two sets of a dataset were measured on different splits.
    """
    if not params.sets:
        raise TeddyError(f"{params.path}: sets: no row is declared, so there is nothing to report")
    scores: list[Score] = []
    for name, row in params.sets.items():
        path = runs / f"{name}.json"
        declared = {"set": name, "dataset": row.dataset, "method": row.method, "ipc": row.ipc}
        with _opened(path, "evaluate", name, declared) as record:
            scores += [
                _score(record, labels, record["labels"][labels])
                for labels in params.methods[row.method].labels
            ]
    for dataset, own in grouped(scores, "dataset").items():
        splits = {score.split: score.set for score in own}
        if len(splits) > 1:
            where = ", ".join(f"{name} on {split}" for split, name in sorted(splits.items()))
            raise TeddyError(
                f"{runs}: sets of {dataset} were measured on different splits ({where}); run the "
                "evaluate stage again"
            )
    return scores


def _score(record: Json, labels: str, runs: Sequence[Json]) -> Score:
    last = [run["top1_last"] for run in runs]
    keys = ("set", "dataset", "method", "ipc", "arch", "split", "images_held_out", "epochs")
    return Score(
        **{key: record[key] for key in keys},
        labels=labels,
        n=len(last),
        top1_mean=statistics.fmean(last),
        top1_std=statistics.stdev(last) if len(last) > 1 else 0.0,
        top1_best_mean=statistics.fmean(run["top1_best"] for run in runs),
    )


def read_bases(params: Params, teachers: Path) -> list[Base]:
    """Every declared base run."""
    bases = []
    for name, row in params.bases.items():
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
    return next((name for name in methods if params.methods[name].images != "random"), None)


def read_histories(params: Params, syntheses: Path) -> list[History]:
    """Loss curves of every declared set that was synthesised; random images have none."""
    histories = []
    for name, row in params.sets.items():
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


def read_grids(params: Params, sets: Path) -> list[ImageGrid]:
    """One set of every dataset and method: of the smallest IPC that fills a grid, else the largest.

    An IPC that all methods of a dataset have is preferred, so that grids can be compared.
    """
    grids = []
    for dataset in params.datasets:
        rows: dict[str, dict[int, str]] = {}
        for name, row in params.sets.items():
            if row.dataset == dataset:
                rows.setdefault(row.method, {})[row.ipc] = name
        common = set.intersection(*(set(own) for own in rows.values())) if rows else set()
        for method in params.methods:
            if method in rows:
                ipc = _useful_ipc(common or rows[method])
                grids.append(_grid(sets, rows[method][ipc], dataset, method))
    return grids


def _useful_ipc(ipcs: Iterable[int]) -> int:
    ascending = sorted(ipcs)
    return next((ipc for ipc in ascending if ipc >= IMAGES_SHOWN), ascending[-1])


def _grid(sets: Path, name: str, dataset: str, method: str) -> ImageGrid:
    path = sets / f"{name}.safetensors"
    _refuse_missing(path, "synthesize", name)
    distilled = load(path)
    count = distilled.num_classes
    shown = np.unique(np.linspace(0, count - 1, CLASSES_SHOWN).round().astype(int)).tolist()
    labels = distilled.labels.numpy()
    rows = np.stack([np.flatnonzero(labels == c)[:IMAGES_SHOWN] for c in shown], axis=1)
    images = np.stack([[distilled.images[int(i)].numpy() for i in row] for row in rows])
    return ImageGrid(
        dataset=dataset,
        method=method,
        ipc=distilled.ipc,
        num_classes=count,
        class_names=tuple(distilled.class_names[c] for c in shown),
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
                **{key: entry[key] for key in keys},
            )
            for entry in record["results"]
        ]
    except (KeyError, TypeError) as error:
        raise TeddyError(f"{path}: expected a list 'results' of {', '.join(keys)}") from error


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
