"""What each table and figure costs, from the timings of the last run.

After ``python -m tools.repro`` has made everything, ``python -m tools.target_costs`` writes
``targets.json`` and ``targets.md`` to ``metrics/bench``: how long every target takes alone, with
all that it needs, and beyond what Table 1 has made already.
"""

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from teddy.core.console import logs_folder, parser, run_command
from teddy.core.errors import TeddyError
from teddy.core.files import Json, write_json
from teddy.core.hardware import describe
from teddy.core.tables import Column, Table, write_text
from teddy.settings.declared import Declared
from tools.repro import Graph, ancestors, graph

_FIRST = "table1"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument(
        "--out", type=Path, default=Path("metrics/bench"), metavar="FOLDER",
        help="folder to write to (default: %(default)s)",
    )  # fmt: skip
    options.add_argument(
        "--note", default="", metavar="SENTENCE",
        help="what readers should know of the run, such as that the machine had other work",
    )  # fmt: skip
    args = options.parse_args(argv)

    def command() -> str:
        parents = graph()
        run = _whole_run(logs_folder() / "repro-runs.jsonl", parents.keys() - {"resolve"})
        declared = Declared(Path())
        targets = {*declared.targets, *declared.experiments, "overview", "report"}
        record = {
            "hardware": describe(),
            "stages": len(run["stages"]),
            "jobs": run["jobs"],
            "wall_minutes": round(run["seconds"] / 60, 1),
            "note": args.note,
            "targets": costs(parents, run["stages"], targets),
        }
        write_json(args.out / "targets.json", record)
        write_text(args.out / "targets.md", f"# What targets cost\n\n{table(record).markdown()}")
        return f"{len(record['targets'])} targets in {args.out}"

    run_command("target_costs", command)


def _whole_run(path: Path, stages: Set[str]) -> Json:
    """The last run that made every stage.

    Raises:
        TeddyError: there was none.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for run in reversed([json.loads(line) for line in lines]):
        if run["stages"].keys() == stages:
            return run  # type: ignore[no-any-return]
    raise TeddyError(
        f"{path}: no run made all {len(stages)} stages; run python -m tools.repro in a fresh clone"
    )


def costs(parents: Graph, seconds: Mapping[str, float], targets: Set[str]) -> dict[str, Json]:
    """Stages and seconds that every table and figure takes, on one process.

    Args:
        parents: the graph.
        seconds: what each stage took.
        targets: stages that make tables and figures; ``table1`` means all of ``table1@…``.
    """
    found: dict[str, Json] = {}
    before = ancestors(parents, [name for name in parents if _stage(name) == _FIRST])
    for target in parents:
        if _stage(target) not in targets:
            continue
        needs = ancestors(parents, {target}) - {"resolve"}
        beyond = needs - before if _stage(target) != _FIRST else needs
        found[target] = {
            "stages": len(needs),
            "seconds": round(sum(seconds[name] for name in needs), 1),
            "stages_beyond_table1": len(beyond),
            "seconds_beyond_table1": round(sum(seconds[name] for name in beyond), 1),
        }
    return found


def _stage(name: str) -> str:
    return name.split("@")[0]


def table(record: Json) -> Table:
    """Minutes of every target."""
    columns = (
        Column("target", text=True),
        Column("stages"),
        Column("minutes, alone", spec=".1f"),
        Column("stages beyond Table 1"),
        Column("minutes beyond Table 1", spec=".1f"),
    )
    rows = tuple(
        (
            name, cost["stages"], cost["seconds"] / 60,
            cost["stages_beyond_table1"], cost["seconds_beyond_table1"] / 60,
        )
        for name, cost in record["targets"].items()
    )  # fmt: skip
    hardware = record["hardware"]
    note = (
        f"Minutes of one stage at a time while another ran beside it, DVC's bookkeeping included. "
        f"All {record['stages']} stages, {record['jobs']} at a time: "
        f"{record['wall_minutes']:.0f} minutes on "
        f"{hardware['cores']} cores of {hardware['cpu']}."
    )
    if record["note"]:
        note += f" {record['note']}"
    return Table("Minutes of every target", columns, rows, (note,))


if __name__ == "__main__":
    main()
