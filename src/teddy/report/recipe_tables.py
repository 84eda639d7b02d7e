"""The one-recipe table: the images of all methods under the same labels, students and epochs.

Papers of 2025 and 2026 show that much of what is published as a gap between methods is one between
their recipes. The recipe that most methods have is the one that all are compared under; the others
stand beside it.
"""

from collections.abc import Sequence

from teddy.core.errors import TeddyError
from teddy.core.tables import Cell, Column, Table
from teddy.report.accuracy_tables import (
    by_method,
    dataset_title,
    ipcs_and_labels,
    placed,
    sizes,
    students_note,
    top1_cell,
)
from teddy.report.results import EvaluationResult, PaperResult, Results, grouped
from teddy.report.verdicts import LEVEL, welch
from teddy.settings.places import the_recipe
from teddy.settings.stages import Catalogue


def one_recipe(results: Results, paper: Sequence[PaperResult], catalogue: Catalogue) -> list[Table]:
    """Accuracy by method, recipe and labels; what images are worth; bytes.

    Raises:
        TeddyError: no result has a recipe.
    """
    del paper
    one, tables = the_recipe((r.method, r.recipe or "") for r in results), []
    if not one:
        raise TeddyError(f"{results[0].name} and the others have no recipe; name one in their rows")
    for own in grouped(results, "ipc", "arch").values():
        tables += [_accuracy(own, one, catalogue), _worth(own, one, catalogue)]
    return [*tables, sizes([r for r in results if r.recipe == one], catalogue)]


def _accuracy(results: Results, one: str, catalogue: Catalogue) -> Table:
    columns, cells = [Column("method", text=True)], []
    names = {r.recipe for r in results}
    for name in sorted(names, key=lambda name: (name != one, not name, name or "")):
        for kind in ipcs_and_labels([r for r in results if r.recipe == name])[1]:
            columns.append(Column(kind, name or "settings of the dataset"))
            cells.append((name, kind))
    rows: list[tuple[Cell, ...]] = []
    for method, mine in by_method(results, catalogue).items():
        found = placed(mine, "recipe", "labels")
        shown = [top1_cell(found.get(cell)) for cell in cells]
        rows.append((catalogue.methods[method].title, *shown))
    notes = [
        f"Under {one} all images have the same teachers for their labels, students, epochs and "
        "augmentation; other recipes stand beside it, as far as papers say that a method is "
        "evaluated by them. Methods that learn without labels of teachers have their own numbers "
        "in Table 5.",
    ]
    if own := [r for r in results if r.recipe == one]:
        notes.append(students_note(own))
    title = f"Top-1 accuracy (%) by recipe on {_where(results, catalogue)}"
    return Table(title, tuple(columns), tuple(rows), tuple(notes))


def _worth(results: Results, one: str, catalogue: Catalogue) -> Table:
    """Points above random real images under the same recipe and labels."""
    own = [r for r in results if r.recipe == one]
    kinds = ipcs_and_labels(own)[1]
    random = {r.labels: r for r in own if r.method == "random"}
    rows: list[tuple[Cell, ...]] = []
    for method, mine in by_method(own, catalogue).items():
        if method != "random":
            found = {r.labels: r for r in mine}
            cells = [_difference(found.get(kind), random.get(kind)) for kind in kinds]
            rows.append((catalogue.methods[method].title, *cells))
    note = (
        f"Points of top-1 above random real images under {one} and the same labels. *: p < {LEVEL} "
        "in a two-sided Welch test over syntheses, each comparison by itself."
    )
    columns = (Column("method", text=True), *map(Column, kinds))
    title = f"What the images are worth on {_where(results, catalogue)}"
    return Table(title, columns, tuple(rows), (note,))


def _difference(result: EvaluationResult | None, base: EvaluationResult | None) -> str | None:
    if result is None or base is None:
        return None
    means, spreads = (result.top1_mean, base.top1_mean), (result.top1_std, base.top1_std)
    counts = (result.syntheses, base.syntheses)
    sure = min(counts) > 1 and welch(means, spreads, counts) < LEVEL
    return f"{means[0] - means[1]:+.1f}" + ("*" if sure else "")


def _where(results: Results, catalogue: Catalogue) -> str:
    first = results[0]
    return f"{dataset_title(results, catalogue)}, IPC {first.ipc}, {first.arch} students"
