"""What stages depend on that DVC cannot find out by itself: code, settings and rows.

DVC does not follow imports: a stage that lists only its script stays "up to date" when a module it
imports changes. And it copies every param of every stage into ``dvc.lock``, all of which it reads
and writes again after each stage: 8 s at 38,000 lines, one stage at a time. So the first stage,
``inputs``, runs ``python -m tools.dependencies --inputs inputs`` every time, which writes
``inputs/<stage>/<row>.json``: checksums of the modules that the stage imports, and the settings
that it reads, resolved. Every other stage depends on its own file. (Run it by hand to have ``dvc
status`` tell what a change of ``params.yaml`` or of the code makes stale.)

Nor can DVC make a list of files from ``params.yaml``: a table or figure must list the record of
every row that it shows. ``python -m tools.dependencies`` rewrites these lists after a row of
``targets`` has changed; tests hold them.
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

from teddy.core.console import parser, run_command
from teddy.core.files import Json, atomic_path, write_json
from teddy.report.records import read_kept
from teddy.report.results import Kept
from teddy.settings.params import Params
from teddy.settings.rows import Leaf
from tools.stage_settings import settings_of

_ROOT = Path(__file__).parents[1]
_OPTION = re.compile(r"--\w+\s+(\S+)")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("--dvc", type=Path, default=Path("dvc.yaml"))
    options.add_argument(
        "--inputs", type=Path, metavar="FOLDER", help="write what the stages depend on there"
    )
    args = options.parse_args(argv)

    def command() -> str:
        params = Params(args.params)
        if args.inputs:
            kept = read_kept(args.dvc.parent / "metrics/reference")
            return (
                f"{len(write_inputs(args.inputs, args.dvc, params, kept))} files in {args.inputs}"
            )
        changed = update(args.dvc, params)
        return f"{args.dvc}: {'brought up to date' if changed else 'nothing to change'}"

    run_command("dependencies", command)


def update(dvc: Path, params: Params) -> bool:
    """Rewrite the lists of a ``dvc.yaml``; whether anything changed."""
    before = dvc.read_text(encoding="utf-8")
    after = with_inputs(before, params)
    if after == before:
        return False
    with atomic_path(dvc) as temporary:
        temporary.write_text(after, encoding="utf-8")
    return True


def write_inputs(folder: Path, dvc: Path, params: Params, kept: Sequence[Kept] = ()) -> list[Path]:
    """Write a file for every stage of a ``dvc.yaml``, or for every row of a stage that has rows.

    Args:
        folder: to write to.
        dvc: the pipeline.
        params: what its stages read.
        kept: runs that its tables show too.
    """
    written = []
    for stage, entry in YAML(typ="safe").load(dvc)["stages"].items():
        body = entry.get("do", entry)
        module = module_of(body)
        if not module:
            continue  # the stage that writes them
        code = _checksums(module)
        rows = getattr(params, entry["foreach"][2:-1]) if "foreach" in entry else None
        names = {"": target_of(body)} if rows is None else {f"/{row}": row for row in rows}
        for place, name in names.items():
            written.append(folder / f"{stage}{place}.json")
            settings = settings_of(module, name, params, kept)
            write_json(written[-1], {"code": code, "settings": settings})
    return written


@functools.cache
def _checksums(module: str) -> Json:
    """SHA-256 of every module that a stage imports, itself included."""
    files = sorted(imported(f"teddy.stages.{module}"))
    return {file: hashlib.sha256((_ROOT / file).read_bytes()).hexdigest() for file in files}


def _stages(text: str) -> list[str]:
    """The text cut before every stage; what stands before the first one is a part too."""
    return re.split(r"(?m)^(?=  [\w-]+:$)", text)


def with_inputs(text: str, params: Params) -> str:
    """``dvc.yaml`` with every target's stages depending on the files of the rows it shows.

    A stage is a target's if its command names one. Folders on its command line stand for the files
    in them that belong to the target's rows.
    """
    stages = YAML(typ="safe").load(StringIO(text))["stages"]
    return "".join(_stage_with_inputs(part, stages, params) for part in _stages(text))


def _stage_with_inputs(part: str, stages: Mapping[str, Any], params: Params) -> str:
    match = re.match(r"  ([\w-]+):$", part.split("\n", 1)[0])
    stage = stages[match[1]] if match else {}
    if not target_of(stage):
        return part  # a stage of rows, or none
    own = [dep for dep in stage["deps"] if dep.startswith("inputs/")]
    return _with_list(part, "deps", [*target_inputs(stage, params), *own])


def _with_list(part: str, key: str, entries: Iterable[str]) -> str:
    """The text of a stage with other entries under one of its keys, sorted."""
    head, body = part.split(f"    {key}:\n", 1)
    rest = re.sub(r"\A(      - .*\n)+", "", body)
    return f"{head}    {key}:\n" + "".join(f"      - {e}\n" for e in sorted(entries)) + rest


def module_of(stage: Mapping[str, Any]) -> str:
    """Module of :mod:`teddy.stages` that a stage's command runs, or ""."""
    found = re.search(r"-m teddy\.stages\.(\w+)", stage.get("cmd", ""))
    return found[1] if found else ""


def target_of(stage: Mapping[str, Any]) -> str:
    """Name of the target that a stage's command makes, or ""."""
    found = re.search(r"-m teddy\.stages\.\w+ ([a-z][\w-]*)", stage.get("cmd", ""))
    return found[1] if found else ""


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
