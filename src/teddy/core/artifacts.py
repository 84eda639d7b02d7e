"""Files of the pipeline: tensors (safetensors) and JSON, written whole or not at all.

Nothing here loads pickled code. A tensor file carries one JSON record that says what kind of
artifact it is; the record is a single string because safetensors does not keep the order of
several metadata entries, and equal content must give equal bytes.
"""

import atexit
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from teddy.core import distributed
from teddy.core.errors import TeddyError
from teddy.core.files import Json, atomic_path, what_is
from teddy.core.runtime import pick_device


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, kind: str, record: Json) -> None:
    """Write tensors and their JSON record as one safetensors file of the given ``kind``."""
    text = json.dumps({"kind": kind, **record}, sort_keys=True, ensure_ascii=False)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata={"teddy": text})


def read_tensors(path: Path, *, kind: str) -> tuple[dict[str, Tensor], Json]:
    """Read a file of :func:`write_tensors`.

    Returns:
        The tensors on the CPU, and the record without its ``kind``.

    Raises:
        TeddyError: missing, truncated, not safetensors, or of another kind.
    """
    record = read_record(path, kind=kind)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, record


def read_record(path: Path, *, kind: str) -> Json:
    """Read only the JSON record of a tensor file; errors as for :func:`read_tensors`."""
    try:
        found = what_is(path)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = "found nothing there" if missing else f"cannot read it: {error.strerror}"
        raise TeddyError(f"{path}: expected a {kind} file, {reason}") from error
    if found:
        raise TeddyError(f"{path}: expected a {kind} file, found {found} there")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise TeddyError(
            f"{path}: expected a {kind} file, but it is damaged or not safetensors ({error})"
        ) from error
    try:
        record = dict(json.loads(metadata.get("teddy", "{}")))
    except (ValueError, TypeError, RecursionError):
        record = {}
    found = record.pop("kind", "a foreign safetensors file")
    if found != kind:
        raise TeddyError(f"{path}: expected a {kind} file, got {found}")
    return dict(record)


def check_tensors(
    path: Path,
    expected: Mapping[str, tuple[str, tuple[int | None, ...]]],
    *,
    kind: str,
    again: str,
) -> Json:
    """Refuse a tensor file that lacks some tensors or has others of their names.

    Only its header is read, which tells of a file that was cut off too.

    Args:
        path: the file.
        expected: type, as safetensors calls it, and shape of tensors by name; None is any size.
        kind: of the file.
        again: what to do for a right one.

    Returns:
        Its JSON record.

    Raises:
        TeddyError: naming the file and the tensor; else as for :func:`read_tensors`.
    """
    record = read_record(path, kind=kind)
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        for name, (dtype, shape) in expected.items():
            if name not in names:
                raise TeddyError(f"{path}: lacks the tensor {name!r}; {again}")
            found = file.get_slice(name)
            sizes = tuple(found.get_shape())
            fits = len(sizes) == len(shape) and all(
                size in (None, own) for size, own in zip(shape, sizes, strict=True)
            )
            if found.get_dtype() != dtype or not fits:
                raise TeddyError(
                    f"{path}: the tensor {name!r} must be {_described(dtype, shape)}; got "
                    f"{_described(found.get_dtype(), sizes)}; {again}"
                )
    return record


def _described(dtype: str, shape: tuple[int | None, ...]) -> str:
    sizes = " × ".join("any" if size is None else str(size) for size in shape)
    return f"{dtype} of {sizes or 'no size'}"


def source_digest() -> str:
    """SHA-256 of this package's source, so that work of other code is never resumed."""
    root = Path(__file__).parents[1]
    sha = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        sha.update(file.relative_to(root).as_posix().encode())
        sha.update(file.read_bytes())
    return sha.hexdigest()


_LOCK = ".lock"
_LOCK_TRIES = 20  # a tenth of a second each: processes that were just killed take a moment to go
_held: dict[Path, IO[str]] = {}


class WorkDir:
    """Where a stage keeps finished items and resume points until its outputs are written.

    The folder is named after a fingerprint of everything that can change a result, so a changed
    setting starts afresh and an unchanged one continues. DVC does not know it; it lies under
    ``work/`` or ``$TEDDY_WORK`` and :meth:`discard` removes it when the stage has succeeded.
    """

    def __init__(self, stage: str, name: str, **inputs: Any) -> None:
        inputs |= {
            "source": source_digest(),
            "torch": torch.__version__,
            "device": pick_device().type,
        }
        text = json.dumps(inputs, sort_keys=True, default=str)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        root = Path(os.environ.get("TEDDY_WORK") or "work")
        self.path = root.absolute() / stage / f"{name.replace('/', '.')}-{fingerprint}"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def claim(self) -> "WorkDir":
        """Keep other commands out until :meth:`discard` or the end of this process.

        The first process takes the lock; no process goes on before all have found the folder.

        Raises:
            TeddyError: another command makes the same artifact now; or this process sees other
                inputs than the first, or not the same files.
        """
        if distributed.rank() == 0:
            _hold(self / _LOCK)
        first = distributed.from_first(self.path.name)
        where = f"process {distributed.rank()} on {os.uname().nodename}"
        if first != self.path.name:
            raise TeddyError(
                f"{self.path}: {where} has other inputs, code, PyTorch or kind of device than the "
                f"first process, which works in {first}; start all of them in the same checkout"
            )
        if not (self / _LOCK).exists():
            raise TeddyError(
                f"{self.path}: {where} does not see the first process's files; set $TEDDY_WORK to "
                "a folder that all machines share"
            )
        distributed.barrier()
        return self

    def publish(self, out: Path, names: Iterable[str]) -> None:
        """Put finished files into the output folder ``out``."""
        for name in names:
            with atomic_path(out / name) as temporary:
                shutil.copyfile(self.path / name, temporary)

    def discard(self) -> None:
        """Remove the folder: its content is in the stage's outputs now."""
        # Renamed first: whoever waits for the lock must not get it in a folder that is going.
        doomed = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(doomed)
        if self / _LOCK in _held:
            _held.pop(self / _LOCK).close()
        shutil.rmtree(doomed, ignore_errors=True)


def _hold(path: Path) -> None:
    """Take the lock of a file, which lasts until the file is closed or this process ends.

    On a file system that has no locks nobody is kept out.
    """
    tries = 0
    while path not in _held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError as error:
            raise TeddyError(f"{path}: cannot write here: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            tries += 1
            if tries >= _LOCK_TRIES:
                raise TeddyError(
                    f"{path.parent}: another process is making this artifact; wait for it or stop "
                    "it, then run the same command again"
                ) from None
            time.sleep(0.1)
            continue
        except OSError:
            pass
        if _is_at(file, path):
            _held[path] = file
        else:  # the other process has finished and discarded its folder
            file.close()


def _is_at(file: IO[str], path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _forget_locks() -> None:
    for file in _held.values():
        file.close()
    _held.clear()


# A lock lasts as long as any copy of its file is open: forked workers must not outlive a killed
# stage as its owner.
os.register_at_fork(after_in_child=_forget_locks)
atexit.register(_forget_locks)
