"""Labelled images that stay on disk and are decoded by worker processes while training.

A random view is cut from the photograph at its own size and then resized, by Pillow and to the
same bits as torchvision's ``RandomResizedCrop``; its box is drawn as every other view's, from the
seed, the item and the image's index, so it does not matter which worker decodes what, or when.
"""

import io
import multiprocessing
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from teddy.core.errors import TeddyError
from teddy.core.runtime import cores
from teddy.data.augmentation import draw_views
from teddy.data.decoding import as_channels, centre_view, read_file
from teddy.data.images import Normalisation
from teddy.settings.configs import ViewConfig

if TYPE_CHECKING:
    from PIL.Image import Image

Entry = tuple[int, str, int]
"""Index of an image, its file and the bytes that the file must have."""
Pixels = npt.NDArray[np.uint8]

_CHUNK = 32  # images that travel together; a bound on memory, whatever the size of a batch
_PREFETCH = 4  # chunks that each worker prepares ahead


class ImageFiles:
    """Image files of one split.

    Args:
        root: folder that the files' names are relative to.
        files: one path per image.
        sizes: bytes of each file when the dataset was prepared; a file of another size is refused.
        labels: int64 ``(N,)``; batches come on their device.
        image_size: side of the square images that networks see, pixels.
        channels: 1 (greyscale) or 3 (RGB).
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        sizes: Sequence[int],
        labels: Tensor,
        image_size: int,
        channels: int,
    ) -> None:
        self.root, self.files, self.sizes = root, files, sizes
        self.labels = labels
        self.shape = (channels, image_size, image_size)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "ImageFiles":
        """The same images, whose batches come on another device."""
        labels = self.labels.to(device)
        return ImageFiles(self.root, self.files, self.sizes, labels, self.shape[1], self.shape[0])

    def pick(self, indices: Tensor) -> Tensor:
        """Whole images, uint8 ``(n, C, S, S)``, resized and cropped at the centre.

        Raises:
            TeddyError: a file is missing, has changed or cannot be decoded.
        """
        return next(self._batches([indices], _Decoder(self.root, self.shape)))

    def train_batches(
        self,
        parts: Iterable[Tensor],
        views: ViewConfig,
        normalisation: Normalisation,
        seed: int,
        *item: str | int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches, as :meth:`teddy.data.images.Images.train_batches`.

        Raises:
            TeddyError: a file is missing, has changed or cannot be decoded.
        """
        parts = list(parts)
        decoder = _Decoder(self.root, self.shape, views, seed, item)
        for part, pixels in zip(parts, self._batches(parts, decoder), strict=True):
            yield normalisation.apply(pixels), self.labels[part.to(self.labels.device)]

    def whole_batches(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Whole images of each part's int64 indices, uint8 ``(n, C, S, S)``; see :meth:`pick`."""
        yield from self._batches(parts, _Decoder(self.root, self.shape))

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole images in order, uint8 ``(n, C, S, S)``, and their labels; see :meth:`pick`."""
        pixels = self.whole_batches(torch.arange(len(self)).split(batch_size))
        yield from zip(pixels, self.labels.split(batch_size), strict=True)

    def _batches(self, parts: Iterable[Tensor], decoder: "_Decoder") -> Iterator[Tensor]:
        """Decoded uint8 batches on the device of the labels, in the order of ``parts``."""
        parts = [part.cpu() for part in parts]
        pieces = [_pieces(part) for part in parts]
        # Made when asked for: an epoch of a large set has a million entries.
        chunks = (self._entries(piece) for part in pieces for piece in part)
        count = sum(map(len, pieces))
        loaded = _load(chunks, count, decoder, pin_memory=self.labels.is_cuda)
        for part in parts:
            batch = torch.empty(
                len(part), *self.shape, dtype=torch.uint8, device=self.labels.device
            )
            for piece in _pieces(batch):
                piece.copy_(next(loaded), non_blocking=True)
            yield batch

    def _entries(self, indices: Tensor) -> list[Entry]:
        return [(i, self.files[i], self.sizes[i]) for i in indices.tolist()]


def _pieces(part: Tensor) -> Sequence[Tensor]:
    """Up to ``_CHUNK`` rows each; none of nothing."""
    return part.split(_CHUNK) if len(part) else ()


# ------------------------------------------------------------------------------------- decoding


@dataclass(frozen=True)
class _Decoder(Dataset[Tensor | str]):
    """From files to pixels; what a worker process is given."""

    root: Path
    shape: tuple[int, int, int]
    views: ViewConfig | None = None
    """None asks for whole images."""
    seed: int = 0
    item: tuple[str | int, ...] = ()

    def __getitems__(self, entries: list[Entry]) -> Tensor | str:
        """Pixels, or what is wrong: an exception would arrive with a worker's traceback."""
        try:
            return self.decode(entries)
        except TeddyError as error:
            return str(error)

    def decode(self, entries: list[Entry]) -> Tensor:
        """uint8 ``(n, C, S, S)`` of a chunk."""
        images = [self._read(name, expected) for _, name, expected in entries]
        size = self.shape[1]
        if self.views is None:
            return _stack([np.asarray(image) for image in images])
        views = draw_views(
            self.views,
            torch.tensor([image.height for image in images]),
            torch.tensor([image.width for image in images]),
            self.seed,
            *self.item,
            indices=torch.tensor([index for index, _, _ in entries]),
        )
        drawn = zip(
            images, views.box.tolist(), views.flip.tolist(), views.shift.tolist(), strict=True
        )
        return _stack([_random_view(*one, size) for one in drawn])

    def _read(self, name: str, expected: int) -> "Image":
        """A file's image, or of whole images the square that evaluation sees."""
        from PIL import Image

        path = self.root / name
        again = "run the prepare stage again"
        try:
            content = read_file(path)
        except OSError as error:
            raise TeddyError(f"{path}: cannot read: {error.strerror}; {again}") from error
        if len(content) != expected:
            raise TeddyError(
                f"{path}: has {len(content)} bytes, but had {expected} when the dataset was "
                f"prepared; {again}"
            )
        try:
            image = as_channels(Image.open(io.BytesIO(content)), self.shape[0])
            return centre_view(image, self.shape[1]) if self.views is None else image
        except Exception as error:  # a damaged file makes Pillow raise almost anything
            raise TeddyError(
                f"{path}: cannot be decoded ({error}); mend or remove it, or set "
                f"prepare.on_unreadable: skip, and {again}"
            ) from error


def _random_view(image: "Image", box: list[int], flip: bool, shift: list[int], size: int) -> Pixels:
    from PIL.Image import Resampling

    top, left, height, width = box
    # Cropped first: a resize restricted to a box would blend in pixels from outside of it.
    crop = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(crop.resize((size, size), Resampling.BILINEAR))
    pixels = pixels[:, ::-1] if flip else pixels
    return np.roll(pixels, shift, (0, 1)) if any(shift) else pixels


def _stack(images: Sequence[Pixels]) -> Tensor:
    """``(H, W)`` or ``(H, W, C)`` each to ``(n, C, H, W)``.

    NumPy, because these copies are so small that PyTorch's threads would only get in the way.
    """
    stacked = np.stack([np.atleast_3d(image) for image in images])
    return torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)))


# -------------------------------------------------------------------------------------- workers


def _workers() -> int:
    """Decoding processes: all cores but one, which trains; none in a forked worker of a stage."""
    return 0 if multiprocessing.parent_process() is not None else cores() - 1


def _load(
    chunks: Iterable[list[Entry]], count: int, decoder: _Decoder, *, pin_memory: bool
) -> Iterator[Tensor]:
    """Decode ``count`` chunks, in order, in worker processes that run ahead."""
    workers = min(_workers(), count - 1)
    if workers <= 0:
        yield from map(decoder.decode, chunks)
        return
    import PIL.Image  # noqa: F401  once here instead of once in each worker

    with warnings.catch_warnings():
        # Of more workers than cores, which $TEDDY_WORKERS asked for; and, from Python 3.12, of a
        # fork beside other threads: workers touch neither locks nor threads of this process.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        loader: DataLoader[Tensor | str] = DataLoader(
            decoder,
            batch_sampler=chunks,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=_PREFETCH,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_interrupts,
            multiprocessing_context="fork",
            generator=torch.Generator(),  # the loader would draw from the global one
        )
        iterator = iter(loader)
    try:
        for loaded in iterator:
            if isinstance(loaded, str):
                raise TeddyError(loaded)
            yield loaded
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TeddyError(
            f"one of {workers} processes that decode images was killed, probably for lack of "
            "memory or of shared memory (/dev/shm); set $TEDDY_WORKERS to fewer (1 decodes "
            "without processes) and run the same command again"
        ) from error
    finally:
        del iterator  # ends the workers now; an error's traceback would keep them


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C to the training process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
