"""Batch augmentations as two small matrices per image, drawn by counter-based randomness.

RandomResizedCrop, horizontal flip and roll are all linear in the image and separable, so a view is
``rows @ image @ columns.T``. The matrix form is exact (it equals torchvision's bilinear resize
without antialiasing), differentiable with a deterministic backward pass on every device, and one
batched product for a whole batch of different views.

Dimensions: ``N`` images, ``C`` channels, ``H W`` pixels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from teddy.config import ViewConfig
from teddy.seeding import derive, uniforms

_CROP_ATTEMPTS = 10  # torchvision's RandomResizedCrop falls back to a central crop after ten
_CROP_RATIO = (3 / 4, 4 / 3)  # torchvision's default aspect ratios, width over height


@dataclass(frozen=True, slots=True)
class Views:
    """Views of ``N`` images, or one view shared by all of them (``N = 1``)."""

    box: Tensor
    """int64 ``(N, 4)``: top, left, height and width of the crop."""
    flip: Tensor
    """bool ``(N,)``: whether left and right are swapped."""
    shift: Tensor
    """int64 ``(N, 2)``: circular shift of rows and columns, pixels."""

    def __getitem__(self, indices: Tensor | slice) -> "Views":
        return Views(self.box[indices], self.flip[indices], self.shift[indices])

    def __call__(self, images: Tensor) -> Tensor:
        """Views of ``images`` ``(N, C, H, W)``, of the same shape and dtype."""
        height, width = images.shape[-2:]
        top, left, box_height, box_width = self.box.unbind(1)
        rows = _resize_matrix(top, box_height, height)
        columns = _resize_matrix(left, box_width, width)
        columns = torch.where(self.flip[:, None, None], columns.flip(1), columns)
        rows, columns = _roll(rows, self.shift[:, 0]), _roll(columns, self.shift[:, 1])
        return rows[:, None].to(images.dtype) @ images @ columns[:, None].mT.to(images.dtype)


def draw_views(
    config: ViewConfig, height: int, width: int, seed: int, *item: str | int, indices: Tensor
) -> Views:
    """Draw one view per index; index ``i`` gets the same view in whatever batch it appears.

    Args:
        config: ranges of the random view.
        height: rows of the images; the view has as many.
        width: columns of the images.
        seed: experiment seed.
        item: purpose and whatever else the views belong to, an epoch say.
        indices: int64 ``(N,)``, one counter per view; its device is where the views are.

    Returns:
        ``N`` views.
    """
    u = uniforms(derive(seed, *item), indices, 2 * _CROP_ATTEMPTS + 5)
    box = _crop_boxes(u, height, width, config.crop_scale)
    u = u[:, 2 * _CROP_ATTEMPTS + 2 :]
    flip = (u[:, 0] < 0.5) if config.hflip else torch.zeros_like(u[:, 0], dtype=torch.bool)
    low, high = config.roll
    shift = (u[:, 1:3] * (high - low + 1)).floor().to(torch.int64) + low
    return Views(box, flip, shift)


def _crop_boxes(u: Tensor, height: int, width: int, scale: float) -> Tensor:
    """Boxes of torchvision's RandomResizedCrop: top, left, height, width; int64 ``(N, 4)``."""
    u_area, u_ratio = u[:, :_CROP_ATTEMPTS], u[:, _CROP_ATTEMPTS : 2 * _CROP_ATTEMPTS]
    area = height * width * (scale + (1 - scale) * u_area)
    low, high = (math.log(ratio) for ratio in _CROP_RATIO)
    ratio = (low + (high - low) * u_ratio).exp()
    box_width = (area * ratio).sqrt().round().to(torch.int64)
    box_height = (area / ratio).sqrt().round().to(torch.int64)
    fits = (box_width >= 1) & (box_width <= width) & (box_height >= 1) & (box_height <= height)
    fits = torch.cat([fits, torch.ones_like(fits[:, :1])], dim=1)
    central_height, central_width = _central_crop(height, width)
    box_height = torch.nn.functional.pad(box_height, (0, 1), value=central_height)
    box_width = torch.nn.functional.pad(box_width, (0, 1), value=central_width)
    first = fits.to(torch.int8).argmax(dim=1, keepdim=True)
    box_height, box_width = box_height.gather(1, first)[:, 0], box_width.gather(1, first)[:, 0]
    v = u[:, 2 * _CROP_ATTEMPTS :]
    top = (v[:, 0] * (height - box_height + 1)).floor().to(torch.int64)
    left = (v[:, 1] * (width - box_width + 1)).floor().to(torch.int64)
    central = first[:, 0] == _CROP_ATTEMPTS
    top = torch.where(central, (height - box_height) // 2, top)
    left = torch.where(central, (width - box_width) // 2, left)
    return torch.stack([top, left, box_height, box_width], dim=1)


def _central_crop(height: int, width: int) -> tuple[int, int]:
    """Largest central box whose aspect ratio is allowed (torchvision's fallback)."""
    low, high = _CROP_RATIO
    if width / height < low:
        return round(width / low), width
    if width / height > high:
        return height, round(height * high)
    return height, width


def _resize_matrix(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Bilinear resampling of ``[start, start + length)`` to ``size`` pixels, ``(N, size, size)``.

    Pixel centres as in ``interpolate(align_corners=False, antialias=False)``: output ``o`` reads
    position ``(o + ½)·length/size − ½`` of the crop, clamped to the crop.
    """
    out = torch.arange(size, device=start.device, dtype=torch.float32)
    length_f = length[:, None].to(torch.float32)
    position = (out + 0.5) * (length_f / size) - 0.5
    position = position.clamp(min=0).minimum(length_f - 1)
    lower = position.floor()
    weight = position - lower
    lower_index = start[:, None] + lower.to(torch.int64)
    upper_index = torch.minimum(lower_index + 1, (start + length - 1)[:, None])
    source = torch.arange(size, device=start.device)
    at_lower = (source == lower_index[..., None]) * (1 - weight)[..., None]
    return at_lower + (source == upper_index[..., None]) * weight[..., None]


def _roll(matrix: Tensor, shift: Tensor) -> Tensor:
    """Circularly shift the output pixels: row ``o`` moves to row ``o + shift``."""
    size = matrix.shape[1]
    source = (torch.arange(size, device=matrix.device) - shift[:, None]) % size
    return matrix.gather(1, source[..., None].expand_as(matrix))


@dataclass(frozen=True, slots=True)
class CutMix:
    """Boxes to paste and where they come from, for ``N`` images."""

    partner: Tensor
    """int64 ``(N,)``: index of the image that the box is taken from."""
    box: Tensor
    """int64 ``(N, 4)``: top, left, bottom, right; the last two exclusive."""

    def __getitem__(self, indices: Tensor) -> "CutMix":
        return CutMix(self.partner[indices], self.box[indices])

    def kept(self, height: int, width: int) -> Tensor:
        """Share of each image that is its own, float32 ``(N,)``: the weight of its own label."""
        top, left, bottom, right = self.box.unbind(1)
        return 1 - ((bottom - top) * (right - left)).to(torch.float32) / (height * width)

    def __call__(self, images: Tensor, partners: Tensor) -> Tensor:
        """Paste each partner's box; both arguments ``(N, C, H, W)``."""
        height, width = images.shape[-2:]
        y = torch.arange(height, device=images.device)
        x = torch.arange(width, device=images.device)
        top, left, bottom, right = self.box[:, :, None].unbind(1)
        inside_y = (y >= top) & (y < bottom)
        inside_x = (x >= left) & (x < right)
        inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]
        return torch.where(inside, partners, images)


def cutmix_box(kept: Tensor, centre: Tensor, height: int, width: int) -> Tensor:
    """Box of side fraction √(1−λ) around a centre, cut at the border (CutMix, rand_bbox).

    Args:
        kept: λ, float ``(N,)``; share of the image that stays.
        centre: int64 ``(N, 2)``, row and column.
        height: rows of the images.
        width: columns of the images.

    Returns:
        int64 ``(N, 4)``: top, left, bottom, right.
    """
    side = (1 - kept.to(torch.float64)).sqrt()
    box_height = (height * side).to(torch.int64)
    box_width = (width * side).to(torch.int64)
    top = (centre[:, 0] - box_height // 2).clamp(0, height)
    left = (centre[:, 1] - box_width // 2).clamp(0, width)
    bottom = (centre[:, 0] + box_height // 2).clamp(0, height)
    right = (centre[:, 1] + box_width // 2).clamp(0, width)
    return torch.stack([top, left, bottom, right], dim=1)


def draw_cutmix(
    count: int, height: int, width: int, seed: int, *item: str | int, device: torch.device | str
) -> CutMix:
    """Draw λ ∼ Beta(1, 1), a centre and a partner for each of ``count`` images.

    SRe2L draws one box per batch and permutes the batch; here each image has its own box and its
    partner comes from a permutation of the whole set, so that stored labels do not depend on how
    students batch the images. An image may be its own partner, as there.
    """
    u = uniforms(derive(seed, *item, "box"), torch.arange(count, device=device), 3)
    size = torch.tensor([height, width], device=device)
    centre = (u[:, 1:] * size).to(torch.int64)
    order = uniforms(derive(seed, *item, "partner"), torch.arange(count, device=device), 1)
    partner = order[:, 0].argsort(stable=True)
    return CutMix(partner, cutmix_box(u[:, 0], centre, height, width))
