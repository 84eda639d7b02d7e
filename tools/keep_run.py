"""Keep a dataset's table as reference, with the hardware, date and commit.

``python -m tools.keep_run cifar10-cpu`` writes what the last ``dvc repro`` measured on a dataset
for Table 1 to ``metrics/reference/<dataset>-table1.json``, and tables beside it; ``--target`` names
another table or figure. Results which need a GPU, a download or an hour stay in the repository and
on the report page this way, while the dataset need not stay switched on.
"""

import argparse
import dataclasses
import functools
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from teddy.core.console import logs_folder, parser, run_command
from teddy.core.errors import TeddyError
from teddy.core.files import Json, read_json, write_json
from teddy.core.hardware import describe
from teddy.core.tables import write_text
from teddy.report.records import kept_run, read_evaluations, read_paper, read_pools
from teddy.report.targets import MAKERS, TITLES, kept_table
from teddy.report.training_tables import pool_table
from teddy.settings.schema import read_yaml, to_json
from teddy.settings.stages import Catalogue, ReportSettings, TableSettings, read_settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("dataset", help="that dvc.yaml has switched on")
    options.add_argument(
        "--target", default="table1", choices=MAKERS, metavar="TARGET",
        help="table or figure whose results to keep (default: table1)",
    )  # fmt: skip
    options.add_argument(
        "--inputs", type=Path, default=Path("inputs"),
        help="settings files of the stages (default: %(default)s)",
    )  # fmt: skip
    options.add_argument(
        "--metrics", type=Path, default=Path("metrics"),
        help="folder of the records, and of reference/, which is written (default: %(default)s)",
    )  # fmt: skip
    options.add_argument(
        "--lock", type=Path, default=Path("dvc.lock"),
        help="says which stages made the results (default: %(default)s)",
    )  # fmt: skip
    args = options.parse_args(argv)

    def command() -> str:
        path = args.inputs / args.target / f"{args.dataset}.json"
        if not path.is_file():
            raise TeddyError(
                f"{path}: not found; name experiments/{args.dataset}.yaml under vars of dvc.yaml, "
                f"then run: dvc repro {args.target}@{args.dataset}"
            )
        settings = read_settings(TableSettings, path)
        record = _record(settings, args)
        folder, name = args.metrics / "reference", f"{args.dataset}-{args.target}"
        write_json(folder / f"{name}.json", record, in_order=True)
        write_text(folder / f"{name}.md", _tables(record, args))
        return f"{name}: {len(settings.evaluations)} evaluations kept in {folder}"

    run_command("keep_run", command)


def _record(settings: TableSettings, args: argparse.Namespace) -> Json:
    folder = args.metrics / "evaluations"
    read_evaluations(settings.evaluations, folder)  # refuses records of other rows
    lock = read_yaml(args.lock)["stages"] if args.lock.is_file() else {}
    names = [row.name for row in settings.evaluations]
    seconds, known = _seconds(_stages(lock, names), logs_folder())
    shown = to_json(dataclasses.replace(settings, catalogue=_needed(settings)))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "command": f"dvc repro {settings.target}@{settings.dataset}",
        "hardware": describe(),
        "minutes": round(sum(seconds.values()) / 60, 1) if known else None,
        "seconds": seconds,
        "settings": {key: value for key, value in shown.items() if key != "code"},
        "evaluations": {name: _short(read_json(folder / f"{name}.json")) for name in names},
    }


def _needed(settings: TableSettings) -> Catalogue:
    """Names of the dataset and of the methods that a table shows."""
    methods = {row.method for row in settings.evaluations}
    own = settings.catalogue
    return Catalogue(
        datasets={settings.dataset: own.datasets[settings.dataset]},
        methods={name: row for name, row in own.methods.items() if name in methods},
    )


def _short(record: Json) -> Json:
    """A record without the curves of its students."""
    labels = {
        kind: [{k: v for k, v in student.items() if k != "curve"} for student in students]
        for kind, students in record["labels"].items()
    }
    return record | {"labels": labels}


def _stages(lock: Json, names: Sequence[str]) -> list[str]:
    """All stages of rows that evaluations are made by, as ``dvc.lock`` has them: stage@row."""
    makers = {out["path"]: stage for stage, own in lock.items() for out in own.get("outs", ())}
    wanted = [makers.get(f"metrics/evaluations/{name}.json", f"evaluate@{name}") for name in names]
    found: dict[str, None] = {}
    while wanted:
        stage = wanted.pop()
        if stage not in found:
            found[stage] = None
            deps = [dep["path"] for dep in lock.get(stage, {}).get("deps", ())]
            wanted += [makers[path] for path in deps if "@" in makers.get(path, "")]
    return sorted(found)


def _seconds(stages: Sequence[str], logs: Path) -> tuple[dict[str, float], bool]:
    """Seconds of the last run of every stage, and whether all are known."""
    seconds: dict[str, float] = {}
    for stage, row in (stage.split("@") for stage in stages):
        module = {"reevaluate": "evaluate"}.get(stage, stage)
        file = logs / f"{module}.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            entry = json.loads(line)
            if entry["summary"].split(":")[0] == row:
                seconds[f"{stage} {row}"] = entry["seconds"]
    return seconds, len(seconds) == len(stages)


def _commit() -> str:
    """The checked-out commit, marked if its code was changed; dvc.yaml switches datasets on."""
    ask = functools.partial(subprocess.run, capture_output=True, text=True, check=False)
    commit = ask(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
    changed = ask(["git", "status", "--porcelain", "--", "src"]).stdout.strip()
    return f"{commit or 'unknown'}{'-dirty' if changed else ''}"


def _tables(record: Json, args: argparse.Namespace) -> str:
    run = kept_run(record)
    settings = run.settings
    labelling = {row.pool for row in settings.evaluations}
    rows = read_settings(ReportSettings, args.inputs / "report.json").pools
    pools = read_pools([row for row in rows if row.name in labelling], args.metrics / "pools")
    minutes = "An unknown number of" if record["minutes"] is None else record["minutes"]
    title = settings.catalogue.datasets[settings.dataset].title
    paper = read_paper(args.metrics / "reference" / "paper.yaml")
    parts = [
        f"# {title}: {TITLES[settings.target]}\n",
        f"{minutes} minutes of computing, stages after one another.\n",
        kept_table(run, paper).markdown(),
        pool_table(pools).markdown(),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
