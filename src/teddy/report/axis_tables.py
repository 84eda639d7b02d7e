"""Figures 2c and 3a to 3c: accuracy against one setting, a row per value."""

from collections.abc import Sequence
from dataclasses import dataclass

from teddy.core.errors import TeddyError
from teddy.core.tables import Cell, Column, Table
from teddy.report.results import PaperResult, Score, grouped
from teddy.report.score_tables import Maker, ipcs_and_labels, placed, students_note, top1_cell
from teddy.settings.stages import Catalogue


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


def along(target: str) -> "Maker":
    """Maker of the tables of a figure with an axis: a row per value."""
    axis = AXES[target]

    def make(
        scores: Sequence[Score], paper: Sequence[PaperResult], catalogue: Catalogue
    ) -> list[Table]:
        for score in scores:
            if getattr(score, axis.attribute) is None:
                raise TeddyError(
                    f"targets.{target}: {score.name} has no place on the axis {axis.title!r}"
                )
        tables = []
        for (dataset, arch), own in grouped(scores, "dataset", "arch").items():
            ipcs, kinds = ipcs_and_labels(own)
            columns = [Column(axis.title)]
            for ipc in ipcs:
                columns += [Column(kind, f"IPC {ipc}") for kind in kinds]
                if axis.divergence:
                    columns.append(Column("KL(student ‖ teacher)", f"IPC {ipc}", spec=".3f"))
                    columns.append(Column("KL(teacher ‖ student)", f"IPC {ipc}", spec=".3f"))
            rows: list[tuple[Cell, ...]] = []
            for value, mine in grouped(own, axis.attribute).items():
                cells = placed(mine, "ipc", "labels")
                mark = "‡" if any(score.default for score in mine) else ""
                row: list[Cell] = [axis_value(value) + mark]
                for ipc in ipcs:
                    row += [top1_cell(cells.get((ipc, kind))) for kind in kinds]
                    if axis.divergence:
                        soft = cells.get((ipc, "soft"))
                        row.append(soft.kl_student_teacher if soft else None)
                        row.append(soft.kl_teacher_student if soft else None)
                rows.append(tuple(row))
            notes = [students_note(own)]
            if any(str(row[0]).endswith("‡") for row in rows):
                notes.append("‡: the default; where Table 1 has the IPC, it is Table 1's own set.")
            if axis.divergence:
                notes.append(
                    "KL in nats at temperature 1, mean over the images held out, the members of "
                    "the pool and the students. The paper does not say which direction it plots."
                )
            title = (
                f"Top-1 accuracy (%) against {axis.title}: {catalogue.datasets[dataset].title}, "
            )
            title += f"{arch} students"
            tables.append(Table(title, tuple(columns), tuple(rows), tuple(notes)))
        return tables

    return make


def axis_value(value: object) -> str:
    """A place on an axis as it is written: ``3``, or ``2–16`` for a range of epochs."""
    return "–".join(map(str, value)) if isinstance(value, tuple) else str(value)
