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

from teddy.core.seeding import derive, uniforms
from teddy.settings.configs import ViewConfig

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
        """Views of ``images`` ``(N, C, H, W)``, of the same shape and dtype.

        The view of an image has the same bits in whatever batch it appears.
        """
        return self.resampling(*images.shape[-2:])(images)

    def resampling(self, height: int, width: int) -> "Resampling":
        """Matrices of these views of images of a size; costs more than to use them once."""
        top, left, box_height, box_width = self.box[..., None].unbind(1)
        y = torch.arange(height, device=self.box.device)
        x = torch.arange(width, device=self.box.device)
        out_y = (y - self.shift[:, :1]) % height
        out_x = (x - self.shift[:, 1:]) % width
        out_x = torch.where(self.flip[:, None], width - 1 - out_x, out_x)
        rows = _bilinear(_position(out_y, box_height, height)[:, :, None], (y - top)[:, None, :])
        columns = _bilinear(_position(out_x, box_width, width)[:, None, :], (x - left)[:, :, None])
        return Resampling(rows, columns)


@dataclass(frozen=True, slots=True)
class Resampling:
    """``N`` views as matrices, or one shared by all images (``N = 1``)."""

    rows: Tensor
    """float32 ``(N, H, H)``, output times input."""
    columns: Tensor
    """float32 ``(N, W, W)``, input times output."""

    def __getitem__(self, indices: slice) -> "Resampling":
        return Resampling(self.rows[indices], self.columns[indices])

    def __call__(self, images: Tensor) -> Tensor:
        """As :class:`Views`."""
        rows, columns = self.rows.to(images.dtype), self.columns.to(images.dtype)
        if len(rows) == 1 < len(images):
            return rows[0] @ (images @ columns[0])
        across = torch.bmm(images.flatten(1, 2), columns).view(images.shape)
        return rows[:, None] @ across


def draw_views(
    config: ViewConfig,
    height: int | Tensor,
    width: int | Tensor,
    seed: int,
    *item: str | int,
    indices: Tensor,
    crop_scale: Tensor | None = None,
) -> Views:
    """Draw one view per index; index ``i`` gets the same view in whatever batch it appears.

    Args:
        config: ranges of the random view.
        height: rows of the images that are cropped; int64 ``(N,)`` where they differ.
        width: columns of the images, likewise.
        seed: experiment seed.
        item: purpose and whatever else the views belong to, an epoch say.
        indices: int64 ``(N,)``, one counter per view; its device is where the views are.
        crop_scale: float64 ``(N,)``, smallest area fraction of each instead of the settings'.

    Returns:
        ``N`` views. A box depends on the size of its image, flip and shift do not.
    """
    u = uniforms(derive(seed, *item), indices, 2 * _CROP_ATTEMPTS + 5)
    scale = config.crop_scale if crop_scale is None else crop_scale[:, None]
    box = _crop_boxes(u, _sides(height, u), _sides(width, u), scale)
    u = u[:, 2 * _CROP_ATTEMPTS + 2 :]
    flip = (u[:, 0] < 0.5) if config.hflip else torch.zeros_like(u[:, 0], dtype=torch.bool)
    low, high = config.roll
    shift = (u[:, 1:3] * (high - low + 1)).floor().to(torch.int64) + low
    return Views(box, flip, shift)


def _sides(side: int | Tensor, u: Tensor) -> Tensor:
    """int64 ``(N,)``; a number is filled in on the device, where copying it there would wait."""
    if isinstance(side, int):
        return torch.full((len(u),), side, device=u.device)
    return side.to(u.device).expand(len(u))


def _crop_boxes(u: Tensor, height: Tensor, width: Tensor, scale: float | Tensor) -> Tensor:
    """Boxes of torchvision's RandomResizedCrop: top, left, height, width; int64 ``(N, 4)``.

    In float64: sides are rounded to whole pixels, and the last bit of a float32 ``exp`` differs
    between devices.
    """
    u = u.to(torch.float64)
    u_area, u_ratio = u[:, :_CROP_ATTEMPTS], u[:, _CROP_ATTEMPTS : 2 * _CROP_ATTEMPTS]
    root_area = ((height * width)[:, None] * (scale + (1 - scale) * u_area)).sqrt()
    low, high = (math.log(ratio) for ratio in _CROP_RATIO)
    root_ratio = ((low + (high - low) * u_ratio) / 2).exp()
    central_height, central_width = _central_crop(height, width)
    box_width = torch.cat([(root_area * root_ratio).round(), central_width[:, None]], dim=1)
    box_height = torch.cat([(root_area / root_ratio).round(), central_height[:, None]], dim=1)
    fits = (box_width >= 1) & (box_width <= width[:, None])
    fits &= (box_height >= 1) & (box_height <= height[:, None])
    first = fits.to(torch.int8).argmax(dim=1, keepdim=True)
    box_height = box_height.gather(1, first)[:, 0]
    box_width = box_width.gather(1, first)[:, 0]
    central = first[:, 0] == _CROP_ATTEMPTS
    top, left = height - box_height, width - box_width
    v = u[:, 2 * _CROP_ATTEMPTS :]
    top = torch.where(central, top / 2, v[:, 0] * (top + 1)).floor()
    left = torch.where(central, left / 2, v[:, 1] * (left + 1)).floor()
    return torch.stack([top, left, box_height, box_width], dim=1).to(torch.int64)


def _central_crop(height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Largest central box whose aspect ratio is allowed (torchvision's fallback), float64."""
    low, high = _CROP_RATIO
    tallest = (width.to(torch.float64) / low).round()
    widest = (height.to(torch.float64) * high).round()
    return torch.minimum(tallest, height), torch.minimum(widest, width)


def _position(out: Tensor, length: Tensor, size: int) -> Tensor:
    """Where output pixels ``out`` read a crop of ``length`` resized to ``size``, float32.

    Pixel centres as in ``interpolate(align_corners=False, antialias=False)``: output ``o`` reads
    position ``(o + ½)·length/size − ½`` of the crop, clamped to the crop.
    """
    length = length.to(torch.float32)
    return ((out + 0.5) * (length / size) - 0.5).clamp_(min=0).minimum(length - 1)


def _bilinear(position: Tensor, source: Tensor) -> Tensor:
    """Bilinear weight of each source pixel for each position, ``max(0, 1 − |p − s|)``.

    Positions never leave the crop, so neither do the pixels of non-zero weight.
    """
    return (1 - (position - source).abs_()).relu_()


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
    centre = torch.stack([u[:, 1] * height, u[:, 2] * width], dim=1).to(torch.int64)
    order = uniforms(derive(seed, *item, "partner"), torch.arange(count, device=device), 1)
    partner = order[:, 0].argsort(stable=True)
    return CutMix(partner, cutmix_box(u[:, 0], centre, height, width))
