"""The targets: which tables each is made of, its title, and the folder that it is written to.

Their names are stages of ``dvc.yaml`` too. Nothing is computed but joins.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from teddy.core.errors import TeddyError
from teddy.core.files import Json, write_json
from teddy.core.tables import Column, Table, write_text
from teddy.report.accuracy_tables import (
    Maker,
    comparison,
    cross_architecture,
    imbalanced,
    kept_share,
    larger_network,
    small_data,
)
from teddy.report.axis_tables import ablations, along, axis_value, precision
from teddy.report.paper import paper_result
from teddy.report.recipe_tables import one_recipe
from teddy.report.results import Kept, PaperResult, Results
from teddy.report.verdicts import Verdict, to_record
from teddy.settings.stages import Catalogue

MAKERS: dict[str, Maker] = {
    "table1": comparison,
    "table2": cross_architecture,
    "table3": imbalanced,
    "table4": larger_network,
    "table5": small_data,
    "recipes": one_recipe,
    "fig2c": along("fig2c"),
    "fig3a": along("fig3a"),
    "fig3b": along("fig3b"),
    "fig3c": along("fig3c"),
    "ablations": ablations,
    "precision": precision,
}
"""Tables of every target that shows evaluations."""

TITLES: dict[str, str] = {
    "table1": "Table 1: accuracy",
    "table2": "Table 2: students of other architectures",
    "table3": "Table 3: imbalanced data",
    "table4": "Table 4, left: ResNet50",
    "table5": "Table 5: small data, no soft labels",
    "recipes": "One recipe: what the images are worth",
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
"""Sections of the report page, in order: targets by the name of their folders and figures."""

PICTURES: dict[str, str] = {
    "table1": "Lines of top-1 accuracy against images per class, one line per method",
    "fig1": "Lines of bytes kept and operations of an update against inner steps",
    "fig2c": "Top-1 accuracy and divergence from the teachers against their first epoch",
    "fig3a": "Lines of top-1 accuracy against the number of teachers drawn for synthesis",
    "fig3b": "Lines of top-1 accuracy against the number of teachers that label",
    "fig3c": "Lines of top-1 accuracy against the number of teachers in the pool",
    "fig3d": "Bars of seconds and of peak memory of pre-training and synthesis, by method",
    "fig3e": "Lines of top-1 accuracy on the classes seen so far after each step, by method",
    "fig4-6-7": "Grid of distilled images",
    "fig5": "Losses, gaps and accuracies along outer iterations, exact and approximated",
    "overview/teachers": "Accuracy and loss of each base run by epoch, with the teachers taken",
    "overview/synthesis": "Both terms of the loss of synthesis by iteration, one line per method",
}
"""What figures show, for those who do not see them, by target, or target and file."""

PAPER_TABLES = {"table1": "1", "table2": "2", "table3": "3", "table4": "4L", "table5": "5"}
"""The paper's own tables, by their number there."""


def target_tables(
    target: str,
    results: Results,
    paper: Sequence[PaperResult],
    catalogue: Catalogue,
) -> list[Table]:
    """Tables of a target, all of one dataset.

    Raises:
        TeddyError: no such target.
    """
    if target not in MAKERS:
        raise TeddyError(f"no target {target!r}; there are: {', '.join(MAKERS)}")
    return MAKERS[target](results, paper, catalogue)


def kept_table(run: Kept, paper: Sequence[PaperResult]) -> Table:
    """First table of a target from a kept run, with its hardware, date, commit and command."""
    settings, hardware = run.settings, run.hardware
    table = target_tables(settings.target, run.results, paper, settings.catalogue)[0]
    machine = ", ".join([*hardware["gpus"], f"{hardware['cores']} cores of {hardware['cpu']}"])
    origin = (
        f"Measured on {run.date} at commit {run.commit} with `{run.command}` on {machine}; not "
        "made by this checkout's last run."
    )
    return replace(table, title=f"Kept run: {table.title}", notes=(origin, *table.notes))


def latex(tables: Sequence[Table]) -> str:
    """The target's LaTeX file."""
    return "\n".join(table.latex() for table in tables)


def markdown(target: str, tables: Sequence[Table]) -> str:
    """The target's file: its heading, then its tables."""
    return "\n".join([f"# {TITLES[target]}\n", *(table.markdown() for table in tables)])


def write_target(
    folder: Path, target: str, tables: Sequence[Table], rows: Table, verdicts: Sequence[Verdict],
    metrics: Json,
) -> None:  # fmt: skip
    """Write the folder that a target has for a dataset.

    Args:
        folder: gets ``table.md``, ``rows.csv``, ``verdicts.json``, ``metrics.json``, and
            ``table.tex`` if the paper has the table.
        target: its name.
        tables: those of its Markdown file.
        rows: its numbers in long form.
        verdicts: on its claims.
        metrics: mean and spread of each cell, which ``dvc metrics diff`` shows.
    """
    texts = {"table.md": markdown(target, tables), "rows.csv": rows.csv()}
    if target in PAPER_TABLES:
        texts["table.tex"] = latex(tables)
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / "verdicts.json", to_record(verdicts))
    write_json(folder / "metrics.json", metrics)


def long_table(
    target: str,
    results: Results,
    paper: Sequence[PaperResult],
    catalogue: Catalogue,
) -> Table:
    """One row per result; the paper's number stands with the labels that it trains on: soft ones,
    but for Table 5.
    """
    keys = ("dataset", "data", "method", "ipc", "arch", "pool", "members", "pool_size",
            "teachers_drawn", "ensemble", "first_bn_weight", "init", "labels", "epochs",
            "n", "syntheses")  # fmt: skip
    numbers = ("top1_mean", "top1_std", "top1_best_mean", "f1_mean", "f1_std",
               "kl_student_teacher", "kl_teacher_student", "image_bytes",
               "label_bytes")  # fmt: skip
    rows = []
    for result in results:
        found = None
        if result.labels == ("hard" if target == "table5" else "soft") and target in PAPER_TABLES:
            found = paper_result(
                catalogue, PAPER_TABLES[target], result.dataset, result.method, result.ipc, paper,
                arch="" if target in ("table1", "table5") else result.arch,
                init=result.init or "" if target == "table5" else "",
                keep=kept_share(result) if target == "table3" else "",
            )  # fmt: skip
        ours = [getattr(result, key) for key in (*keys, *numbers)]
        theirs = (found.mean, found.std, found.arch) if found else (None, None, None)
        stages = axis_value(result.stages) if result.stages else None
        rows.append((f"{result.name} {result.labels}", stages, *ours, *theirs))
    names = ("name", "stages", *keys, *numbers, "paper_mean", "paper_std", "paper_arch")
    return Table(f"{target}, long form", tuple(Column(name) for name in names), tuple(rows))
