"""Make one table or figure of the paper from the records of the rows that it shows."""

from collections.abc import Sequence
from pathlib import Path

from teddy.config import Params
from teddy.console import parser, run_command
from teddy.errors import TeddyError
from teddy.files import check_writable, write_json
from teddy.records import read_kept, read_paper, read_scores
from teddy.report import AXES, TITLES, kept_tables, long_table, target_tables
from teddy.results import Kept, PaperResult, Score
from teddy.tables import Table, write_text
from teddy.verdicts import of_target, to_record


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
        scores = read_scores(params, args.runs, names(params, args.name))
        paper = read_paper(args.reference / "paper.yaml")
        tables = tables_of(args.name, scores, paper, read_kept(args.reference), params)
        write_text(args.table, markdown(args.name, tables))
        write_text(args.rows, long_table(args.name, scores, paper, params).csv())
        if args.latex:
            write_text(args.latex, "\n".join(table.latex() for table in tables))
        if args.figure:
            _draw(args.figure, args.name, scores, params)
        write_json(args.verdicts, to_record(of_target(args.name, scores, params)))
        return f"{args.name}: {len(params.targets[args.name])} rows"

    run_command("target", stage)


def names(params: Params, target: str) -> tuple[str, ...]:
    """Rows that a target shows.

    Raises:
        TeddyError: params.yaml lists none.
    """
    if not params.targets.get(target):
        raise TeddyError(f"{params.path}: targets.{target}: no row is declared")
    return params.targets[target]


def tables_of(
    target: str,
    scores: Sequence[Score],
    paper: Sequence[PaperResult],
    kept: Sequence[Kept],
    params: Params,
) -> list[Table]:
    """Tables of a target; Table 1 ends with the runs that are kept."""
    tables = target_tables(target, scores, paper, params)
    return [*tables, *kept_tables(kept, params)] if target == "table1" else tables


def markdown(target: str, tables: Sequence[Table]) -> str:
    """The target's file: its heading, then its tables."""
    return "\n".join([f"# {TITLES[target]}\n", *(table.markdown() for table in tables)])


def _draw(path: Path, target: str, scores: Sequence[Score], params: Params) -> None:
    from teddy import figures  # Matplotlib is slow to import, and most tables need none
    from teddy.records import read_titles

    titles = read_titles(params)
    if target in AXES:
        axis = AXES[target]
        figures.along_axis(path, scores, axis.attribute, axis.title, titles)
    else:
        figures.accuracy(path, scores, [], titles)


if __name__ == "__main__":
    main()
