"""Make the table and figure of continual learning from its records (Fig. 3e)."""

from collections.abc import Sequence

from teddy.core.console import parse, run_command
from teddy.core.files import check_writable
from teddy.report.records import read_streams
from teddy.report.stream_tables import stream_points, stream_tables
from teddy.report.targets import write_target
from teddy.report.verdicts import of_streams
from teddy.settings.stages import LearnersSettings, read_settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        streams="folder of the records of continual learning",
        table="Markdown to write",
        rows="CSV to write",
        verdicts="JSON to write",
        figure="PNG to write",
    )

    def stage() -> str:
        # Matplotlib is slow to import; refusals need not wait for it.
        from teddy.report import accuracy_figures as figures

        settings = read_settings(LearnersSettings, args.settings)
        target, catalogue = settings.target, settings.catalogue
        check_writable(args.table)
        streams = read_streams(settings.learners, args.streams)
        tables = stream_tables(streams, catalogue)
        verdicts = of_streams(streams, catalogue)
        write_target(args, target, tables, stream_points(streams), verdicts)
        figures.streams(args.figure, streams, catalogue)
        return f"{target}: {len(streams)} curves"

    run_command("streams", stage)


if __name__ == "__main__":
    main()
