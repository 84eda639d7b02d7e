"""Make the table and figure of costs from what was measured (Fig. 3d)."""

from collections.abc import Sequence

from teddy.core.console import parse, run_command
from teddy.core.files import check_writable, read_json
from teddy.report.cost_tables import cost_points, cost_table
from teddy.report.records import read_costs
from teddy.report.targets import write_target
from teddy.report.verdicts import of_costs
from teddy.settings.stages import SetsSettings, read_settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        costs="what was measured",
        table="Markdown to write",
        rows="CSV to write",
        verdicts="JSON to write",
        figure="PNG to write",
    )

    def stage() -> str:
        # Matplotlib is slow to import; refusals need not wait for it.
        from teddy.report import training_figures as figures

        settings = read_settings(SetsSettings, args.settings)
        target, catalogue = settings.target, settings.catalogue
        check_writable(args.table)
        costs = read_costs(settings.sets, args.costs)
        table = cost_table(costs, read_json(args.costs)["hardware"], catalogue)
        write_target(args, target, [table], cost_points(costs), of_costs(costs, catalogue))
        figures.costs(args.figure, costs, catalogue)
        return f"{target}: {len(costs)} sets"

    run_command("costs", stage)


if __name__ == "__main__":
    main()
