"""What stages depend on that DVC cannot find out by itself: their code and their rows.

DVC does not follow imports: a stage that lists only its script stays "up to date" when a module it
imports changes. Its stage ``code`` runs ``python -m teddy.dependencies --code code``, which writes
the checksums of all modules that each stage imports into ``code/<stage>.json``, and every stage
depends on that one file. Listing the modules themselves would put thirty more entries per stage
into ``dvc.lock``, all of which DVC reads and writes again at the end of every stage.

Nor can DVC make a list of files from ``params.yaml``: a table or figure must list the record of
every row that it shows, and the titles of its datasets rather than all that is said of datasets.
``python -m teddy.dependencies`` rewrites these lists after a row of ``targets`` has changed; tests
hold them.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from teddy.config import Params
from teddy.console import parser, run_command
from teddy.files import Json, atomic_path, write_json
from teddy.records import read_kept
from teddy.results import Kept
from teddy.rows import Leaf
from teddy.schema import to_json

_ROOT = Path(__file__).parents[2]
_OPTION = re.compile(r"--\w+\s+(\S+)")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("--dvc", type=Path, default=Path("dvc.yaml"))
    options.add_argument(
        "--code", type=Path, metavar="FOLDER", help="write the stages' checksums there instead"
    )
    args = options.parse_args(argv)

    def command() -> str:
        if args.code:
            write_json(args.code / "rows.json", identities(Params(args.params)))
            return f"{len(write_code(args.code))} stages, checksums in {args.code}"
        changed = update(args.dvc, Params(args.params))
        return f"{args.dvc}: {'brought up to date' if changed else 'nothing to change'}"

    run_command("dependencies", command)


def update(dvc: Path, params: Params) -> bool:
    """Rewrite the lists of a ``dvc.yaml``; whether anything changed."""
    before = dvc.read_text(encoding="utf-8")
    after = with_inputs(before, params, read_kept(dvc.parent / "metrics/reference"))
    if after == before:
        return False
    with atomic_path(dvc) as temporary:
        temporary.write_text(after, encoding="utf-8")
    return True


def write_code(folder: Path) -> list[Path]:
    """Write ``<stage>.json`` for every module of :mod:`teddy.stages`: the SHA-256 of each module
    that it imports, itself included.
    """
    written = []
    for file in sorted((_ROOT / "src" / "teddy" / "stages").glob("*.py")):
        if file.stem != "__init__":
            modules = sorted(imported(f"teddy.stages.{file.stem}"))
            sums = {m: hashlib.sha256((_ROOT / m).read_bytes()).hexdigest() for m in modules}
            written.append(folder / f"{file.stem}.json")
            write_json(written[-1], sums)
    return written


def identities(params: Params) -> Json:
    """What rows there are and what each is of, without settings: for stages that show all of them.

    Their own records tell the rest; but not that a row has gone.
    """
    sections = ("prepared", "bases", "pools", "sets", "scores", "step_teachers", "streams")
    return {
        section: {name: to_json(row) for name, row in getattr(params, section).items()}
        for section in sections
    }


def _stages(text: str) -> list[str]:
    """The text cut before every stage; what stands before the first one is a part too."""
    return re.split(r"(?m)^(?=  [\w-]+:$)", text)


def with_inputs(text: str, params: Params, kept: Sequence[Kept] = ()) -> str:
    """``dvc.yaml`` with every target's stages depending on what they read of the rows it shows.

    A stage is a target's if its command names one. Folders on its command line stand for the files
    in them that belong to the target's rows.

    Args:
        text: the file.
        params: rows of the targets.
        kept: runs that stand behind them, whose datasets need not have rows.
    """
    stages = YAML(typ="safe").load(StringIO(text))["stages"]
    return "".join(_stage_with_inputs(part, stages, params, kept) for part in _stages(text))


def _stage_with_inputs(
    part: str, stages: Mapping[str, Any], params: Params, kept: Sequence[Kept]
) -> str:
    match = re.match(r"  ([\w-]+):$", part.split("\n", 1)[0])
    stage = stages[match[1]] if match else {}
    if "cmd" not in stage:
        return part  # a stage of rows, or none
    if target_of(stage):
        code = [dep for dep in stage["deps"] if dep.startswith("code/")]
        part = _with_list(part, "deps", [*target_inputs(stage, params), *code])
    if target_of(stage) or "methods" in stage.get("params", ()):
        part = _with_list(part, "params", target_params(stage, params, kept))
    return part


def _with_list(part: str, key: str, entries: Iterable[str]) -> str:
    """The text of a stage with other entries under one of its keys, sorted."""
    head, body = part.split(f"    {key}:\n", 1)
    rest = re.sub(r"\A(      - .*\n)+", "", body)
    return f"{head}    {key}:\n" + "".join(f"      - {e}\n" for e in sorted(entries)) + rest


def target_of(stage: Mapping[str, Any]) -> str:
    """Name of the target that a stage's command makes, or ""."""
    found = re.search(r"-m teddy\.stages\.\w+ ([a-z][\w-]*)", stage["cmd"])
    return found[1] if found else ""


_OF_ROWS = ("datasets.", "prepared.", "bases.", "pools.", "sets.", "streams.")


def target_params(stage: Mapping[str, Any], params: Params, kept: Sequence[Kept] = ()) -> set[str]:
    """Params that a stage depends on which shows rows: titles, and rows that it takes apart.

    DVC keeps a copy of every param in ``dvc.lock``, so that whole sections are slow.

    Args:
        stage: its entry in ``dvc.yaml``; of its own list, what is not of a row stays.
        params: the rows.
        kept: runs that stand behind the targets.
    """
    target = target_of(stage)
    found = {entry for entry in stage["params"] if not entry.startswith(_OF_ROWS)}
    names = params.targets.get(target, ())
    streams = [name for name in names if name in params.streams]
    leaves = [params.leaf(name) for name in names if name not in streams]
    datasets = {leaf.dataset for leaf in leaves} | {params.streams[n].dataset for n in streams}
    if "teddy.stages.measure_costs" in stage["cmd"]:
        stages = ("train_teacher", "pool", "synthesize")
        found |= {*stages, *(f"datasets.{name}.{stage}" for name in datasets for stage in stages)}
        pools = {params.sets[leaf.set].pool for leaf in leaves}
        found |= {f"sets.{leaf.set}" for leaf in leaves} | {f"pools.{pool}" for pool in pools}
        found |= {f"bases.{params.pools[pool].base}" for pool in pools}
        return found
    if not target:
        datasets = {row.dataset for row in params.prepared.values()}
    if "teddy.stages.target" in stage["cmd"]:
        found |= {f"prepared.{leaf.data}" for leaf in leaves}
        datasets |= {run.dataset for run in kept if run.target == target}
    found |= {f"datasets.{name}.{key}" for name in datasets for key in ("title", "paper")}
    return found | {f"streams.{name}" for name in streams}


def target_inputs(stage: Mapping[str, Any], params: Params) -> set[str]:
    """Files that a target's stage reads, from the paths on its command line.

    Args:
        stage: its entry in ``dvc.yaml``.
        params: rows that the target shows.
    """
    names = params.targets.get(target_of(stage), ())
    leaves = [params.leaf(name) for name in names if name not in params.streams]
    outs = {next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]}
    found: set[str] = set()
    for path in _OPTION.findall(stage["cmd"]):
        if path not in outs:
            found |= {_file_of(path, leaf, params) for leaf in leaves}
            found |= set() if path in _FOLDERS else {path}
            if path == _STREAMS:
                found |= {f"{path}/{name}.json" for name in names if name in params.streams}
    return found


_STREAMS = "metrics/streams"
_FOLDERS = (
    "metrics/runs", "metrics/synthesis", "data/distilled", "data/prepared", "models", _STREAMS,
)  # fmt: skip


def _file_of(path: str, leaf: Leaf, params: Params) -> str:
    files = {
        "metrics/runs": f"{path}/{leaf.name}.json",
        "metrics/synthesis": f"{path}/{leaf.set}.json",
        "data/distilled": f"{path}/{leaf.set}.safetensors",
        "data/prepared": f"{path}/{params.sets[leaf.set].data}",
        "models": f"{path}/{params.sets[leaf.set].pool}",
    }
    return files.get(path, path)


def imported(module: str) -> set[str]:
    """Files of this package that a module imports, itself included; relative to the repository.

    Args:
        module: dotted name, ``teddy.stages.report`` say.
    """
    seen, todo = {_file(module)}, [_file(module)]
    while todo:
        for found in _imports(todo.pop()) - seen:
            seen.add(found)
            todo.append(found)
    return {found.relative_to(_ROOT).as_posix() for found in seen}


def _file(module: str) -> Path:
    return _ROOT / "src" / (module.replace(".", "/") + ".py")


@functools.cache
def _imports(file: Path) -> set[Path]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {file for file in map(_file, names) if file.is_file()}


if __name__ == "__main__":
    main()
