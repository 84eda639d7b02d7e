"""Images that hold smaller ones, as IDM partitions them: composed, and taken apart again."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def expand(images: Tensor, factor: int) -> Tensor:
    """The smaller images that images hold, enlarged to their size.

    Args:
        images: float ``(N, C, H, W)``, whose sides ``factor`` divides.
        factor: f, smaller images along a side.

    Returns:
        ``(f²·N, C, H, W)``: those of the first place of every image, then of the next place; places
        go down the columns.
    """
    if factor == 1:
        return images
    height, width = images.shape[2] // factor, images.shape[3] // factor
    parts = [
        images[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width]
        for column in range(factor)
        for row in range(factor)
    ]
    size = (images.shape[2], images.shape[3])
    return interpolate(torch.cat(parts), size=size, mode="bilinear")


def compose(images: Tensor, factor: int) -> Tensor:
    """Images that hold ``f²`` smaller ones each: what :func:`expand` takes apart.

    Args:
        images: float ``(f²·N, C, H, W)``, ordered as :func:`expand` gives them.
        factor: f.

    Returns:
        ``(N, C, H, W)``.
    """
    if factor == 1:
        return images
    size = (images.shape[2] // factor, images.shape[3] // factor)
    small = interpolate(images, size=size, mode="bilinear")
    columns = small.chunk(factor)
    return torch.cat([torch.cat(c.chunk(factor), dim=2) for c in columns], dim=3)
