"""Differentiable siamese augmentation (DSA): one of six operations per batch (§8-18).

Source: Zhao & Bilen, "Dataset condensation with differentiable siamese augmentation" (2021), the
strategy ``color_crop_cutout_flip_scale_rotate`` in its mode of one operation at a time.
*Siamese* is that the same :class:`DsaViews` may augment two batches, which distribution matching
needs. As in DM's code images are normalised and what comes from outside of one is 0.

Dimensions: ``N`` images, ``C`` channels, ``H W`` pixels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from teddy.core.seeding import derive, uniforms
from teddy.settings.configs import DsaConfig

_NUMBERS = 3  # uniform numbers of a view; colour needs as many


@dataclass(frozen=True, slots=True)
class DsaViews:
    """One operation, and its random parameters for ``N`` images or shared by any number."""

    config: DsaConfig
    """Strengths of the operations."""
    operation: str
    """One of ``config.operations``."""
    uniform: Tensor
    """float32 ``(N, 3)`` in [0, 1): what an image's parameters are made of; ``(1, 3)`` shared."""
    shared: bool
    """Whether all images get the same parameters."""

    def __getitem__(self, indices: Tensor | slice) -> "DsaViews":
        """Views of some of the images; shared ones fit any images as they are."""
        uniform = self.uniform if self.shared else self.uniform[indices]
        return DsaViews(self.config, self.operation, uniform, self.shared)

    def __call__(self, images: Tensor) -> Tensor:
        """Views of normalised ``images`` ``(N, C, H, W)``, of the same shape and dtype.

        Differentiable. With shared parameters the backward pass is deterministic on every device.
        """
        u, strength = self.uniform.to(images.dtype), self.config
        if self.operation == "color":
            return _color(images, u, strength)
        if self.operation == "crop":
            return _crop(images, u, strength.crop)
        if self.operation == "cutout":
            return _cutout(images, u, strength.cutout)
        if self.operation == "flip":
            return torch.where((u[:, 0] < 0.5)[:, None, None, None], images.flip(3), images)
        theta = _scaling(u, strength.scale) if self.operation == "scale" else None
        return _warp(images, _rotation(u, strength.rotate) if theta is None else theta, self.shared)


def draw_dsa(
    config: DsaConfig, seed: int, *item: str | int, indices: Tensor, step: int = 0
) -> DsaViews:
    """Draw an operation for a batch, and parameters for each of its images.

    Args:
        config: operations and strengths.
        seed: experiment seed.
        item: purpose and whatever else the views belong to, an epoch say.
        indices: int64 ``(N,)``, one counter per image: its parameters are the same in whatever
            batch it appears, for the same operation. Its device is where the views are.
        step: which batch of the item; chooses the operation and nothing else.
    """
    return DsaViews(
        config,
        _operation(config, seed, *item, step=step),
        uniforms(derive(seed, *item, "parameters"), indices, _NUMBERS),
        shared=False,
    )


def draw_shared_dsa(
    config: DsaConfig, seed: int, *item: str | int, device: torch.device | str = "cpu"
) -> DsaViews:
    """Draw an operation with one set of parameters for all images of one or several batches."""
    everyone = torch.zeros(1, dtype=torch.int64, device=device)
    uniform = uniforms(derive(seed, *item, "parameters"), everyone, _NUMBERS)
    return DsaViews(config, _operation(config, seed, *item, step=0), uniform, shared=True)


def _operation(config: DsaConfig, seed: int, *item: str | int, step: int) -> str:
    # On the CPU: which operation runs must be known there.
    (u,) = uniforms(derive(seed, *item, "operation"), torch.tensor([step]), 1)[0].tolist()
    return config.operations[int(u * len(config.operations))]


# ------------------------------------------------------------------------------------- operations


def _color(images: Tensor, u: Tensor, config: DsaConfig) -> Tensor:
    """Brightness, then saturation, then contrast, each by its own random amount.

    Brightness adds within ±strength / 2 (in units of normalised pixels); saturation multiplies the
    distance from a pixel's mean over channels by 1 ± strength / 2; contrast that from the image's
    mean by 1 ± strength. At strengths 1, 2 and 0.5 these are DSA's.
    """
    brightness, saturation, contrast = (2 * u - 1)[:, :, None, None, None].unbind(1)
    images = images + brightness * config.brightness / 2
    grey = images.mean(dim=1, keepdim=True)
    images = grey + (images - grey) * (1 + saturation * config.saturation / 2)
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    return middle + (images - middle) * (1 + contrast * config.contrast)


def _crop(images: Tensor, u: Tensor, share: float) -> Tensor:
    """Shift by whole pixels, at most ``share`` of the side (rounded), and fill with 0."""
    rows, columns = (
        _shift(u[:, axis], share, size, images.dtype) for axis, size in enumerate(images.shape[-2:])
    )
    return rows[:, None] @ images @ columns[:, None].mT


def _shift(u: Tensor, share: float, size: int, dtype: torch.dtype) -> Tensor:
    """Matrices ``(N, size, size)`` that shift pixels; a shifted pixel is exactly the old one."""
    most = int(size * share + 0.5)
    shift = (u * (2 * most + 1)).floor() - most
    pixel = torch.arange(size, device=u.device)
    return (pixel[:, None] - shift[:, None, None] == pixel).to(dtype)


def _cutout(images: Tensor, u: Tensor, share: float) -> Tensor:
    """Set a rectangle of ``share`` of each side, cut off at the border, to 0."""
    rows, columns = (_hole(u[:, axis], share, size) for axis, size in enumerate(images.shape[-2:]))
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _hole(u: Tensor, share: float, size: int) -> Tensor:
    """Which pixels of an axis are cut out, bool ``(N, size)``; any centre is equally likely."""
    length = int(size * share + 0.5)
    first = (u * (size + 1 - length % 2)).floor()[:, None] - length // 2
    pixel = torch.arange(size, device=u.device)
    return (pixel >= first) & (pixel < first + length)


def _scaling(u: Tensor, most: float) -> Tensor:
    """Factors of both axes in [1/most, most], each on its own: ``(N, 2, 3)`` for affine_grid.

    An output pixel reads at the factor times its place, so that factors above 1 shrink the image.
    """
    factor = 1 / most + u[:, :2] * (most - 1 / most)
    theta = factor.new_zeros(len(u), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = factor.unbind(1)
    return theta


def _rotation(u: Tensor, degrees: float) -> Tensor:
    """Rotations by at most ``degrees`` either way: ``(N, 2, 3)`` for affine_grid."""
    angle = (2 * u[:, 0] - 1) * math.radians(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)


def _warp(images: Tensor, theta: Tensor, shared: bool) -> Tensor:
    """Bilinear samples of an affine grid, 0 outside of the image.

    A shared warp is one dense matrix over pixels: cheap for the small images that DSA is for, and
    unlike the backward pass of ``grid_sample`` its own is deterministic on GPUs.
    """
    height, width = images.shape[-2:]
    grid = affine_grid(theta, [len(theta), 1, height, width], align_corners=False)
    if not shared:
        return grid_sample(images, grid, "bilinear", "zeros", align_corners=False)
    x, y = grid.view(-1, 2).unbind(1)
    in_y, in_x = _weights(y, height), _weights(x, width)
    matrix = (in_y[:, :, None] * in_x[:, None, :]).flatten(1)
    return (images.flatten(2) @ matrix.T).view(images.shape)


def _weights(place: Tensor, size: int) -> Tensor:
    """Bilinear weight ``(places, size)`` of each pixel for places in [−1, 1], edge to edge."""
    pixel = torch.arange(size, device=place.device)
    position = ((place + 1) * size - 1) / 2
    return (1 - (position[:, None] - pixel).abs()).relu()
