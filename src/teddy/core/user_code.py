"""Code of the user's own, named in the parameter files as ``path/to/file.py:Name``.

A network, a method or a loader of data is a class or function in one such file; nothing of this
package needs to be edited. Files lie in the checkout: a checkpoint from elsewhere, whose record
names the code of its network, can name no other.
"""

import functools
import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

from teddy.core.errors import TeddyError

_REFERENCE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")


def is_reference(text: str) -> bool:
    """Whether a setting names code of the user's own."""
    return _REFERENCE.fullmatch(text) is not None


def file_of(reference: str) -> str:
    """File that a setting names, or "" if it names none."""
    match = _REFERENCE.fullmatch(reference)
    return match["file"] if match else ""


def checksum(file: str) -> str:
    """SHA-256 of a file of the user's own.

    Raises:
        TeddyError: it is not there.
    """
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as error:
        raise TeddyError(f"{file}: cannot read: {error.strerror}") from error


@functools.cache
def load(reference: str) -> Any:
    """The class or function that a setting names; its file runs once.

    Raises:
        TeddyError: there is no such file, it fails, or it does not define the name.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise TeddyError(f"{reference!r} must be path/to/file.py:Name")
    path = Path(match["file"])
    if path.is_absolute() or ".." in path.parts:
        raise TeddyError(f"{path}: expected a path inside the checkout, relative to its root")
    spec = importlib.util.spec_from_file_location(f"teddy_user_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise TeddyError(f"{path}: expected a Python file that defines {match['name']}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except TeddyError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise TeddyError(f"{path}: {type(error).__name__}: {reason}") from error
    try:
        return getattr(module, match["name"])
    except AttributeError:
        raise TeddyError(f"{path}: does not define {match['name']!r}") from None
