"""Real images that teachers choose: the coresets that stand beside distilled images.

Dimensions: ``n`` images of a class, ``M`` teachers, ``K`` classes, ``D`` features before the last
layer, ``C H W`` image shape.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import leave_to_first
from teddy.core.errors import TeddyError
from teddy.core.seeding import derive, permutation, uniforms
from teddy.data.augmentation import Views, draw_views
from teddy.data.datasets import ImageDataset
from teddy.settings.configs import CoresetConfig, SmallClasses
from teddy.settings.schema import shown
from teddy.synthesis.methods import Made, Method
from teddy.teachers.networks import classifier
from teddy.teachers.pools import Pool

_CHUNK = 256  # images per forward pass

Choice = Callable[[Tensor, int, int], list[int]]
"""Chooses so many of some images, given features ``(n, D)`` or scores ``(n,)``, and a seed."""
Score = Callable[[Tensor, int], Tensor]
"""Scores ``(n,)`` of images, given logits ``(M, n, K)`` of all teachers and their class."""


class Coreset(Method):
    """IPC training images of every class, by :class:`~teddy.settings.configs.CoresetConfig`."""

    Config = CoresetConfig
    config: CoresetConfig
    by_pool = True
    real = True

    def make(self, ipc: int, work: WorkDir) -> Made:
        """Choose them, class by class."""
        leave_to_first()
        if self.given.pool is None:
            raise TeddyError("a coreset needs a pool of teachers")
        by_score = lowest if self.config.scores == "lowest" else highest
        choose: dict[str, Choice] = {
            "random": at_random, "kmeans": nearest_to_centres, "herding": herding,
            "kcentre": farthest_first, "el2n": by_score, "forgetting": by_score,
            "crops": at_random,
        }  # fmt: skip
        scores: dict[str, Score] = {"el2n": el2n, "forgetting": forgetting}
        if self.config.choose == "forgetting":
            check_trajectory(self.given.pool)
        judge, images = Judge(self.data, self.given.pool, self.device), []
        for label in range(self.data.num_classes):
            own = judge.choose(
                label, ipc, self.config.easiest, choose[self.config.choose], self.seed,
                self.given.small_classes, scores.get(self.config.choose),
            )  # fmt: skip
            pixels = self.data.train.pick(own)
            if self.config.choose == "crops":
                seed, size = derive(self.seed, "crops", label), pixels.shape[2:]
                numbers = torch.arange(ipc * self.config.crops, device=self.device).split(ipc)
                crops = (
                    draw_views(self.config.views, *size, seed, "crop", indices=own)
                    for own in numbers
                )
                pixels = judge.easiest_crops(pixels, torch.full((ipc,), label), crops)
            images.append(pixels)
        labels = torch.arange(len(images)).repeat(ipc)
        return Made(torch.stack(images, dim=1).flatten(0, 1), labels, [])


class Judge:
    """What the pool sees in real images.

    Args:
        data: the images.
        pool: the teachers; the last one is the most accurate of a prior pool.
        device: where they work.
    """

    def __init__(self, data: ImageDataset, pool: Pool, device: torch.device) -> None:
        self._data, self._pool, self._device = data, pool, device
        self._last = pool.member(len(pool) - 1, device)

    @cached_property
    def _teachers(self) -> list[nn.Module]:
        others = (self._pool.member(i, self._device) for i in range(len(self._pool) - 1))
        return [*others, self._last]

    def choose(
        self, label: int, ipc: int, share: float, choice: Choice, seed: int,
        small_classes: SmallClasses | None = None, score: Score | None = None,
    ) -> Tensor:  # fmt: skip
        """Indices ``(ipc,)`` of training images of a class.

        Args:
            label: the class.
            ipc: how many.
            share: see :meth:`easiest`.
            choice: how to choose among the easiest.
            seed: of the set.
            small_classes: of a class of fewer images, ``repeat`` and ``fewer`` take all again and
                again, as :func:`teddy.data.datasets.select_random` does.
            score: what ``choice`` goes by, instead of features; images of one score come in an
                order of their own random numbers.

        Raises:
            TeddyError: a class has fewer images, and may not repeat them.
        """
        seed = derive(seed, "coreset", label)
        members, seen = self.easiest(label, share, ipc, score)
        if score is not None:
            order = uniforms(seed, members, 1)[:, 0].argsort(stable=True)
            members, seen = members[order], seen[order]
        count = min(ipc, len(members))
        if count < ipc and small_classes not in ("repeat", "fewer"):
            raise TeddyError(
                f"expected {ipc} real images of each class for training, but class "
                f"{self._data.class_names[label]!r} has {count}; choose a smaller ipc, or "
                "prepare.small_classes: repeat or fewer"
            )
        chosen = members[choice(seen, count, seed)]
        return chosen[torch.arange(ipc) % count]

    def easiest(
        self, label: int, share: float, least: int, score: Score | None = None
    ) -> tuple[Tensor, Tensor]:
        """Training images of a class that the last teacher finds easiest, easiest first.

        Args:
            label: the class.
            share: of its images, rounded up.
            least: number of images to take at least, if there are so many.
            score: of all teachers, who look at the images together with the last one.

        Returns:
            Their indices ``(n,)``, and scores ``(n,)``, or else features before the last layer,
            ``(n, D)``.
        """
        members = torch.nonzero(self._data.train.labels.cpu() == label)[:, 0]
        logits, seen = self._look(members, [self._last] if score is None else self._teachers)
        if score is not None:
            seen = score(logits, label).cpu()
        losses = -logits[-1].log_softmax(1)[:, label].cpu()
        order = losses.argsort(stable=True)[: max(least, math.ceil(len(members) * share))]
        return members[order], seen[order]

    @torch.inference_mode()
    def _look(self, members: Tensor, teachers: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
        """Logits ``(M, n, K)`` of teachers, and features ``(n, D)`` of the last of them."""
        logits, features = [], []
        with Embedding(teachers[-1]) as embed:
            for part in members.split(_CHUNK):
                pixels = self._data.train.pick(part.to(self._data.train.labels.device))
                inputs = self._data.normalisation.apply(pixels.to(self._device))
                inputs = inputs.to(memory_format=torch.channels_last)
                logits.append(torch.stack([teacher(inputs) for teacher in teachers]))
                features.append(embed.seen.cpu())
        return torch.cat(logits, dim=1), torch.cat(features)

    def easiest_crops(self, images: Tensor, labels: Tensor, crops: Iterable[Views]) -> Tensor:
        """Of crops of every image the one with the least cross-entropy of the ensemble.

        Args:
            images: uint8 ``(n, C, H, W)``.
            labels: int64 ``(n,)``, their classes.
            crops: of all images, a first, a second and so on.

        Returns:
            uint8 ``(n, C, H, W)``; crops are resized to whole images.
        """
        targets = labels.to(self._device)[:, None]
        normalised = self._data.normalisation.apply(images.to(self._device))
        best = torch.full((len(images),), torch.inf, device=self._device)
        found = normalised.clone()
        with torch.inference_mode():
            for crop in crops:
                views = crop(normalised)
                inputs = views.to(memory_format=torch.channels_last)
                logits = torch.stack([teacher(inputs) for teacher in self._teachers]).mean(0)
                losses = -logits.log_softmax(1).gather(1, targets)[:, 0]
                better = losses < best
                best = torch.where(better, losses, best)
                found = torch.where(better[:, None, None, None], views, found)
        return self._data.normalisation.to_uint8(found).cpu()


class Embedding:
    """Keeps what a network's last layer is given, as ``seen``, within a ``with`` block."""

    def __init__(self, network: nn.Module) -> None:
        self._layer = classifier(network)
        self.seen = torch.empty(0)

    def __enter__(self) -> "Embedding":
        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.seen = inputs[0]

        self._hook = self._layer.register_forward_pre_hook(keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def at_random(features: Tensor, count: int, seed: int) -> list[int]:
    """``count`` of the images, at random."""
    chosen: list[int] = permutation(len(features), seed)[:count].tolist()
    return chosen


def nearest_to_centres(features: Tensor, count: int, seed: int) -> list[int]:
    """For each of ``count`` centres of k-means the nearest image that no other centre has.

    Args:
        features: ``(n, D)``.
        count: centres.
        seed: of the first centres.
    """
    points = features.double().numpy()
    with threadpool_limits(1):  # four threads and more add up in the order in which they finish
        means = KMeans(count, n_init=3, random_state=seed % 2**32).fit(points)
    distances = np.linalg.norm(points[None] - means.cluster_centers_[:, None], axis=2)
    chosen: list[int] = []
    for row in distances:
        row[chosen] = np.inf
        chosen.append(int(row.argmin()))
    return chosen


def herding(features: Tensor, count: int, seed: int) -> list[int]:
    """Greedy choice whose mean feature is nearest to the mean of all, without replacement.

    Source: Welling, "Herding dynamical weights to learn" (ICML 2009), as iCaRL uses it. ``seed`` is
    not needed: nothing is random.
    """
    points = features.double()
    mean, total = points.mean(0), torch.zeros_like(points[0])
    chosen: list[int] = []
    for number in range(1, count + 1):
        distances = ((total + points) / number - mean).norm(dim=1)
        distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        total += points[chosen[-1]]
    return chosen


def farthest_first(features: Tensor, count: int, seed: int) -> list[int]:
    """Greedy k-centre: the image nearest to the mean, then always the one farthest from all chosen.

    Source: Sener & Savarese, "Active learning for convolutional neural networks: a core-set
    approach" (ICLR 2018), Algorithm 1, which is given the first ones. No image is farther from
    its nearest chosen one than twice the least that is possible. ``seed`` is not needed.
    """
    points = features.double()
    chosen = [int((points - points.mean(0)).norm(dim=1).argmin())]
    distances = torch.full((len(points),), torch.inf, dtype=torch.float64)
    while len(chosen) < count:
        distances = distances.minimum((points - points[chosen[-1]]).norm(dim=1))
        distances[chosen] = -1  # so that of equal images none comes twice
        chosen.append(int(distances.argmax()))
    return chosen


def lowest(scores: Tensor, count: int, seed: int) -> list[int]:
    """Images of the lowest of scores ``(n,)``, earlier ones first of equal scores."""
    chosen: list[int] = scores.argsort(stable=True)[:count].tolist()
    return chosen


def highest(scores: Tensor, count: int, seed: int) -> list[int]:
    """As :func:`lowest`, of the highest."""
    return lowest(-scores, count, seed)


def el2n(logits: Tensor, label: int) -> Tensor:
    """Length of the error, softmax minus class, mean over teachers, float ``(n,)`` in [0, √2].

    Source: Paul, Ganguli & Dziugaite, "Deep learning on a data diet" (NeurIPS 2021), whose networks
    have trained for a few epochs, as those of a prior pool, but in several runs. They keep the
    highest scores of large sets. Where few images are kept easy ones are better (Sorscher et al.,
    "Beyond neural scaling laws", NeurIPS 2022), and CCS (Zheng et al., ICLR 2023) leaves out the
    hardest; hence ``coreset.scores``.

    Args:
        logits: of M teachers for n images of a class, ``(M, n, K)``.
        label: the class.
    """
    errors = logits.softmax(2)
    errors[:, :, label] -= 1
    scores: Tensor = errors.norm(dim=2).mean(0)
    return scores


def forgetting(logits: Tensor, label: int) -> Tensor:
    """How often an image goes from right to wrong between consecutive teachers, int64 ``(n,)``.

    Source: Toneva et al., "An empirical study of example forgetting during deep neural network
    learning" (ICLR 2019), Algorithm 1, who look whenever an image is in a batch and keep the most
    forgotten; we look at checkpoints. Images that are never right count ``M``, more than any other.

    Args:
        logits: of M teachers in the order of their training, ``(M, n, K)``.
        label: the class of the n images.
    """
    right = logits.argmax(2) == label
    events = (right[:-1] & ~right[1:]).sum(0)
    return torch.where(right.any(0), events, len(right))


def check_trajectory(pool: Pool) -> None:
    """Refuse a pool that is not of two checkpoints or more of one run, in their order."""
    epochs = [int(entry.get("epoch", 0)) for entry in pool.entries]
    if len(epochs) < 2 or sorted({*epochs} - {0}) != epochs:
        raise TeddyError(
            f"{pool.folder}: coreset.choose forgetting expected a pool of kind prior with two "
            f"checkpoints or more; got members of epochs {shown(epochs)}"
        )
