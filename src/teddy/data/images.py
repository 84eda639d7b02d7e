"""Labelled images in memory, pixel range and normalisation.

Images at rest are uint8 in ``[0, 255]``; a network sees ``(x / 255 − mean) / std`` per channel.
:class:`Images` and :class:`teddy.data.lazy_images.ImageFiles` offer the same methods, so that
training does not know where its images lie.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from teddy.data.augmentation import draw_views
from teddy.settings.configs import ViewConfig

_DRAW_TOGETHER = 4096  # views; drawing those of a small batch alone costs as much as using them


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Per-channel mean and standard deviation of pixels in ``[0, 1]``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, images: Tensor) -> Tensor:
        """uint8 ``(N, C, H, W)`` to normalised float32."""
        mean, std = self._tensors(images.device)
        # In place and on contiguous pixels: a pass over new memory costs more than its arithmetic.
        pixels = images.to(torch.float32, copy=True)
        return pixels.mul_(1 / (255 * std)).sub_(mean / std)

    def to_uint8(self, images: Tensor) -> Tensor:
        """Normalised float ``(N, C, H, W)`` to uint8: denormalise, clamp to [0, 1], truncate.

        SRe2L truncates where rounding would be nearer (0.999 becomes 254); kept for parity. The
        tiny offset keeps values that came from uint8 exact through float32.
        """
        mean, std = self._tensors(images.device)
        pixels = (images.to(torch.float32) * std + mean).clamp(0, 1) * 255
        return (pixels + 1e-3).to(torch.uint8)

    def bounds(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Normalised values of black and white per channel, float32 ``(1, C, 1, 1)`` each."""
        mean, std = self._tensors(device)
        return -mean / std, (1 - mean) / std

    def _tensors(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        return _per_channel(self.mean, device), _per_channel(self.std, device)


@functools.lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device | str) -> Tensor:
    """float32 ``(1, C, 1, 1)``; made once, since copying numbers to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)[None, :, None, None]


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images of one split, all of them in memory."""

    images: Tensor
    """uint8 ``(N, C, H, W)``."""
    labels: Tensor
    """int64 ``(N,)`` in ``[0, K)``."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> "Images":
        """The same images on another device."""
        return Images(self.images.to(device), self.labels.to(device))

    def pick(self, indices: Tensor) -> Tensor:
        """Whole images, uint8 ``(n, C, H, W)``, without augmentation."""
        return self.images[indices]

    def train_batches(
        self,
        parts: Iterable[Tensor],
        views: ViewConfig,
        normalisation: Normalisation,
        seed: int,
        *item: str | int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented batches.

        Args:
            parts: indices of each batch, int64.
            views: ranges of the random view that every image gets.
            normalisation: of the dataset.
            seed: of the run.
            item: what the views belong to, an epoch say; the view of an image depends on the seed,
                the item and the image's index alone.

        Yields:
            Normalised float32 ``(n, C, H, W)`` and int64 labels ``(n,)``.
        """
        height, width = self.shape[1:]
        for group in _grouped(parts, _DRAW_TOGETHER):
            indices = torch.cat(group)
            drawn = draw_views(views, height, width, seed, *item, indices=indices)
            start = 0
            for part in group:
                view = drawn[start : start + len(part)]
                start += len(part)
                pixels = self.images.index_select(0, part)  # several times faster than images[part]
                yield view(normalisation.apply(pixels)), self.labels[part]

    def whole_batches(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Whole images of each part's int64 indices, uint8 ``(n, C, H, W)``."""
        for part in parts:
            yield self.images.index_select(0, part.to(self.images.device))

    def test_batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole images in order, uint8 ``(n, C, H, W)``, and their labels."""
        yield from zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)


def _grouped(parts: Iterable[Tensor], count: int) -> Iterator[list[Tensor]]:
    """Consecutive parts in lists that hold at least ``count`` indices, but for the last."""
    group: list[Tensor] = []
    for part in parts:
        group.append(part)
        if sum(map(len, group)) >= count:
            yield group
            group = []
    if group:
        yield group
