"""Table 5: small data without soft labels."""

from collections.abc import Sequence

from teddy.core.tables import Cell, Column, Table
from teddy.report.paper import paper_result, quoted
from teddy.report.results import PaperResult, Score, grouped
from teddy.report.score_tables import by_method, students_note, top1_cell
from teddy.settings.stages import Catalogue


def small_data(
    scores: Sequence[Score], paper: Sequence[PaperResult], catalogue: Catalogue
) -> list[Table]:
    """Table 5: hard labels and DSA, by what the images start from; the paper's numbers beside."""
    tables = []
    for (dataset, arch), own in grouped(scores, "dataset", "arch").items():
        ipcs = sorted({score.ipc for score in own})
        rows: list[tuple[Cell, ...]] = []
        printed = False
        by_init = grouped(own, "init")
        for init in sorted(by_init, key=lambda value: ("noise", "real", None).index(value)):
            for method, mine in by_method(by_init[init], catalogue).items():
                by_ipc = {score.ipc: score for score in mine}
                cells: list[Cell] = []
                for ipc in ipcs:
                    theirs = paper_result(
                        catalogue, "5", dataset, method, ipc, paper, init=init or ""
                    )
                    cells += [top1_cell(by_ipc.get(ipc)), quoted(theirs)]
                    printed = printed or theirs is not None
                rows.append((init or "selected", catalogue.methods[method].title, *cells))
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
        title = (
            f"Small data without soft labels, {catalogue.datasets[dataset].title}, {arch} students"
        )
        notes = (note, students_note(own))
        tables.append(Table(f"{title}: top-1 (%)", tuple(columns), tuple(rows), notes))
    return tables
