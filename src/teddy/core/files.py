"""Files without tensors: JSON and text, written whole or not at all; checksums.

Apart from :mod:`teddy.core.artifacts` because importing PyTorch takes seconds, which the many
stages that only read records need not spend.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from teddy.core.errors import TeddyError

Json = dict[str, Any]


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Temporary sibling of ``path`` that takes its place only if the block succeeds.

    Raises:
        TeddyError: the folder cannot be written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise TeddyError(f"{path}: cannot write here: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise TeddyError(f"{path}: cannot write here: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(*paths: Path) -> None:
    """Refuse before hours are spent if any of ``paths`` could not be written at the end."""
    for path in paths:
        with contextlib.suppress(_Abandon), atomic_path(path):
            raise _Abandon


class _Abandon(Exception):
    """Leaves :func:`atomic_path` without writing."""


def write_json(path: Path, record: Json, *, in_order: bool = False) -> None:
    """Write ``record`` as indented JSON with a final newline; keys sorted, or in their order."""
    with atomic_path(path) as temporary:
        temporary.write_text(as_text(record, in_order=in_order), encoding="utf-8")


def as_text(record: Json, *, in_order: bool = False) -> str:
    """A record as :func:`write_json` writes it."""
    return json.dumps(record, indent=1, sort_keys=not in_order, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Json:
    """Read a JSON object.

    Raises:
        TeddyError: the file is missing or is not a JSON object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror}") from error
    except ValueError as error:
        raise TeddyError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(record, dict):
        raise TeddyError(f"{path}: expected a JSON object, got {type(record).__name__}")
    return record


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's relative names and contents in sorted order."""
    sha = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        sha.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as opened:
            sha.update(hashlib.file_digest(opened, "sha256").digest())
    return sha.hexdigest()


def manifest_digest(folder: Path) -> str:
    """Checksum that stands for a whole folder, since its manifest has those of its files."""
    return digest(folder / "manifest.json")
