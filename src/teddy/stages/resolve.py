"""Check the parameter files as a whole, and write what every stage and row reads of them.

Every other stage depends on its own file alone, so an edit of the parameters or of the code reruns
what reads it. A row whose settings do not fit each other gets a file that says so, at which its
stage fails; it is told here, as is an edited key that nothing takes. Options beyond those below
name the experiment files that are switched on, which DVC takes from ``on`` in each of them.
"""

import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Set
from pathlib import Path

from teddy.core.errors import TeddyError
from teddy.core.files import as_text, check_writable
from teddy.settings.code import checksums
from teddy.settings.declared import Declared
from teddy.settings.edits import without_effect
from teddy.settings.resolve import stage_files
from teddy.settings.schema import check, to_json


def main(_: None, args: Namespace) -> str:
    """Run the stage."""
    root = args.root or Path()
    declared = Declared(root)
    for reason in declared.unfit.values():
        print(f"warning: {reason}; what needs this will not run", file=sys.stderr)
    for line in without_effect(declared, root):
        print(f"warning: {line}", file=sys.stderr)
    return f"{_write(declared, args.out)} files in {args.out}"


def write_inputs(root: Path, out: Path) -> int:
    """Write the files of a checkout in place of what lies in ``out``; how many.

    Raises:
        TeddyError: the parameter files are wrong, or ``out`` has other files or is not to be
            written.
    """
    return _write(Declared(root), out)


def _write(declared: Declared, out: Path) -> int:
    files = list(stage_files(declared))
    _check_replaceable(out, {*declared.stages, *(name.split("/")[0] for _, name, _ in files)})
    check_writable(out / "x.json")
    new = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        for module, name, settings in files:
            code = checksums(f"teddy.stages.{module}") | settings.code
            path = new / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = as_text(to_json(settings) | {"code": code}, in_order=True)
            path.write_text(text, encoding="utf-8")
        shutil.rmtree(out)
        new.rename(out)
    except OSError as error:
        raise TeddyError(f"{out}: cannot write here: {error.strerror}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return len(files)


def _check_replaceable(out: Path, stages: Set[str]) -> None:
    """Refuse to remove anything but what this stage writes: JSON, by the name of a stage."""
    named = out.name not in ("", "..") and not out.is_symlink()
    check(named, f"{out}: cannot replace this; name a folder that is neither . nor .. nor a link")
    for path in out.rglob("*") if out.is_dir() else ():
        stage = path.relative_to(out).parts[0].removesuffix(".json")
        ours = path.is_dir() or path.suffix == ".json"
        check(
            stage in stages and ours and not path.is_symlink(),
            f"{out}: cannot replace a folder that has other files than this stage's, such as "
            f"{path.relative_to(out)}; name another, or remove it",
        )
