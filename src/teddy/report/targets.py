"""The targets: which tables each is made of, its title, and what its stage writes.

Their names are stages of ``dvc.yaml`` too. Nothing is computed but joins.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace

from teddy.core.errors import TeddyError
from teddy.core.files import write_json
from teddy.core.tables import Column, Table, write_text
from teddy.report.ablation_tables import ablations, precision
from teddy.report.architecture_tables import cross_architecture, larger_network
from teddy.report.axis_tables import along, axis_value
from teddy.report.comparison_tables import comparison
from teddy.report.imbalance_tables import imbalanced, kept_share
from teddy.report.paper import paper_result
from teddy.report.results import Kept, PaperResult, Score
from teddy.report.score_tables import Maker
from teddy.report.small_data_tables import small_data
from teddy.report.verdicts import Verdict, to_record
from teddy.settings.stages import Catalogue

MAKERS: dict[str, Maker] = {
    "table1": comparison,
    "table2": cross_architecture,
    "table3": imbalanced,
    "table4-resnet50": larger_network,
    "table5": small_data,
    "fig2c": along("fig2c"),
    "fig3a": along("fig3a"),
    "fig3b": along("fig3b"),
    "fig3c": along("fig3c"),
    "ablations": ablations,
    "precision": precision,
}
"""Tables of every target that shows scores."""

TITLES: dict[str, str] = {
    "table1": "Table 1: accuracy",
    "table2": "Table 2: students of other architectures",
    "table3": "Table 3: imbalanced data",
    "table4-resnet50": "Table 4, left: ResNet50",
    "table5": "Table 5: small data, no soft labels",
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
"""Sections of the report page, in order: targets by the name of their files."""


def target_tables(
    target: str, scores: Sequence[Score], paper: Sequence[PaperResult], catalogue: Catalogue
) -> list[Table]:
    """Tables of a target.

    Raises:
        TeddyError: no such target.
    """
    if target not in MAKERS:
        raise TeddyError(f"no target {target!r}; there are: {', '.join(MAKERS)}")
    return MAKERS[target](scores, paper, catalogue)


def tables_with_kept(
    target: str,
    scores: Sequence[Score],
    paper: Sequence[PaperResult],
    kept: Sequence[Kept],
    catalogue: Catalogue,
) -> list[Table]:
    """Tables of a target, then the first one of every run that is kept of it."""
    own = [run for run in kept if run.target == target]
    return [
        *target_tables(target, scores, paper, catalogue),
        *(kept_table(run, paper, catalogue) for run in own),
    ]


def kept_table(run: Kept, paper: Sequence[PaperResult], catalogue: Catalogue) -> Table:
    """First table of a target from a kept run, with its hardware, date, commit and command."""
    unknown = {run.dataset} - catalogue.datasets.keys()
    unknown |= {score.method for score in run.scores} - catalogue.methods.keys()
    for name in sorted(unknown):
        raise TeddyError(f"metrics/reference keeps a run of {name!r}, which is not declared")
    table = target_tables(run.target, run.scores, paper, catalogue)[0]
    hardware = run.hardware
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
    args: Namespace,
    target: str,
    tables: Sequence[Table],
    rows: Table,
    verdicts: Sequence[Verdict],
) -> None:
    """Write what all targets have, but for figures, which are slow to import.

    Args:
        args: paths for the other three: ``table``, ``rows``, ``verdicts``.
        target: its name.
        tables: those of its Markdown file.
        rows: its numbers in long form.
        verdicts: on its claims.
    """
    write_text(args.table, markdown(target, tables))
    write_text(args.rows, rows.csv())
    write_json(args.verdicts, to_record(verdicts))


PAPER_TABLES = {
    "table1": "1", "table2": "2", "table3": "3", "table4-resnet50": "4L", "table5": "5",
}  # fmt: skip
"""The paper's own tables, by their number there."""


def long_table(
    target: str, scores: Sequence[Score], paper: Sequence[PaperResult], catalogue: Catalogue
) -> Table:
    """One row per score; the paper's number stands with the labels that it trains on: soft ones,
    but for Table 5.
    """
    keys = ("dataset", "data", "method", "ipc", "arch", "pool", "members", "pool_size", "draw",
            "ensemble", "first_bn_weight", "init", "labels", "epochs", "n")  # fmt: skip
    numbers = ("top1_mean", "top1_std", "top1_best_mean", "f1_mean", "f1_std",
               "kl_student_teacher", "kl_teacher_student", "image_bytes",
               "label_bytes")  # fmt: skip
    rows = []
    for score in scores:
        found = None
        if score.labels == ("hard" if target == "table5" else "soft") and target in PAPER_TABLES:
            found = paper_result(
                catalogue, PAPER_TABLES[target], score.dataset, score.method, score.ipc, paper,
                arch="" if target in ("table1", "table5") else score.arch,
                init=score.init or "" if target == "table5" else "",
                keep=kept_share(score) if target == "table3" else "",
            )  # fmt: skip
        ours = [getattr(score, key) for key in (*keys, *numbers)]
        theirs = (found.mean, found.std, found.arch) if found else (None, None, None)
        stages = axis_value(score.stages) if score.stages else None
        rows.append((f"{score.name} {score.labels}", stages, *ours, *theirs))
    names = ("name", "stages", *keys, *numbers, "paper_mean", "paper_std", "paper_arch")
    return Table(f"{target}, long form", tuple(Column(name) for name in names), tuple(rows))
