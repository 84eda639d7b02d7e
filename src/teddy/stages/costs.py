"""Make the table and figure of costs from what was measured (Fig. 3d)."""

from collections.abc import Sequence

from teddy.core.console import parse, run_command
from teddy.core.files import check_writable, read_json
from teddy.report.cost_tables import cost_points, cost_table
from teddy.report.records import read_costs, read_titles
from teddy.report.targets import declared_rows, write_target
from teddy.report.verdicts import of_costs
from teddy.settings.params import Params


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = parse(
        __doc__,
        argv,
        "key of targets in params.yaml",
        costs="what was measured",
        table="Markdown to write",
        rows="CSV to write",
        verdicts="JSON to write",
        figure="PNG to write",
    )

    def stage() -> str:
        # Matplotlib is slow to import; refusals need not wait for it.
        from teddy.report import training_figures as figures

        params = Params(args.params)
        check_writable(args.table)
        costs = read_costs(params, args.costs, declared_rows(params, args.name))
        table = cost_table(costs, read_json(args.costs)["hardware"], params)
        write_target(args, [table], cost_points(costs), of_costs(costs, params))
        figures.costs(args.figure, costs, read_titles(params))
        return f"{args.name}: {len(costs)} sets"

    run_command("costs", stage)


if __name__ == "__main__":
    main()
