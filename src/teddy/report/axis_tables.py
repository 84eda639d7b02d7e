"""Accuracy along what varies: figures 2c, 3a to 3c and 3e, and what the paper leaves out.

All results that a maker gets are of one dataset.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from teddy.core.errors import TeddyError
from teddy.core.tables import Cell, Column, Table, percent
from teddy.report.accuracy_tables import (
    Maker,
    dataset_title,
    ipcs_and_labels,
    placed,
    recipe_note,
    split_title,
    students_note,
    top1_cell,
)
from teddy.report.results import LearnerResult, PaperResult, Results, grouped
from teddy.settings.stages import Catalogue

# -------------------------------------------------------------------------- figures 2c and 3a to 3c


@dataclass(frozen=True, slots=True)
class Axis:
    """What varies along a figure's x axis."""

    attribute: str
    """Of an :class:`~teddy.report.results.EvaluationResult`."""
    title: str
    divergence: bool = False
    """Whether the KL divergence stands beside accuracy."""


AXES = {
    "fig2c": Axis("stages", "epochs of the teachers", divergence=True),
    "fig3a": Axis("teachers_drawn", "teachers drawn for synthesis"),
    "fig3b": Axis("members", "teachers that label"),
    "fig3c": Axis("pool_size", "teachers in the pool"),
}


def along(target: str) -> Maker:
    """Maker of the tables of a figure with an axis: one per architecture, a row per value, sorted.

    The maker raises a TeddyError if a result has no place on the axis, or two share one.

    Raises:
        KeyError: ``target`` is not in :data:`AXES`.
    """
    axis = AXES[target]

    def make(results: Results, paper: Sequence[PaperResult], catalogue: Catalogue) -> list[Table]:
        for result in results:
            if getattr(result, axis.attribute) is None:
                raise TeddyError(f"{target}: {result.name} has no place on the axis {axis.title!r}")
        return [_along(axis, own, catalogue) for own in grouped(results, "arch").values()]

    return make


def _along(axis: Axis, results: Results, catalogue: Catalogue) -> Table:
    ipcs, kinds = ipcs_and_labels(results)
    columns = [Column(axis.title)]
    for ipc in ipcs:
        columns += [Column(kind, f"IPC {ipc}") for kind in kinds]
        if axis.divergence:
            columns.append(Column("KL(student ‖ teacher)", f"IPC {ipc}", spec=".3f"))
            columns.append(Column("KL(teacher ‖ student)", f"IPC {ipc}", spec=".3f"))
    rows: list[tuple[Cell, ...]] = []
    for value, own in sorted(grouped(results, axis.attribute).items()):
        cells = placed(own, "ipc", "labels")
        row: list[Cell] = [axis_value(value) + "‡" * any(result.default for result in own)]
        for ipc in ipcs:
            row += [top1_cell(cells.get((ipc, kind))) for kind in kinds]
            if axis.divergence:
                soft = cells.get((ipc, "soft"))
                row.append(soft.kl_student_teacher if soft else None)
                row.append(soft.kl_teacher_student if soft else None)
        rows.append(tuple(row))
    notes = [students_note(results)]
    if any(result.default for result in results):
        notes.append("‡: the default; where Table 1 has the IPC, it is Table 1's own set.")
    if axis.divergence:
        notes.append(
            "KL in nats at temperature 1, mean over the images held out, the members of the pool "
            "and the students. The paper does not say which direction it plots."
        )
    title = f"Top-1 accuracy (%) against {axis.title}: {dataset_title(results, catalogue)}, "
    title += f"{results[0].arch} students"
    return Table(title, tuple(columns), tuple(rows), tuple(notes))


def axis_value(value: object) -> str:
    """A place on an axis as it is written: ``3``, or ``2–16`` for a range of epochs."""
    return "–".join(map(str, value)) if isinstance(value, tuple) else str(value)


# ------------------------------------------------------------------------ what the paper leaves out


def ablations(results: Results, paper: Sequence[PaperResult], catalogue: Catalogue) -> list[Table]:
    """What the paper leaves out, one row per set and labelling pool."""
    tables = []
    for ipc, own in grouped(results, "ipc").items():
        rows: list[tuple[Cell, ...]] = []
        for name, mine in grouped(own, "name").items():
            cells, first = {result.labels: result for result in mine}, mine[0]
            rows.append(
                (
                    name, catalogue.methods[first.method].title, first.pool, first.ensemble,
                    first.first_bn_weight, top1_cell(cells.get("hard")),
                    top1_cell(cells.get("soft")), first.image_bytes,
                    max(result.label_bytes for result in mine),
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
        title = f"Ablations, {dataset_title(own, catalogue)}, IPC {ipc}: top-1 accuracy (%)"
        tables.append(Table(title, columns, tuple(rows), (note, students_note(own))))
    return tables


def precision(results: Results, paper: Sequence[PaperResult], catalogue: Catalogue) -> list[Table]:
    """Autocast dtypes of synthesis."""
    tables = []
    for ipc, own in grouped(results, "ipc").items():
        rows: list[tuple[Cell, ...]] = []
        for (method, precision), mine in grouped(own, "method", "precision").items():
            cells = placed(mine, "labels")
            shown = [top1_cell(cells.get(kind)) for kind in ("hard", "soft")]
            rows.append((catalogue.methods[method].title, precision or "–", *shown))
        columns = (
            Column("images", text=True), Column("precision", text=True), Column("hard"),
            Column("soft"),
        )  # fmt: skip
        title = f"Precision, {dataset_title(own, catalogue)}, IPC {ipc}: top-1 accuracy (%)"
        tables.append(Table(title, columns, tuple(rows), (students_note(own),)))
    return tables


# ---------------------------------------------------------------------------------------- figure 3e


def learner_tables(learners: Sequence[LearnerResult], catalogue: Catalogue) -> list[Table]:
    """Fig. 3e: accuracy on seen classes after each step, for every IPC and network."""
    tables = []
    for (ipc, arch), own in grouped(learners, "ipc", "arch").items():
        rows: list[tuple[Cell, ...]] = []
        for learner in own:
            shown = zip(learner.top1_mean, learner.top1_std, strict=True)
            rows.append(
                (
                    "strict" if learner.strict else "paper-like",
                    catalogue.methods[learner.method].title,
                    learner.labels,
                    *(percent(m, s if learner.orders > 1 else None) for m, s in shown),
                )
            )
        first = own[0]
        columns = (
            Column("teachers", text=True), Column("method", text=True), Column("labels", text=True),
            *(Column(f"{count}", "classes seen:") for count in first.classes),
        )  # fmt: skip
        note = (
            f"Mean ± sample standard deviation over {first.orders} orders of the classes, "
            f"{first.seeds} student{'s' * (first.seeds > 1)} of each; all methods see the same "
            f"orders. GDumb: after each step a student from scratch, {first.epochs} epochs on the "
            "images of all classes seen so far, outputs for all classes, tested on the "
            f"{split_title(first.split)} images of seen classes alone, last epoch. Paper-like: "
            "images and soft labels of a pool that was trained on all classes, future ones "
            "included. Strict: images and labels of teachers that were trained on the classes of "
            "one step; random and DM images do not depend on teachers, their labels do (§8-24)."
        ) + recipe_note(own)
        dataset = catalogue.datasets[first.dataset].title
        title = f"Continual learning, {dataset}, IPC {ipc}, {arch} students: top-1 (%)"
        tables.append(Table(title, columns, tuple(rows), (note,)))
    return tables


def learner_points(learners: Sequence[LearnerResult]) -> Table:
    """Points of the figure, one row per learner and step."""
    keys = ("name", "dataset", "method", "ipc", "arch", "strict", "labels", "epochs", "orders",
            "seeds")  # fmt: skip
    rows = []
    for learner in learners:
        facts = [getattr(learner, key) for key in keys]
        points = zip(learner.classes, learner.top1_mean, learner.top1_std, strict=True)
        rows += [(*facts, *point) for point in points]
    names = (*keys, "classes", "top1_mean", "top1_std")
    return Table("learners", tuple(map(Column, names)), tuple(rows))
