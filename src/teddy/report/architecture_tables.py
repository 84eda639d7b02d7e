"""Table 2 and the left of Table 4: students, and pools, of other architectures."""

from collections.abc import Sequence

from teddy.core.tables import Cell, Column, Table
from teddy.report.paper import paper_result, quoted
from teddy.report.results import PaperResult, Score, grouped
from teddy.report.score_tables import by_method, ipcs_and_labels, placed, students_note, top1_cell
from teddy.settings.stages import Catalogue


def cross_architecture(
    scores: Sequence[Score], paper: Sequence[PaperResult], catalogue: Catalogue
) -> list[Table]:
    """Table 2: a row per method, a column per student network."""
    tables = []
    for (dataset, ipc), own in grouped(scores, "dataset", "ipc").items():
        archs = list(grouped(own, "arch"))
        rows: list[tuple[Cell, ...]] = []
        for method, mine in by_method(own, catalogue).items():
            by_arch = placed([s for s in mine if s.labels == "soft"], "arch")
            title = catalogue.methods[method].title
            rows.append((title, "ours", *(top1_cell(by_arch.get(arch)) for arch in archs)))
            printed = [
                paper_result(catalogue, "2", dataset, method, ipc, paper, arch=arch)
                for arch in archs
            ]
            if any(printed):
                rows.append((title, "paper", *(quoted(number) for number in printed)))
        columns = (Column("method", text=True), Column("", text=True), *map(Column, archs))
        title = f"Top-1 accuracy (%) of other students on {catalogue.datasets[dataset].title}, IPC "
        tables.append(Table(f"{title}{ipc}", columns, tuple(rows), (students_note(own),)))
    return tables


def larger_network(
    scores: Sequence[Score], paper: Sequence[PaperResult], catalogue: Catalogue
) -> list[Table]:
    """Table 4, left: pool and students of ResNet50."""
    tables = []
    for (dataset, arch), own in grouped(scores, "dataset", "arch").items():
        ipcs, kinds = ipcs_and_labels(own)
        columns = [Column("method", text=True)]
        columns += [Column(kind, f"IPC {ipc}") for ipc in ipcs for kind in (*kinds, "paper")]
        rows: list[tuple[Cell, ...]] = []
        for method, mine in by_method(own, catalogue).items():
            cells = placed(mine, "ipc", "labels")
            row: list[Cell] = [catalogue.methods[method].title]
            for ipc in ipcs:
                row += [top1_cell(cells.get((ipc, kind))) for kind in kinds]
                row.append(
                    quoted(paper_result(catalogue, "4L", dataset, method, ipc, paper, arch=arch))
                )
            rows.append(tuple(row))
        title = f"Top-1 accuracy (%) with {arch} as base and student, "
        title += catalogue.datasets[dataset].title
        note = "The paper does not print the dataset of this table; ImageNet-1K is inferred."
        tables.append(Table(title, tuple(columns), tuple(rows), (students_note(own), note)))
    return tables
