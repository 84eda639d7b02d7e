"""What soft labels in fewer bytes cost in accuracy.

``python -m tools.label_budget data/distilled/digits/main/ipc10/plus`` packs the set within several
budgets, trains the students of its record on each, and writes ``label-budget-<row>.json`` and
``.md`` to ``metrics/bench``.
"""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from teddy.core.console import parser, run_command
from teddy.core.files import Json, write_json
from teddy.core.hardware import describe
from teddy.core.tables import Column, Table, percent, write_text
from teddy.sharing.opening import load
from teddy.sharing.packing import pack
from teddy.sharing.training_set import accuracy, fit
from teddy.students.label_budget import label_bytes


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("set", type=Path, help="folder of a set, data/distilled/<row>")
    options.add_argument("--data", type=Path, required=True, help="prepared images to test on")
    options.add_argument(
        "--syntheses", type=int, default=3, help="of the set (default: %(default)s)"
    )
    options.add_argument(
        "--students", type=int, help="of each synthesis (default: those of the set's record)"
    )
    options.add_argument(
        "--out", type=Path, default=Path("metrics/bench"), metavar="FOLDER",
        help="folder to write to (default: %(default)s)",
    )  # fmt: skip
    args = options.parse_args(argv)

    def command() -> str:
        whole = load(args.set)
        found = [
            measured(args.set, args.data, budget, args.syntheses, args.students)
            for budget in budgets(whole.recipe.relabel.epochs, whole.num_classes)
        ]
        record = {"set": args.set.as_posix(), "hardware": describe(), "budgets": found}
        name = "label-budget-" + "-".join(args.set.parts[2:])
        write_json(args.out / f"{name}.json", record)
        write_text(args.out / f"{name}.md", f"# Label budget\n\n{table(record).markdown()}")
        return f"wrote {args.out / name}.md"

    run_command("label_budget", command)


def budgets(epochs: int, classes: int) -> list[dict[str, int]]:
    """Those that are compared, each measure alone and then all together."""
    few, tenth = max(1, classes // 3), max(1, epochs // 10)
    return [
        {},
        {"label_bits": 8},
        {"label_top_k": few},
        {"label_epochs": max(1, epochs // 2)},
        {"label_epochs": max(1, epochs // 5)},
        {"label_epochs": tenth},
        {"label_epochs": max(1, epochs // 20)},
        {"label_epochs": tenth, "label_bits": 8},
        {"label_epochs": tenth, "label_bits": 8, "label_top_k": few},
    ]


def measured(
    path: Path, data: Path, kept: Mapping[str, int], syntheses: int, students: int | None
) -> Json:
    """Bytes of the labels of one synthesis, and accuracy of the students of all."""
    means = []
    for number in range(syntheses):
        with tempfile.TemporaryDirectory(prefix="teddy-budget-") as folder:
            own = load(pack(path, Path(folder) / "bundle", number, kept=kept))
            seeds = own.recipe.evaluate.seeds[:students]
            found = [accuracy(fit(own.network(s), own, seed=s), data, own) for s in seeds]
        means.append(statistics.fmean(found))
    return {
        **kept,
        "bytes": label_bytes(own.recipe.relabel, len(own), own.num_classes),
        "top1_by_synthesis": means,
        "students_each": len(seeds),
    }


def table(record: Json) -> Table:
    """A line per budget."""
    columns = (
        Column("labels", text=True), Column("bytes", spec=","), Column("times fewer", spec=".1f"),
        Column("top-1"), Column("against all"),
    )  # fmt: skip
    whole = record["budgets"][0]
    rows = []
    for one in record["budgets"]:
        values = one["top1_by_synthesis"]
        mean = statistics.fmean(values)
        change = mean - statistics.fmean(whole["top1_by_synthesis"])
        spread = statistics.stdev(values) if len(values) > 1 else None
        rows.append(
            (_named(one), one["bytes"], whole["bytes"] / one["bytes"], percent(mean, spread),
             f"{change:+.1f}")
        )  # fmt: skip
    hardware = record["hardware"]
    note = (
        f"Top-1, percent, on test images: mean ± sample standard deviation over "
        f"{len(whole['top1_by_synthesis'])} syntheses of their students' means, "
        f"{whole['students_each']} each. Labels of all epochs that are computed while training "
        "(relabel.store: false) take no bytes, but the teachers'. "
        f"{hardware['cpu']}."
    )
    return Table(f"Soft labels of {record['set']}", columns, tuple(rows), (note,))


def _named(one: Json) -> str:
    parts = [f"{one['label_epochs']} epochs" if "label_epochs" in one else "all epochs"]
    parts += ["8 bits"] if "label_bits" in one else []
    parts += [f"top {one['label_top_k']}"] if "label_top_k" in one else []
    return ", ".join(parts)


if __name__ == "__main__":
    main()
