"""Distribution matching (DM), the baseline of Table 5: images whose mean embedding is that of
their class.

Zhao & Bilen, "Dataset condensation with distribution matching" (WACV 2023), Algorithm 1: at every
iteration a freshly initialised network embeds, for every class, a random batch of real images and
all of the class's synthetic ones, both augmented by the same draw of DSA; the loss is the squared
distance of the two mean embeddings, summed over classes.

Dimensions: ``K`` classes of an item, ``N`` its images, ``C H W`` image shape, ``D`` embedding.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from teddy.core.errors import TeddyError
from teddy.core.seeding import derive, permutation
from teddy.data.datasets import ImageDataset
from teddy.data.dsa import DsaViews, draw_shared_dsa
from teddy.settings.configs import SynthesizeConfig
from teddy.synthesis.batches import Item
from teddy.synthesis.methods import ImageMaker, ItemRun
from teddy.teachers.networks import ConvNet, build
from teddy.teachers.optimizers import Group, Sgd


def matching_loss(real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared distance of mean embeddings, summed over classes.

    Args:
        real: ``(K, D)``, mean embedding of each class's real batch.
        synthetic: ``(K, D)``, of its synthetic images.

    Returns:
        Scalar ≥ 0.
    """
    return (real - synthetic).square().sum()


class DistributionMatcher(ImageMaker):
    """Optimises the images of some classes; see :class:`teddy.synthesis.methods.ImageMaker`.

    A class's images depend on its own streams and on the networks, which belong to iterations, so
    they do not depend on which classes share an item, beyond rounding.

    Args:
        config: of the synthesize stage; ``config.dm`` is what is special to DM.
        data: where real images come from.
        seed: experiment seed.
        device: where to work.
    """

    terms = ("distance",)
    rate = "synthesize.dm.lr"

    def __init__(
        self, config: SynthesizeConfig, data: ImageDataset, seed: int, device: torch.device
    ) -> None:
        super().__init__(config, data, seed, device)
        self._train = data.train.to(device)
        labels = data.train.labels.cpu()
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

    def begin(self, item: Item, images: Tensor) -> ItemRun:
        """SGD with momentum."""
        optimizer = Sgd([Group([images], 0.0)], self.config.dm.momentum)
        return ItemRun(
            images, optimizer, torch.zeros(self.config.dm.iterations, 1, device=self.device)
        )

    def steps(self, item: Item, run: ItemRun, iterations: range) -> Iterator[Tensor]:
        """Gradients of :meth:`loss`."""
        for iteration in iterations:
            loss = self.loss(run.images, item, iteration)
            loss.backward()
            yield loss.detach()

    def lr(self, iteration: int) -> float:
        """Constant."""
        return self.config.dm.lr

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
        embedded = network(inputs)  # in float32, as DM's authors; settings' precision is Eq. 7's
        parts = embedded.flatten(1).split([len(batch) for batch in batches])
        return torch.stack([part.mean(dim=0) for part in parts])
