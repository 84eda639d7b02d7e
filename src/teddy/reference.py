"""Keep a dataset's results as reference metrics, with the hardware, date and commit.

``python -m teddy.reference cifar10-cpu`` writes what the last ``dvc repro`` measured for a dataset
to ``metrics/reference/<dataset>.json``, and a table beside it. Results which need a GPU, a download
or an hour stay in the repository this way, while the default profile stays small.
"""

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from teddy.artifacts import Json, read_json, write_json
from teddy.comparison_tables import result_tables
from teddy.config import Params
from teddy.console import logs_folder
from teddy.errors import TeddyError
from teddy.hardware import describe
from teddy.records import read_paper, read_pools, read_scores
from teddy.runtime import run_stage
from teddy.tables import write_text
from teddy.training_tables import pool_table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="key of datasets in params.yaml")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--metrics", type=Path, default=Path("metrics"))
    args = parser.parse_args(argv)

    def stage() -> str:
        params = Params(args.params)
        params.row("datasets", args.dataset)
        names = [name for name, row in params.sets.items() if row.dataset == args.dataset]
        if not names:
            raise TeddyError(
                f"{args.params}: no set of {args.dataset} is declared; add its profile first: "
                f"python -m teddy.profile {args.dataset}"
            )
        folder = args.metrics / "reference"
        record = _record(params, args.dataset, names, args.metrics)
        write_json(folder / f"{args.dataset}.json", record)
        write_text(
            folder / f"{args.dataset}.md", _tables(params, args.dataset, args.metrics, record)
        )
        return f"{args.dataset}: {len(names)} sets kept in {folder}"

    run_stage("reference", stage)


def _record(params: Params, dataset: str, names: list[str], metrics: Path) -> Json:
    seconds = _seconds(dataset, logs_folder())
    return {
        "dataset": dataset,
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "command": f"python -m teddy.profile {dataset} && dvc repro",
        "hardware": describe(),
        "seconds": seconds,
        "minutes": round(sum(seconds.values()) / 60, 1),
        "sets": {
            name: _without_curves(read_json(metrics / "runs" / f"{name}.json")) for name in names
        },
    }


def _without_curves(record: Json) -> Json:
    labels = {
        kind: [{k: v for k, v in run.items() if k != "curve"} for run in runs]
        for kind, runs in record["labels"].items()
    }
    return record | {"labels": labels}


def _seconds(dataset: str, logs: Path) -> dict[str, float]:
    """Seconds of the last run of every stage instance of a dataset, from the timing logs."""
    seconds: dict[str, float] = {}
    for file in sorted(logs.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            name = entry["summary"].split(":")[0]
            if name.split("/")[0] == dataset and file.stem not in ("reference", "tune", "profile"):
                seconds[f"{file.stem} {name}"] = entry["seconds"]
    return seconds


def _commit() -> str:
    """The checked-out commit, marked if files differ from it."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _tables(params: Params, dataset: str, metrics: Path, record: Json) -> str:
    names = [leaf.name for leaf in params.leaves() if leaf.dataset == dataset]
    names = [name for name in params.targets["table1"] if name in names]
    scores = read_scores(params, metrics / "runs", names)
    pools = [p for p in read_pools(params, metrics / "pools") if p.dataset == dataset]
    paper = read_paper(metrics / "reference" / "paper.yaml")
    hardware = record["hardware"]
    machine = ", ".join([*hardware["gpus"], f"{hardware['cores']} cores of {hardware['cpu']}"])
    made = (
        f"Measured on {record['date']} at commit {record['commit']} with `{record['command']}` on "
        f"{machine}, PyTorch {hardware['packages']['torch']}: {record['minutes']} minutes of "
        "computing.\n"
    )
    tables = [*result_tables(scores, paper, params), pool_table(pools)]
    return "\n".join(
        [f"# {params.datasets[dataset].title}\n", made, *(t.markdown() for t in tables)]
    )


if __name__ == "__main__":
    main()
