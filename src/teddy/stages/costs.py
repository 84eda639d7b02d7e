"""Make the table and figure of costs from what was measured (Fig. 3d)."""

from collections.abc import Sequence

from teddy.config import Params
from teddy.console import parse, run_command
from teddy.files import check_writable, read_json, write_json
from teddy.records import read_costs, read_titles
from teddy.report import cost_table
from teddy.results import Cost
from teddy.tables import Column, Table, write_text
from teddy.verdicts import of_costs, to_record


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
        from teddy import figures  # Matplotlib is slow to import; refusals need not wait for it

        params = Params(args.params)
        check_writable(args.table)
        costs = read_costs(params, args.costs, params.targets[args.name])
        hardware = read_json(args.costs)["hardware"]
        table = cost_table(costs, hardware, params)
        write_text(args.table, f"# Figure 3d: cost\n\n{table.markdown()}")
        write_text(args.rows, _rows(costs).csv())
        write_json(args.verdicts, to_record(of_costs(costs, params)))
        figures.costs(args.figure, costs, read_titles(params))
        return f"{args.name}: {len(costs)} sets"

    run_command("costs", stage)


def _rows(costs: Sequence[Cost]) -> Table:
    keys = ("name", "dataset", "method", "ipc", "draw", "epochs", "pretraining_seconds",
            "synthesis_seconds", "peak_mib")  # fmt: skip
    rows = tuple(tuple(getattr(cost, key) for key in keys) for cost in costs)
    return Table("costs", tuple(map(Column, keys)), rows)


if __name__ == "__main__":
    main()
