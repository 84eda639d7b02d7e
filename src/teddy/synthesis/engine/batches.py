"""The batches of images that a distilled set is cut into (Table 7), and how they are put together.

A batch is a group of IPC indices × a chunk of classes. It has its own random numbers, so its images
do not depend on which other batches exist, on their order or on which process optimises it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One independent optimisation: some IPC indices of some classes."""

    group: int
    """Which group of IPC indices; teachers are drawn once for it."""
    chunk: int
    """Which chunk of classes."""
    indices: range
    classes: range

    @property
    def name(self) -> str:
        """Named in progress, errors and files."""
        return f"indices {self.indices[0]}-{self.indices[-1]}, classes " + (
            f"{self.classes[0]}-{self.classes[-1]}"
        )

    def labels(self) -> Tensor:
        """Class of every image, ordered by index, then class; int64 ``(N,)``."""
        return torch.tensor(self.classes).repeat(len(self.indices))


def cut_batches(
    ipc: int, num_classes: int, *, indices_per_batch: int, classes_per_batch: int
) -> list[Batch]:
    """Batches of a set.

    The last group of indices is made whole and cut to ``ipc`` afterwards, so that an image does not
    depend on how many are asked for.
    """
    size, width = indices_per_batch, classes_per_batch
    return [
        Batch(
            group,
            chunk,
            range(group * size, (group + 1) * size),
            range(chunk * width, min((chunk + 1) * width, num_classes)),
        )
        for group in range(math.ceil(ipc / size))
        for chunk in range(math.ceil(num_classes / width))
    ]


def join_batches(batches: Sequence[Batch], images: Sequence[Tensor], ipc: int) -> Tensor:
    """Images of a set, uint8 ``(ipc·K, C, H, W)`` ordered by index, then class."""
    indices = max(batch.indices[-1] for batch in batches) + 1
    classes = max(batch.classes[-1] for batch in batches) + 1
    joined = torch.empty(indices, classes, *images[0].shape[1:], dtype=torch.uint8)
    for batch, own in zip(batches, images, strict=True):
        block = own.unflatten(0, (len(batch.indices), len(batch.classes)))
        joined[list(batch.indices), batch.classes[0] : batch.classes[-1] + 1] = block
    return joined[:ipc].flatten(0, 1)
