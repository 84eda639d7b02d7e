"""Make one table or figure of a dataset from the records of the evaluations that it shows."""

from argparse import Namespace
from pathlib import Path

from teddy.report.axis_tables import AXES
from teddy.report.records import read_evaluations, read_paper
from teddy.report.results import Results
from teddy.report.summary import metrics_of
from teddy.report.targets import long_table, target_tables, write_target
from teddy.report.verdicts import of_target
from teddy.settings.stages import Catalogue, TableSettings


def main(settings: TableSettings, args: Namespace) -> str:
    """Run the stage."""
    target, catalogue = settings.target, settings.catalogue
    results = read_evaluations(settings.evaluations, args.evaluations)
    paper = read_paper(args.paper)
    tables = target_tables(target, results, paper, catalogue)
    rows = long_table(target, results, paper, catalogue)
    verdicts = of_target(target, results, catalogue)
    if args.figure:
        _draw(args.figure, target, results, catalogue)
    write_target(args.out, target, tables, rows, verdicts, metrics_of(results))
    return f"{settings.dataset}/{target}: {len(settings.evaluations)} rows"


def _draw(path: Path, target: str, results: Results, catalogue: Catalogue) -> None:
    # Matplotlib is slow to import, and most tables need none.
    from teddy.report import accuracy_figures as figures

    if target in AXES:
        figures.along_axis(path, results, AXES[target], catalogue)
    else:
        figures.accuracy(path, results, catalogue)
