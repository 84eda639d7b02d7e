"""Published files: fetched (resumed, verified) and unpacked, whole or not at all."""

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
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from teddy.core.errors import TeddyError
from teddy.core.runtime import progress

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60
_DAMAGED = (
    tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError,
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
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in file.urls:
        resumed = part.exists()
        try:
            _transfer(url, part)
            if resumed and not _is_published(part, file):
                part.unlink()  # the beginning may have been of another file
                _transfer(url, part)
        except (OSError, HTTPException) as error:
            failures.append(f"{url}: {_reason(error)}")
            continue
        if _is_published(part, file):
            part.replace(path)
            return
        got = checksum(part, _algorithm(file))
        failures.append(f"{url}: expected {file.checksum}, got {got}")
        part.unlink()
    raise TeddyError(
        f"could not download {file.name} ({'; '.join(failures)}); run the same command again, or "
        f"fetch {file.urls[0]} by other means and put it at {path}"
    )


def _algorithm(file: Published) -> str:
    return file.checksum.partition(":")[0]


def _is_published(path: Path, file: Published) -> bool:
    return checksum(path, _algorithm(file)) == file.checksum


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(url: str, part: Path) -> None:
    """Append what ``part`` lacks, over as many connections as bring something."""
    while True:
        before = _size(part)
        try:
            _connect(url, part)
            return
        except (OSError, HTTPException):
            if _size(part) <= before:
                raise


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
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with _opened(part, "ab" if have else "wb") as file, _bar(total, have, part) as bar:
            while chunk := response.read(_CHUNK_BYTES):
                with _writing(part):
                    file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) < total:
        # read() of a cut connection returns what came, as if that were all
        raise ConnectionError(f"the connection ended after {_size(part)} of {total} bytes")


def _bar(total: int | None, done: int, part: Path) -> Any:
    bar = progress(total or 0, part.stem, "B", done)
    bar.total, bar.unit_scale = total, True
    return bar


def _reason(error: Exception) -> str:
    return str(error.reason if isinstance(error, URLError) else error) or type(error).__name__


def _opened(path: Path, mode: str) -> Any:
    with _writing(path):
        return path.open(mode)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Tell a full disk from a failing network, both of which are an OSError."""
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
            (_unzip if zipfile.is_zipfile(archive) else _untar)(archive, Path(scratch))
        except _DAMAGED as error:
            raise TeddyError(
                f"{archive}: cannot be unpacked ({error}); delete it and fetch it again"
            ) from error
        unpacked = Path(scratch) / folder.name
        if not unpacked.is_dir():
            found = ", ".join(sorted(path.name for path in Path(scratch).iterdir()))
            raise TeddyError(f"{archive}: expected the folder {folder.name} in it, found {found}")
        unpacked.rename(folder)


def _unzip(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        with progress(len(members), f"unpack {archive.name}", "file") as bar:
            for member in members:
                opened.extract(member, target)
                bar.update()


def _untar(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as opened, progress(0, f"unpack {archive.name}", "file") as bar:
        bar.total = None
        if hasattr(tarfile, "data_filter"):
            opened.extraction_filter = tarfile.data_filter
        for member in opened:
            if not hasattr(tarfile, "data_filter"):  # before Python 3.11.4
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
