"""Keep the modules that ``dvc.yaml`` lists for every stage equal to those that the stage imports.

DVC does not follow imports: a stage that lists only its script stays "up to date" when a module it
imports changes. ``python -m teddy.dependencies`` rewrites the lists; a test holds them.
"""

import argparse
import ast
import re
from collections.abc import Sequence
from pathlib import Path

from teddy.artifacts import atomic_path
from teddy.runtime import run_stage

_ROOT = Path(__file__).parents[2]
_MODULE = re.compile(r"^( +)- src/teddy/\S+\.py\n", re.MULTILINE)
_ENTRYPOINT = re.compile(r"-m (teddy\.stages\.\w+)")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dvc", type=Path, default=Path("dvc.yaml"))
    args = parser.parse_args(argv)

    def stage() -> str:
        before = args.dvc.read_text(encoding="utf-8")
        after = with_modules(before)
        if after == before:
            return f"{args.dvc}: nothing to change"
        with atomic_path(args.dvc) as temporary:
            temporary.write_text(after, encoding="utf-8")
        return f"{args.dvc}: lists of modules brought up to date"

    run_stage("dependencies", stage)


def with_modules(text: str) -> str:
    """``dvc.yaml`` with the modules of every stage listed where its first one stood."""
    parts = re.split(r"(?m)^(?=  [\w-]+:$)", text)
    return "".join(_stage_with_modules(part) for part in parts)


def _stage_with_modules(part: str) -> str:
    entrypoint, first = _ENTRYPOINT.search(part), _MODULE.search(part)
    if entrypoint is None or first is None:
        return part
    listed = "".join(f"{first[1]}- {module}\n" for module in sorted(imported(entrypoint[1])))
    return part[: first.start()] + listed + _MODULE.sub("", part[first.start() :])


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


def _imports(file: Path) -> set[Path]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {file for file in map(_file, names) if file.is_file()}


if __name__ == "__main__":
    main()
