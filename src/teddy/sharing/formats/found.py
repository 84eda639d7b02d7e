"""What is wanted of a set in another format, what is found there, and our order of images."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from teddy.core.files import Json
from teddy.data.images import Normalisation


@dataclass(frozen=True, slots=True)
class Wanted:
    """What images and classes must be to be those that students of a prepared dataset know."""

    folder: Path
    """Of the prepared dataset, for messages."""
    names: tuple[str, ...]
    """Of the K classes, in the order of labels."""
    shape: tuple[int, int, int]
    """Channels, height, width."""
    normalisation: Normalisation
    resize: bool = False
    """Whether square images of another size are resized."""
    order: str | None = None
    """What numbers of classes count: ``sorted`` names or ``ours``; None if that was not said."""
    statistics: Normalisation | None = None
    """What ``pt`` is denormalised by where its own files do not say it; None: as the dataset."""


@dataclass(frozen=True, slots=True)
class Found:
    """Images of another format with our labels, in any order."""

    images: Tensor
    """uint8 ``(N, C, H, W)``."""
    labels: Tensor
    """int64 ``(N,)``, of the prepared dataset's classes."""
    files: dict[str, str]
    """SHA-256 of every file that was read, by its name."""
    facts: Json = field(default_factory=dict)
    """What was done to the images, for their provenance."""
    notes: tuple[str, ...] = ()
    """The same in words, for whoever imports them."""


def by_index(labels: Tensor) -> Tensor:
    """The order of distilled sets: by index within the class, then by class.

    Args:
        labels: int64 ``(N,)``; images of a class are counted in this order.

    Returns:
        int64 ``(N,)``, which image comes at each place.
    """
    return (index_in_class(labels) * (int(labels.max()) + 1) + labels).argsort()


def index_in_class(labels: Tensor) -> Tensor:
    """How many images of the same class come before each, int64 ``(N,)``."""
    order, counts = labels.argsort(stable=True), labels.bincount()
    first = (counts.cumsum(0) - counts)[labels[order]]  # place of each one's class in that order
    index = torch.empty_like(labels)
    index[order] = torch.arange(len(labels)) - first
    return index
