"""Make one table or figure of the paper from the records of the rows that it shows."""

from collections.abc import Sequence
from pathlib import Path

from teddy.core.console import parse, run_command
from teddy.core.files import check_writable
from teddy.core.tables import write_text
from teddy.report.axis_tables import AXES
from teddy.report.records import read_kept, read_paper, read_scores
from teddy.report.results import Score
from teddy.report.targets import latex, long_table, tables_with_kept, write_target
from teddy.report.verdicts import of_target
from teddy.settings.stages import Catalogue, TableSettings, read_settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        runs="folder of students' records",
        reference="the paper's numbers and runs that are kept",
        table="Markdown to write",
        rows="CSV to write, a row per score",
        verdicts="JSON to write",
        optional={"latex": "LaTeX to write, if any", "figure": "PNG to write, if any"},
    )

    def stage() -> str:
        settings = read_settings(TableSettings, args.settings)
        target, catalogue = settings.target, settings.catalogue
        check_writable(args.table)
        scores = read_scores(settings.evaluations, args.runs)
        paper = read_paper(args.reference / "paper.yaml")
        tables = tables_with_kept(target, scores, paper, read_kept(args.reference), catalogue)
        rows = long_table(target, scores, paper, catalogue)
        write_target(args, target, tables, rows, of_target(target, scores, catalogue))
        if args.latex:
            write_text(args.latex, latex(tables))
        if args.figure:
            _draw(args.figure, target, scores, catalogue)
        return f"{target}: {len(settings.evaluations)} rows"

    run_command("target", stage)


def _draw(path: Path, target: str, scores: Sequence[Score], catalogue: Catalogue) -> None:
    # Matplotlib is slow to import, and most tables need none.
    from teddy.report import accuracy_figures as figures

    if target in AXES:
        axis = AXES[target]
        figures.along_axis(path, scores, axis.attribute, axis.title, catalogue)
    else:
        figures.accuracy(path, scores, [], catalogue)


if __name__ == "__main__":
    main()
