"""The items that a distilled set is cut into: what they are, and how they are put together.

An item is a group of IPC indices × a chunk of classes. It has its own random streams, so its images
do not depend on which other items exist, on their order or on which process optimises it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from teddy.settings.configs import SynthesizeConfig


@dataclass(frozen=True, slots=True)
class Item:
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


def cut_items(ipc: int, num_classes: int, config: SynthesizeConfig) -> list[Item]:
    """Items of a set. The last group is synthesised whole and cut to ``ipc`` afterwards, so that
    an image does not depend on how many are asked for.
    """
    size, width = config.indices_per_batch, config.classes_per_batch
    return [
        Item(
            group,
            chunk,
            range(group * size, (group + 1) * size),
            range(chunk * width, min((chunk + 1) * width, num_classes)),
        )
        for group in range(math.ceil(ipc / size))
        for chunk in range(math.ceil(num_classes / width))
    ]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an item stands among those of a set, for who watches."""

    finished: int = 0
    total: int = 1
    ahead: int = 0
    """Further items that this process has to wait for."""

    def title(self, item: Item) -> str:
        """Label of the progress bar."""
        return f"synthesize {self.finished}/{self.total} items, now {item.name}"

    def show(
        self, bar: "tqdm[Any]", done: int, start: int, iterations: int, images: int, began: float
    ) -> None:
        """Move the bar; add images per second, and the time until all items are finished."""
        rate = (done - start) / max(time.monotonic() - began, 1e-9)
        left = (iterations - done + self.ahead * iterations) / rate
        speed = f"{rate * images:.0f} images/s, all in {tqdm.format_interval(left)}"
        bar.set_postfix_str(speed, refresh=False)
        bar.update(done - bar.n)


def join_items(items: Sequence[Item], images: Sequence[Tensor], ipc: int) -> Tensor:
    """Images of a set, uint8 ``(ipc·K, C, H, W)`` ordered by index, then class, from its items'."""
    indices = max(item.indices[-1] for item in items) + 1
    classes = max(item.classes[-1] for item in items) + 1
    joined = torch.empty(indices, classes, *images[0].shape[1:], dtype=torch.uint8)
    for item, own in zip(items, images, strict=True):
        block = own.unflatten(0, (len(item.indices), len(item.classes)))
        joined[list(item.indices), item.classes[0] : item.classes[-1] + 1] = block
    return joined[:ipc].flatten(0, 1)
