"""Table 3: accuracy and macro-F1 where classes keep a part of their training images."""

from collections.abc import Sequence

from teddy.core.tables import Cell, Column, Table
from teddy.report.paper import paper_result, quoted
from teddy.report.results import PaperResult, Score, grouped
from teddy.report.score_tables import by_method, f1_cell, placed, students_note, top1_cell
from teddy.settings.stages import Catalogue


def imbalanced(
    scores: Sequence[Score], paper: Sequence[PaperResult], catalogue: Catalogue
) -> list[Table]:
    """Table 3: accuracy and macro-F1 for every share of images that classes keep."""
    tables = []
    soft = [score for score in scores if score.labels == "soft"]
    for (dataset, ipc), own in grouped(soft, "dataset", "ipc").items():
        datas = list(grouped(own, "data"))
        keeps = {score.data: kept_share(score) for score in own}
        columns = [Column("method", text=True), Column("", text=True)]
        for data in datas:
            columns += [Column("top-1", keeps[data]), Column("macro-F1", keeps[data])]
        rows: list[tuple[Cell, ...]] = []
        for method, mine in by_method(own, catalogue).items():
            by_data = placed(mine, "data")
            ours: list[Cell] = [catalogue.methods[method].title, "ours"]
            theirs: list[Cell] = [catalogue.methods[method].title, "paper"]
            for data in datas:
                score = by_data.get(data)
                ours += [top1_cell(score), f1_cell(score)]
                theirs += [
                    quoted(
                        paper_result(
                            catalogue, "3", dataset, method, ipc, paper,
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
        title = f"Imbalanced training data, {catalogue.datasets[dataset].title}, IPC {ipc}"
        tables.append(Table(title, tuple(columns), tuple(rows), (note, students_note(own))))
    return tables


def kept_share(score: Score) -> str:
    """Bounds of the share of images that classes keep, as the paper's Table 3 writes them."""
    low, high = score.keep
    return f"{low:.0%}-{high:.0%}"
