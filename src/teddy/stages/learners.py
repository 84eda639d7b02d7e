"""Make the table and figure of a dataset's continual learning from its records (Fig. 3e)."""

from argparse import Namespace

from teddy.report.axis_tables import learner_points, learner_tables
from teddy.report.records import read_learners
from teddy.report.summary import metrics_of
from teddy.report.targets import write_target
from teddy.report.verdicts import of_learners
from teddy.settings.stages import LearnersSettings


def main(settings: LearnersSettings, args: Namespace) -> str:
    """Run the stage."""
    # Matplotlib is slow to import; refusals need not wait for it.
    from teddy.report import accuracy_figures as figures

    target, catalogue = settings.target, settings.catalogue
    learners = read_learners(settings.learners, args.learners)
    tables, verdicts = learner_tables(learners, catalogue), of_learners(learners, catalogue)
    figures.learners(args.figure, learners, catalogue)
    rows, metrics = learner_points(learners), metrics_of(learners)
    write_target(args.out, target, tables, rows, verdicts, metrics)
    return f"{settings.dataset}/{target}: {len(learners)} curves"
