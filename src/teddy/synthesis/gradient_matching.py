"""Gradient matching, DC and DSA: images whose training gradient is that of real images.

Zhao, Mopuri & Bilen, "Dataset condensation with gradient matching" (ICLR 2021), Algorithm 1, and
Zhao & Bilen, "Dataset condensation with differentiable siamese augmentation" (ICML 2021): the same
with real and synthetic images of a class under one draw of DSA. At every iteration a fresh network
is drawn. In turns, the images of all classes take a step along the distance of their gradients from
those of real images, class by class, and the network is trained on the images.

Dimensions: ``K`` classes, ``N`` images of a batch, ``C H W`` image shape.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from teddy.core.seeding import derive, permutation
from teddy.data.dsa import DsaViews, draw_dsa, draw_shared_dsa
from teddy.settings.baselines import GradientMatchingConfig
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.engine.state import State
from teddy.synthesis.methods import Ingredients, OptimisedMethod
from teddy.teachers.networks import build
from teddy.teachers.optimizers import Group, Sgd

_CHUNK_PIXELS = 2**14  # of real images in a pass on the CPU, whose activations stay in its cache
_TINY = 1e-6  # keeps a gradient of zero from dividing by zero, as the authors have it

View = Callable[[Tensor], Tensor]


def distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Distance of two gradients: 1 − cosine of the part of every output unit, summed over all.

    A convolution's filter and a row of a linear layer are parts; gradients of biases and of norm
    layers, which are vectors, are left out.

    Args:
        real: gradient of each parameter.
        synthetic: likewise.

    Returns:
        Scalar ≥ 0.
    """
    total = torch.zeros((), dtype=real[0].dtype, device=real[0].device)
    for one, other in zip(real, synthetic, strict=True):
        if one.ndim < 2:
            continue
        a, b = one.flatten(1), other.flatten(1)
        cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + _TINY)
        total = total + (1 - cosine).sum()
    return total


def gradient(
    network: nn.Module, images: Tensor, labels: Tensor, *, differentiable: bool
) -> tuple[Tensor, ...]:
    """Gradient of the cross-entropy in all parameters of a network.

    Args:
        network: whose parameters require grad.
        images: ``(N, C, H, W)``.
        labels: int64 ``(N,)``.
        differentiable: keep the graph, so that the gradient can be differentiated in the images.
    """
    loss = cross_entropy(network(images), labels)
    return torch.autograd.grad(loss, list(network.parameters()), create_graph=differentiable)


def mean_gradient(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """As :func:`gradient`, without a graph, and on a CPU in small passes: 1.4 times as fast."""
    width = max(8, _CHUNK_PIXELS // (images.shape[2] * images.shape[3]))
    if images.device.type != "cpu" or len(images) <= width:
        return gradient(network, images, labels, differentiable=False)
    parameters = list(network.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for part, own in zip(images.split(width), labels.split(width), strict=True):
        loss = cross_entropy(network(part), own, reduction="sum") / len(images)
        for sums, found in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            sums += found
    return tuple(total)


class GradientMatching(OptimisedMethod):
    """Optimises all images together; see :class:`teddy.synthesis.methods.Method`.

    A step of the engine is an iteration: a network with all its turns.

    Args:
        config: networks, loops, batches and rates.
        given: where real images come from.
    """

    Config = GradientMatchingConfig
    config: GradientMatchingConfig
    terms = ("distance",)
    rate = "lr"
    size = "real_batch or train_batch"

    def __init__(self, config: GradientMatchingConfig, given: Ingredients) -> None:
        super().__init__(config, given)
        self._train = given.data.train.to(given.device)
        labels = given.data.train.labels.cpu()
        self._members = [torch.nonzero(labels == c)[:, 0] for c in range(given.data.num_classes)]

    def batches(self, ipc: int) -> list[Batch]:
        """One: the network is trained on all images."""
        return [Batch(0, 0, range(ipc), range(self.data.num_classes))]

    def start(self, batch: Batch, images: Tensor) -> State:
        """SGD with momentum."""
        losses = torch.zeros(self.config.iterations, 1, device=self.device)
        return State(images, Sgd([Group([images], 0.0)], self.config.momentum), losses)

    def optimise(self, batch: Batch, state: State) -> Iterator[None]:
        """Algorithm 1, from iteration ``state.done`` on."""
        outer, inner = self.config.loops(len(batch.indices))
        low, high = self.data.normalisation.bounds(self.device)
        for iteration in range(state.done, self.config.iterations):
            network = self.network(iteration)
            total = torch.zeros(1, device=self.device)
            for turn in range(outer):
                loss = self.loss(network, state.images, batch, iteration, turn)
                (state.images.grad,) = torch.autograd.grad(loss, [state.images])
                state.update(self.config.lr)
                if self.config.clip:
                    with torch.no_grad():
                        torch.clamp(state.images, low, high, out=state.images)
                total += loss.detach() / (self.data.num_classes * outer)
                if turn + 1 < outer:
                    self.train_network(
                        network, state.images.detach(), batch, iteration, turn, inner
                    )
            state.finish_step(total)
            yield

    def loss(
        self, network: nn.Module, images: Tensor, batch: Batch, iteration: int, turn: int
    ) -> Tensor:
        """Distance of the gradients, summed over classes.

        Args:
            network: as far as it is trained.
            images: normalised float ``(N, C, H, W)``, ordered by index, then class.
            batch: which they are.
            iteration: which network.
            turn: which of its turns; both choose real images and augmentations.
        """
        by_class = images.unflatten(0, (len(batch.indices), len(batch.classes))).unbind(1)
        total = torch.zeros((), device=images.device)
        for label, own in zip(batch.classes, by_class, strict=True):
            view = self._view(label, iteration, turn)
            real = view(self.real_batch(label, iteration, turn))
            expected = mean_gradient(network, real, _all(label, real))
            found = gradient(network, view(own), _all(label, own), differentiable=True)
            total = total + distance(expected, found)
        return total

    def train_network(
        self,
        network: nn.Module,
        images: Tensor,
        batch: Batch,
        iteration: int,
        turn: int,
        epochs: int,
    ) -> None:
        """Train the network on the images as they are, in place."""
        labels = batch.labels().to(images.device)
        optimizer = Sgd([Group(list(network.parameters()), 0.0)], 0.0)
        for epoch in range(epochs):
            key = ("dc order", iteration, turn, epoch)
            order = permutation(len(images), self.seed, *key).to(images.device)
            for step, part in enumerate(order.split(self.config.train_batch)):
                inputs = images[part]
                if self.config.augmentation == "dsa":
                    inputs = draw_dsa(
                        self.config.dsa, self.seed, "dc training view", iteration, turn, epoch,
                        indices=part, step=step,
                    )(inputs)  # fmt: skip
                cross_entropy(network(inputs), labels[part]).backward()
                optimizer.step(self.config.network_lr)

    def network(self, iteration: int) -> nn.Module:
        """The fresh network of an iteration."""
        seed = derive(self.seed, "dc network", iteration)
        shape, classes = self.data.image_shape, self.data.num_classes
        return build(self.config.network, shape, classes, seed).to(self.device)

    def real_batch(self, label: int, iteration: int, turn: int) -> Tensor:
        """Random real images of a class, normalised ``(real_batch, C, H, W)``."""
        members = self._members[label]
        order = permutation(len(members), self.seed, "dc real", label, iteration, turn)
        chosen = members[order[: self.config.real_batch]]
        pixels = self._train.pick(chosen.to(self._train.labels.device))
        return self.data.normalisation.apply(pixels.to(self.device))

    def _view(self, label: int, iteration: int, turn: int) -> DsaViews | View:
        """Augmentation of a class's real and synthetic images alike."""
        if self.config.augmentation == "none":
            return lambda images: images
        key = ("dc view", label, iteration, turn)
        return draw_shared_dsa(self.config.dsa, self.seed, *key, device=self.device)


def _all(label: int, images: Tensor) -> Tensor:
    return torch.full((len(images),), label, device=images.device)
