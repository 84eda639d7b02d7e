"""Mosaics of real crops, RDED: what an observer finds easiest of real images, side by side.

Sun, Shi, Yu & Lin, "On the diversity and realism of distilled dataset: an efficient dataset
distillation paradigm" (CVPR 2024). Nothing is optimised: of every class some random images are
taken, of each the random crop with the least cross-entropy, and of these the easiest ones are put
together, ``f × f`` in an image.

Dimensions: ``n`` images, ``C H W`` image shape, ``h w`` that of a tile, ``H/f W/f``.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import leave_to_first
from teddy.core.errors import TeddyError
from teddy.core.seeding import derive, permutation, uniforms
from teddy.data.augmentation import Views
from teddy.settings.baselines import MosaicConfig
from teddy.synthesis.methods import Ingredients, Made, Method

_CHUNK = 256  # images per forward pass


class Mosaics(Method):
    """IPC mosaics of every class; see :class:`teddy.synthesis.methods.Method`.

    A crop belongs to its image: it is the same whatever other images and crops are looked at.

    Args:
        config: how many images and crops are looked at, and how many an image holds.
        given: real images, and the pool, whose last member is the observer.
    """

    Config = MosaicConfig
    config: MosaicConfig
    by_pool = True
    real = True

    def __init__(self, config: MosaicConfig, given: Ingredients) -> None:
        super().__init__(config, given)
        if given.pool is None:
            raise TeddyError("mosaics need a pool of teachers, whose last one is the observer")
        self._observer = given.pool.member(len(given.pool) - 1, self.device)
        self._labels = given.data.train.labels.cpu()
        self._side = given.data.image_shape[1]
        self._factor = config.factor_at(self._side)

    def make(self, ipc: int, work: WorkDir) -> Made:
        """Make them, class by class."""
        leave_to_first()
        reason = self.config.misfit(ipc, self._side)
        if reason:
            raise TeddyError(reason)
        images = [self.of_class(label, ipc) for label in range(self.data.num_classes)]
        labels = torch.arange(len(images)).repeat(ipc)
        return Made(torch.stack(images, dim=1).flatten(0, 1), labels, [])

    @torch.inference_mode()
    def of_class(self, label: int, ipc: int) -> Tensor:
        """Mosaics of a class, uint8 ``(ipc, C, H, W)``; the easiest tiles are at their top left.

        Raises:
            TeddyError: the class has fewer images than tiles, and may not repeat them.
        """
        members, wanted = self.candidates(label), ipc * self._factor**2
        if len(members) < wanted and self.given.small_classes not in ("repeat", "fewer"):
            raise TeddyError(
                f"expected {wanted} real images of each class for training, but class "
                f"{self.data.class_names[label]!r} has {len(members)}; choose a smaller ipc or "
                "factor, or prepare.small_classes: repeat or fewer"
            )
        losses, numbers = self.losses(members, label).min(dim=1)
        chosen = losses.argsort(stable=True)[torch.arange(wanted) % len(members)]
        parts = zip(members[chosen].split(_CHUNK), numbers[chosen].split(_CHUNK), strict=True)
        tiles = torch.cat([self.tiles(self._pick(own), own, which) for own, which in parts])
        return self.data.normalisation.to_uint8(mosaic(tiles, self._factor)).cpu()

    def candidates(self, label: int) -> Tensor:
        """Indices ``(n,)`` of the random training images of a class that are looked at."""
        members = torch.nonzero(self._labels == label)[:, 0]
        order = permutation(len(members), self.seed, "mosaic", label)
        return members[order[: self.config.candidates]]

    @torch.inference_mode()
    def losses(self, members: Tensor, label: int) -> Tensor:
        """Cross-entropy of every crop under the observer, float32 ``(n, crops)`` on the CPU.

        The observer sees what students will, a tile of ``h × w`` pixels; as in the authors' code it
        stands in the middle of an image that is otherwise 0 after normalisation.

        Args:
            members: indices ``(n,)`` of training images of a class.
            label: the class.
        """
        before = (self._side - self._side // self._factor) // 2
        after = self._side - self._side // self._factor - before
        found = []
        for own in members.split(_CHUNK):
            images, losses = self._pick(own), []
            for number in range(self.config.crops):
                tiles = self.tiles(images, own, torch.full_like(own, number))
                inputs = pad(tiles, (before, after, before, after))
                logits = self._observer(inputs.to(memory_format=torch.channels_last))
                losses.append(-logits.log_softmax(1)[:, label].cpu())
            found.append(torch.stack(losses, dim=1))
        return torch.cat(found)

    def tiles(self, images: Tensor, members: Tensor, numbers: Tensor) -> Tensor:
        """One random crop of each image, as it will be in a mosaic; normalised ``(n, C, h, w)``.

        Args:
            images: normalised ``(n, C, H, W)``.
            members: int64 ``(n,)``, which training images they are.
            numbers: int64 ``(n,)``, which crop of each.
        """
        counters = (members + numbers * len(self._labels)).to(self.device)
        u = uniforms(derive(self.seed, "mosaic crop"), counters, 3)
        crops = square_crops(u, self._side, self.config.crop_scale)(images)
        return avg_pool2d(crops, self._factor)

    def _pick(self, members: Tensor) -> Tensor:
        pixels = self.data.train.pick(members.to(self.data.train.labels.device))
        return self.data.normalisation.apply(pixels.to(self.device))


def square_crops(u: Tensor, side: int, scale: float) -> Views:
    """Square crops of square images, resized to whole ones: RandomResizedCrop with ratio 1.

    Args:
        u: random numbers in [0, 1), ``(n, 3)``: area, top and left.
        side: of the images, pixels.
        scale: smallest share of their area.
    """
    u = u.to(torch.float64)
    length = (side * (scale + (1 - scale) * u[:, :1]).sqrt()).round().clamp(min=1)
    corner = (u[:, 1:] * (side - length + 1)).floor()
    box = torch.cat([corner, length, length], dim=1).to(torch.int64)
    still = torch.zeros_like(box[:, :2])
    return Views(box, still[:, 0].bool(), still)


def mosaic(tiles: Tensor, factor: int) -> Tensor:
    """Images of ``f × f`` tiles each.

    Args:
        tiles: ``(f²·N, C, h, w)``: those of the first place of every image, then of the next place;
            places go along the rows.
        factor: f.

    Returns:
        ``(N, C, f·h, f·w)``.
    """
    rows, columns = (factor * side for side in tiles.shape[2:])
    parts = tiles.view(factor, factor, -1, *tiles.shape[1:])
    return parts.permute(2, 3, 0, 4, 1, 5).reshape(-1, tiles.shape[1], rows, columns)
