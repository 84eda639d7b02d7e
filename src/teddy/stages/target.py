"""Make one table or figure of the paper from the records of the rows that it shows."""

from collections.abc import Sequence
from pathlib import Path

from teddy.core.console import parser, run_command
from teddy.core.files import check_writable
from teddy.core.tables import write_text
from teddy.report.axis_tables import AXES
from teddy.report.records import read_kept, read_paper, read_scores
from teddy.report.results import Score
from teddy.report.targets import declared_rows, latex, long_table, tables_with_kept, write_target
from teddy.report.verdicts import of_target
from teddy.settings.params import Params


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    options = parser(__doc__)
    options.add_argument("name", help="key of targets in params.yaml")
    options.add_argument("--runs", type=Path, required=True, help="folder of students' records")
    options.add_argument(
        "--reference", type=Path, required=True, help="the paper's numbers and runs that are kept"
    )
    options.add_argument("--table", type=Path, required=True, help="Markdown to write")
    options.add_argument("--rows", type=Path, required=True, help="CSV to write, a row per score")
    options.add_argument("--latex", type=Path, help="LaTeX to write, if any")
    options.add_argument("--figure", type=Path, help="PNG to write, if any")
    options.add_argument("--verdicts", type=Path, required=True, help="JSON to write")
    args = options.parse_args(argv)

    def stage() -> str:
        params = Params(args.params)
        check_writable(args.table)
        scores = read_scores(params, args.runs, declared_rows(params, args.name))
        paper = read_paper(args.reference / "paper.yaml")
        tables = tables_with_kept(args.name, scores, paper, read_kept(args.reference), params)
        rows = long_table(args.name, scores, paper, params)
        write_target(args, tables, rows, of_target(args.name, scores, params))
        if args.latex:
            write_text(args.latex, latex(tables))
        if args.figure:
            _draw(args.figure, args.name, scores, params)
        return f"{args.name}: {len(params.targets[args.name])} rows"

    run_command("target", stage)


def _draw(path: Path, target: str, scores: Sequence[Score], params: Params) -> None:
    # Matplotlib is slow to import, and most tables need none.
    from teddy.report import accuracy_figures as figures
    from teddy.report.records import read_titles

    titles = read_titles(params)
    if target in AXES:
        axis = AXES[target]
        figures.along_axis(path, scores, axis.attribute, axis.title, titles)
    else:
        figures.accuracy(path, scores, [], titles)


if __name__ == "__main__":
    main()
