"""Real images that teachers choose: the coresets that stand beside distilled images.

Dimensions: ``n`` images of a class, ``D`` features before the last layer, ``C H W`` image shape.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from teddy.core.artifacts import WorkDir
from teddy.core.distributed import leave_to_first
from teddy.core.errors import TeddyError
from teddy.core.seeding import derive, permutation
from teddy.data.augmentation import draw_views
from teddy.data.datasets import ImageDataset
from teddy.settings.configs import CoresetConfig, SmallClasses
from teddy.synthesis.methods import Made, Method
from teddy.teachers.networks import classifier
from teddy.teachers.pools import Pool

_CHUNK = 256  # images per forward pass

Choice = Callable[[Tensor, int, int], list[int]]
"""Chooses so many of some images, given their features ``(n, D)`` and a seed."""


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
        choose: dict[str, Choice] = {
            "random": at_random, "kmeans": nearest_to_centres, "herding": herding,
            "crops": at_random,
        }  # fmt: skip
        judge, images = Judge(self.data, self.given.pool, self.device), []
        for label in range(self.data.num_classes):
            own = judge.choose(
                label, ipc, self.config.easiest, choose[self.config.choose], self.seed,
                self.given.small_classes,
            )  # fmt: skip
            pixels = self.data.train.pick(own)
            if self.config.choose == "crops":
                seed = derive(self.seed, "crops", label)
                pixels = judge.easiest_crops(pixels, label, self.config, seed)
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

    def choose(
        self, label: int, ipc: int, share: float, choice: Choice, seed: int,
        small_classes: SmallClasses | None = None,
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

        Raises:
            TeddyError: a class has fewer images, and may not repeat them.
        """
        members, features = self.easiest(label, share, ipc)
        count = min(ipc, len(members))
        if count < ipc and small_classes not in ("repeat", "fewer"):
            raise TeddyError(
                f"expected {ipc} real images of each class for training, but class "
                f"{self._data.class_names[label]!r} has {count}; choose a smaller ipc, or "
                "prepare.small_classes: repeat or fewer"
            )
        chosen = members[choice(features, count, derive(seed, "coreset", label))]
        return chosen[torch.arange(ipc) % count]

    def easiest(self, label: int, share: float, least: int) -> tuple[Tensor, Tensor]:
        """Training images of a class that the last teacher finds easiest, easiest first.

        Args:
            label: the class.
            share: of its images, rounded up.
            least: number of images to take at least, if there are so many.

        Returns:
            Their indices ``(n,)``, and features before the last layer ``(n, D)``.
        """
        members = torch.nonzero(self._data.train.labels.cpu() == label)[:, 0]
        losses, features = [], []
        with Embedding(self._last) as embed, torch.inference_mode():
            for part in members.split(_CHUNK):
                pixels = self._data.train.pick(part.to(self._data.train.labels.device))
                inputs = self._data.normalisation.apply(pixels.to(self._device))
                logits = self._last(inputs.to(memory_format=torch.channels_last))
                losses.append(-logits.log_softmax(1)[:, label].cpu())
                features.append(embed.seen.cpu())
        order = torch.cat(losses).argsort(stable=True)
        order = order[: max(least, math.ceil(len(members) * share))]
        return members[order], torch.cat(features)[order]

    def easiest_crops(self, images: Tensor, label: int, config: CoresetConfig, seed: int) -> Tensor:
        """Of random crops of every image the one with the least cross-entropy of the ensemble.

        Args:
            images: uint8 ``(n, C, H, W)``, of one class.
            label: the class.
            config: how many crops, and what they may be.
            seed: of the crops.

        Returns:
            uint8 ``(n, C, H, W)``; crops are resized to whole images.
        """
        size, count = images.shape[2:], len(images)
        normalised = self._data.normalisation.apply(images.to(self._device))
        members = [self._pool.member(i, self._device) for i in range(len(self._pool))]
        best = torch.full((count,), torch.inf, device=self._device)
        found = normalised.clone()
        with torch.inference_mode():
            for number in range(config.crops):
                counters = torch.arange(count, device=self._device) + number * count
                crops = draw_views(config.views, *size, seed, "crop", indices=counters)(normalised)
                inputs = crops.to(memory_format=torch.channels_last)
                logits = torch.stack([teacher(inputs) for teacher in members]).mean(0)
                losses = -logits.log_softmax(1)[:, label]
                better = losses < best
                best = torch.where(better, losses, best)
                found = torch.where(better[:, None, None, None], crops, found)
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
