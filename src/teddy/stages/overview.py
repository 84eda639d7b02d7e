"""List the members of all pools; draw the base runs and the loss curves behind Table 1."""

from collections.abc import Sequence

from teddy.core.console import parse, run_command
from teddy.core.files import check_writable
from teddy.core.tables import write_text
from teddy.report import training_figures as figures
from teddy.report.records import read_bases, read_histories, read_pools
from teddy.report.targets import markdown
from teddy.report.training_tables import pool_table, synthesis_points, teacher_points
from teddy.settings.stages import OverviewSettings, read_settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        teachers="folder of the base runs' records",
        pools="folder of the pools' manifests",
        syntheses="folder of the loss curves of synthesis",
        table="Markdown to write",
        rows="CSV to write",
        figures="folder for figures and their points",
    )

    def stage() -> str:
        settings = read_settings(OverviewSettings, args.settings)
        check_writable(args.table, args.figures / "teachers.png")
        pools = read_pools(settings.pools, args.pools)
        own = [pool for pool in pools if pool.name in settings.pools_of_sets]
        bases = read_bases(settings.bases, args.teachers)
        histories = read_histories(settings.sets, args.syntheses)
        table = pool_table(pools)
        write_text(args.table, markdown("pools", [table]))
        write_text(args.rows, table.csv())
        write_text(args.figures / "teachers.csv", teacher_points(bases).csv())
        write_text(args.figures / "synthesis.csv", synthesis_points(histories).csv())
        figures.teachers(args.figures / "teachers.png", bases, own, settings.catalogue)
        figures.synthesis(args.figures / "synthesis.png", histories, settings.catalogue)
        return f"{len(pools)} pools"

    run_command("overview", stage)


if __name__ == "__main__":
    main()
