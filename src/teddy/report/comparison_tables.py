"""Table 1: methods side by side, by images per class and labels; also runs that are kept."""

from collections.abc import Iterable, Sequence

from teddy.core.tables import Cell, Column, Table
from teddy.report.paper import marked, paper_result, paper_table
from teddy.report.results import PaperResult, Score, grouped
from teddy.report.score_tables import (
    by_method,
    ipcs_and_labels,
    placed,
    split_title,
    students_note,
    top1_cell,
)
from teddy.settings.stages import Catalogue


def comparison(
    scores: Sequence[Score], paper: Sequence[PaperResult], catalogue: Catalogue
) -> list[Table]:
    """Table 1, what its sets cost to keep, and the paper's own table."""
    return [
        *result_tables(scores, paper, catalogue),
        size_table(scores, catalogue),
        paper_table(paper),
    ]


def result_tables(
    scores: Sequence[Score], paper: Sequence[PaperResult], catalogue: Catalogue
) -> list[Table]:
    """Table 1 for every dataset and student, then its best-epoch values."""
    tables = []
    for dataset in catalogue.datasets:
        own = [score for score in scores if score.dataset == dataset]
        for arch, rows in grouped(own, "arch").items():
            where = f"{catalogue.datasets[dataset].title}, {arch} students"
            tables.append(_table1(where, rows, paper, catalogue))
            tables.append(_best_table(where, rows, catalogue))
    return tables


def _table1(
    where: str, scores: Sequence[Score], paper: Sequence[PaperResult], catalogue: Catalogue
) -> Table:
    first = scores[0]
    ipcs, kinds = ipcs_and_labels(scores)
    methods = _by_cell(scores, catalogue)
    printed = {
        (method, ipc): marked(
            paper_result(catalogue, "1", first.dataset, method, ipc, paper), first.arch
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
        row: list[Cell] = [catalogue.methods[method].title]
        for ipc in ipcs:
            row += [top1_cell(own.get((ipc, kind))) for kind in kinds]
            row += [printed[method, ipc]] if ipc in in_paper else []
        rows.append(tuple(row))
    for name, numbers in _from_literature(first.dataset, methods, paper, catalogue).items():
        row = [f"{name}, quoted"]
        for ipc in ipcs:
            row += [None] * len(kinds)
            row += [marked(numbers.get(ipc), first.arch)] if ipc in in_paper else []
        rows.append(tuple(row))
    quoted = "".join(number or "" for number in printed.values())
    title = f"Top-1 accuracy (%) on {where}"
    return Table(title, tuple(columns), tuple(rows), (students_note(scores), *_paper_notes(quoted)))


def _from_literature(
    dataset: str, methods: Iterable[str], paper: Sequence[PaperResult], catalogue: Catalogue
) -> dict[str, dict[int | None, PaperResult]]:
    """Methods of the paper's Table 1 that we do not run, by IPC; the paper quotes them itself."""
    ours, title = (
        {catalogue.methods[method].paper for method in methods},
        catalogue.datasets[dataset],
    )
    found: dict[str, dict[int | None, PaperResult]] = {}
    for r in paper:
        if r.table == "1" and r.dataset == title.paper and r.method not in ours:
            found.setdefault(r.method, {})[r.ipc] = r
    return found


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


def _best_table(where: str, scores: Sequence[Score], catalogue: Catalogue) -> Table:
    ipcs, kinds = ipcs_and_labels(scores)
    cells = [(ipc, kind) for ipc in ipcs for kind in kinds]
    rows = []
    for method, own in _by_cell(scores, catalogue).items():
        found = [own.get(cell) for cell in cells]
        values = [score.top1_best_mean if score else None for score in found]
        rows.append((catalogue.methods[method].title, *values))
    split = split_title(scores[0].split)
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


def _by_cell(
    scores: Sequence[Score], catalogue: Catalogue
) -> dict[str, dict[tuple[int, str], Score]]:
    groups = by_method(scores, catalogue)
    return {method: placed(own, "ipc", "labels") for method, own in groups.items()}


def size_table(scores: Sequence[Score], catalogue: Catalogue) -> Table:
    """Bytes of images and of labels, which is what a distilled set costs to keep."""
    rows = [
        (
            catalogue.datasets[score.dataset].title, score.ipc,
            catalogue.methods[score.method].title, score.image_bytes, score.label_bytes,
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
