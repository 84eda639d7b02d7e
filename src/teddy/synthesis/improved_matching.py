"""Improved distribution matching, IDM: class means under a queue of half-trained networks.

Zhao, Li, Qin & Yu, "Improved distribution matching for dataset condensation" (CVPR 2023). Three
things are new beside DM (:mod:`teddy.synthesis.distribution_matching`).

- *Partitioning and expansion*: every image holds ``f × f`` smaller ones, enlarged for matching and
  for students.
- *Network queue*: fresh networks enter at intervals, the oldest leave, and at every iteration some
  are trained on for a few steps of real images, so that features of all stages are matched.
- *Class-aware regularisation*: the cross-entropy of the images under the network, weighted by how
  well that classifies the real images that it is trained on.

Dimensions: ``K`` classes, ``N`` images of a batch, ``C H W`` image shape, ``D`` embedding.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from teddy.core.artifacts import WorkDir, read_tensors, write_tensors
from teddy.core.errors import TeddyError
from teddy.core.seeding import derive, permutation
from teddy.data.datasets import select_random
from teddy.data.dsa import DsaViews, draw_shared_dsa
from teddy.data.partition import compose, expand
from teddy.settings.baselines import ImprovedMatchingConfig
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.engine.state import State
from teddy.synthesis.methods import Ingredients, Made, OptimisedMethod
from teddy.teachers.networks import ConvNet, build
from teddy.teachers.optimizers import Group, Sgd

_KIND = "teddy.idm-queue.v1"
_FIRST = 3  # networks that the queue begins with


class Queue:
    """Networks in training, oldest first; they see real images alone.

    Args:
        method: whose real images and settings they have.
    """

    def __init__(self, method: "ImprovedMatching") -> None:
        self._method, self.config = method, method.config
        self.numbers: list[int] = []
        """Which networks they are, in the order of their entering."""
        self._networks: list[ConvNet] = []
        self._optimizers: list[Sgd] = []
        self._right: list[Tensor] = []
        self._seen: list[int] = []
        for number in range(min(_FIRST, self.config.networks)):
            self._enter(number)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> ConvNet:
        return self._networks[place]

    def accuracy(self, place: int) -> Tensor:
        """Share of its real training images that a network got right; percent, 0 before any."""
        return 100.0 * self._right[place] / max(1, self._seen[place])

    def begin(self, iteration: int) -> None:
        """Count accuracies anew, and let a network in, where it is time."""
        if iteration and iteration % self.config.accuracy_every == 0:
            self._right = [torch.zeros_like(right) for right in self._right]
            self._seen = [0] * len(self)
        if iteration % self.config.network_every == 0:
            number = self.numbers[-1] + 1
            if len(self) == self.config.networks:
                for own in (
                    self.numbers,
                    self._networks,
                    self._optimizers,
                    self._right,
                    self._seen,
                ):
                    own.pop(0)
            self._enter(number)

    def train(self, iteration: int) -> None:
        """Train some networks for a few steps."""
        method, config = self._method, self.config
        order = permutation(len(self), method.seed, "idm trained", iteration).tolist()
        for place in order[: config.trained]:
            network, optimizer = self._networks[place].train(), self._optimizers[place]
            for step in range(config.train_steps):
                inputs, labels = method.mixed_batch(iteration, self.numbers[place], step)
                logits = network(inputs)
                cross_entropy(logits, labels).backward()
                optimizer.step(config.network_lr)
                self._right[place] += (logits.detach().argmax(1) == labels).sum()
                self._seen[place] += len(labels)
            network.eval()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts that :meth:`restore` goes on from."""
        tensors = dict[str, Tensor]()
        for place, network in enumerate(self._networks):
            tensors |= {f"{place}.{name}": value for name, value in network.state_dict().items()}
            own = self._optimizers[place].state()
            tensors |= {f"{place}.optimizer.{i}": value for i, value in enumerate(own)}
            tensors[f"{place}.right"] = self._right[place]
        return tensors, {"numbers": self.numbers, "seen": self._seen}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go on from a state."""
        self.numbers, self._networks, self._optimizers = [], [], []
        self._right, self._seen = [], []
        for place, number in enumerate(facts["numbers"]):
            self._enter(number)
            network = self._networks[place]
            network.load_state_dict({k: tensors[f"{place}.{k}"] for k in network.state_dict()})
            with torch.no_grad():
                for i, value in enumerate(self._optimizers[place].state()):
                    value.copy_(tensors[f"{place}.optimizer.{i}"])
                self._right[place].copy_(tensors[f"{place}.right"])
        self._seen = list(facts["seen"])

    def _enter(self, number: int) -> None:
        network = self._method.network(number)
        decayed = [Group(list(network.parameters()), self.config.network_decay)]
        self.numbers.append(number)
        self._networks.append(network.eval())
        self._optimizers.append(Sgd(decayed, self.config.network_momentum))
        self._right.append(torch.zeros((), device=self._method.device))
        self._seen.append(0)


class QueueState(State):
    """A batch's state with the queue of networks, which a killed run goes on from too."""

    queue: Queue

    def save(self, path: Path) -> None:
        """Write the queue first, so that the state never is ahead of it."""
        tensors, facts = self.queue.state()
        record = {"done": self.done, **facts}
        write_tensors(_beside(path, self.done), tensors, kind=_KIND, record=record)
        State.save(self, path)
        for old in path.parent.glob(f"{path.stem}-queue-*.safetensors"):
            if old != _beside(path, self.done):
                old.unlink(missing_ok=True)

    def restore(self, path: Path) -> None:
        """Continue from a file and the queue beside it."""
        State.restore(self, path)
        tensors, facts = read_tensors(_beside(path, self.done), kind=_KIND)
        self.queue.restore(tensors, facts)


def _beside(path: Path, done: int) -> Path:
    return path.with_name(f"{path.stem}-queue-{done}.safetensors")


class ImprovedMatching(OptimisedMethod):
    """Optimises all images together; see :class:`teddy.synthesis.methods.Method`.

    Args:
        config: queue, batches and rates.
        given: where real images come from.
    """

    Config = ImprovedMatchingConfig
    config: ImprovedMatchingConfig
    terms = ("distance", "classifier")
    rate = "lr"
    size = "real_batch or train_batch"

    def __init__(self, config: ImprovedMatchingConfig, given: Ingredients) -> None:
        super().__init__(config, given)
        sides = given.data.image_shape[1:]
        if any(side % config.partition for side in sides):
            raise TeddyError(
                f"partition must divide the sides of the images, {sides[0]} and {sides[1]} pixels; "
                f"got {config.partition}"
            )
        self._train = given.data.train.to(given.device)
        labels = given.data.train.labels.cpu()
        self._members = [torch.nonzero(labels == c)[:, 0] for c in range(given.data.num_classes)]

    def make(self, ipc: int, work: WorkDir) -> Made:
        """Optimise all images, which students take apart."""
        return dataclasses.replace(super().make(ipc, work), partition=self.config.partition)

    def batches(self, ipc: int) -> list[Batch]:
        """One: all classes share the queue of networks."""
        return [Batch(0, 0, range(ipc), range(self.data.num_classes))]

    def start(self, batch: Batch, images: Tensor) -> State:
        """SGD with momentum, and the first networks."""
        losses = torch.zeros(self.config.iterations, 2, device=self.device)
        state = QueueState(images, Sgd([Group([images], 0.0)], self.config.momentum), losses)
        state.queue = Queue(self)
        return state

    def optimise(self, batch: Batch, state: State) -> Iterator[None]:
        """The algorithm, from iteration ``state.done`` on."""
        assert isinstance(state, QueueState)
        low, high = self.data.normalisation.bounds(self.device)
        for iteration in range(state.done, self.config.iterations):
            state.queue.begin(iteration)
            losses = self.losses(state.queue, state.images, batch, iteration)
            (state.images.grad,) = torch.autograd.grad(losses.sum(), [state.images])
            state.update(self.config.lr)
            if self.config.clip:
                with torch.no_grad():
                    torch.clamp(state.images, low, high, out=state.images)
            state.queue.train(iteration)
            state.finish_step(losses.detach())
            yield

    def losses(self, queue: Queue, images: Tensor, batch: Batch, iteration: int) -> Tensor:
        """Distance of class means, and weighted cross-entropy, each summed over classes; ``(2,)``.

        Args:
            queue: which networks there are.
            images: normalised float ``(N, C, H, W)``, ordered by index, then class.
            batch: which they are.
            iteration: which network has its turn, real images and augmentations.
        """
        place = int(permutation(len(queue), self.seed, "idm network", iteration)[0])
        network, weight = queue[place], self.config.classifier_weight * queue.accuracy(place)
        by_class = images.unflatten(0, (len(batch.indices), len(batch.classes))).unbind(1)
        distance = classifier = torch.zeros((), device=images.device)
        for label, own in zip(batch.classes, by_class, strict=True):
            view = self._view(label, iteration)
            with torch.no_grad():
                real = network.features(view(self.real_batch(label, iteration))).flatten(1).mean(0)
            found = network.features(view(expand(own, self.config.partition))).flatten(1)
            distance = distance + (real - found.mean(0)).square().sum()
            labels = torch.full((len(found),), label, device=images.device)
            classifier = classifier + cross_entropy(network.classifier(found), labels)
        return torch.stack([distance, weight * classifier])

    def initial_images(self, batch: Batch) -> Tensor:
        """As of every method; real ones are composed of ``partition²`` smaller images each."""
        factor = self.config.partition
        if self.config.initialise != "real" or factor == 1:
            return super().initial_images(batch)
        count, data = len(batch.indices), self.data
        chosen = select_random(
            data.train.labels, data.class_names, range(factor**2 * count), self.seed,
            self.given.small_classes,
        )  # fmt: skip
        pixels = data.train.pick(chosen[:, list(batch.classes)].flatten())
        return compose(data.normalisation.apply(pixels), factor)

    def network(self, number: int) -> ConvNet:
        """A fresh network of the queue."""
        seed = derive(self.seed, "idm queue", number)
        shape, classes = self.data.image_shape, self.data.num_classes
        network = build(self.config.network, shape, classes, seed).to(self.device)
        assert isinstance(network, ConvNet)
        return network

    def real_batch(self, label: int, iteration: int) -> Tensor:
        """Random real images of a class, normalised ``(real_batch, C, H, W)``."""
        members = self._members[label]
        order = permutation(len(members), self.seed, "idm real", label, iteration)
        return self._normalised(members[order[: self.config.real_batch]])

    def mixed_batch(self, iteration: int, number: int, step: int) -> tuple[Tensor, Tensor]:
        """Random real images of all classes for a step of a network, and their labels."""
        key = ("idm step", iteration, number, step)
        chosen = permutation(len(self._train), self.seed, *key)[: self.config.train_batch]
        labels = self._train.labels[chosen.to(self._train.labels.device)]
        return self._normalised(chosen), labels.to(self.device)

    def _normalised(self, chosen: Tensor) -> Tensor:
        pixels = self._train.pick(chosen.to(self._train.labels.device))
        return self.data.normalisation.apply(pixels.to(self.device))

    def _view(self, label: int, iteration: int) -> DsaViews:
        key = ("idm view", label, iteration)
        return draw_shared_dsa(self.config.dsa, self.seed, *key, device=self.device)
