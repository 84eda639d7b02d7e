"""Recompute every table from the records and compare it with the file that is there.

``python -m tools.tables_check`` (``make tables-check``) fails and names the file if a table was
edited, or was not made again after its records or settings changed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from teddy.core.console import parser, run_command
from teddy.core.errors import TeddyError
from teddy.core.files import as_text, read_json
from teddy.core.tables import Table
from teddy.report.cost_tables import cost_points, cost_table
from teddy.report.records import (
    read_bases,
    read_costs,
    read_kept,
    read_paper,
    read_pools,
    read_scores,
    read_streams,
)
from teddy.report.stream_tables import stream_points, stream_tables
from teddy.report.summary import summarise
from teddy.report.targets import MAKERS, PAPER_TABLES, latex, long_table, markdown, tables_with_kept
from teddy.report.training_tables import pool_table
from teddy.report.verdicts import Verdict, of_costs, of_streams, of_target, to_record
from teddy.settings.params import Params
from teddy.theory.documents import cost_document, cost_verdicts, taylor_document, taylor_verdicts


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("--metrics", type=Path, default=Path("metrics"))
    args = options.parse_args(argv)

    def command() -> str:
        found = list(expected(Params(args.params), args.metrics))
        for path, text in found:
            if not path.is_file():
                raise TeddyError(f"{path}: missing; run dvc repro")
            if path.read_text(encoding="utf-8") != text:
                raise TeddyError(
                    f"{path}: differs from what the records say; run dvc repro, and never edit it"
                )
        return f"{len(found)} files agree with the records"

    run_command("check", command)


def expected(params: Params, metrics: Path) -> Iterator[tuple[Path, str]]:
    """Every file that is made of records, and what stands in it; figures and ``theory.md``, which
    is computed anew, are not.
    """
    tables = metrics / "tables"
    paper, kept = read_paper(metrics / "reference/paper.yaml"), read_kept(metrics / "reference")
    for target in params.targets:
        if target in MAKERS:
            scores = read_scores(params, metrics / "runs", params.targets[target])
            made = tables_with_kept(target, scores, paper, kept, params)
            rows = long_table(target, scores, paper, params)
            yield from _files(metrics, target, made, rows, of_target(target, scores, params))
            if target in PAPER_TABLES:
                yield tables / f"{target}.tex", latex(made)
    if "fig3d" in params.targets:
        costs = read_costs(params, metrics / "costs.json", params.targets["fig3d"])
        table = cost_table(costs, read_json(metrics / "costs.json")["hardware"], params)
        verdicts = of_costs(costs, params)
        yield from _files(metrics, "fig3d", [table], cost_points(costs), verdicts)
    if "fig3e" in params.targets:
        streams = read_streams(params, metrics / "streams", params.targets["fig3e"])
        made, rows = stream_tables(streams, params), stream_points(streams)
        yield from _files(metrics, "fig3e", made, rows, of_streams(streams, params))
    for name, document, verdicts_of in (
        ("fig1", cost_document, cost_verdicts), ("fig5", taylor_document, taylor_verdicts),
    ):  # fmt: skip
        if name in params.experiments:
            record = read_json(metrics / f"{name}.json")
            yield tables / f"{name}.md", document(record)
            yield _verdicts(metrics, name, verdicts_of(record))
    facts = read_pools(params, metrics / "pools")
    pools = pool_table(facts)
    yield tables / "pools.md", f"# Teachers\n\n{pools.markdown()}"
    yield tables / "pools.csv", pools.csv()
    every = read_scores(params, metrics / "runs", [leaf.name for leaf in params.leaves()])
    bases = read_bases(params, metrics / "teachers")
    yield metrics / "summary.json", as_text(summarise(every, bases, facts))


def _files(
    metrics: Path, target: str, made: Sequence[Table], rows: Table, verdicts: Sequence[Verdict]
) -> Iterator[tuple[Path, str]]:
    yield metrics / "tables" / f"{target}.md", markdown(target, made)
    yield metrics / "tables" / f"{target}.csv", rows.csv()
    yield _verdicts(metrics, target, verdicts)


def _verdicts(metrics: Path, target: str, verdicts: Sequence[Verdict]) -> tuple[Path, str]:
    return metrics / "verdicts" / f"{target}.json", as_text(to_record(verdicts))


if __name__ == "__main__":
    main()
