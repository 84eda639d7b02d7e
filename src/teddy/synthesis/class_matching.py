"""Teddy plus: images that look like their class to weak teachers, in the views that students see.

Two steps of the paper are taken back, and one thing is new.

- The paper bounds the distance of gradients in the last layer by distances of second moments and of
  *class means* of the features (Proposition 2; Eqs. 4, 14–17), and then relaxes the class means to
  the global mean (Eq. 18), so that stored BatchNorm statistics serve. Here class means are matched.
- One teacher of the pool has its turn at every iteration, as a student passes through stages of
  training (Eqs. 6, 20), instead of several at once. The classifier prior is that teacher's.
- Teachers see the distilled images in views like those that students will train on, and the real
  ones as they are, which is what students are tested on.

Dimensions: ``K`` classes, ``N`` images of a batch, ``V`` views of each, ``D`` features before the
last layer.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from teddy.core.errors import TeddyError
from teddy.core.seeding import permutation
from teddy.data.augmentation import draw_views
from teddy.objectives import cosine_lr
from teddy.settings.configs import PlusConfig
from teddy.synthesis.coresets import Embedding, Judge, nearest_to_centres
from teddy.synthesis.engine.batches import Batch
from teddy.synthesis.engine.state import State
from teddy.synthesis.methods import Ingredients, OptimisedMethod
from teddy.teachers.optimizers import Adam, Group
from teddy.teachers.pools import draw_teachers

_CHUNK = 256  # images per forward pass of real ones


def class_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared distance of mean features over the squared length of the real ones, mean over
    classes, so that neither a teacher nor a class weighs more because its features are larger.

    Args:
        real: ``(K, D)``, mean feature of each class's real images.
        synthetic: ``(K, D)``, of its synthetic images.

    Returns:
        Scalar ≥ 0.
    """
    lengths = real.square().sum(1).clamp_min(1e-12)
    return ((real - synthetic).square().sum(1) / lengths).mean()


class ClassMatching(OptimisedMethod):
    """Optimises the images of some classes; see :class:`teddy.synthesis.methods.Method`.

    A class's images depend on its own random numbers and on the teachers, which belong to
    iterations, so they do not depend on which classes share a batch, beyond rounding.

    Args:
        config: start, steps and rates.
        given: real images, and the pool.
    """

    Config = PlusConfig
    config: PlusConfig
    by_pool = True
    terms = ("distance", "classifier_prior")
    rate = "plus.lr"
    size = "plus.classes_per_batch, real_images or views_per_image"

    def __init__(self, config: PlusConfig, given: Ingredients) -> None:
        super().__init__(config, given)
        if given.pool is None:
            raise TeddyError("class means are matched through a pool of teachers")
        self.pool = given.pool
        self._teachers: dict[int, nn.Module] = {}
        self._means: dict[tuple[int, int], Tensor] = {}
        self._starts: dict[tuple[int, int], Tensor] = {}
        self._judge: Judge | None = None  # once for all classes, if it is needed

    def optimise(self, batch: Batch, state: State) -> Iterator[None]:
        """One batch, from iteration ``state.done`` on."""
        low, high = self.data.normalisation.bounds(self.device)
        for i in range(state.done, self.config.iterations):
            losses = self.losses(state.images, batch, i)
            losses.sum().backward()
            state.update(cosine_lr(self.config.lr, i, self.config.iterations))
            if self.config.clip:
                with torch.no_grad():
                    torch.clamp(state.images, low, high, out=state.images)
            state.finish_step(losses.detach())
            yield

    def losses(self, images: Tensor, batch: Batch, iteration: int) -> Tensor:
        """Both terms of an iteration's loss, weighted, ``(2,)``.

        Args:
            images: normalised float ``(N, C, H, W)``, ordered by index, then class.
            batch: which they are.
            iteration: which teacher and views.
        """
        member, count = self.teacher_drawn(iteration), self.config.views_per_image
        numbers = torch.tensor(batch.indices)[:, None] * self.data.num_classes
        counters = (numbers + torch.tensor(batch.classes)).flatten()
        views = torch.cat([self._view(images, counters, iteration, j) for j in range(count)])
        teacher = self._teacher(member)
        with Embedding(teacher) as embedding:
            logits = teacher(views.to(memory_format=torch.channels_last))
        shape = (count * len(batch.indices), len(batch.classes))
        means = embedding.seen.unflatten(0, shape).mean(0)
        real = torch.stack([self.class_mean(member, label) for label in batch.classes])
        labels = batch.labels().to(self.device).repeat(count)
        prior = self.config.classifier_weight * cross_entropy(logits, labels)
        return torch.stack([class_distance(real, means), prior])

    def teacher_drawn(self, iteration: int) -> int:
        """Member of the pool that has its turn at an iteration, the same for all batches."""
        (member,) = draw_teachers(len(self.pool), 1, self.seed, "plus teacher", iteration)
        return member

    def class_mean(self, member: int, label: int) -> Tensor:
        """Mean feature ``(D,)`` of a class's real images, as they are, to a teacher.

        Of a class of more than ``real_images`` so many serve, the same for all teachers.
        """
        if (member, label) not in self._means:
            train, teacher = self.data.train, self._teacher(member)
            members = torch.nonzero(train.labels.cpu() == label)[:, 0]
            order = permutation(len(members), self.seed, "plus real", label)
            chosen, seen = members[order[: self.config.real_images]], []
            with Embedding(teacher) as embedding, torch.no_grad():
                for part in chosen.split(_CHUNK):
                    pixels = train.pick(part.to(train.labels.device)).to(self.device)
                    inputs = self.data.normalisation.apply(pixels)
                    teacher(inputs.to(memory_format=torch.channels_last))
                    seen.append(embedding.seen)
            self._means[member, label] = torch.cat(seen).mean(0)
        return self._means[member, label]

    def batches(self, ipc: int) -> list[Batch]:
        """Chunks of classes, each with all its images: they share the mean that is matched."""
        width, count = self.config.classes_per_batch, self.data.num_classes
        return [
            Batch(0, chunk, range(ipc), range(first, min(first + width, count)))
            for chunk, first in enumerate(range(0, count, width))
        ]

    def load(self, batches: Sequence[Batch]) -> None:
        """Real class means and starts, once for all batches."""
        for batch in batches:
            for label in batch.classes:
                for member in range(len(self.pool)):
                    self.class_mean(member, label)
            if self.config.initialise == "kmeans":
                self.initial_images(batch)

    def start(self, batch: Batch, images: Tensor) -> State:
        """Adam."""
        optimizer = Adam(
            [Group([images], 0.0)], self.config.betas, self.config.eps, decoupled=False
        )
        losses = torch.zeros(self.config.iterations, len(self.terms), device=self.device)
        return State(images, optimizer, losses)

    def initial_images(self, batch: Batch) -> Tensor:
        """As of every method, or images chosen by k-means."""
        if self.config.initialise != "kmeans":
            return super().initial_images(batch)
        chosen = [self._chosen(label, len(batch.indices)) for label in batch.classes]
        order = torch.stack(chosen, dim=1).flatten()  # by index, then class
        return self.data.normalisation.apply(self.data.train.pick(order))

    def _chosen(self, label: int, ipc: int) -> Tensor:
        if (label, ipc) not in self._starts:
            self._judge = self._judge or Judge(self.data, self.pool, self.device)
            self._starts[label, ipc] = self._judge.choose(
                label, ipc, self.config.easiest, nearest_to_centres, self.seed,
                self.given.small_classes,
            )  # fmt: skip
        return self._starts[label, ipc]

    def _view(self, images: Tensor, counters: Tensor, iteration: int, number: int) -> Tensor:
        size, key = self.data.image_shape[1:], ("plus view", iteration, number)
        indices = counters.to(self.device)
        return draw_views(self.config.views, *size, self.seed, *key, indices=indices)(images)

    def _teacher(self, member: int) -> nn.Module:
        if member not in self._teachers:
            self._teachers[member] = self.pool.member(member, self.device).requires_grad_(False)
        return self._teachers[member]
