"""Make the table and figure of continual learning from its records (Fig. 3e)."""

from collections.abc import Sequence

from teddy.config import Params
from teddy.console import parse, run_command
from teddy.errors import TeddyError
from teddy.files import check_writable, write_json
from teddy.records import read_streams, read_titles
from teddy.report import TITLES, stream_points, stream_tables
from teddy.tables import write_text
from teddy.verdicts import of_streams, to_record


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        "key of targets in params.yaml",
        streams="folder of the records of continual learning",
        table="Markdown to write",
        rows="CSV to write",
        verdicts="JSON to write",
        figure="PNG to write",
    )

    def stage() -> str:
        from teddy import figures  # Matplotlib is slow to import; refusals need not wait for it

        params = Params(args.params)
        check_writable(args.table)
        if not params.targets.get(args.name):
            raise TeddyError(f"{params.path}: targets.{args.name}: no row is declared")
        streams = read_streams(params, args.streams, params.targets[args.name])
        tables = stream_tables(streams, params)
        heading = f"# {TITLES[args.name]}\n"
        write_text(args.table, "\n".join([heading, *(table.markdown() for table in tables)]))
        write_text(args.rows, stream_points(streams).csv())
        write_json(args.verdicts, to_record(of_streams(streams, params)))
        figures.streams(args.figure, streams, read_titles(params))
        return f"{args.name}: {len(streams)} curves"

    run_command("streams", stage)


if __name__ == "__main__":
    main()
