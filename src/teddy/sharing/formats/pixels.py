"""Single images: foreign files to uint8 pixels, and what rounding or JPEG costs."""

import hashlib
import io
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.data.decoding import as_channels, mode_of, read_file
from teddy.sharing.bundles import as_image
from teddy.sharing.formats.found import Wanted

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")
"""That Pillow decodes by itself: others start programs, or have frames."""


def encoded(pixels: Tensor, *, jpeg: bool = False) -> bytes:
    """A uint8 image ``(C, H, W)`` of 1 or 3 channels as PNG, or as JPEG of quality 95."""
    buffer = io.BytesIO()
    if jpeg:
        as_image(pixels).save(buffer, format="JPEG", quality=95, subsampling=0)
    else:
        as_image(pixels).save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


def check_channels(images: Tensor) -> None:
    """Refuse images that neither PNG nor JPEG can hold.

    Raises:
        TeddyError: they have neither 1 nor 3 channels.
    """
    if images.shape[1] not in (1, 3):
        raise TeddyError(
            f"images must have 1 or 3 channels to be image files, got {images.shape[1]}; export "
            "with --format pt"
        )


def content_of(path: Path) -> tuple[bytes, str]:
    """Content of a file, and its SHA-256.

    Raises:
        TeddyError: it cannot be read.
    """
    try:
        content = read_file(path)
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror or error}") from error
    return content, hashlib.sha256(content).hexdigest()


def decoded(content: bytes, wanted: Wanted, where: str) -> tuple[Tensor, int | None]:
    """An image file of the wanted size and channels.

    Args:
        content: of the file.
        wanted: shape, and whether square images of another size are resized.
        where: what messages begin with.

    Returns:
        uint8 ``(C, S, S)``, and its side before it was resized; None if it was not.

    Raises:
        TeddyError: it is damaged, or of other channels or size.
    """
    channels, side, _ = wanted.shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that nobody reads here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                resized = _check_fits(image, wanted, where)
                upright = as_channels(image, channels)
                if resized:
                    upright = upright.resize((side, side), Image.Resampling.BILINEAR)
                return as_tensor(upright), resized
    except TeddyError:
        raise
    except UnidentifiedImageError:
        kinds = ", ".join(_FORMATS)
        raise TeddyError(f"{where}: expected an image, one of {kinds}; it is none") from None
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TeddyError(f"{where}: expected an image, but cannot read it: {reason}") from error


def as_tensor(image: Image.Image) -> Tensor:
    """A grey or RGB image as uint8 ``(C, H, W)``."""
    return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1).contiguous()


def _check_fits(image: Image.Image, wanted: Wanted, where: str) -> int | None:
    channels, side, _ = wanted.shape
    if image.mode != mode_of(channels):
        raise TeddyError(
            f"{where}: image must be {mode_of(channels)}, as {wanted.folder} has {channels} "
            f"channel{'s' * (channels != 1)}; got {image.mode}"
        )
    check_side(image.size[0], image.size[1], wanted, where)
    return None if image.size == (side, side) else image.size[0]


def check_side(width: int, height: int, wanted: Wanted, where: str) -> None:
    """Refuse images of another size, unless they are square and may be resized.

    Raises:
        TeddyError: naming both sizes.
    """
    side = wanted.shape[1]
    if (width, height) != (side, side) and not (wanted.resize and width == height):
        raise TeddyError(
            f"{where}: image must be {side}×{side} as those of {wanted.folder}; got "
            f"{width}×{height}" + (f"; --size {side} resizes it" if width == height else "")
        )


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, dB: infinite where both are equal.

    Args:
        images: ``(N, C, H, W)`` of values from 0 to 255.
        others: the same after a loss.

    Returns:
        float64 ``(N,)``.
    """
    error = (images.double() - others.double()).square().mean(dim=(1, 2, 3))
    return 20 * math.log10(255) - 10 * error.log10()


def summary(decibels: Tensor) -> dict[str, float]:
    """Mean and worst PSNR of the images that changed, dB with two decimals; {} if none did."""
    changed = decibels[decibels.isfinite()]
    if not len(changed):
        return {}
    return {"mean": round(float(changed.mean()), 2), "worst": round(float(changed.min()), 2)}


def in_words(cost: dict[str, float]) -> str:
    """What a summary says."""
    if not cost:
        return "no image changed"
    return f"PSNR {cost['mean']:.1f} dB on average, {cost['worst']:.1f} dB at worst"


def of_resizing(sides: set[int], wanted: Wanted) -> tuple[Json, tuple[str, ...]]:
    """What is said of images that were resized: facts, and in words.

    Args:
        sides: of those that were, before.
        wanted: their size now.
    """
    if not sides:
        return {}, ()
    now = wanted.shape[1]
    before = ", ".join(f"{side}×{side}" for side in sorted(sides))
    return {"resized_from": sorted(sides)}, (f"resized from {before} to {now}×{now} (bilinear)",)
