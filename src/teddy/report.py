"""Rows in, tables, points of figures and the summary out; nothing is computed but joins.

:func:`target_tables` has the tables of every target; its keys are stages of ``dvc.yaml`` too.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teddy.config import Params
from teddy.errors import TeddyError
from teddy.files import Json
from teddy.results import (
    Base,
    Cost,
    History,
    Kept,
    PaperResult,
    PoolFacts,
    Score,
    StreamScore,
    grouped,
    spread,
)
from teddy.tables import DASH, Cell, Column, Table, percent


def result_tables(
    scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> list[Table]:
    """Table 1 for every dataset and student, then its best-epoch values."""
    tables = []
    for dataset in params.datasets:
        own = [score for score in scores if score.dataset == dataset]
        for arch, rows in grouped(own, "arch").items():
            where = f"{params.datasets[dataset].title}, {arch} students"
            tables.append(_table1(where, rows, paper, params))
            tables.append(_best_table(where, rows, params))
    return tables


def _table1(
    where: str, scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> Table:
    first = scores[0]
    ipcs, kinds = _ipcs_and_labels(scores)
    methods = _by_method(scores, params)
    printed = {
        (method, ipc): _marked(
            paper_result(params, "1", first.dataset, method, ipc, paper), first.arch
        )
        for method in methods
        for ipc in ipcs
    }
    in_paper = {ipc for (_, ipc), number in printed.items() if number}
    columns = [Column("method", text=True)]
    for ipc in ipcs:
        shown = [*kinds, "paper"] if ipc in in_paper else kinds
        columns += [Column(kind, f"IPC {ipc}") for kind in shown]
    rows = []
    for method, own in methods.items():
        row: list[Cell] = [params.methods[method].title]
        for ipc in ipcs:
            row += [_last(own.get((ipc, kind))) for kind in kinds]
            row += [printed[method, ipc]] if ipc in in_paper else []
        rows.append(tuple(row))
    for name, numbers in _from_literature(first.dataset, methods, paper, params).items():
        row = [f"{name}, quoted"]
        for ipc in ipcs:
            row += [None] * len(kinds)
            row += [_marked(numbers.get(ipc), first.arch)] if ipc in in_paper else []
        rows.append(tuple(row))
    quoted = "".join(number or "" for number in printed.values())
    title = f"Top-1 accuracy (%) on {where}"
    return Table(title, tuple(columns), tuple(rows), (_note(scores), *_paper_notes(quoted)))


def _from_literature(
    dataset: str, methods: Iterable[str], paper: Sequence[PaperResult], params: Params
) -> dict[str, dict[int | None, PaperResult]]:
    """Methods of the paper's Table 1 that we do not run, by IPC; the paper quotes them itself."""
    ours, title = {params.methods[method].paper for method in methods}, params.datasets[dataset]
    found: dict[str, dict[int | None, PaperResult]] = {}
    for r in paper:
        if r.table == "1" and r.dataset == title.paper and r.method not in ours:
            found.setdefault(r.method, {})[r.ipc] = r
    return found


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
    groups = grouped(scores, "method")
    return {
        method: _placed(groups[method], "ipc", "labels")
        for method in params.methods
        if method in groups
    }


def _placed(scores: Iterable[Score], *keys: str) -> dict[Any, Score]:
    """Scores by their place in a table.

    Raises:
        TeddyError: two would share one.
    """
    found: dict[Any, Score] = {}
    for place, own in grouped(scores, *keys).items():
        if len(own) > 1:
            raise TeddyError(
                f"{own[0].name} and {own[1].name} would share a place in the table ({keys} "
                f"{place}); list only one of them under targets"
            )
        found[place] = own[0]
    return found


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
    return ours.replace("_", "").startswith(papers.lower())  # convnet3 is a ConvNet


def paper_result(
    params: Params,
    table: str,
    dataset: str,
    method: str,
    ipc: int,
    paper: Sequence[PaperResult],
    *,
    metric: str = "top1_acc",
    arch: str = "",
    keep: str = "",
    init: str = "",
) -> PaperResult | None:
    """The paper's number in one of its tables for our setting, if it has one.

    Args:
        params: names of our datasets and methods in the paper.
        table: its number there.
        dataset: ours.
        method: ours. Tables 3 and 4 do not say which of Teddy's pools they use.
        ipc: images per class.
        paper: all printed numbers.
        metric: ``top1_acc`` or ``f1``.
        arch: of the students, "" for any.
        keep: as printed in Table 3.
        init: as printed in Table 5.
    """
    name, title = params.methods[method].paper, params.datasets[dataset].paper
    names = {name, name.split(" (")[0]} if table in ("3", "4L") else {name}
    for r in paper:
        same = (r.table, r.ipc, r.metric, r.keep, r.init) == (table, ipc, metric, keep, init)
        where = r.dataset.removesuffix(" (imbalanced)") == title
        if same and where and r.method in names and (not arch or _same_arch(arch, r.arch)):
            return r
    return None


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
        return ["The paper does not report these settings."]
    notes = [
        "paper: the number printed in the paper's Table 1 for the same dataset, method and IPC. "
        "Its students learn from soft labels; of its random images it does not say."
    ]
    if "†" in quoted:
        notes.append("†: students of another architecture than ours, so not directly comparable.")
    if "*" in quoted:
        notes.append("*: on downsized images, so not directly comparable.")
    return notes


def _cross_architecture(
    scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> list[Table]:
    """Table 2: a row per method, a column per student network."""
    tables = []
    for (dataset, ipc), own in grouped(scores, "dataset", "ipc").items():
        archs = list(grouped(own, "arch"))
        rows: list[tuple[Cell, ...]] = []
        for method, mine in _methods(own, params).items():
            by_arch = _placed([s for s in mine if s.labels == "soft"], "arch")
            title = params.methods[method].title
            rows.append((title, "ours", *(_last(by_arch.get(arch)) for arch in archs)))
            printed = [
                paper_result(params, "2", dataset, method, ipc, paper, arch=arch) for arch in archs
            ]
            if any(printed):
                rows.append((title, "paper", *(_quoted(number) for number in printed)))
        columns = (Column("method", text=True), Column("", text=True), *map(Column, archs))
        title = f"Top-1 accuracy (%) of other students on {params.datasets[dataset].title}, IPC "
        tables.append(Table(f"{title}{ipc}", columns, tuple(rows), (_note(own),)))
    return tables


def _imbalanced(
    scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> list[Table]:
    """Table 3: accuracy and macro-F1 for every share of images that classes keep."""
    tables = []
    soft = [score for score in scores if score.labels == "soft"]
    for (dataset, ipc), own in grouped(soft, "dataset", "ipc").items():
        datas = list(grouped(own, "data"))
        keeps = {data: _keep(params, data) for data in datas}
        columns = [Column("method", text=True), Column("", text=True)]
        for data in datas:
            columns += [Column("top-1", keeps[data]), Column("macro-F1", keeps[data])]
        rows: list[tuple[Cell, ...]] = []
        for method, mine in _methods(own, params).items():
            by_data = _placed(mine, "data")
            ours: list[Cell] = [params.methods[method].title, "ours"]
            theirs: list[Cell] = [params.methods[method].title, "paper"]
            for data in datas:
                score = by_data.get(data)
                ours += [_last(score), _f1(score)]
                theirs += [
                    _quoted(
                        paper_result(
                            params, "3", dataset, method, ipc, paper,
                            metric=metric, keep=keeps[data],
                        )
                    )
                    for metric in ("top1_acc", "f1")
                ]  # fmt: skip
            rows.append(tuple(ours))
            rows += [tuple(theirs)] if any(theirs[2:]) else []
        note = (
            "Columns say the bounds of the share of its training images that each class keeps, "
            "drawn uniformly; validation and test images are complete. Teachers and synthesis see "
            "the thinned images only. A matches each class to its own statistics, B all classes to "
            "class-balanced pooled ones (§8-21). Soft labels."
        )
        title = f"Imbalanced training data, {params.datasets[dataset].title}, IPC {ipc}"
        tables.append(Table(title, tuple(columns), tuple(rows), (note, _note(own))))
    return tables


def _keep(params: Params, data: str) -> str:
    low, high = params.prepare(data).keep
    return f"{low:.0%}-{high:.0%}"


def _f1(score: Score | None) -> str | None:
    if score is None:
        return None
    return percent(score.f1_mean, score.f1_std if score.n > 1 else None)


def _larger_network(
    scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> list[Table]:
    """Table 4, left: pool and students of ResNet50."""
    tables = []
    for (dataset, arch), own in grouped(scores, "dataset", "arch").items():
        ipcs, kinds = _ipcs_and_labels(own)
        columns = [Column("method", text=True)]
        columns += [Column(kind, f"IPC {ipc}") for ipc in ipcs for kind in (*kinds, "paper")]
        rows: list[tuple[Cell, ...]] = []
        for method, mine in _methods(own, params).items():
            cells = _placed(mine, "ipc", "labels")
            row: list[Cell] = [params.methods[method].title]
            for ipc in ipcs:
                row += [_last(cells.get((ipc, kind))) for kind in kinds]
                row.append(
                    _quoted(paper_result(params, "4L", dataset, method, ipc, paper, arch=arch))
                )
            rows.append(tuple(row))
        title = f"Top-1 accuracy (%) with {arch} as base and student, "
        title += params.datasets[dataset].title
        note = "The paper does not print the dataset of this table; ImageNet-1K is inferred."
        tables.append(Table(title, tuple(columns), tuple(rows), (_note(own), note)))
    return tables


def _small_data(
    scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> list[Table]:
    """Table 5: hard labels and DSA, by what the images start from; the paper's numbers beside."""
    tables = []
    for (dataset, arch), own in grouped(scores, "dataset", "arch").items():
        ipcs = sorted({score.ipc for score in own})
        rows: list[tuple[Cell, ...]] = []
        printed = False
        by_init = grouped(own, "init")
        for init in sorted(by_init, key=lambda value: ("noise", "real", None).index(value)):
            for method, mine in _methods(by_init[init], params).items():
                by_ipc = {score.ipc: score for score in mine}
                cells: list[Cell] = []
                for ipc in ipcs:
                    theirs = paper_result(params, "5", dataset, method, ipc, paper, init=init or "")
                    cells += [_last(by_ipc.get(ipc)), _quoted(theirs)]
                    printed = printed or theirs is not None
                rows.append((init or "selected", params.methods[method].title, *cells))
        columns = [Column("start", text=True), Column("method", text=True)]
        columns += [Column(who, f"IPC {ipc}") for ipc in ipcs for who in ("ours", "paper")]
        if not printed:
            shown = [i for i, column in enumerate(columns) if column.name != "paper"]
            columns = [columns[i] for i in shown]
            rows = [tuple(row[i] for i in shown) for row in rows]
        note = (
            "start: what the images are optimised from; random real images are selected, not "
            "optimised. All rows: hard labels, students and DSA of one recipe, which follows DM's "
            "evaluation (§8-17)."
        )
        title = f"Small data without soft labels, {params.datasets[dataset].title}, {arch} students"
        tables.append(Table(f"{title}: top-1 (%)", tuple(columns), tuple(rows), (note, _note(own))))
    return tables


def _quoted(found: PaperResult | None) -> str | None:
    return None if found is None else percent(found.mean, found.std)


@dataclass(frozen=True, slots=True)
class Axis:
    """What varies along a figure's x axis."""

    attribute: str
    """Of a :class:`Score`."""
    title: str
    divergence: bool = False
    """Whether the KL divergence stands beside accuracy."""


AXES = {
    "fig2c": Axis("stages", "epochs of the teachers", divergence=True),
    "fig3a": Axis("draw", "teachers drawn for synthesis"),
    "fig3b": Axis("members", "teachers that label"),
    "fig3c": Axis("pool_size", "teachers in the pool"),
}


def _along(target: str) -> "Maker":
    """Maker of the tables of a figure with an axis: a row per value."""
    axis = AXES[target]

    def make(scores: Sequence[Score], paper: Sequence[PaperResult], params: Params) -> list[Table]:
        for score in scores:
            if getattr(score, axis.attribute) is None:
                raise TeddyError(
                    f"{params.path}: targets.{target}: {score.name} has no place on the axis "
                    f"{axis.title!r}"
                )
        table1 = params.targets.get("table1", ())
        tables = []
        for (dataset, arch), own in grouped(scores, "dataset", "arch").items():
            ipcs, kinds = _ipcs_and_labels(own)
            columns = [Column(axis.title)]
            for ipc in ipcs:
                columns += [Column(kind, f"IPC {ipc}") for kind in kinds]
                if axis.divergence:
                    columns.append(Column("KL(student ‖ teacher)", f"IPC {ipc}", spec=".3f"))
                    columns.append(Column("KL(teacher ‖ student)", f"IPC {ipc}", spec=".3f"))
            rows: list[tuple[Cell, ...]] = []
            for value, mine in grouped(own, axis.attribute).items():
                cells = _placed(mine, "ipc", "labels")
                mark = "‡" if any(score.name in table1 for score in mine) else ""
                row: list[Cell] = [axis_value(value) + mark]
                for ipc in ipcs:
                    row += [_last(cells.get((ipc, kind))) for kind in kinds]
                    if axis.divergence:
                        soft = cells.get((ipc, "soft"))
                        row.append(soft.kl_student_teacher if soft else None)
                        row.append(soft.kl_teacher_student if soft else None)
                rows.append(tuple(row))
            notes = [_note(own)]
            if any(str(row[0]).endswith("‡") for row in rows):
                notes.append("‡: the default; where Table 1 has the IPC, it is Table 1's own set.")
            if axis.divergence:
                notes.append(
                    "KL in nats at temperature 1, mean over the images held out, the members of "
                    "the pool and the students. The paper does not say which direction it plots."
                )
            title = f"Top-1 accuracy (%) against {axis.title}: {params.datasets[dataset].title}, "
            title += f"{arch} students"
            tables.append(Table(title, tuple(columns), tuple(rows), tuple(notes)))
        return tables

    return make


def axis_value(value: object) -> str:
    """A place on an axis as it is written: ``3``, or ``2–16`` for a range of epochs."""
    return "–".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _ablations(
    scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> list[Table]:
    """What the paper leaves out, one row per set and labelling pool."""
    tables = []
    for (dataset, ipc), own in grouped(scores, "dataset", "ipc").items():
        rows: list[tuple[Cell, ...]] = []
        for name, mine in grouped(own, "name").items():
            cells = {score.labels: score for score in mine}
            first = mine[0]
            rows.append(
                (
                    name, params.methods[first.method].title, first.pool, first.ensemble,
                    first.first_bn_weight, _last(cells.get("hard")), _last(cells.get("soft")),
                    first.image_bytes, max(score.label_bytes for score in mine),
                )
            )  # fmt: skip
        columns = (
            Column("row", text=True), Column("images", text=True), Column("labels by", text=True),
            Column("ensemble", text=True), Column("first BN", spec="g"), Column("hard"),
            Column("soft"), Column("images", "bytes of", ","), Column("labels", "bytes of", ","),
        )  # fmt: skip
        note = (
            "ensemble: what the classifier prior averages over teachers (§8-7). first BN: weight "
            "of the first BatchNorm layer (§8-5). Random real images appear under the labels of "
            "every pool, so that what labels and what images contribute can be told apart."
        )
        title = f"Ablations, {params.datasets[dataset].title}, IPC {ipc}: top-1 accuracy (%)"
        tables.append(Table(title, columns, tuple(rows), (note, _note(own))))
    return tables


def _precision(
    scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> list[Table]:
    """Autocast dtypes of synthesis, each over repeats of the whole synthesis."""
    tables = []
    for (dataset, ipc), own in grouped(scores, "dataset", "ipc").items():
        rows: list[tuple[Cell, ...]] = []
        for (method, precision), mine in grouped(own, "method", "precision").items():
            means = {
                kind: [score.top1_mean for score in mine if score.labels == kind]
                for kind in ("hard", "soft")
            }
            cells = [
                percent(statistics.fmean(values), spread(values)) if values else None
                for values in means.values()
            ]
            count = len({score.repeat for score in mine})
            rows.append((params.methods[method].title, precision or "–", count, *cells))
        columns = (
            Column("images", text=True), Column("precision", text=True), Column("syntheses"),
            Column("hard"), Column("soft"),
        )  # fmt: skip
        note = (
            "Mean ± sample standard deviation over syntheses, which differ in all of their "
            "randomness, of the mean accuracy of "
            f"{_values(own, 'n')} students each, after the last of {_values(own, 'epochs')} epochs."
        )
        title = f"Precision, {params.datasets[dataset].title}, IPC {ipc}: top-1 accuracy (%)"
        tables.append(Table(title, columns, tuple(rows), (note,)))
    return tables


def kept_tables(kept: Sequence[Kept], params: Params) -> list[Table]:
    """Runs kept in ``metrics/reference``, each with its hardware, date, commit and command."""
    tables = []
    for run in kept:
        columns = [Column("method", text=True), Column("student", text=True)]
        cells = sorted({(score.ipc, score.labels) for score in run.scores})
        columns += [Column(labels, f"IPC {ipc}") for ipc, labels in cells]
        rows = []
        for (method, arch), own in grouped(run.scores, "method", "arch").items():
            found = {(score.ipc, score.labels): score for score in own}
            title = params.methods[method].title if method in params.methods else method
            shown = [
                percent(score.top1_mean, score.top1_std if score.n > 1 else None)
                if (score := found.get(cell))
                else None
                for cell in cells
            ]
            rows.append((title, arch, *shown))
        hardware = run.hardware
        machine = ", ".join(
            [*hardware.get("gpus", ()), f"{hardware.get('cores')} cores of {hardware.get('cpu')}"]
        )
        note = (
            f"Measured on {run.date} at commit {run.commit} with `{run.command}` on {machine}; "
            "mean ± sample standard deviation over students. Not made by this checkout's last run."
        )
        name = params.datasets[run.dataset].title if run.dataset in params.datasets else run.dataset
        tables.append(
            Table(f"Kept runs: top-1 accuracy (%) on {name}", tuple(columns), tuple(rows), (note,))
        )
    return tables


Maker = Callable[[Sequence[Score], Sequence[PaperResult], Params], list[Table]]


def _first_table(
    scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> list[Table]:
    return [*result_tables(scores, paper, params), size_table(scores, params), paper_table(paper)]


MAKERS: dict[str, Maker] = {
    "table1": _first_table,
    "table2": _cross_architecture,
    "table3": _imbalanced,
    "table4-resnet50": _larger_network,
    "table5": _small_data,
    "fig2c": _along("fig2c"),
    "fig3a": _along("fig3a"),
    "fig3b": _along("fig3b"),
    "fig3c": _along("fig3c"),
    "ablations": _ablations,
    "precision": _precision,
}
"""Tables of every target that shows scores."""

TITLES: dict[str, str] = {
    "table1": "Table 1: accuracy",
    "table2": "Table 2: students of other architectures",
    "table3": "Table 3: imbalanced data",
    "table4-resnet50": "Table 4, left: ResNet50",
    "table5": "Table 5: small data, no soft labels",
    "fig1": "Figure 1: cost of the unrolled objective",
    "fig2c": "Figure 2c: stage of the teachers",
    "fig3a": "Figure 3a: teachers drawn for synthesis",
    "fig3b": "Figure 3b: teachers that label",
    "fig3c": "Figure 3c: size of the pool",
    "fig3d": "Figure 3d: cost",
    "fig3e": "Figure 3e: continual learning",
    "fig4-6-7": "Figures 4, 6 and 7: images",
    "fig5": "Figure 5: error of the Taylor approximation",
    "theory": "Appendix: propositions checked numerically",
    "ablations": "What the paper leaves out",
    "precision": "Precision of synthesis, and the spread between syntheses",
    "pools": "Teachers",
    "overview": "Training of teachers and synthesis",
}
"""Sections of the report page, in order: targets by the name of their files."""


def target_tables(
    target: str, scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> list[Table]:
    """Tables of a target.

    Raises:
        TeddyError: no such target.
    """
    if target not in MAKERS:
        raise TeddyError(f"no target {target!r}; there are: {', '.join(MAKERS)}")
    return MAKERS[target](scores, paper, params)


def size_table(scores: Sequence[Score], params: Params) -> Table:
    """Bytes of images and of labels, which is what a distilled set costs to keep."""
    rows = [
        (
            params.datasets[score.dataset].title, score.ipc, params.methods[score.method].title,
            score.image_bytes, score.label_bytes,
        )
        for score in scores
        if score.labels == "soft"
    ]  # fmt: skip
    columns = (
        Column("dataset", text=True), Column("IPC"), Column("method", text=True),
        Column("images", spec=","), Column("soft labels", spec=","),
    )  # fmt: skip
    note = (
        "images: uint8 pixels, before compression. soft labels: float16 logits of every view in "
        "every epoch, which are stored, or computed while training if relabel.store is false."
    )
    return Table("Bytes of a distilled set", columns, tuple(rows), (note,))


def cost_table(costs: Sequence[Cost], hardware: Json, params: Params) -> Table:
    """Fig. 3d: seconds of pre-training and synthesis, and the peak memory of synthesis."""
    rows = [
        (
            params.methods[cost.method].title, params.datasets[cost.dataset].title, cost.ipc,
            cost.draw, cost.epochs, cost.pretraining_seconds, cost.synthesis_seconds, cost.seconds,
            cost.peak_mib,
        )
        for cost in costs
    ]  # fmt: skip
    columns = (
        Column("method", text=True), Column("dataset", text=True), Column("IPC"), Column("k"),
        Column("epochs"), Column("pre-training", "seconds", ".1f"),
        Column("synthesis", "seconds", ".1f"), Column("both", "seconds", ".1f"),
        Column("peak MiB", spec=".0f"),
    )  # fmt: skip
    machine = [*hardware["gpus"], f"{hardware['cores']} cores of {hardware['cpu']}"]
    note = (
        f"Measured on {', '.join(machine)}, PyTorch {hardware['packages']['torch']}: a few epochs "
        "and iterations, scaled to the whole. k: teachers drawn at a time. epochs: of the base run "
        "that the pool needs. peak: of synthesis, above the process's start (on a GPU: allocated), "
        "by the gradient of synthesize.gradient. Numbers vary from run to run. "
        "The paper reports 46.6 % less time than SRe2L on ImageNet-1K at IPC 10."
    )
    return Table("Cost of pre-training and synthesis", columns, tuple(rows), (note,))


def stream_tables(streams: Sequence[StreamScore], params: Params) -> list[Table]:
    """Fig. 3e: accuracy on seen classes after each step, for every dataset and IPC."""
    tables = []
    for (dataset, ipc, arch), own in grouped(streams, "dataset", "ipc", "arch").items():
        rows: list[tuple[Cell, ...]] = []
        for stream in own:
            shown = zip(stream.top1_mean, stream.top1_std, strict=True)
            rows.append(
                (
                    "strict" if stream.strict else "paper-like",
                    params.methods[stream.method].title,
                    stream.labels,
                    *(percent(m, s if stream.orders > 1 else None) for m, s in shown),
                )
            )
        columns = [Column("teachers", text=True), Column("method", text=True)]
        columns += [Column("labels", text=True)]
        columns += [Column(f"{count}", "classes seen:") for count in own[0].classes]
        first = own[0]
        note = (
            f"Mean ± sample standard deviation over {first.orders} orders of the classes, "
            f"{first.seeds} student{'s' * (first.seeds > 1)} of each; all methods see the same "
            f"orders. GDumb: after each step a student from scratch, {first.epochs} epochs on the "
            "images of all classes seen so far, outputs for all classes, tested on the "
            f"{_split(first.split)} images of seen classes alone, last epoch. Paper-like: images "
            "and soft labels of a pool that was trained on all classes, future ones included. "
            "Strict: images and labels of teachers that were trained on the classes of one step; "
            "random and DM images do not depend on teachers, their labels do (§8-24)."
        )
        title = f"Continual learning, {params.datasets[dataset].title}, IPC {ipc}, {arch} students"
        tables.append(Table(f"{title}: top-1 (%)", tuple(columns), tuple(rows), (note,)))
    return tables


def stream_points(streams: Sequence[StreamScore]) -> Table:
    """Points of the figure, one row per stream and step."""
    keys = ("name", "dataset", "method", "ipc", "arch", "strict", "labels", "epochs", "orders",
            "seeds")  # fmt: skip
    rows = []
    for stream in streams:
        facts = [getattr(stream, key) for key in keys]
        points = zip(stream.classes, stream.top1_mean, stream.top1_std, strict=True)
        rows += [(*facts, *point) for point in points]
    names = (*keys, "classes", "top1_mean", "top1_std")
    return Table("streams", tuple(map(Column, names)), tuple(rows))


def _methods(scores: Sequence[Score], params: Params) -> dict[str, list[Score]]:
    groups = grouped(scores, "method")
    return {method: groups[method] for method in params.methods if method in groups}


_MEASURED = {"Random (ResNet18)", "SRe2L", "Teddy (post)", "Teddy (prior)"}
"""Methods of the paper's Table 1 that it measured; the others are ConvNet numbers of others."""


def paper_table(paper: Sequence[PaperResult]) -> Table:
    """The paper's Table 1, quoted in full."""
    results = [r for r in paper if r.table == "1"]
    cells = list(grouped(results, "dataset", "ipc"))
    rows: list[tuple[Cell, ...]] = []
    for (method, arch), own in grouped(results, "method", "arch").items():
        by_cell = {(r.dataset, r.ipc): r for r in own}
        source = "measured" if method in _MEASURED else "quoted"
        rows.append((method, arch, source, *(_printed(by_cell.get(cell)) for cell in cells)))
    columns = [Column(f"IPC {ipc}", dataset) for dataset, ipc in cells]
    note = (
        "Quoted from the paper (arXiv:2410.07579, Table 1), not measured by us: top-1 accuracy "
        "(%), in brackets the gain over SRe2L as printed. Rows marked quoted the paper itself "
        "takes from the literature. *: on downsized ImageNet-1K; "
        f"{DASH}: not reported. The paper does not say how many students it trained, nor whether "
        "it reports the last epoch or the best."
    )
    return Table(
        "For orientation: Table 1 of the paper",
        (
            Column("method", text=True),
            Column("student", text=True),
            Column("in the paper", text=True),
            *columns,
        ),
        tuple(rows),
        (note,),
    )


def _printed(result: PaperResult | None) -> str | None:
    if result is None or result.mean is None:
        return None
    gain = "" if result.delta is None else f" (+{result.delta:.1f})"
    return f"{percent(result.mean, result.std)}{'*' * result.downsized}{gain}"


_PAPER_TABLES = {
    "table1": "1", "table2": "2", "table3": "3", "table4-resnet50": "4L", "table5": "5",
}  # fmt: skip


def long_table(
    target: str, scores: Sequence[Score], paper: Sequence[PaperResult], params: Params
) -> Table:
    """One row per score; the paper's number stands with the labels that it trains on: soft ones,
    but for Table 5.
    """
    keys = ("dataset", "data", "method", "ipc", "arch", "pool", "members", "pool_size", "draw",
            "ensemble", "first_bn_weight", "init", "labels", "epochs", "n")  # fmt: skip
    numbers = ("top1_mean", "top1_std", "top1_best_mean", "f1_mean", "f1_std",
               "kl_student_teacher", "kl_teacher_student", "image_bytes",
               "label_bytes")  # fmt: skip
    rows = []
    for score in scores:
        found = None
        if score.labels == ("hard" if target == "table5" else "soft") and target in _PAPER_TABLES:
            found = paper_result(
                params, _PAPER_TABLES[target], score.dataset, score.method, score.ipc, paper,
                arch="" if target in ("table1", "table5") else score.arch,
                init=score.init or "" if target == "table5" else "",
                keep=_keep(params, score.data) if target == "table3" else "",
            )  # fmt: skip
        ours = [getattr(score, key) for key in (*keys, *numbers)]
        theirs = (found.mean, found.std, found.arch) if found else (None, None, None)
        stages = axis_value(score.stages) if score.stages else None
        rows.append((f"{score.name} {score.labels}", stages, *ours, *theirs))
    names = ("name", "stages", *keys, *numbers, "paper_mean", "paper_std", "paper_arch")
    return Table(f"{target}, long form", tuple(Column(name) for name in names), tuple(rows))


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
    """Nested metrics: the parts of a score's name, then labels; teachers and pools beside them.

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
        add((*score.name.split("/"), score.labels), f"score {score.name}", _metrics(score))
    for base in bases:
        top1 = round(base.epochs[-1].val_top1, 2)
        add(("teachers", *base.name.split("/")), f"bases.{base.name}", {"val_top1": top1})
    for pool in pools:
        top1s = [member.val_top1 for member in pool.members]
        facts = {
            "members": len(top1s),
            "val_top1_min": round(min(top1s), 2),
            "val_top1_max": round(max(top1s), 2),
        }
        add(("pools", *pool.name.split("/")), f"pools.{pool.name}", facts)
    return _nested({path: leaf for path, (_, leaf) in leaves.items()})


def _metrics(score: Score) -> Json:
    names = ("top1_mean", "top1_std", "top1_best_mean", "f1_mean")
    return {name: round(getattr(score, name), 2) for name in names} | {"n": score.n}


def _nested(leaves: Mapping[tuple[str, ...], Json]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node.update(leaf)
    return tree


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
