"""Try settings on the validation split and keep the record.

``python -m tools.tune digits/prior/ipc10 synthesize.lr=0.05,0.1 relabel.epochs=200`` runs the chain
of one set (prepare to evaluate) for every combination of the values, with students measured on the
validation split, and appends one line per combination to the record. The test split is never
looked at. A stage's key means that of the set's dataset. Upstream artifacts are kept under
``work/tune`` and shared between combinations that do not change them.
"""

import argparse
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from teddy.core.artifacts import source_digest
from teddy.core.errors import TeddyError
from teddy.core.files import read_json
from teddy.core.runtime import log, run_stage
from teddy.settings.configs import STAGES
from teddy.settings.params import Params
from teddy.settings.schema import to_json
from teddy.stages import build_pool, evaluate, prepare, relabel, synthesize, train_teacher
from teddy.students.evaluation import mean_and_std

Override = tuple[str, Any]
_RECORDED = ("synthesize", "relabel", "evaluate")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="key of sets in params.yaml")
    parser.add_argument("settings", nargs="*", help="key=value[,value…] of params.yaml")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--record", type=Path, default=Path("metrics/tuning.jsonl"))
    args = parser.parse_args(argv)
    os.environ["TEDDY_WORKERS"] = "1"  # workers are forked, and this process trains networks itself

    def stage() -> str:
        combinations = list(itertools.product(*(_values(text) for text in args.settings)))
        for overrides in combinations:
            result = _try(args.name, overrides, args.params)
            args.record.parent.mkdir(parents=True, exist_ok=True)
            with args.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result, sort_keys=True) + "\n")
            log(f"  {_line(result)}")
        return f"{args.name}: {len(combinations)} combinations, recorded in {args.record}"

    run_stage("tune", stage)


def _values(text: str) -> list[Override]:
    """``a.b=1,2`` as [("a.b", 1), ("a.b", 2)]; a value in brackets is a list."""
    key, separator, values = text.partition("=")
    if not separator:
        raise TeddyError(f"expected key=value, got {text!r}")
    parse = YAML(typ="safe").load
    if values.startswith("["):
        return [(key, value) for value in parse(f"[{values}]")]
    return [(key, parse(value)) for value in values.split(",")]


def _try(name: str, overrides: Sequence[Override], path: Path) -> dict[str, Any]:
    """Run the chain of a set under some overrides; its validation accuracy."""
    yaml = YAML()
    raw = yaml.load(path)
    dataset = Params(path).row("sets", name).dataset
    for key, value in overrides:
        layer = f"datasets.{dataset}." if key.split(".")[0] in STAGES else ""
        _assign(raw, layer + key, value)
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / "params.yaml"
        yaml.dump(raw, changed)
        config = Params(changed)
        row = config.row("sets", name)
        if overrides and _resolved(config, name) == _resolved(Params(path), name):
            raise TeddyError(
                f"{dict(overrides)} changes nothing for {name}; does its row decide it?"
            )
        root = Path("work/tune") / _key(_upstream(config, name))
        if not root.exists():
            _make_upstream(row, changed, root)
        out = Path(folder)
        record = _score(name, row, changed, root, out)
    result: dict[str, Any] = {
        "set": name,
        "tried": dict(overrides),
        "split": "val",
        "settings": _resolved(config, name),
    }
    for kind, runs in record["labels"].items():
        mean, std = mean_and_std([run["top1_last"] for run in runs])
        result[kind] = {"top1_mean": round(mean, 2), "top1_std": round(std, 2), "n": len(runs)}
    return result


def _line(result: dict[str, Any]) -> str:
    scores = (f"{kind} {result[kind]['top1_mean']}" for kind in ("hard", "soft") if kind in result)
    return f"{result['tried']}: {', '.join(scores)} % on the validation split"


def _assign(raw: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        raw = raw.setdefault(part, {})
    raw[last] = value


def _key(parts: Any) -> str:
    text = json.dumps([parts, source_digest()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _upstream(config: Params, name: str) -> dict[str, Any]:
    """Everything that prepared images, base run and pool of a set depend on."""
    row = config.row("sets", name)
    pool = config.row("pools", row.pool)
    return {
        "seed": config.seed,
        "prepare": [[data, to_json(config.prepare(data))] for data in _data_of(config, row)],
        "train_teacher": [
            [base, config.row("bases", base).data, to_json(config.train_teacher(base))]
            for base in (pool.base, pool.curve)
        ],
        "pool": [row.pool, pool.data, pool.kind, to_json(config.pool(row.pool))],
    }


def _data_of(config: Params, row: Any) -> list[str]:
    """Prepared images of a set, its pool and the pool's base runs, each once."""
    pool = config.row("pools", row.pool)
    bases = [config.row("bases", base) for base in (pool.base, pool.curve)]
    return list(dict.fromkeys(each.data for each in (row, pool, *bases)))


def _resolved(config: Params, name: str) -> dict[str, Any]:
    """All settings that a set and its score depend on."""
    own = {stage: to_json(getattr(config, stage)(name)) for stage in _RECORDED}
    return own | _upstream(config, name)


def _make_upstream(row: Any, params: Path, root: Path) -> None:
    """Prepared images, base run and pool of a set, in a folder that appears whole."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        new = Path(folder) / "new"
        config, common = Params(params), ["--params", str(params)]
        pool = config.row("pools", row.pool)
        for name in _data_of(config, row):
            prepare.main([name, "--out", str(new / "data" / name), *common])
        for base in dict.fromkeys((pool.base, pool.curve)):
            data = new / "data" / config.row("bases", base).data
            train_teacher.main(
                [base, "--data", str(data), "--out", str(new / base),
                 "--curve", f"{folder}/{base}.json", *common]
            )  # fmt: skip
        build_pool.main(
            [row.pool, "--data", str(new / "data" / pool.data), "--base", str(new / pool.base),
             "--curve", f"{folder}/{pool.curve}.json", "--out", str(new / row.pool),
             "--facts", f"{folder}/pool.json", *common]
        )  # fmt: skip
        new.rename(root)


def _score(name: str, row: Any, params: Path, root: Path, out: Path) -> dict[str, Any]:
    data, pool = str(root / "data" / row.data), str(root / row.pool)
    images, labels, score = str(out / "set"), str(out / "labels"), str(out / "score.json")
    common = ["--pool", pool, "--params", str(params)]
    synthesize.main(
        [name, "--data", data, "--out", images, "--history", str(out / "history.json"), *common]
    )
    relabel.main([name, "--set", images, "--out", labels, *common])
    evaluate.main(
        [name, "--data", data, "--set", images, "--labels", labels, "--out", score,
         "--split", "val", *common]
    )  # fmt: skip
    return read_json(Path(score))


if __name__ == "__main__":
    main()
