"""Files without tensors: JSON and text, written whole or not at all; checksums.

Apart from :mod:`teddy.core.artifacts` because importing PyTorch takes seconds, which the many
stages that only read records need not spend.
"""

import contextlib
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from teddy.core.errors import TeddyError

Json = dict[str, Any]


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path) -> None:
    """Refuse what cannot be read as a file: a pipe would wait for its other end, and a device, or
    a link to one, may never end.

    Raises:
        TeddyError: there is nothing, or something else.
    """
    try:
        kind = what_is(path)
    except (OSError, ValueError) as error:
        raise TeddyError(f"{path}: cannot read: {_reason(error)}") from error
    if kind:
        raise TeddyError(f"{path}: cannot read: expected a file, got {kind}")


def what_is(path: Path) -> str:
    """What a path, or what it links to, is in words, "" if it is a file.

    Raises:
        OSError: there is nothing, or its folder cannot be read.
    """
    mode = path.stat().st_mode
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Temporary sibling of ``path`` that takes its place only if the block succeeds.

    Its permissions are those of any new file, which the umask says.

    Raises:
        TeddyError: the folder cannot be written to, the disk is full, or something that is no file
            is in the way.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = what_is(path) if path.exists() else ""
        if kind:
            raise ValueError(f"expected a file or nothing, got {kind}")
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE(temporary.stat().st_mode)
    except (OSError, ValueError) as error:
        raise TeddyError(f"{path}: cannot write here: {_reason(error)}") from error
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own there
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise TeddyError(f"{path}: cannot write here: {_reason(error)}") from error
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
    check_regular(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {_reason(error)}") from error
    except ValueError as error:
        raise TeddyError(f"{path}: expected JSON, got {error}") from error
    except RecursionError:
        raise TeddyError(f"{path}: expected JSON, got lists or keys nested too deeply") from None
    if not isinstance(record, dict):
        raise TeddyError(f"{path}: expected a JSON object, got {type(record).__name__}")
    return record


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's relative names and contents in sorted order.

    Raises:
        TeddyError: it is not there or cannot be read.
    """
    sha = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        sha.update(file.relative_to(path).as_posix().encode())
        check_regular(file)
        try:
            with file.open("rb") as opened:
                sha.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise TeddyError(f"{file}: cannot read: {_reason(error)}") from error
    return sha.hexdigest()


def manifest_digest(folder: Path) -> str:
    """Checksum that stands for a whole folder, since its manifest has those of its files."""
    return digest(folder / "manifest.json")
