"""Run records in, rows and tables out; nothing is computed beyond means, spreads and joins.

Rows are those declared in ``params.yaml``, in its order, never what happens to lie in a folder. A
reader of a new kind of record returns small frozen rows; a table is a :class:`Table`, which knows
how to write itself as Markdown, CSV and LaTeX.
"""

import contextlib
import csv
import io
import statistics
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from teddy.artifacts import Json, atomic_path, read_json
from teddy.config import Params
from teddy.distilled import load
from teddy.errors import TeddyError

T = TypeVar("T")
DASH = "–"
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
    """Mean training loss of the epoch."""
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
    for dataset, own in _grouped(scores, "dataset").items():
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
                Epoch(epoch=entry["epoch"], loss=entry["loss"], val_top1=entry["val_top1"])
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
    try:
        record = YAML(typ="safe").load(path)
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror}") from error
    except YAMLError as error:
        raise TeddyError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
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


def _grouped(rows: Iterable[T], *attributes: str) -> dict[Any, list[T]]:
    """Rows by the value of an attribute (or tuple of several), in order of first appearance."""
    groups: dict[Any, list[T]] = {}
    for row in rows:
        values = tuple(getattr(row, attribute) for attribute in attributes)
        groups.setdefault(values if len(values) > 1 else values[0], []).append(row)
    return groups


# ------------------------------------------------------------------------------------------ tables

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Column:
    """Heading of a column and how it is shown."""

    name: str
    group: str = ""
    """Heading shared by neighbouring columns."""
    spec: str = ""
    """Format of numbers in Markdown and LaTeX."""
    text: bool = False
    """Left-aligned."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells and their renderings; a None cell is a dash, in CSV nothing."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(row)} cells in {len(self.columns)} columns")

    def markdown(self) -> str:
        """Title, table and notes; columns line up in the source too."""
        heads = [f"{column.group} {column.name}".strip() for column in self.columns]
        lines = [[text.replace("|", r"\|") for text in line] for line in [heads, *self._shown()]]
        widths = [max(3, *map(len, texts)) for texts in zip(*lines, strict=True)]
        rule = [
            f":{'-' * (width - 1)}" if column.text else f"{'-' * (width - 1)}:"
            for column, width in zip(self.columns, widths, strict=True)
        ]
        padded = [self._padded(line, widths) for line in lines]
        body = "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])
        notes = [textwrap.fill(note, 100, break_on_hyphens=False) for note in self.notes]
        return "\n\n".join([f"## {self.title}", body, *notes]) + "\n"

    def csv(self) -> str:
        """Column names, then rows; numbers with six significant digits, text as it is."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([column.name for column in self.columns])
        for row in self.rows:
            writer.writerow([f"{c:.6g}" if isinstance(c, float) else c for c in row])
        return out.getvalue()

    def latex(self) -> str:
        """A table environment with a booktabs tabular."""
        align = "".join("l" if column.text else "r" for column in self.columns)
        names = [column.name for column in self.columns]
        head, *body = [rf"{' & '.join(map(_tex, line))} \\" for line in [names, *self._shown()]]
        lines = [
            r"\begin{table}[ht]", r"\centering", rf"\caption{{{_tex(self.title)}}}",
            rf"\begin{{tabular}}{{{align}}}", r"\toprule", *self._group_lines(), head,
            r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
            *(rf"\par\smallskip\footnotesize {_tex(note)}" for note in self.notes),
            r"\end{table}",
        ]  # fmt: skip
        return "\n".join(lines) + "\n"

    def _group_lines(self) -> list[str]:
        if not any(column.group for column in self.columns):
            return []
        heads, rules, start = [], [], 1
        for group, columns in groupby(self.columns, key=lambda column: column.group):
            span = len(list(columns))
            heads.append(rf"\multicolumn{{{span}}}{{c}}{{{_tex(group)}}}")
            rules += [rf"\cmidrule(lr){{{start}-{start + span - 1}}}"] if group else []
            start += span
        return [rf"{' & '.join(heads)} \\", " ".join(rules)]

    def _shown(self) -> list[list[str]]:
        return [
            [_shown(cell, column.spec) for cell, column in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]

    def _padded(self, line: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            text.ljust(width) if column.text else text.rjust(width)
            for text, width, column in zip(line, widths, self.columns, strict=True)
        ]


def _shown(cell: Cell, spec: str) -> str:
    if cell is None:
        return DASH
    return cell if isinstance(cell, str) else format(cell, spec)


_TEX = {symbol: f"\\{symbol}" for symbol in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$", "†": r"$^\dagger$", "*": r"$^*$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(symbol, symbol) for symbol in text)


def write_text(path: Path, text: str) -> None:
    """Write a table or document whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def percent(mean: float | None, std: float | None) -> str | None:
    """``97.3 ± 0.4``, without what is None; None if there is no mean."""
    if mean is None:
        return None
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def result_tables(
    scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> list[Table]:
    """Table 1 for every dataset and student, then its best-epoch values."""
    tables = []
    for dataset in params.datasets:
        own = [score for score in scores if score.dataset == dataset]
        for arch, rows in _grouped(own, "arch").items():
            where = f"{params.datasets[dataset].title}, {arch} students"
            tables.append(_table1(where, rows, paper, params))
            tables.append(_best_table(where, rows, params))
    return tables


def _table1(
    where: str, scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> Table:
    first = scores[0]
    ipcs, kinds = _ipcs_and_labels(scores)
    columns = [Column("method", text=True)]
    for ipc in ipcs:
        columns += [Column(kind, f"IPC {ipc}") for kind in [*kinds, "paper"]]
    rows, quoted = [], ""
    for method, own in _by_method(scores, params).items():
        row: list[Cell] = [params.methods[method].title]
        for ipc in ipcs:
            found = paper_result(params, "1", first.dataset, method, ipc, paper)
            printed = _marked(found, first.arch)
            row += [*(_last(own.get((ipc, kind))) for kind in kinds), printed]
            quoted += printed or ""
        rows.append(tuple(row))
    title = f"Top-1 accuracy (%) on {where}"
    return Table(title, tuple(columns), tuple(rows), (_note(scores), *_paper_notes(quoted)))


def _best_table(where: str, scores: Sequence[Score], params: Params) -> Table:
    ipcs, kinds = _ipcs_and_labels(scores)
    cells = [(ipc, kind) for ipc in ipcs for kind in kinds]
    rows = []
    for method, own in _by_method(scores, params).items():
        found = [own.get(cell) for cell in cells]
        values = [score.top1_best_mean if score else None for score in found]
        rows.append((params.methods[method].title, *values))
    split = _split(scores[0].split)
    note = (
        "Mean over the same students of each one's best epoch. That epoch is chosen on the "
        f"{split} set itself, which makes the number optimistic; the table above does not do so."
    )
    columns = [Column(kind, f"IPC {ipc}", spec=".1f") for ipc, kind in cells]
    return Table(
        f"Best-epoch top-1 accuracy (%) on {where}, optimistic",
        (Column("method", text=True), *columns),
        tuple(rows),
        (note,),
    )


def _ipcs_and_labels(scores: Sequence[Score]) -> tuple[list[int], list[str]]:
    return sorted({score.ipc for score in scores}), sorted({score.labels for score in scores})


def _by_method(scores: Sequence[Score], params: Params) -> dict[str, dict[tuple[int, str], Score]]:
    groups = _grouped(scores, "method")
    return {
        method: {(score.ipc, score.labels): score for score in groups[method]}
        for method in params.methods
        if method in groups
    }


def _last(score: Score | None) -> str | None:
    if score is None:
        return None
    return percent(score.top1_mean, score.top1_std if score.n > 1 else None)


def _marked(found: PaperResult | None, arch: str) -> str | None:
    """The paper's number, with marks for what still differs from our setting."""
    if found is None or found.mean is None:
        return None
    mark = "*" * found.downsized + "†" * (not _same_arch(arch, found.arch))
    return f"{percent(found.mean, found.std)}{mark}"


def _same_arch(ours: str, papers: str) -> bool:
    return ours.startswith(papers.lower())  # convnet3 is a ConvNet


def paper_result(
    params: Params, table: str, dataset: str, method: str, ipc: int, paper: Sequence[PaperResult]
) -> PaperResult | None:
    """The paper's number in one of its tables for our dataset, method and IPC, if it has one."""
    wanted = (table, params.datasets[dataset].paper, params.methods[method].paper, ipc)
    return next((r for r in paper if (r.table, r.dataset, r.method, r.ipc) == wanted), None)


def _note(scores: Sequence[Score]) -> str:
    split, n = _split(scores[0].split), _values(scores, "n")
    return (
        f"Mean ± sample standard deviation over n = {n} student{'s' * (n != '1')} (seeds) "
        "trained on one synthesis; the spread between syntheses is not in it. Accuracy after the "
        f"last of {_values(scores, 'epochs')} epochs on the {split} split "
        f"({_values(scores, 'images_held_out')} images held out). Hard and soft are the labels "
        "that students learn from."
    )


def _values(scores: Sequence[Score], attribute: str) -> str:
    return " or ".join(f"{value:,}" for value in sorted({getattr(s, attribute) for s in scores}))


def _split(name: str) -> str:
    return {"val": "validation"}.get(name, name)


def _paper_notes(quoted: str) -> list[str]:
    if not quoted:
        return [f"paper: {DASH} because the paper does not report these settings."]
    notes = [
        "paper: the number printed in the paper's Table 1 for the same dataset, method and IPC. "
        "Its students learn from soft labels; of its random images it does not say."
    ]
    if "†" in quoted:
        notes.append("†: students of another architecture than ours, so not directly comparable.")
    if "*" in quoted:
        notes.append("*: on downsized images, so not directly comparable.")
    return notes


def paper_table(paper: Sequence[PaperResult]) -> Table:
    """The paper's Table 1, quoted in full."""
    results = [r for r in paper if r.table == "1"]
    cells = list(_grouped(results, "dataset", "ipc"))
    rows: list[tuple[Cell, ...]] = []
    for (method, arch), own in _grouped(results, "method", "arch").items():
        by_cell = {(r.dataset, r.ipc): r for r in own}
        rows.append((method, arch, *(_printed(by_cell.get(cell)) for cell in cells)))
    columns = [Column(f"IPC {ipc}", dataset) for dataset, ipc in cells]
    note = (
        "Quoted from the paper (arXiv:2410.07579, Table 1), not measured by us: top-1 accuracy "
        "(%), in brackets the gain over SRe2L as printed; *: on downsized ImageNet-1K; "
        f"{DASH}: not reported. The paper does not say how many students it trained, nor whether "
        "it reports the last epoch or the best."
    )
    return Table(
        "For orientation: Table 1 of the paper",
        (Column("method", text=True), Column("student", text=True), *columns),
        tuple(rows),
        (note,),
    )


def _printed(result: PaperResult | None) -> str | None:
    if result is None or result.mean is None:
        return None
    gain = "" if result.delta is None else f" (+{result.delta:.1f})"
    return f"{percent(result.mean, result.std)}{'*' * result.downsized}{gain}"


def long_table(scores: Sequence[Score], paper: Sequence[PaperResult], params: Params) -> Table:
    """One row per score; the paper's number stands with soft labels, which is what it trains on."""
    keys = ("dataset", "method", "ipc", "arch", "labels", "n")
    numbers = ("top1_mean", "top1_std", "top1_best_mean")
    rows = []
    for score in scores:
        found = (
            paper_result(params, "1", score.dataset, score.method, score.ipc, paper)
            if score.labels == "soft"
            else None
        )
        ours = [getattr(score, key) for key in (*keys, *numbers)]
        theirs = (found.mean, found.std, found.arch) if found else (None, None, None)
        rows.append((*ours, *theirs))
    names = (*keys, *numbers, "paper_mean", "paper_std", "paper_arch")
    return Table("Table 1, long form", tuple(Column(name) for name in names), tuple(rows))


def pool_table(pools: Sequence[PoolFacts]) -> Table:
    """Every member of every pool."""
    specs = {"lr": ".3g", "finetune_epochs": "g", "target_top1": ".1f", "val_top1": ".1f",
             "parameters": ",", "macs": ","}  # fmt: skip
    facts = ("epoch", "seed", "lr", "finetune_epochs", "target_top1", "val_top1", "parameters",
             "macs")  # fmt: skip
    rows = [
        (pool.name, pool.kind, member.index, *(getattr(member, fact) for fact in facts))
        for pool in pools
        for member in pool.members
    ]
    columns = (
        Column("pool", text=True), Column("kind", text=True), Column("member"),
        *(Column(fact, spec=specs.get(fact, "")) for fact in facts),
    )  # fmt: skip
    note = (
        "val_top1: accuracy on the validation split (%). A post member's fine-tuning stops when "
        "its accuracy reaches target_top1, a point of the prior pool's curve. macs: "
        "multiply-accumulates for one image."
    )
    return Table("Members of the teacher pools", columns, tuple(rows), (note,))


# --------------------------------------------------------------------------------- rows for DVC


def summarise(
    scores: Sequence[Score], bases: Sequence[Base], pools: Sequence[PoolFacts]
) -> dict[str, Any]:
    """Nested metrics: dataset, method, ipc, student, labels; teachers and pools beside them.

    Raises:
        TeddyError: two rows would have the same path, or a name has a dot, with which DVC
            separates the parts of a path.
    """
    leaves: dict[tuple[str, ...], tuple[str, Json]] = {}

    def add(path: tuple[str, ...], source: str, leaf: Json) -> None:
        if path in leaves:
            raise TeddyError(
                f"{leaves[path][0]} and {source} would both be reported as {'.'.join(path)}; "
                "only one of them can be"
            )
        if dotted := next((part for part in path if "." in part), None):
            raise TeddyError(f"{source}: {dotted!r} has a dot, which names of metrics must not")
        leaves[path] = (source, leaf)

    for score in scores:
        path = (score.dataset, score.method, f"ipc{score.ipc}", score.arch, score.labels)
        add(path, f"sets.{score.set}", _metrics(score))
    for base in bases:
        top1 = round(base.epochs[-1].val_top1, 2)
        add((base.dataset, "teacher", _last_part(base.name)), f"bases.{base.name}",
            {"val_top1": top1})  # fmt: skip
    for pool in pools:
        top1s = [member.val_top1 for member in pool.members]
        facts = {
            "members": len(top1s),
            "val_top1_min": round(min(top1s), 2),
            "val_top1_max": round(max(top1s), 2),
        }
        add((pool.dataset, "pool", _last_part(pool.name)), f"pools.{pool.name}", facts)
    return _nested({path: leaf for path, (_, leaf) in leaves.items()})


def _metrics(score: Score) -> Json:
    names = ("top1_mean", "top1_std", "top1_best_mean")
    return {name: round(getattr(score, name), 2) for name in names} | {"n": score.n}


def _last_part(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _nested(leaves: Mapping[tuple[str, ...], Json]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node.update(leaf)
    return tree


def accuracy_points(scores: Sequence[Score]) -> Table:
    """Points of the accuracy figure, one row per set and kind of labels."""
    keys = ("dataset", "method", "ipc", "labels", "top1_mean", "top1_std")
    rows = [(f"{s.set} {s.labels}", *(getattr(s, key) for key in keys)) for s in scores]
    return Table("Accuracy", tuple(Column(name) for name in ("name", *keys)), tuple(rows))


def teacher_points(bases: Sequence[Base]) -> Table:
    """Points of the teachers figure."""
    rows = [(b.name, e.epoch, e.val_top1, e.loss) for b in bases for e in b.epochs]
    names = ("base", "epoch", "val_top1", "loss")
    return Table("Teachers", tuple(Column(name) for name in names), tuple(rows))


def synthesis_points(histories: Sequence[History]) -> Table:
    """Points of the synthesis figure: means over the items of a set."""
    rows = []
    for history in histories:
        mean = history.mean()
        points = zip(mean.iterations, mean.classifier_prior, mean.statistics, strict=True)
        rows += [(history.set, *point) for point in points]
    names = ("set", "iteration", "classifier_prior", "statistics")
    return Table("Synthesis", tuple(Column(name) for name in names), tuple(rows))
