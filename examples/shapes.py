"""A dataset in a file of its own: a loader of images that no built-in source reads.

One key registers it, ``prepare.source`` of a dataset's settings; ``examples/shapes.yaml`` has these
and the rows, and is switched on by a line under ``vars`` of dvc.yaml. (Folders of images, arrays in
an ``.npz`` file and the usual archives need no loader: see experiments/imagefolder.yaml.)
"""

import torch
from torch import Tensor

from teddy.data.sources import RawArrays, RawDataset
from teddy.settings.configs import PrepareConfig

NAMES = ("disc", "square", "cross")


def load(config: PrepareConfig) -> RawDataset:
    """600 grey images of 16×16 pixels: shapes at random places, under noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % len(NAMES)
    images = torch.stack([_draw(NAMES[label], generator) for label in labels.tolist()])
    return RawDataset(RawArrays(images[:, None], labels), test=None, class_names=NAMES)


def _draw(name: str, generator: torch.Generator) -> Tensor:
    """A shape, uint8 ``(16, 16)``."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    top, left = torch.randint(5, 11, (2,), generator=generator).tolist()
    dy, dx = (y - top).abs(), (x - left).abs()
    inside: Tensor = {
        "disc": dy**2 + dx**2 <= 16,
        "square": torch.maximum(dy, dx) <= 3,
        "cross": torch.minimum(dy, dx) <= 1,
    }[name]
    noise = 30 * torch.randn(16, 16, generator=generator)
    return (60 + 120 * inside + noise).clamp(0, 255).to(torch.uint8)
