"""Distribution matching (DM), the baseline of Table 5: images whose mean embedding is that of
their class.

Zhao & Bilen, "Dataset condensation with distribution matching" (WACV 2023), Algorithm 1: at every
iteration a freshly initialised network embeds, for every class, a random batch of real images and
all of the class's synthetic ones, both augmented by the same draw of DSA; the loss is the squared
distance of the two mean embeddings, summed over classes.

Dimensions: ``K`` classes of an item, ``N`` its images, ``C H W`` image shape, ``D`` embedding.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from teddy.artifacts import Json
from teddy.data import ImageDataset
from teddy.dsa import DsaViews, draw_shared_dsa
from teddy.errors import TeddyError
from teddy.items import (
    CHECK_EVERY,
    Item,
    ItemRun,
    Place,
    curve_record,
    first_non_finite,
    initial_images,
    thin,
)
from teddy.networks import ConvNet, build
from teddy.optimizers import Group, Sgd
from teddy.runtime import autocast, progress, save_interval
from teddy.seeding import derive, permutation
from teddy.settings import SynthesizeConfig

SETTINGS = ("initialise", "classes_per_batch", "dsa", "clip", "dm", "precision")
"""Settings of the synthesize stage that the images depend on."""


def matching_loss(real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared distance of mean embeddings, summed over classes.

    Args:
        real: ``(K, D)``, mean embedding of each class's real batch.
        synthetic: ``(K, D)``, of its synthetic images.

    Returns:
        Scalar ≥ 0.
    """
    return (real - synthetic).square().sum()


class DistributionMatcher:
    """Optimises the images of some classes; see :class:`teddy.items.ImageMaker`.

    A class's images depend on its own streams and on the networks, which belong to iterations, so
    they do not depend on which classes share an item, beyond rounding.

    Args:
        config: of the synthesize stage; ``config.dm`` is what is special to DM.
        data: where real images come from.
        seed: experiment seed.
        device: where to work.
    """

    def __init__(
        self, config: SynthesizeConfig, data: ImageDataset, seed: int, device: torch.device
    ) -> None:
        self.config, self.data, self.seed, self.device = config, data, seed, device
        self._train = data.train.to(device)
        labels = data.train.labels.cpu()
        self.facts: Json = {}
        self._members = [torch.nonzero(labels == c)[:, 0] for c in range(data.num_classes)]

    def items(self, ipc: int) -> list[Item]:
        """Chunks of classes, each with all its images: they share the mean that is matched."""
        width, count = self.config.classes_per_batch, self.data.num_classes
        starts = range(0, count, width)
        return [
            Item(0, chunk, range(ipc), range(first, min(first + width, count)))
            for chunk, first in enumerate(starts)
        ]

    def load(self, items: Sequence[Item]) -> None:
        """Nothing: every iteration has a network of its own."""

    def run(
        self,
        item: Item,
        resume: Path,
        save_every_seconds: float | None = None,
        place: Place | None = None,
    ) -> dict[str, Tensor]:
        """Optimise one item, continuing from ``resume`` if it exists.

        Returns:
            ``images`` uint8 ``(N, C, H, W)`` ordered by index, then class, and ``curve`` float32
            ``(points, 2)``: iteration, loss.

        Raises:
            TeddyError: a loss is not finite; names the item and the step.
        """
        config, normalisation = self.config, self.data.normalisation
        place, iterations = place or Place(), self.config.dm.iterations
        save_every = save_interval() if save_every_seconds is None else save_every_seconds
        images = initial_images(config.initialise, self.data, item, self.seed)
        images = images.to(self.device).requires_grad_()
        losses = torch.zeros(iterations, 1, device=self.device)
        run = ItemRun(images, Sgd([Group([images], 0.0)], config.dm.momentum), losses)
        start = checked = run.restore(resume) if resume.exists() else 0
        low, high = normalisation.bounds(self.device)
        began = saved = time.monotonic()
        with progress(iterations, place.title(item), "it", start) as bar:
            for iteration in range(start, iterations):
                loss = self.loss(images, item, iteration)
                loss.backward()
                losses[iteration] = loss.detach()
                run.optimizer.step(config.dm.lr)
                if config.clip:
                    with torch.no_grad():
                        torch.clamp(images, low, high, out=images)
                done = iteration + 1
                if done % CHECK_EVERY == 0 or done == iterations:
                    _refuse_non_finite(losses, checked, done, item)
                    checked = done
                    place.show(bar, done, start, iterations, len(images), began)
                    if time.monotonic() - saved >= save_every:
                        run.save(resume, done)
                        saved = time.monotonic()
        speed = run.speed(iterations - start, time.monotonic() - began)
        self.facts = {"precision": config.precision, **speed}
        pixels = normalisation.to_uint8(images.detach())
        return {"images": pixels.cpu(), "curve": thin(losses.cpu())}

    def record(self, item: Item, curve: Tensor, facts: Json) -> Json:
        """What is kept of an item besides its images."""
        return curve_record(item, curve, ("iteration", "distance")) | facts

    def loss(self, images: Tensor, item: Item, iteration: int) -> Tensor:
        """Loss of an iteration.

        Args:
            images: normalised float ``(N, C, H, W)``, ordered by index, then class.
            item: which they are.
            iteration: which network, real images and augmentations.
        """
        network = self.network(iteration)
        views = [self._view(label, iteration) for label in item.classes]
        by_class = images.unflatten(0, (len(item.indices), len(item.classes))).unbind(1)
        with torch.no_grad():
            batches = [self.real_batch(label, iteration) for label in item.classes]
            real = self._mean_embeddings(network, batches, views)
        return matching_loss(real, self._mean_embeddings(network, list(by_class), views))

    def network(self, iteration: int) -> nn.Module:
        """The random network of an iteration, the same for all items."""
        seed = derive(self.seed, "dm network", iteration)
        network = build(self.config.dm.network, self.data.image_shape, self.data.num_classes, seed)
        if not isinstance(network, ConvNet):
            raise TeddyError(f"dm.network must be convnet3, got {self.config.dm.network.arch}")
        # Not channels last: there InstanceNorm takes more time on a CPU than all the rest.
        return network.requires_grad_(False).to(self.device).features

    def real_batch(self, label: int, iteration: int) -> Tensor:
        """Random real images of a class, normalised ``(real_batch, C, H, W)``."""
        members = self._members[label]
        order = permutation(len(members), self.seed, "dm real", label, iteration)
        chosen = members[order[: self.config.dm.real_batch]]
        pixels = self._train.pick(chosen.to(self._train.labels.device))
        return self.data.normalisation.apply(pixels.to(self.device))

    def _view(self, label: int, iteration: int) -> DsaViews:
        """Augmentation of a class at an iteration, for real and synthetic images alike."""
        key = ("dm view", label, iteration)
        return draw_shared_dsa(self.config.dsa, self.seed, *key, device=self.device)

    def _mean_embeddings(
        self, network: nn.Module, batches: list[Tensor], views: list[DsaViews]
    ) -> Tensor:
        """Mean embedding ``(K, D)`` of a batch per class, all in one forward pass."""
        inputs = torch.cat([view(batch) for view, batch in zip(views, batches, strict=True)])
        with autocast(self.device, self.config.precision):
            embedded = network(inputs)
        parts = embedded.flatten(1).float().split([len(batch) for batch in batches])
        return torch.stack([part.mean(dim=0) for part in parts])


def _refuse_non_finite(losses: Tensor, checked: int, done: int, item: Item) -> None:
    bad = first_non_finite(losses[checked:done])
    if bad is not None:
        at = checked + bad
        raise TeddyError(
            f"synthesize: loss is {float(losses[at])} at iteration {at + 1} of {item.name}; try a "
            "smaller synthesize.dm.lr"
        )
