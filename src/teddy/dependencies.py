"""Keep what ``dvc.yaml`` lists for every stage equal to what the stage reads.

DVC does not follow imports: a stage that lists only its script stays "up to date" when a module it
imports changes. Nor can it make a list of files from ``params.yaml``: a table or figure must list
the record of every row that it shows. ``python -m teddy.dependencies`` rewrites both kinds of
lists after an import or a row of ``targets`` has changed; tests hold them.
"""

import ast
import functools
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from teddy.config import Leaf, Params
from teddy.console import parser, run_command
from teddy.files import atomic_path

_ROOT = Path(__file__).parents[2]
_MODULE = re.compile(r"^( +)- src/teddy/\S+\.py\n", re.MULTILINE)
_ENTRYPOINT = re.compile(r"-m (teddy\.stages\.\w+)")
_OPTION = re.compile(r"--\w+\s+(\S+)")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("--dvc", type=Path, default=Path("dvc.yaml"))
    args = options.parse_args(argv)

    def command() -> str:
        changed = update(args.dvc, Params(args.params))
        return f"{args.dvc}: {'brought up to date' if changed else 'nothing to change'}"

    run_command("dependencies", command)


def update(dvc: Path, params: Params) -> bool:
    """Rewrite the lists of a ``dvc.yaml``; whether anything changed."""
    before = dvc.read_text(encoding="utf-8")
    after = with_inputs(with_modules(before), params)
    if after == before:
        return False
    with atomic_path(dvc) as temporary:
        temporary.write_text(after, encoding="utf-8")
    return True


def with_modules(text: str) -> str:
    """``dvc.yaml`` with the modules of every stage listed where its first one stood."""
    return "".join(_stage_with_modules(part) for part in _stages(text))


def _stages(text: str) -> list[str]:
    """The text cut before every stage; what stands before the first one is a part too."""
    return re.split(r"(?m)^(?=  [\w-]+:$)", text)


def _stage_with_modules(part: str) -> str:
    entrypoint, first = _ENTRYPOINT.search(part), _MODULE.search(part)
    if entrypoint is None or first is None:
        return part
    listed = "".join(f"{first[1]}- {module}\n" for module in sorted(imported(entrypoint[1])))
    return part[: first.start()] + listed + _MODULE.sub("", part[first.start() :])


def with_inputs(text: str, params: Params) -> str:
    """``dvc.yaml`` with every target's stages depending on the files of the rows it shows.

    A stage is a target's if it lists ``targets.<name>`` among its params. Folders on its command
    line stand for the files in them that belong to the target's rows.
    """
    return "".join(_stage_with_inputs(part, params) for part in _stages(text))


def _stage_with_inputs(part: str, params: Params) -> str:
    match = re.match(r"  ([\w-]+):$", part.split("\n", 1)[0])
    if match is None or "- targets." not in part:
        return part
    stage = YAML(typ="safe").load(StringIO(part))[match[1]]
    modules = [dep for dep in stage["deps"] if dep.startswith("src/")]
    deps = sorted([*target_inputs(stage, params), *modules])
    listed = "".join(f"      - {dep}\n" for dep in deps)
    head, body = part[: part.index("    deps:\n")], part[part.index("    deps:\n") :]
    lines = body.splitlines(keepends=True)
    last = next(i for i, line in enumerate(lines[1:], 1) if not line.startswith("      - "))
    return head + "    deps:\n" + listed + "".join(lines[last:])


def target_inputs(stage: Mapping[str, Any], params: Params) -> set[str]:
    """Files that a target's stage reads, from the paths on its command line.

    Args:
        stage: its entry in ``dvc.yaml``.
        params: rows that the target shows.
    """
    targets = [p.removeprefix("targets.") for p in stage["params"] if p.startswith("targets.")]
    names = [name for target in targets for name in params.targets.get(target, ())]
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
