"""Distribution matching (DM), the baseline of Table 5: images whose mean embedding is that of
their class.

Zhao & Bilen, "Dataset condensation with distribution matching" (WACV 2023), Algorithm 1: at every
iteration a freshly initialised network embeds, for every class, a random batch of real images and
all of the class's synthetic ones, both augmented by the same draw of DSA; the loss is the squared
distance of the two mean embeddings, summed over classes.

Dimensions: ``K`` classes of a batch, ``N`` its images, ``C H W`` image shape, ``D`` embedding.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from teddy.core.errors import TeddyError
from teddy.core.seeding import derive, permutation
from teddy.data.dsa import DsaViews, draw_shared_dsa
from teddy.settings.configs import DmConfig
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.engine.state import State
from teddy.synthesis.methods import Ingredients, OptimisedMethod
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


class DistributionMatching(OptimisedMethod):
    """Optimises the images of some classes; see :class:`teddy.synthesis.methods.Method`.

    A class's images depend on its own random numbers and on the networks, which belong to
    iterations, so they do not depend on which classes share a batch, beyond rounding.

    Args:
        config: networks, batches and rates.
        given: where real images come from.
    """

    Config = DmConfig
    config: DmConfig
    terms = ("distance",)
    rate = "dm.lr"
    size = "dm.classes_per_batch"

    def __init__(self, config: DmConfig, given: Ingredients) -> None:
        super().__init__(config, given)
        self._train = given.data.train.to(given.device)
        labels = given.data.train.labels.cpu()
        self._members = [torch.nonzero(labels == c)[:, 0] for c in range(given.data.num_classes)]

    def optimise(self, batch: Batch, state: State) -> Iterator[None]:
        """Algorithm 1 of the DM paper for one batch, from iteration ``state.done`` on."""
        low, high = self.data.normalisation.bounds(self.device)
        for i in range(state.done, self.config.iterations):
            loss = self.loss(state.images, batch, i)
            loss.backward()
            state.update(self.config.lr)
            if self.config.clip:
                with torch.no_grad():
                    torch.clamp(state.images, low, high, out=state.images)
            state.finish_step(loss.detach())
            yield

    def batches(self, ipc: int) -> list[Batch]:
        """Chunks of classes, each with all its images: they share the mean that is matched."""
        width, count = self.config.classes_per_batch, self.data.num_classes
        starts = range(0, count, width)
        return [
            Batch(0, chunk, range(ipc), range(first, min(first + width, count)))
            for chunk, first in enumerate(starts)
        ]

    def start(self, batch: Batch, images: Tensor) -> State:
        """SGD with momentum."""
        losses = torch.zeros(self.config.iterations, 1, device=self.device)
        return State(images, Sgd([Group([images], 0.0)], self.config.momentum), losses)

    def loss(self, images: Tensor, batch: Batch, iteration: int) -> Tensor:
        """Loss of an iteration.

        Args:
            images: normalised float ``(N, C, H, W)``, ordered by index, then class.
            batch: which they are.
            iteration: which network, real images and augmentations.
        """
        network = self.network(iteration)
        views = [self._view(label, iteration) for label in batch.classes]
        by_class = images.unflatten(0, (len(batch.indices), len(batch.classes))).unbind(1)
        with torch.no_grad():
            real_batches = [self.real_batch(label, iteration) for label in batch.classes]
            real = self._mean_embeddings(network, real_batches, views)
        return matching_loss(real, self._mean_embeddings(network, list(by_class), views))

    def network(self, iteration: int) -> nn.Module:
        """The random network of an iteration, the same for all batches."""
        seed = derive(self.seed, "dm network", iteration)
        network = build(self.config.network, self.data.image_shape, self.data.num_classes, seed)
        if not isinstance(network, ConvNet):
            raise TeddyError(f"dm.network must be convnet3, got {self.config.network.arch}")
        # Not channels last: there InstanceNorm takes more time on a CPU than all the rest.
        return network.requires_grad_(False).to(self.device).features

    def real_batch(self, label: int, iteration: int) -> Tensor:
        """Random real images of a class, normalised ``(real_batch, C, H, W)``."""
        members = self._members[label]
        order = permutation(len(members), self.seed, "dm real", label, iteration)
        chosen = members[order[: self.config.real_batch]]
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
