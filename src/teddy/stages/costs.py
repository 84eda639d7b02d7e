"""Make the table and figure of a dataset's costs from what was measured (Fig. 3d)."""

from argparse import Namespace

from teddy.core.files import read_json
from teddy.report.records import read_costs
from teddy.report.summary import metrics_of
from teddy.report.targets import write_target
from teddy.report.training_tables import cost_points, cost_table
from teddy.report.verdicts import of_costs
from teddy.settings.stages import SetsSettings


def main(settings: SetsSettings, args: Namespace) -> str:
    """Run the stage."""
    # Matplotlib is slow to import; refusals need not wait for it.
    from teddy.report import training_figures as figures

    target, catalogue = settings.target, settings.catalogue
    costs = read_costs(settings.sets, args.costs)
    table = cost_table(costs, read_json(args.costs)["hardware"], catalogue)
    figures.costs(args.figure, costs, catalogue)
    rows, verdicts = cost_points(costs), of_costs(costs, catalogue)
    write_target(args.out, target, [table], rows, verdicts, metrics_of(costs))
    return f"{settings.dataset}/{target}: {len(costs)} sets"
