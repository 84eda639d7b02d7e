"""Try settings on the validation split and keep the record.

``python -m tools.tune digits/main/ipc10/prior synthesize.lr=0.05,0.1 relabel.epochs=200`` runs the
chain of one set (prepare to evaluate) for every combination of the values, with students measured
on the validation split, and appends one line per combination to the record. The test split is never
looked at. A stage's key means that of the set's dataset. Upstream artifacts are kept under
``work/tune`` and shared between combinations that do not change them.
"""

import hashlib
import itertools
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from teddy.core.artifacts import source_digest
from teddy.core.console import parser
from teddy.core.errors import TeddyError
from teddy.core.files import Json, read_json
from teddy.core.runtime import log, run_stage
from teddy.report.records import by_synthesis, spread_of
from teddy.settings.configs import STAGES
from teddy.settings.declared import Declared
from teddy.settings.rows import KINDS
from teddy.settings.schema import check, parse_yaml, read_yaml, suggest, to_json
from teddy.stages import commands
from teddy.stages.resolve import write_inputs

Override = tuple[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("name", help="row of sets in an experiment file that is switched on")
    options.add_argument(
        "settings", nargs="*", help="key=value[,value…] of params.yaml, at least one"
    )
    options.add_argument(
        "--record", type=Path, default=Path("metrics/tuning.jsonl"),
        help="file to append a line per combination to (default: %(default)s)",
    )  # fmt: skip
    args = options.parse_args(argv)
    os.environ["TEDDY_WORKERS"] = "1"  # workers are forked, and this process trains networks itself

    def stage() -> str:
        if not args.settings:
            raise TeddyError(f"{args.name}: expected settings to try, key=value[,value…]")
        combinations = list(itertools.product(*(_values(text) for text in args.settings)))
        for overrides in combinations:
            with tempfile.TemporaryDirectory() as folder:
                result = _try(args.name, overrides, Path(folder))
            args.record.parent.mkdir(parents=True, exist_ok=True)
            with args.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result, sort_keys=True) + "\n")
            log(f"  {_line(result)}")
        return f"{args.name}: {len(combinations)} combinations, recorded in {args.record}"

    run_stage("tune", stage)


def _values(text: str) -> list[Override]:
    """``a.b=1,2`` as [("a.b", 1), ("a.b", 2)]; a value in brackets is a list."""
    key, separator, values = text.partition("=")
    if not (separator and values.strip()):
        raise TeddyError(f"expected key=value, got {text!r}")
    return [(key, value) for value in parse_yaml(f"[{values}]", text)]


def _try(name: str, overrides: Sequence[Override], folder: Path) -> Json:
    """Run the chain of a set under some overrides; its validation accuracy."""
    declared = Declared(Path())
    if name not in declared.sets:
        raise TeddyError(f"no row {name!r} in sets; {suggest(name, declared.sets)}")
    dataset = declared.dataset_of(declared.sets[name].data)
    try:
        changed = _checkout(declared, dataset, overrides, folder)
        for row in (("pools", changed.sets[name].pool), ("sets", name)):
            check(row not in changed.unfit, changed.unfit.get(row, ""))
        settings = _resolved(changed, name)
        write_inputs(folder, folder / "inputs")
    except TeddyError as error:  # of files that are gone when the message is read
        tried = ", ".join(f"{key}={value}" for key, value in overrides)
        raise TeddyError(f"{tried}: {str(error).replace(f'{folder}/', '')}") from None
    if settings == _resolved(declared, name):
        raise TeddyError(f"{dict(overrides)} changes nothing for {name}; does its row decide it?")
    record = _evaluate(changed, name, folder, _upstream(changed, name, folder))
    result: Json = {"set": name, "tried": dict(overrides), "split": "val", "settings": settings}
    for kind, runs in record["labels"].items():
        top1 = by_synthesis(runs, "top1_last")
        mean = round(statistics.fmean(map(statistics.fmean, top1)), 2)
        std = round(spread_of(top1), 2)
        result[kind] = {"top1_mean": mean, "top1_std": std, "n": len(runs)}
    return result


def _line(result: Json) -> str:
    found = (f"{kind} {result[kind]['top1_mean']}" for kind in KINDS if kind in result)
    return f"{result['tried']}: {', '.join(found)} % on the validation split"


# --------------------------------------------------------------------------------------- settings


def _checkout(
    declared: Declared, dataset: str, overrides: Sequence[Override], folder: Path
) -> Declared:
    """This checkout's parameter files in another folder, with some settings changed."""
    of_dataset, section = declared.place_of_dataset(dataset)
    for file in declared.files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / file)
    for key, value in overrides:
        own = key.split(".")[0] in (*STAGES, "dsa")
        path = folder / (of_dataset if own else "params.yaml")
        raw = json.loads(json.dumps(read_yaml(path)))  # in which nothing is shared
        _assign(raw, f"{section}.{key}".strip(".") if own else key, value)
        path.write_text(json.dumps(raw), encoding="utf-8")  # JSON is YAML
    return Declared(folder)


def _assign(raw: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        raw = raw.setdefault(part, {})
    raw[last] = value


def _resolved(declared: Declared, name: str) -> Json:
    """All settings that a set and its evaluation depend on."""
    return {
        "synthesize": to_json(declared.algorithm_config(name)),
        "relabel": to_json(declared.relabel(name)),
        "evaluate": to_json(declared.evaluate(name)),
    } | _before(declared, name)


def _before(declared: Declared, name: str) -> Json:
    """Everything that prepared images, base runs and pool of a set depend on."""
    of = declared.sets[name].pool
    pool = declared.pools[of]
    return {
        "seed": declared.seed,
        "prepare": [[data, to_json(declared.prepare(data))] for data in _data(declared, name)],
        "train_teacher": [
            [base, declared.bases[base].data, to_json(declared.train_teacher(base))]
            for base in (pool.base, pool.curve)
        ],
        "pool": [of, pool.data, pool.kind, to_json(declared.pool(of))],
    }


def _data(declared: Declared, name: str) -> list[str]:
    """Prepared images of a set, its pool and the pool's base runs, each once."""
    row = declared.sets[name]
    pool = declared.pools[row.pool]
    bases = (declared.bases[base].data for base in (pool.base, pool.curve))
    return list(dict.fromkeys((row.data, pool.data, *bases)))


# ------------------------------------------------------------------------------------- the chain


def _upstream(declared: Declared, name: str, folder: Path) -> Path:
    """Folder of a set's prepared images, base runs and pool, which appears whole."""
    key = json.dumps([_before(declared, name), source_digest()], sort_keys=True)
    root = Path("work/tune") / hashlib.sha256(key.encode()).hexdigest()[:16]
    if root.exists():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    of = declared.sets[name].pool
    pool = declared.pools[of]
    with tempfile.TemporaryDirectory(dir=root.parent) as unfinished:
        new, facts = Path(unfinished) / "new", folder / "facts"
        for data in _data(declared, name):
            _run("prepare", data, folder, out=new / "data" / data)
        for base in dict.fromkeys((pool.base, pool.curve)):
            _run(
                "train_teacher", base, folder, curve=facts / f"{base}.json",
                data=new / "data" / declared.bases[base].data, out=new / "models" / base,
            )  # fmt: skip
        _run(
            "build_pool", of, folder, data=new / "data" / pool.data,
            base=new / "models" / pool.base, curve=facts / f"{pool.curve}.json",
            out=new / "models" / of, facts=facts / "pool.json",
        )  # fmt: skip
        new.rename(root)
    return root


def _evaluate(declared: Declared, name: str, folder: Path, upstream: Path) -> Json:
    """Make a set and train students; their record."""
    row = declared.sets[name]
    data, pool = upstream / "data" / row.data, upstream / "models" / row.pool
    made, labels, record = (folder / file for file in ("set", "labels", "record.json"))
    history = folder / "history.json"
    _run("synthesize", name, folder, data=data, pool=pool, out=made, history=history)
    _run("relabel", name, folder, set=made, pool=pool, out=labels)
    _run(
        "evaluate", name, folder, data=data, set=made, labels=labels, pool=pool,
        out=record, split="val",
    )  # fmt: skip
    return read_json(record)


def _run(stage: str, row: str, folder: Path, **options: object) -> None:
    """Run a stage for a row with the settings of a folder."""
    given = {"settings": folder / "inputs" / stage / f"{row}.json"} | options
    arguments = (text for key, value in given.items() for text in (f"--{key}", str(value)))
    commands.main([stage, *arguments])


if __name__ == "__main__":
    main()
