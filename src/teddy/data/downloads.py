"""Published files: fetched (resumed, verified) and unpacked, whole or not at all.

Ours, because the downloaders of torchvision, PyTorch and Pooch start again after an interruption,
and torchvision's and Python's unpackers show no progress.
"""

import contextlib
import gzip
import hashlib
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from teddy.core.errors import TeddyError
from teddy.core.runtime import progress

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60
# Any other OSError is of the disk.
_NETWORK = (URLError, HTTPException, ConnectionError, TimeoutError, SSLError)
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError,
    RuntimeError,  # an encrypted file
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Published:
    """A file as its authors publish it."""

    name: str
    """File name."""
    urls: Sequence[str]
    """Where it is; mirrors are tried in this order."""
    checksum: str
    """``<algorithm>:<hexadecimal digest>``, the algorithm one of :mod:`hashlib`."""


def checksum(path: Path, algorithm: str) -> str:
    """Checksum of a file's content as ``<algorithm>:<hexadecimal digest>``.

    Raises:
        TeddyError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror}") from error


def fetch(file: Published, path: Path) -> None:
    """Download ``file`` to ``path``, which appears only when the checksum is right.

    What arrived is kept in ``<path>.part`` and continued by the next call, if the server can.

    Raises:
        TeddyError: no address gave the published file; says what to put where by hand.
    """
    part = path.with_name(path.name + ".part")
    failures = []
    with _writing(part):
        path.parent.mkdir(parents=True, exist_ok=True)
        for url in file.urls:
            problem = _download(url, part, file.checksum)
            if not problem:
                part.replace(path)
                return
            failures.append(f"{url}: {problem}")
    raise TeddyError(
        f"could not download {file.name} ({'; '.join(failures)}); run the same command again, or "
        f"fetch {file.urls[0]} by other means and put it at {path}"
    )


def _download(url: str, part: Path, expected: str) -> str:
    """Complete ``part``, over as many connections as bring something; returns what went wrong."""
    resumed = part.exists()
    while True:
        before = _size(part)
        try:
            _connect(url, part)
        except _NETWORK as error:
            if _size(part) <= before:
                return str(getattr(error, "reason", error)) or type(error).__name__
            continue
        got = checksum(part, expected.partition(":")[0])
        if got == expected:
            return ""
        part.unlink()
        if not resumed:
            return f"expected {expected}, got {got}"
        resumed = False  # the beginning may have been of another file


def _connect(url: str, part: Path) -> None:
    have = _size(part)
    headers = {"User-Agent": "teddy"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=_TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        if have and error.code == 416:
            return  # nothing follows what is there; its checksum tells whether it is all
        raise ConnectionError(f"HTTP {error.code} {error.reason}") from None
    with response:
        if response.status != 206:
            have = 0  # the server cannot continue a file and sends it from the start
        total = None if response.length is None else have + response.length
        mode = "ab" if have else "wb"
        with part.open(mode) as file, progress(total, part.stem, "B", have) as bar:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
        if response.length:  # read() of a cut connection returns what came, as if that were all
            raise ConnectionError(f"the connection ended after {_size(part)} of {total} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TeddyError(f"{path}: cannot write here: {error.strerror or error}") from error


def extract(archive: Path, folder: Path) -> None:
    """Unpack the folder ``folder.name`` that a tar or zip archive holds, as ``folder``.

    Raises:
        TeddyError: damaged, without that folder, with members that would land elsewhere, or the
            disk is full. ``folder`` is not made then.
    """
    with (
        _writing(folder),
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch,
    ):
        try:
            _unpack(archive, Path(scratch))
        except _DAMAGED as error:
            raise TeddyError(
                f"{archive}: cannot be unpacked ({error}); delete it and fetch it again"
            ) from error
        unpacked = Path(scratch) / folder.name
        if not unpacked.is_dir():
            found = ", ".join(sorted(path.name for path in Path(scratch).iterdir()))
            raise TeddyError(f"{archive}: expected the folder {folder.name} in it, found {found}")
        unpacked.rename(folder)


def _unpack(archive: Path, target: Path) -> None:
    zipped = zipfile.is_zipfile(archive)
    opened: Any = zipfile.ZipFile(archive) if zipped else tarfile.open(archive)
    members = opened.infolist() if zipped else opened
    count = len(members) if zipped else None  # a tar file has no list of its members
    with opened, progress(count, f"unpack {archive.name}", "file") as bar:
        opened.extraction_filter = getattr(tarfile, "data_filter", None)  # which zip needs not
        for member in members:
            if not zipped and opened.extraction_filter is None:  # before Python 3.11.4
                _check_member(member, target)
            opened.extract(member, target)
            bar.update()


def _check_member(member: tarfile.TarInfo, target: Path) -> None:
    """As tarfile's own filter for data, which also allows links that stay inside.

    Raises:
        tarfile.TarError: not a file or folder, or outside the target.
    """
    if not (member.isfile() or member.isdir()):
        raise tarfile.TarError(f"{member.name!r} is neither a file nor a folder")
    if not (target / member.name).resolve().is_relative_to(target.resolve()):
        raise tarfile.TarError(f"{member.name!r} would be outside the destination")
