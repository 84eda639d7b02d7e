"""List the members of all pools; draw the base runs and the loss curves behind Table 1."""

from argparse import Namespace

from teddy.core.tables import write_text
from teddy.report import training_figures as figures
from teddy.report.records import read_bases, read_histories, read_pools
from teddy.report.targets import markdown
from teddy.report.training_tables import pool_table, synthesis_points, teacher_points
from teddy.settings.stages import OverviewSettings


def main(settings: OverviewSettings, args: Namespace) -> str:
    """Run the stage."""
    pools = read_pools(settings.pools, args.pools)
    own = [pool for pool in pools if pool.name in settings.pools_of_sets]
    bases = read_bases(settings.bases, args.teachers)
    histories = read_histories(settings.sets, args.syntheses)
    table = pool_table(pools)
    write_text(args.out / "table.md", markdown("pools", [table]))
    write_text(args.out / "rows.csv", table.csv())
    write_text(args.figures / "teachers.csv", teacher_points(bases).csv())
    write_text(args.figures / "synthesis.csv", synthesis_points(histories).csv())
    figures.teachers(args.figures / "teachers.png", bases, own, settings.catalogue)
    figures.synthesis(args.figures / "synthesis.png", histories, settings.catalogue)
    return f"{len(pools)} pools"
