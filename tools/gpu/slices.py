"""Files in slices that fit into one transfer, and whole again on the other side."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from teddy.core.errors import TeddyError
from teddy.core.files import read_json, write_json

_INDEX = "slices.json"
_BLOCK = 2**20


def cut(files: Sequence[Path], out: Path, most: int) -> list[Path]:
    """Cut files into numbered folders of slices.

    Args:
        files: what to send, in the order of need; no two of one name.
        out: folder to write, which is replaced.
        most: bytes of a folder, at most.

    Returns:
        The folders, in order; each has an index of all slices.
    """
    shutil.rmtree(out, ignore_errors=True)
    index: dict[str, dict[str, object]] = {}
    folders: list[Path] = []
    room = 0
    for file in files:
        if not file.is_file():
            raise TeddyError(f"{file}: expected a file to pack, found nothing there")
        parts: list[dict[str, object]] = []
        with file.open("rb") as source:
            left = file.stat().st_size
            while left:
                if room < min(left, _BLOCK):
                    folders.append(out / f"slice{len(folders) + 1}")
                    folders[-1].mkdir(parents=True)
                    room = most
                part = folders[-1] / f"{file.name}.part{len(parts)}"
                size = min(left, room)
                _copy(source, part, size)
                parts.append({"name": part.name, "sha256": digest_of(part)})
                left, room = left - size, room - size
        index[file.name] = {"sha256": digest_of(file), "parts": parts}
    for folder in folders:
        write_json(folder / _INDEX, {"files": index}, in_order=True)
    return folders


def join(folder: Path, store: Path) -> tuple[list[Path], list[str]]:
    """Take a folder of slices into a store, and put together what is complete.

    Returns:
        Files that are whole now, and names of those of which slices are still missing.

    Raises:
        TeddyError: a slice or a file is not what was cut.
    """
    store.mkdir(parents=True, exist_ok=True)
    whole, missing = [], []
    files = read_json(folder / _INDEX)["files"]
    for name, file in files.items():
        path, parts = store / name, [store / part["name"] for part in file["parts"]]
        for part, known in zip(parts, file["parts"], strict=True):
            came = folder / part.name
            if came.is_file() and not part.exists():
                _refuse_other(came, known["sha256"])
                shutil.copyfile(came, part)
        if not path.exists():
            if not all(part.exists() for part in parts):
                missing.append(name)
                continue
            temporary = path.with_name(f".{name}.{os.getpid()}")
            with temporary.open("wb") as target:
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, target, _BLOCK)
            _refuse_other(temporary, file["sha256"])
            temporary.replace(path)
        whole.append(path)
    return whole, missing


def _copy(source: IO[bytes], target: Path, size: int) -> None:
    with target.open("wb") as file:
        while size:
            block = source.read(min(size, _BLOCK))
            file.write(block)
            size -= len(block)


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_other(path: Path, expected: str) -> None:
    if digest_of(path) != expected:
        raise TeddyError(f"{path}: is not what was packed; send it again")
