"""What a distilled set costs to build, teachers included, from the timings of the last runs.

After ``python -m tools.repro table1@digits``, ``python -m tools.build_costs digits`` writes
``digits-builds.json`` and ``digits-builds.md`` to ``metrics/bench``: the seconds that every set of
Table 1 takes from raw data to labels. No stage reads them, as they are different in every run.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from teddy.core.console import logs_folder, parser, run_command
from teddy.core.errors import TeddyError
from teddy.core.files import Json, write_json
from teddy.core.hardware import describe
from teddy.core.tables import Column, Table, write_text
from teddy.settings.declared import Declared
from tools.repro import Graph, ancestors, graph


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("dataset", help="that dvc.yaml has switched on")
    options.add_argument(
        "--out", type=Path, default=Path("metrics/bench"), metavar="FOLDER",
        help="folder to write to (default: %(default)s)",
    )  # fmt: skip
    args = options.parse_args(argv)

    def command() -> str:
        declared = Declared(Path())
        main_grid = f"{args.dataset}/main/"
        sets = {
            name: {
                "method": declared.methods[row.method].title,
                "ipc": row.ipc,
                "syntheses": declared.syntheses(name),
            }
            for name, row in declared.sets.items()
            if name.startswith(main_grid)
        }
        if not sets:
            raise TeddyError(
                f"no set {main_grid}… is switched on; name experiments/{args.dataset}.yaml under "
                "vars of dvc.yaml"
            )
        record = {
            "dataset": declared.datasets[args.dataset].title,
            "hardware": describe(),
            "sets": builds(graph(), last_seconds(logs_folder() / "repro-runs.jsonl"), sets),
        }
        write_json(args.out / f"{args.dataset}-builds.json", record)
        page = f"# Seconds to build a set\n\n{table(record).markdown()}"
        write_text(args.out / f"{args.dataset}-builds.md", page)
        return f"{len(sets)} sets in {args.out}"

    run_command("build_costs", command)


def last_seconds(path: Path) -> dict[str, float]:
    """What each stage took when it was last made.

    Args:
        path: where :mod:`tools.repro` keeps its runs, a JSON object per line.
    """
    found: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        found |= json.loads(line)["stages"]
    return found


def builds(
    parents: Graph, seconds: Mapping[str, float], sets: Mapping[str, Json]
) -> dict[str, Json]:
    """Seconds of every set: teachers with the data they learn from, one synthesis, its labels.

    Args:
        parents: the graph.
        seconds: what each stage took.
        sets: rows, with ``syntheses``, how often each is made, and what to keep of them.

    Raises:
        TeddyError: a stage was never timed.
    """
    found: dict[str, Json] = {}
    for name, row in sets.items():
        images, labels = f"synthesize@{name}", f"relabel@{name}"
        before = ancestors(parents, {images, labels}) - {images, labels, "resolve"}
        untimed = sorted({images, labels, *before} - seconds.keys())
        if untimed:
            raise TeddyError(
                f"logs/repro-runs.jsonl: {untimed[0]} was never timed; run python -m tools.repro "
                "on the dataset's Table 1 in a fresh clone"
            )
        found[name] = row | {
            "teachers": round(sum(seconds[stage] for stage in before), 1),
            "images": round(seconds[images] / row["syntheses"], 1),
            "labels": round(seconds[labels] / row["syntheses"], 1),
        }
    return found


def table(record: Json) -> Table:
    """A line per set."""
    columns = (
        Column("IPC"),
        Column("method", text=True),
        Column("teachers", spec=".0f"),
        Column("images", spec=".1f"),
        Column("labels", spec=".1f"),
        Column("all", spec=".0f"),
    )
    rows = tuple(
        (
            row["ipc"], row["method"], row["teachers"], row["images"], row["labels"],
            row["teachers"] + row["images"] + row["labels"],
        )
        for row in record["sets"].values()
    )  # fmt: skip
    hardware = record["hardware"]
    note = (
        "teachers: preparing the data, training them, and all of the pool; images and labels: one "
        "synthesis, a third of a stage that makes three, say, with its share of the seconds in "
        "which the process starts. Each stage ran on its share of "
        f"{hardware['cores']} cores of {hardware['cpu']}."
    )
    return Table(f"Seconds to build a set of {record['dataset']}", columns, rows, (note,))


if __name__ == "__main__":
    main()
