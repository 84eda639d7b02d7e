"""Files that hold arrays of images, CIFAR's batches, MNIST's IDX, NumPy's npz; and lists of files.

Nothing here runs code that a file contains, or makes room for what it only claims to hold. Hence
not torchvision's readers: that of CIFAR unpickles, that of MNIST asserts and believes the header.
"""

import csv
import gzip
import importlib
import math
import pickle
import pickletools
import zlib
from collections.abc import Collection
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teddy.core.errors import TeddyError
from teddy.core.memory import check_fits

# --------------------------------------------------------------------------------------- CIFAR


def read_cifar_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read a batch of CIFAR-10 or CIFAR-100 ("python version").

    Returns:
        uint8 ``(n, 3, 32, 32)`` and labels ``(n,)``; of CIFAR-100, the fine ones.

    Raises:
        TeddyError: not such a batch, or a pickle that asks for anything but arrays.
    """
    images, fine, coarse = _unpickle(path, "data", "fine_labels", "labels")
    labels = coarse if fine is None else fine
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.shape[1:] != (3072,)
    ):
        raise TeddyError(f"{path}: expected 'data', uint8 of shape (n, 3072), got {_kind(images)}")
    if (
        not isinstance(labels, list)
        or len(labels) != len(images)
        or not all(isinstance(label, int) for label in labels)
    ):
        raise TeddyError(f"{path}: expected {len(images)} whole labels, got {_kind(labels)}")
    bits = max(map(int.bit_length, labels), default=0)
    if bits > 63:
        raise TeddyError(f"{path}: expected small labels, got a number of {bits} bits")
    return images.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def read_cifar_names(path: Path, key: str) -> tuple[str, ...]:
    """Class names, in the order of labels, that CIFAR's meta file holds under ``key``."""
    (names,) = _unpickle(path, key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TeddyError(f"{path}: expected {key!r}, a list of names, got {_kind(names)}")
    return tuple(as_text(name, str(path)) for name in names)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "nothing" if value is None else type(value).__name__


class _Part:
    """Stands for what a pickled array is made by: keeps what it is made of, and makes nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> NDArray[Any]:
        """The array, whose shape and type must fit its bytes."""
        _, shape, kind, by_columns, content = self.state
        if isinstance(content, _Part):
            content = content.arguments[0]  # how Python 3 writes bytes in protocol 2
        if isinstance(content, str):
            content = content.encode("latin1")
        values = np.frombuffer(content, np.dtype(str(kind.arguments[0])))
        return values.reshape(shape, order="F" if by_columns else "C")


class _Unpickler(pickle.Unpickler):
    """Loads plain containers and :class:`_Part`; a pickle that names more is refused unrun."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name}.{global_name}".replace("numpy._core.", "numpy.core.")
        if name not in (
            "numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype", "_codecs.encode",
        ):  # fmt: skip
            raise TeddyError(
                f"asks for {module_name}.{global_name}, which no batch of images needs; it was not "
                "run. Fetch the published file"
            )
        return _Part


def _unpickle(path: Path, *keys: str) -> list[Any]:
    """Values of a pickled dictionary; None for a key that it lacks."""
    try:
        content = path.read_bytes()
        for opcode, index, _ in pickletools.genops(content):
            # Room is made for as many objects; each of them needs a byte at least.
            if opcode.name.endswith("PUT") and int(index or 0) > len(content):
                raise ValueError(f"numbers an object {index}")
        entry = _Unpickler(BytesIO(content), encoding="latin1").load()
        if isinstance(entry, dict):
            values = [entry.get(key) for key in keys]
            return [value.array() if isinstance(value, _Part) else value for value in values]
    except TeddyError as error:
        raise TeddyError(f"{path}: {_reason(error)}") from None
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise TeddyError(
            f"{path}: expected a CIFAR batch, got a damaged file ({_reason(error)})"
        ) from error
    raise TeddyError(f"{path}: expected a dictionary, got {_kind(entry)}")


def _reason(error: Exception) -> str:
    """One short line of an error."""
    return " ".join(str(error).split())[:200] or type(error).__name__


# ----------------------------------------------------------------------------------------- IDX

_DEFLATED = 1032  # bytes at most that one of a gzip file becomes


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not, as MNIST's authors define it.

    The header is 0, 0, the type (8: unsigned byte), the number of dimensions (here 4 at most), and
    each dimension as a big-endian 32-bit number.

    Raises:
        TeddyError: not such a file, or shorter or longer than its header says.
    """
    zipped = path.suffix == ".gz"
    try:
        size = path.stat().st_size
        with (gzip.open if zipped else open)(path, "rb") as file:
            head = file.read(4)
            dimensions = head[3] if head[:3] == b"\x00\x00\x08" and head[3:] else 0
            sizes = file.read(4 * dimensions) if dimensions <= 4 else b""
            shape = [int.from_bytes(sizes[i : i + 4]) for i in range(0, len(sizes), 4)]
            count = math.prod(shape)
            # Read if the file can hold so many values, and one more, to see that it ends there.
            fits = count <= size * (_DEFLATED if zipped else 1)
            if fits:
                check_fits(count, f"{path}: an array of {shape}")
            values = file.read(count + 1) if fits else b""
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise TeddyError(f"{path}: damaged ({error}); fetch it again") from error
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror}") from error
    if not shape or len(sizes) != 4 * dimensions or len(values) != count:
        raise TeddyError(
            f"{path}: expected an IDX file of bytes, got {size} bytes whose header says {shape}"
        )
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


# ----------------------------------------------------------------------------------------- npz


def read_npz(path: Path, wanted: Collection[str]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """The ``wanted`` arrays of an npz file that it has, by name, without pickled objects.

    Returns:
        Those, and the names of others, which are not read.

    Raises:
        TeddyError: missing, damaged, or an array of Python objects.
    """
    if not path.is_file():
        raise TeddyError(
            f"{path}: expected an .npz file with x_train and y_train, found no file there; write "
            "it by numpy.savez, or set prepare.root"
        )
    where = ""
    arrays, others = {}, []
    try:
        # Opened here, because NumPy leaves a damaged file open.
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array, .npy")
            assert file.zip is not None, "it is open"
            sizes = {info.filename: info.file_size for info in file.zip.infolist()}
            check_fits(sum(sizes.get(f"{name}.npy", 0) for name in wanted), f"{path}: its arrays")
            for name in file.files:
                if name not in wanted:
                    others.append(name)
                    continue
                where = f"{name}: "
                arrays[name] = file[name]
                if not isinstance(arrays[name], np.ndarray):
                    raise ValueError("not an array")
    except TeddyError:
        raise
    except Exception as error:  # a damaged header raises whatever its bytes happen to mean
        raise TeddyError(
            f"{path}: expected an .npz file of plain arrays ({where}{_reason(error)})"
        ) from error
    return arrays, others


def as_text(name: object, where: str) -> str:
    """A name, decoded if it is bytes; refused if UTF-8 has no such text."""
    try:
        text = name.decode() if isinstance(name, bytes) else str(name)
        text.encode()
    except UnicodeError:
        raise TeddyError(f"{where}: expected a name that UTF-8 can hold, got {name!a}") from None
    return text


def as_images(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Check uint8 images ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``.

    Returns:
        uint8 ``(N, C, H, W)`` with C 1 or 3.

    Raises:
        TeddyError: another type or shape, or both readings of the shape are possible.
    """
    if images.dtype != np.uint8:
        hint = "; multiply by 255 and round" if images.dtype.kind == "f" else ""
        raise TeddyError(f"{where}: expected images as uint8 in 0–255, got {images.dtype}{hint}")
    last = images.ndim == 4 and images.shape[3] in (1, 3)
    first = images.ndim == 4 and images.shape[1] in (1, 3)
    if images.ndim == 3:
        images = images[:, None]
    elif last == first:
        raise TeddyError(
            f"{where}: expected images of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with one "
            f"or three channels, got {images.shape}"
        )
    elif last:
        images = images.transpose(0, 3, 1, 2)
    if 0 in images.shape:
        raise TeddyError(f"{where}: expected images, got an empty array of shape {images.shape}")
    return np.ascontiguousarray(images)


def as_labels(labels: NDArray[Any], count: int, where: str) -> NDArray[np.int64]:
    """Check whole labels of ``count`` images, ``(N,)`` or ``(N, 1)``; returns int64 ``(N,)``."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise TeddyError(
            f"{where}: expected {count} whole numbers, got {labels.dtype} of shape {labels.shape}"
        )
    if labels.max() > np.iinfo(np.int64).max:
        raise TeddyError(f"{where}: expected labels from 0 to {count - 1}, got {labels.max()}")
    return labels.astype(np.int64)


# --------------------------------------------------------------------------------------- lists


def read_columns(path: Path) -> dict[str, list[str]]:
    """Columns of a list by name, as text: of a ``.csv``, ``.tsv`` or ``.parquet`` file.

    Raises:
        TeddyError: missing, damaged or of another kind.
    """
    if not path.is_file():
        raise TeddyError(f"{path}: expected a .csv, .tsv or .parquet file, found no file there")
    try:
        if path.suffix.lower() == ".parquet":
            return _parquet_columns(path)
        if path.suffix.lower() in (".csv", ".tsv"):
            return _csv_columns(path, "\t" if path.suffix.lower() == ".tsv" else ",")
    except TeddyError:
        raise
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror or _reason(error)}") from error
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise TeddyError(f"{path}: expected a list with a header ({_reason(error)})") from error
    raise TeddyError(f"{path}: expected a list, .csv, .tsv or .parquet, got {path.suffix!r}")


def _csv_columns(path: Path, delimiter: str) -> dict[str, list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(rows, [])]
        if len(set(header)) < len(header):
            raise TeddyError(f"{path}: names of columns must be distinct; got {header}")
        columns: dict[str, list[str]] = {name: [] for name in header}
        for row in rows:
            if row and len(row) != len(header):
                raise TeddyError(
                    f"{path}: line {rows.line_num}: expected {len(header)} cells, "
                    f"{delimiter.join(header)}; got {delimiter.join(row)[:100]!r}"
                )
            for name, cell in zip(header, row, strict=False):
                columns[name].append(cell)
    return columns


def _parquet_columns(path: Path) -> dict[str, list[str]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise TeddyError(
            f"{path}: reading Parquet needs pyarrow, which is not installed: pip install pyarrow, "
            "or write the list as .csv"
        ) from error
    columns: dict[str, list[Any]] = parquet.read_table(path).to_pydict()
    return {
        name: ["" if cell is None else str(cell) for cell in cells]
        for name, cells in columns.items()
    }
