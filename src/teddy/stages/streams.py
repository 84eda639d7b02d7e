"""Make the table and figure of continual learning from its records (Fig. 3e)."""

from collections.abc import Sequence

from teddy.core.console import parse, run_command
from teddy.core.files import check_writable
from teddy.report.records import read_streams, read_titles
from teddy.report.stream_tables import stream_points, stream_tables
from teddy.report.targets import declared_rows, write_target
from teddy.report.verdicts import of_streams
from teddy.settings.params import Params


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
        # Matplotlib is slow to import; refusals need not wait for it.
        from teddy.report import accuracy_figures as figures

        params = Params(args.params)
        check_writable(args.table)
        streams = read_streams(params, args.streams, declared_rows(params, args.name))
        tables = stream_tables(streams, params)
        write_target(args, tables, stream_points(streams), of_streams(streams, params))
        figures.streams(args.figure, streams, read_titles(params))
        return f"{args.name}: {len(streams)} curves"

    run_command("streams", stage)


if __name__ == "__main__":
    main()
