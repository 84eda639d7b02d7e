"""Files that parameter files name: experiment files, and code of the user's own.

They must be there before anything runs, and lie in what the stage ``resolve`` depends on, because
an edit of any other file reruns nothing.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from teddy.core import user_code
from teddy.core.errors import TeddyError
from teddy.settings.schema import Section, check, shown


def experiment_files(dvc: Section, where: Path) -> list[str]:
    """Files that ``vars`` of a ``dvc.yaml`` names.

    Raises:
        TeddyError: an entry is neither a path inside the checkout nor keys and values.
    """
    listed, found = dvc.get("vars") or [], []
    check(isinstance(listed, list), f"{where}: vars must be a list; got {shown(listed)}")
    for entry in listed:
        if isinstance(entry, Mapping):
            continue
        check(
            isinstance(entry, str) and ":" not in entry,
            f"{where}: vars: an entry must be a path, with all that the file has, or keys and "
            f"values; got {shown(entry)}",
        )
        check_inside(entry, f"{where}: vars")
        check_watched(entry, f"{where}: vars", dvc)
        found.append(entry)
    return found


def check_inside(file: str, where: str) -> None:
    """Refuse a file outside the checkout."""
    path = PurePosixPath(file)
    check(
        not path.is_absolute() and ".." not in path.parts,
        f"{where}: {file}: expected a path inside the checkout, relative to its root",
    )


def check_watched(file: str, where: str, dvc: Section) -> None:
    """Refuse a file that the stage ``resolve`` of a ``dvc.yaml`` does not depend on."""
    watched = _watched(dvc)
    if watched is not None and not any(PurePosixPath(file).is_relative_to(p) for p in watched):
        raise TeddyError(
            f"{where}: {file} does not lie in what the stage resolve depends on "
            f"({', '.join(watched)}), so that an edit of it would rerun nothing: move it there, or "
            "add its folder to deps of resolve in dvc.yaml"
        )


def check_reference(reference: str, where: str, dvc: Section) -> None:
    """Refuse code of the user's own whose file does not define it; the file does not run.

    Args:
        reference: any setting; one that names no code of the user's own is accepted.
        where: file and key that it stands at.
        dvc: content of ``dvc.yaml``.
    """
    file, name = user_code.file_of(reference), reference.rpartition(":")[2]
    if not file:
        return
    check_inside(file, where)
    check(Path(file).is_file(), f"{where}: {file}: expected a Python file that defines {name}")
    try:
        body = ast.parse(Path(file).read_bytes(), file).body
    except (SyntaxError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise TeddyError(f"{where}: {file}: {type(error).__name__}: {reason}") from None
    names = set(_defined(body))
    check(bool(names & {name, "*", "__getattr__"}), f"{where}: {file}: does not define {name!r}")
    check_watched(file, where, dvc)


def _watched(dvc: Section) -> list[str] | None:
    """Dependencies of the stage ``resolve``; None if that is not known."""
    stages: Any = dvc.get("stages")
    stage = stages.get("resolve") if isinstance(stages, Mapping) else None
    deps = stage.get("deps") if isinstance(stage, Mapping) else None
    if not isinstance(deps, list):
        return None
    paths = [path for dep in deps for path in (dep if isinstance(dep, Mapping) else [dep])]
    known = all(isinstance(path, str) and "${" not in path for path in paths)
    return paths if known else None


def _defined(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that statements of a module define, ``*`` for those of a whole other module."""
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement.name
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for alias in statement.names:
                yield alias.asname or alias.name.partition(".")[0]
            continue
        for node in ast.iter_child_nodes(statement):
            if isinstance(node, ast.stmt):
                yield from _defined([node])
            elif isinstance(node, ast.ExceptHandler | ast.match_case):
                yield from _defined(node.body)
            else:
                for name in ast.walk(node):
                    if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store):
                        yield name.id
