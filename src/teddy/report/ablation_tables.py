"""What the paper leaves out, and the precision of synthesis with the spread between syntheses."""

import statistics
from collections.abc import Sequence

from teddy.core.tables import Cell, Column, Table, percent
from teddy.report.results import PaperResult, Score, grouped, spread
from teddy.report.score_tables import distinct, students_note, top1_cell
from teddy.settings.stages import Catalogue


def ablations(
    scores: Sequence[Score], paper: Sequence[PaperResult], catalogue: Catalogue
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
                    name, catalogue.methods[first.method].title, first.pool, first.ensemble,
                    first.first_bn_weight, top1_cell(cells.get("hard")),
                    top1_cell(cells.get("soft")), first.image_bytes,
                    max(score.label_bytes for score in mine),
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
        title = f"Ablations, {catalogue.datasets[dataset].title}, IPC {ipc}: top-1 accuracy (%)"
        tables.append(Table(title, columns, tuple(rows), (note, students_note(own))))
    return tables


def precision(
    scores: Sequence[Score], paper: Sequence[PaperResult], catalogue: Catalogue
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
            rows.append((catalogue.methods[method].title, precision or "–", count, *cells))
        columns = (
            Column("images", text=True), Column("precision", text=True), Column("syntheses"),
            Column("hard"), Column("soft"),
        )  # fmt: skip
        note = (
            "Mean ± sample standard deviation over syntheses, which differ in all of their "
            f"randomness, of the mean accuracy of {distinct(own, 'n')} students each, after the "
            f"last of {distinct(own, 'epochs')} epochs."
        )
        title = f"Precision, {catalogue.datasets[dataset].title}, IPC {ipc}: top-1 accuracy (%)"
        tables.append(Table(title, columns, tuple(rows), (note,)))
    return tables
