"""Files that hold arrays of images: CIFAR's batches, MNIST's IDX, NumPy's npz.

Nothing here runs code that a file contains.
"""

import gzip
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teddy.core.errors import TeddyError

# --------------------------------------------------------------------------------------- CIFAR


def read_cifar_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read a batch of CIFAR-10 or CIFAR-100 ("python version").

    Returns:
        uint8 ``(n, 3, 32, 32)`` and labels ``(n,)``; of CIFAR-100, the fine ones.

    Raises:
        TeddyError: not such a batch, or a pickle that asks for anything but arrays.
    """
    entry = _unpickle(path)
    images = entry.get("data")
    labels = entry.get("fine_labels", entry.get("labels"))
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
    return images.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


def read_cifar_names(path: Path, key: str) -> tuple[str, ...]:
    """Class names, in the order of labels, that CIFAR's meta file holds under ``key``."""
    names = _unpickle(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TeddyError(f"{path}: expected {key!r}, a list of names, got {_kind(names)}")
    return tuple(names)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "nothing" if value is None else type(value).__name__


def _array_pieces() -> dict[tuple[str, str], Any]:
    """The names that a pickled array refers to, under NumPy's old and new module names."""
    from numpy._core.multiarray import _reconstruct

    return {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("_codecs", "encode"): _latin1,
    }


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle of protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Loads arrays and plain containers; a pickle that names anything else is refused unrun."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        pieces = _array_pieces()
        if (module_name, global_name) not in pieces:
            raise TeddyError(
                f"asks for {module_name}.{global_name}, which no batch of images needs; it was not "
                "run. Fetch the published file"
            )
        return pieces[module_name, global_name]


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            entry = _ArrayUnpickler(file, encoding="latin1").load()
    except TeddyError as error:
        raise TeddyError(f"{path}: {error}") from None
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise TeddyError(f"{path}: expected a CIFAR batch, got a damaged file ({error})") from error
    if not isinstance(entry, dict):
        raise TeddyError(f"{path}: expected a dictionary, got {_kind(entry)}")
    return entry


# ----------------------------------------------------------------------------------------- IDX


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or not, as MNIST's authors define it.

    The header is 0, 0, the type (8: unsigned byte), the number of dimensions, and each dimension
    as a big-endian 32-bit number.

    Raises:
        TeddyError: not such a file, or shorter or longer than its header says.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise TeddyError(f"{path}: damaged ({error}); fetch it again") from error
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror}") from error
    dimensions = content[3] if content[:3] == b"\x00\x00\x08" and len(content) > 3 else 0
    shape = np.frombuffer(content[4 : 4 + 4 * dimensions], dtype=">u4").tolist()
    values = np.frombuffer(content[4 + 4 * dimensions :], dtype=np.uint8)
    if not shape or len(shape) != dimensions or len(values) != np.prod(shape):
        raise TeddyError(
            f"{path}: expected an IDX file of bytes, got {len(values)} values for shape {shape}"
        )
    return values.reshape(shape)


# ----------------------------------------------------------------------------------------- npz


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of an npz file by name, without pickled objects.

    Raises:
        TeddyError: missing, damaged, or an array of Python objects.
    """
    if not path.is_file():
        raise TeddyError(
            f"{path}: expected an .npz file with x_train and y_train, found no file there; write "
            "it by numpy.savez, or set prepare.root"
        )
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("a single array, .npy")
        with file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise TeddyError(f"{path}: expected an .npz file of plain arrays ({error})") from error


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
    return labels.astype(np.int64)
