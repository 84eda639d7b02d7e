"""Image files to uint8 arrays of one size, on all cores, and what is found on the way."""

import contextlib
import errno
import hashlib
import math
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from torch import Tensor

from teddy.core.runtime import cores, progress

_MARGIN_FROM = 128  # side from which evaluation cuts a margin off
_MARGIN = 256 / 224  # torchvision's reference evaluation: resize to 256, keep the central 224
_MOST_PIXELS = 2**27  # of a resized image, of which the centre is kept
_CHUNK = 64  # images per task: few enough for a lively progress bar, many enough to cost nothing


def mode_of(channels: int) -> str:
    """Pillow's mode for 1 (greyscale) or 3 (RGB) channels."""
    return "L" if channels == 1 else "RGB"


# What an orientation tag asks for; others ask for nothing.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def as_channels(image: Image.Image, channels: int) -> Image.Image:
    """Decode to 8 bits of grey (1) or RGB (3), turned as a camera's tag says; alpha is dropped.

    Raises:
        ValueError: more than 8 bits per channel, whose range nothing tells.
    """
    mode = mode_of(channels)
    check_depth(image)
    turn = _TURNS.get(_orientation(image))
    if image.mode == mode:
        image.load()
    else:
        if "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow's own advice for palettes
        image = image.convert(mode)
    return image.transpose(turn) if turn is not None else image


def check_depth(image: Image.Image) -> None:
    """Refuse more than 8 bits per channel, which a file's header tells; errors as as_channels."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode} has more than 8 bits per channel")


def centre_view(image: Image.Image, size: int) -> Image.Image:
    """The square that evaluation sees, as torchvision's ``Resize`` and ``CenterCrop``.

    From 128 pixels on the shorter side is resized to ``round(size · 256 / 224)`` and the centre
    cut out, as in torchvision's reference evaluation; smaller squares are the centre of an image
    whose shorter side is resized to ``size``, where a margin would cost too much of the object.
    """
    short = round(size * _MARGIN) if size >= _MARGIN_FROM else size
    width, height = image.size
    scaled = (
        (short, int(short * height / width)) if width <= height
        else (int(short * width / height), short)
    )  # fmt: skip
    if math.prod(scaled) > _MOST_PIXELS:
        raise ValueError(f"a strip of {width}×{height} pixels, too long to be resized")
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in scaled)
    return image.crop((left, top, left + size, top + size))


def fit(image: Image.Image, size: int, channels: int) -> NDArray[np.uint8]:
    """The square of an image that evaluation sees, in the mode that networks see.

    The same pixels as those of files that stay on disk, see :func:`as_channels` and
    :func:`centre_view`.

    Args:
        image: any size; any mode of at most 8 bits per channel.
        size: side of the square wanted, S pixels.
        channels: 1 or 3, C.

    Returns:
        uint8 ``(C, S, S)``.

    Raises:
        ValueError: more than 8 bits per channel, or a strip too long to be resized.
        OSError: the file is damaged.
    """
    square = centre_view(as_channels(image, channels), size)
    return np.atleast_3d(np.asarray(square)).transpose(2, 0, 1)


def fit_arrays(images: Tensor, size: int, channels: int) -> Tensor:
    """:func:`fit` for decoded images, uint8 ``(N, C', H, W)``; returns uint8 ``(N, C, S, S)``."""
    if images.shape[1:] == (channels, size, size):
        return images
    fitted = torch.empty(len(images), channels, size, size, dtype=torch.uint8)
    source, target = images.numpy(), fitted.numpy()

    def task(index: int) -> None:
        pixels = source[index]
        image = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
        target[index] = fit(Image.fromarray(image), size, channels)

    _on_all_cores(len(images), task, "resize")
    return fitted


@dataclass(frozen=True, slots=True)
class Found:
    """What opening one image file showed."""

    sha256: bytes
    """Of the content."""
    mode: str
    """Pillow's mode, "" if unreadable."""
    problem: str
    """Why the file is no image that can be used, "" if it is."""
    turned: bool = False
    """Whether it is turned, or mirrored, because an orientation tag says so."""


def decode(
    root: Path, files: Sequence[str], size: int, channels: int, what: str
) -> tuple[Tensor, list[Found]]:
    """Decode all files; the result does not depend on the number of workers.

    Args:
        root: folder that files lie in.
        files: N paths below it.
        size: side of the square wanted, S pixels.
        channels: 1 or 3, C.
        what: shown beside the progress bar.

    Returns:
        uint8 ``(N, C, S, S)``, undefined where a file is unreadable, and what each file showed.
    """
    images = torch.empty(len(files), channels, size, size, dtype=torch.uint8)
    pixels = images.numpy()

    def visit(index: int, image: Image.Image) -> None:
        pixels[index] = fit(image, size, channels)

    return images, _open_all(root, files, visit, f"decode {what}")


def inspect(
    root: Path, files: Sequence[str], channels: int, what: str, *, whole: bool
) -> list[Found]:
    """Read all files and their headers, or decode the ``whole`` image, and keep none."""

    def visit(index: int, image: Image.Image) -> None:
        check_depth(image)
        if whole:
            as_channels(image, channels)

    return _open_all(root, files, visit, f"read {what}")


def _open_all(
    root: Path,
    files: Sequence[str],
    visit: Callable[[int, Image.Image], None],
    description: str,
) -> list[Found]:
    found: list[Found | None] = [None] * len(files)

    def task(index: int) -> None:
        found[index] = _open(root / files[index], index, visit)

    with warnings.catch_warnings():
        # Of metadata that nobody reads here, and of very large images: both decode well.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        _on_all_cores(len(found), task, description)
    return [one for one in found if one is not None]


def _open(path: Path, index: int, visit: Callable[[int, Image.Image], None]) -> Found:
    try:
        content = read_file(path)
    except OSError as error:
        return Found(b"", "", str(error.strerror or error))
    sha256 = hashlib.sha256(content).digest()
    try:
        with Image.open(BytesIO(content)) as image:
            mode, turned = image.mode, _orientation(image) in _TURNS
            visit(index, image)
    except UnidentifiedImageError:
        return Found(sha256, "", "not an image" if content else "empty file")
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        return Found(sha256, "", " ".join(str(error).split()) or type(error).__name__)
    return Found(sha256, mode, "", turned)


def read_file(path: Path) -> bytes:
    """Content of a regular file.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, whose content may have no end.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # or a pipe would wait for its other end

    with open(path, "rb", opener=opener) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read()


def _orientation(image: Image.Image) -> int:
    """A camera's orientation tag, 1 if there is none."""
    with contextlib.suppress(Exception):  # of damaged metadata, which nothing else needs
        # Pillow itself turns TIFF, and would decode a PNG file to look for a tag behind its pixels.
        if image.format != "TIFF" and "exif" in image.info:
            return int(image.getexif().get(Base.Orientation, 1))
    return 1


def _on_all_cores(count: int, task: Callable[[int], None], description: str) -> None:
    """Call ``task(0) … task(count − 1)`` in threads: decoders release the interpreter's lock."""

    def run(start: int) -> int:
        indices = range(start, min(start + _CHUNK, count))
        for index in indices:
            task(index)
        return len(indices)

    with ThreadPoolExecutor(cores()) as pool, progress(count, description, "img") as bar:
        for done in pool.map(run, range(0, count, _CHUNK)):
            bar.update(done)
