"""Keep a dataset's results as reference metrics, with the hardware, date and commit.

``python -m tools.keep_run cifar10-cpu`` writes what the last ``dvc repro`` measured on a dataset
for Table 1 to ``metrics/reference/<dataset>-table1.json``, and tables beside it; ``--target`` names
another table or figure. Results which need a GPU, a download or an hour stay in the repository this
way, while the default profile stays small.
"""

import argparse
import functools
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from teddy.core.console import logs_folder
from teddy.core.errors import TeddyError
from teddy.core.files import Json, read_json, write_json
from teddy.core.hardware import describe
from teddy.core.runtime import run_stage
from teddy.core.tables import write_text
from teddy.report.records import declared_facts, kept_run, read_paper, read_pools, read_scores
from teddy.report.targets import MAKERS, TITLES, declared_rows, kept_table
from teddy.report.training_tables import pool_table
from teddy.settings.params import Params


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="key of datasets in params.yaml")
    parser.add_argument(
        "--target", default="table1", help="table or figure whose rows to keep (default: table1)"
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--metrics", type=Path, default=Path("metrics"))
    args = parser.parse_args(argv)

    def stage() -> str:
        params = Params(args.params)
        params.row("datasets", args.dataset)
        if args.target not in MAKERS:
            raise TeddyError(f"--target {args.target}: expected one of {', '.join(MAKERS)}")
        declared = declared_rows(params, args.target)
        names = [name for name in declared if params.leaf(name).dataset == args.dataset]
        if not names:
            raise TeddyError(
                f"{args.params}: targets.{args.target} has no row of {args.dataset}; add its "
                f"profile first: python -m tools.profile {args.dataset}"
            )
        folder, name = args.metrics / "reference", f"{args.dataset}-{args.target}"
        record = _record(params, args, names)
        tables = _tables(params, args, record)
        write_json(folder / f"{name}.json", record)
        write_text(folder / f"{name}.md", tables)
        return f"{name}: {len(names)} scores kept in {folder}"

    run_stage("reference", stage)


def _record(params: Params, args: argparse.Namespace, names: Sequence[str]) -> Json:
    read_scores(params, args.metrics / "runs", names)  # refuses records of other rows
    seconds, known = _seconds(params, names, logs_folder())
    scores = {}
    for name in names:
        record = _without_curves(read_json(args.metrics / "runs" / f"{name}.json"))
        scores[name] = record | declared_facts(params, params.leaf(name))
    return {
        "dataset": args.dataset,
        "target": args.target,
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "command": f"python -m tools.profile {args.dataset} && dvc repro {args.target}",
        "hardware": describe(),
        "seconds": seconds,
        "minutes": round(sum(seconds.values()) / 60, 1) if known else None,
        "scores": scores,
    }


def _without_curves(record: Json) -> Json:
    labels = {
        kind: [{k: v for k, v in run.items() if k != "curve"} for run in runs]
        for kind, runs in record["labels"].items()
    }
    return record | {"labels": labels}


def _seconds(params: Params, names: Sequence[str], logs: Path) -> tuple[dict[str, float], bool]:
    """Seconds of the last run of every stage that these scores need, and whether all are known."""
    leaves = [params.leaf(name) for name in names]
    sets = {leaf.set for leaf in leaves}
    pools = {leaf.pool for leaf in leaves} | {params.sets[name].pool for name in sets}
    bases = {base for pool in pools for base in (params.pools[pool].base, params.pools[pool].curve)}
    needed = {
        "prepare": {leaf.data for leaf in leaves},
        "train_teacher": bases,
        "build_pool": pools,
        "synthesize": sets,
        "relabel": sets,
        "evaluate": {leaf.name for leaf in leaves},
    }
    seconds: dict[str, float] = {}
    for stage, rows in needed.items():
        file = logs / f"{stage}.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            entry = json.loads(line)
            name = entry["summary"].split(":")[0]
            if name in rows:
                seconds[f"{stage} {name}"] = entry["seconds"]
    return seconds, len(seconds) == sum(map(len, needed.values()))


def _commit() -> str:
    """The checked-out commit, marked if its code was changed; profiles change params.yaml."""
    ask = functools.partial(subprocess.run, capture_output=True, text=True, check=False)
    commit = ask(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
    changed = ask(["git", "status", "--porcelain", "--", "src"]).stdout.strip()
    return f"{commit or 'unknown'}{'-dirty' if changed else ''}"


def _tables(params: Params, args: argparse.Namespace, record: Json) -> str:
    run = kept_run(record)
    shown = {score.pool for score in run.scores}
    pools = read_pools(params, args.metrics / "pools", shown)
    minutes = "An unknown number of" if record["minutes"] is None else record["minutes"]
    title = f"# {params.datasets[args.dataset].title}: {TITLES[args.target]}\n"
    cost = f"{minutes} minutes of computing, stages after one another.\n"
    paper = read_paper(args.metrics / "reference" / "paper.yaml")
    tables = [kept_table(run, paper, params), pool_table(pools)]
    return "\n".join([title, cost, *(table.markdown() for table in tables)])


if __name__ == "__main__":
    main()
