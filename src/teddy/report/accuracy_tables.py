"""Tables 1 to 5, of one dataset each: accuracy of students, and the paper's numbers beside it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from teddy.core.errors import TeddyError
from teddy.core.tables import Cell, Column, Table, percent
from teddy.report.paper import marked, paper_result, paper_table, quoted
from teddy.report.results import (
    EvaluationResult,
    LearnerResult,
    PaperResult,
    Results,
    grouped,
)
from teddy.settings.rows import KINDS
from teddy.settings.stages import Catalogue

Maker = Callable[[Results, Sequence[PaperResult], Catalogue], list[Table]]
"""What makes the tables of a target from its results and the paper's numbers."""

# ------------------------------------------------------------------------------------------ table 1


def comparison(results: Results, paper: Sequence[PaperResult], catalogue: Catalogue) -> list[Table]:
    """Table 1: methods by IPC and labels, what their sets cost to keep, and the paper's table."""
    tables = []
    for own in grouped(results, "arch").values():
        tables += [_last_epoch(own, paper, catalogue), _best_epoch(own, catalogue)]
    return [*tables, sizes(results, catalogue), paper_table(paper)]


def _last_epoch(results: Results, paper: Sequence[PaperResult], catalogue: Catalogue) -> Table:
    first, (ipcs, kinds) = results[0], ipcs_and_labels(results)
    methods = _by_cell(results, catalogue)
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
    notes = _paper_notes("".join(number or "" for number in printed.values()))
    title = f"Top-1 accuracy (%) on {_where(results, catalogue)}"
    return Table(title, tuple(columns), tuple(rows), (students_note(results), *notes))


def _from_literature(
    dataset: str, methods: Iterable[str], paper: Sequence[PaperResult], catalogue: Catalogue
) -> dict[str, dict[int | None, PaperResult]]:
    """Methods of the paper's Table 1 that we do not run, by IPC; the paper quotes them itself."""
    ours = {catalogue.methods[method].paper for method in methods}
    found: dict[str, dict[int | None, PaperResult]] = {}
    for r in paper:
        same = r.table == "1" and r.dataset == catalogue.datasets[dataset].paper
        if same and r.method not in ours:
            found.setdefault(r.method, {})[r.ipc] = r
    return found


def _paper_notes(printed: str) -> list[str]:
    if not printed:
        return ["The paper does not report these settings."]
    notes = [
        "paper: the number printed in the paper's Table 1 for the same dataset, method and IPC. "
        "Its students learn from soft labels; of its random images it does not say."
    ]
    if "†" in printed:
        notes.append("†: students of another architecture than ours, so not directly comparable.")
    if "*" in printed:
        notes.append("*: on downsized images, so not directly comparable.")
    return notes


def _best_epoch(results: Results, catalogue: Catalogue) -> Table:
    ipcs, kinds = ipcs_and_labels(results)
    cells = [(ipc, kind) for ipc in ipcs for kind in kinds]
    rows = []
    for method, own in _by_cell(results, catalogue).items():
        found = [own.get(cell) for cell in cells]
        values = [result.top1_best_mean if result else None for result in found]
        rows.append((catalogue.methods[method].title, *values))
    note = (
        "Mean over the same students of each one's best epoch. That epoch is chosen on the "
        f"{split_title(results[0].split)} set itself, which makes the number optimistic; the table "
        "above does not do so."
    )
    columns = [Column(kind, f"IPC {ipc}", spec=".1f") for ipc, kind in cells]
    title = f"Best-epoch top-1 accuracy (%) on {_where(results, catalogue)}, optimistic"
    return Table(title, (Column("method", text=True), *columns), tuple(rows), (note,))


def _where(results: Results, catalogue: Catalogue) -> str:
    return f"{dataset_title(results, catalogue)}, {results[0].arch} students"


def _by_cell(
    results: Results, catalogue: Catalogue
) -> dict[str, dict[tuple[int, str], EvaluationResult]]:
    groups = by_method(results, catalogue)
    return {method: placed(own, "ipc", "labels") for method, own in groups.items()}


def sizes(results: Results, catalogue: Catalogue) -> Table:
    """Bytes of images and of labels, which is what a distilled set costs to keep."""
    rows: list[tuple[Cell, ...]] = []
    for (method, ipc), own in grouped(results, "method", "ipc").items():
        sizes = {result.labels: result.label_bytes for result in own}
        dataset = catalogue.datasets[own[0].dataset].title
        of_set = (dataset, ipc, catalogue.methods[method].title, own[0].image_bytes)
        rows.append((*of_set, sizes.get("fixed"), sizes.get("soft")))
    columns = (
        Column("dataset", text=True), Column("IPC"), Column("method", text=True),
        Column("images", spec=","), Column("fixed labels", spec=","),
        Column("soft labels", spec=","),
    )  # fmt: skip
    note = (
        "images: uint8 pixels, before compression. fixed labels: float16 logits of every image. "
        "soft labels: those of every view in "
        "every epoch, which are stored, or computed while training if relabel.store is false."
    )
    return Table("Bytes of a distilled set", columns, tuple(rows), (note,))


# ------------------------------------------------------------------------------------ tables 2 to 5


def cross_architecture(
    results: Results, paper: Sequence[PaperResult], catalogue: Catalogue
) -> list[Table]:
    """Table 2: a row per method, a column per student network."""
    tables = []
    for ipc, own in grouped(results, "ipc").items():
        archs = list(grouped(own, "arch"))
        rows: list[tuple[Cell, ...]] = []
        for method, mine in by_method(own, catalogue).items():
            by_arch = placed([result for result in mine if result.labels == "soft"], "arch")
            title = catalogue.methods[method].title
            rows.append((title, "ours", *(top1_cell(by_arch.get(arch)) for arch in archs)))
            printed = [
                paper_result(catalogue, "2", own[0].dataset, method, ipc, paper, arch=arch)
                for arch in archs
            ]
            if any(printed):
                rows.append((title, "paper", *(quoted(number) for number in printed)))
        columns = (Column("method", text=True), Column("", text=True), *map(Column, archs))
        dataset = dataset_title(own, catalogue)
        title = f"Top-1 accuracy (%) of other students on {dataset}, IPC {ipc}"
        tables.append(Table(title, columns, tuple(rows), (students_note(own),)))
    return tables


def imbalanced(results: Results, paper: Sequence[PaperResult], catalogue: Catalogue) -> list[Table]:
    """Table 3: accuracy and macro-F1 for every share of images that classes keep."""
    tables = []
    soft = [result for result in results if result.labels == "soft"]
    for ipc, own in grouped(soft, "ipc").items():
        keeps = {result.data: kept_share(result) for result in own}
        columns = [Column("method", text=True), Column("", text=True)]
        for keep in keeps.values():
            columns += [Column("top-1", keep), Column("macro-F1", keep)]
        rows: list[tuple[Cell, ...]] = []
        for method, mine in by_method(own, catalogue).items():
            by_data = placed(mine, "data")
            ours: list[Cell] = [catalogue.methods[method].title, "ours"]
            theirs: list[Cell] = [catalogue.methods[method].title, "paper"]
            for data, keep in keeps.items():
                result = by_data.get(data)
                ours += [top1_cell(result), f1_cell(result)]
                theirs += [
                    quoted(
                        paper_result(
                            catalogue, "3", own[0].dataset, method, ipc, paper,
                            metric=metric, keep=keep,
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
        title = f"Imbalanced training data, {dataset_title(own, catalogue)}, IPC {ipc}"
        tables.append(Table(title, tuple(columns), tuple(rows), (note, students_note(own))))
    return tables


def larger_network(
    results: Results, paper: Sequence[PaperResult], catalogue: Catalogue
) -> list[Table]:
    """Table 4, left: pool and students of ResNet50."""
    tables = []
    for arch, own in grouped(results, "arch").items():
        dataset, (ipcs, kinds) = own[0].dataset, ipcs_and_labels(own)
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
        title += dataset_title(own, catalogue)
        note = "The paper does not print the dataset of this table; ImageNet-1K is inferred."
        tables.append(Table(title, tuple(columns), tuple(rows), (students_note(own), note)))
    return tables


def small_data(results: Results, paper: Sequence[PaperResult], catalogue: Catalogue) -> list[Table]:
    """Table 5: hard labels and DSA, by what the images start from; the paper's numbers beside."""
    tables = []
    for own in grouped(results, "arch").values():
        ipcs = sorted({result.ipc for result in own})
        rows: list[tuple[Cell, ...]] = []
        by_init = grouped(own, "init")
        for init in sorted(by_init, key=("noise", "real", None).index):
            for method, mine in by_method(by_init[init], catalogue).items():
                by_ipc = {result.ipc: result for result in mine}
                cells: list[Cell] = []
                for ipc in ipcs:
                    theirs = paper_result(
                        catalogue, "5", own[0].dataset, method, ipc, paper, init=init or ""
                    )
                    cells += [top1_cell(by_ipc.get(ipc)), quoted(theirs)]
                rows.append((init or "selected", catalogue.methods[method].title, *cells))
        columns = [Column("start", text=True), Column("method", text=True)]
        columns += [Column(who, f"IPC {ipc}") for ipc in ipcs for who in ("ours", "paper")]
        papers = [i for i, column in enumerate(columns) if column.name == "paper"]
        if not any(row[i] for row in rows for i in papers):
            columns = [column for i, column in enumerate(columns) if i not in papers]
            rows = [tuple(cell for i, cell in enumerate(row) if i not in papers) for row in rows]
        note = (
            "start: what the images are optimised from; random real images are selected, not "
            "optimised. All rows: hard labels, students and DSA of one recipe, which follows DM's "
            "evaluation (§8-17)."
        )
        title = f"Small data without soft labels, {_where(own, catalogue)}: top-1 (%)"
        tables.append(Table(title, tuple(columns), tuple(rows), (note, students_note(own))))
    return tables


def kept_share(result: EvaluationResult) -> str:
    """Bounds of the share of images that classes keep, as the paper's Table 3 writes them."""
    low, high = result.keep
    return f"{low:.0%}-{high:.0%}"


# ------------------------------------------------------------------------------- what tables share


def dataset_title(results: Results, catalogue: Catalogue) -> str:
    """Name of the dataset that results are of."""
    return catalogue.datasets[results[0].dataset].title


def by_method(results: Results, catalogue: Catalogue) -> dict[str, list[EvaluationResult]]:
    """Results of every method, in the order of the experiment files."""
    groups = grouped(results, "method")
    return {method: groups[method] for method in catalogue.methods if method in groups}


def placed(results: Iterable[EvaluationResult], *keys: str) -> dict[Any, EvaluationResult]:
    """Results by their place in a table.

    Raises:
        TeddyError: two would share one.
    """
    found: dict[Any, EvaluationResult] = {}
    for place, own in grouped(results, *keys).items():
        if len(own) > 1:
            raise TeddyError(
                f"{own[0].name} and {own[1].name} would share a place in the table ({keys} "
                f"{place}); remove one, or name it after another table or figure"
            )
        found[place] = own[0]
    return found


def ipcs_and_labels(results: Results) -> tuple[list[int], list[str]]:
    """Images per class and kinds of labels that there are results of, in order."""
    own = {r.labels for r in results}
    return sorted({r.ipc for r in results}), [kind for kind in KINDS if kind in own]


def top1_cell(result: EvaluationResult | None) -> str | None:
    """Last-epoch accuracy, with its spread if there are several students."""
    if result is None:
        return None
    return percent(result.top1_mean, result.top1_std if result.n > 1 else None)


def f1_cell(result: EvaluationResult | None) -> str | None:
    """Macro-averaged F1, as :func:`top1_cell`."""
    if result is None:
        return None
    return percent(result.f1_mean, result.f1_std if result.n > 1 else None)


def students_note(results: Results) -> str:
    """What the numbers of a table are means of."""
    split = split_title(results[0].split)
    n, syntheses = distinct(results, "n"), distinct(results, "syntheses")
    over = (
        f"n = {n} student{'s' * (n != '1')} (seeds) trained on one synthesis; the spread between "
        "syntheses is not in it"
        if syntheses == "1"
        else f"{syntheses} syntheses, which differ in all random numbers, of their students' "
        f"means; n = {n} students in all"
    )
    return (
        f"Mean ± sample standard deviation over {over}. Accuracy after the "
        f"last of {distinct(results, 'epochs')} epochs on the {split} split "
        f"({distinct(results, 'images_held_out')} images held out). Students learn "
        "from classes (hard), from one soft label for each image (fixed) or for each of its views "
        "(soft)."
    ) + recipe_note(results)


def recipe_note(results: Results | Sequence[LearnerResult]) -> str:
    """Recipe that the students of a table share, or that rows differ; nothing if none has one."""
    names = sorted({result.recipe or "" for result in results})
    if len(names) > 1:
        return f" Recipes of the rows differ: {', '.join(name or 'none' for name in names)}."
    return f" Recipe: {names[0]}." if names[0] else ""


def distinct(results: Results, attribute: str) -> str:
    """Values of an attribute, each once: ``300``, or ``300 or 1,000``."""
    return " or ".join(f"{value:,}" for value in sorted({getattr(r, attribute) for r in results}))


def split_title(name: str) -> str:
    """A split as it is written: ``validation`` for ``val``."""
    return {"val": "validation"}.get(name, name)
