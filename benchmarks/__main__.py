"""Measure how fast parts of this package are, beside what they replace, on this machine.

``python -m benchmarks synthesis`` prints a table and writes record, table and figure to
metrics/bench. No stage reads them. The programs that are compared take turns, after one untimed
round, so that what else runs on the machine slows all of them alike; medians over rounds are
reported.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import (
    evaluation,
    input,
    matching,
    residual,
    scaling,
    selection,
    sets,
    synthesis,
)
from benchmarks.command import environment, load, positive, write_figure
from teddy.core.files import write_json
from teddy.core.runtime import run_stage
from teddy.core.tables import write_text

BENCHMARKS = {
    "input": input.BENCHMARK,
    "synthesis": synthesis.BENCHMARK,
    "evaluation": evaluation.BENCHMARK,
    "scaling": scaling.BENCHMARK,
    "sets": sets.BENCHMARK,
    "matching": matching.BENCHMARK,
    "selection": selection.BENCHMARK,
    "residual": residual.BENCHMARK,
}
"""Sub-commands by name. Add a benchmark here."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(name, help=benchmark.help, description=benchmark.help)
        command.add_argument(
            "--repeats", type=positive, default=benchmark.repeats, help="rounds (%(default)s)"
        )
        out = Path("metrics/bench") / f"{name}.json"
        command.add_argument(
            "--out", type=Path, default=out,
            help="record; table and figure beside it as .md and .png (%(default)s)",
        )  # fmt: skip
        benchmark.add_options(command)
    args = parser.parse_args(argv)

    def stage() -> str:
        before = load()  # of others: measured before we add to it
        result = BENCHMARKS[args.benchmark].measure(args)
        record = environment(before) | {"benchmark": args.benchmark} | result.record
        write_json(args.out, record)
        tables = "\n".join(table.markdown() for table in result.tables)
        write_text(args.out.with_suffix(".md"), tables)
        if result.draw is not None:
            write_figure(args.out.with_suffix(".png"), result.draw)
        print(tables)
        return f"{args.benchmark}: recorded in {args.out}"

    run_stage("bench", stage)


if __name__ == "__main__":
    main(sys.argv[1:])
