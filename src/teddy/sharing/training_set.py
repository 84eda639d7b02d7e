"""A distilled set with all that training on it takes: views, soft labels and recipe.

The public API of the package (docs/sharing.md): what ``evaluate`` does to a student, for a network
and a training loop of the user's own.

Dimensions: ``N`` images, ``K`` classes, ``n`` images of a batch.
"""

import json
import math
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, one_hot

from teddy.core.artifacts import check_tensors, read_tensors
from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.core.seeding import derive, permutation
from teddy.data.datasets import LabelledImages, read_dataset
from teddy.data.distilled import DistilledSet
from teddy.objectives import mixed_cross_entropy, soft_label_loss
from teddy.settings.configs import EvaluateConfig, RelabelConfig, Seed
from teddy.settings.schema import settings, shown, to_json
from teddy.students.labels import Batch, StoredLabels, TrainingViews
from teddy.students.sets import check_of_dataset
from teddy.teachers import training
from teddy.teachers.networks import build

FIXED_KIND = "teddy.fixed_labels.v1"


@settings
class Recipe:
    """How students learn from a set."""

    seed: Seed
    """Of the synthesis: its views and labels, and its students."""
    relabel: RelabelConfig
    """Views of every epoch, and how they were labelled."""
    evaluate: EvaluateConfig
    """Students: network, optimiser, loss."""

    def student_seed(self, seed: int) -> int:
        """Seed of what a student draws: initialisation, and order of the images."""
        return derive(self.seed, "student", seed)


def refuse_other_labels(where: str, manifest: Json, recipe: Recipe, again: str) -> None:
    """Refuse soft labels of other views than those of a recipe.

    Args:
        where: what messages begin with.
        manifest: of the labels.
        recipe: whose seed and views they must have.
        again: what to do.

    Raises:
        TeddyError: naming the key that differs.
    """
    made = manifest.get("settings")
    wanted = json.loads(json.dumps(to_json(recipe.relabel)))
    if not isinstance(made, dict) or made | {"store": True} != wanted | {"store": True}:
        raise TeddyError(
            f"{where}: labels are of other relabel settings than the recipe's; {again}"
        )
    if manifest.get("seed") != recipe.seed:
        raise TeddyError(
            f"{where}: labels must have the recipe's seed {recipe.seed}; got "
            f"{shown(manifest.get('seed'))}; {again}"
        )


class TrainingSet(DistilledSet):
    """A distilled set, as :func:`teddy.load` opens it.

    Besides images and classes it knows its recipe and where its soft labels lie, if these were
    beside it.

    Args:
        distilled: images, classes, normalisation and provenance.
        path: that it was opened from, for messages.
        recipe: None if there was none beside it.
        labels: folder of the soft labels' files, and their manifest; None if there are none.
        fixed: file with one soft label of each image, if there is one.
        wordnet: WordNet ids of the classes, if they have such.
        facts: whatever else a bundle says of the set.
        keep: what holds the temporary folder that the files lie in.
        check: compares the soft labels' files with their checksums.
    """

    def __init__(
        self,
        distilled: DistilledSet,
        path: Path,
        recipe: Recipe | None = None,
        labels: tuple[Path, Json] | None = None,
        fixed: Path | None = None,
        wordnet: tuple[str, ...] = (),
        facts: Json | None = None,
        keep: object = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            distilled.images, distilled.labels, distilled.class_names, distilled.normalisation,
            distilled.provenance, distilled.partition,
        )  # fmt: skip
        self.path, self.wordnet, self.facts = path, wordnet, facts or {}
        self._recipe, self._labels, self._fixed, self._keep = recipe, labels, fixed, keep
        self._check = check

    @property
    def seen(self) -> int:
        """Images that students see, N: more than there are where each holds smaller ones."""
        return len(self) * self.partition**2

    @property
    def recipe(self) -> Recipe:
        """How students learn from the set.

        Raises:
            TeddyError: nothing beside the set says it.
        """
        if self._recipe is None:
            raise TeddyError(
                f"{self.path}: has no recipe: a set alone is images and classes; open a bundle, or "
                "a set in the checkout that made it, whose inputs/evaluate says it"
            )
        return self._recipe

    @property
    def has_fixed_labels(self) -> bool:
        """Whether there is one soft label of each image; it may still turn out damaged."""
        return self._fixed is not None

    @property
    def fixed_labels(self) -> Tensor:
        """One soft label of each image that is seen: mean logits of the pool, float32 ``(N, K)``.

        Raises:
            TeddyError: they are not there.
        """
        if self._fixed is None:
            raise TeddyError(f"{self.path}: has no fixed labels; bundles have (teddy pack)")
        expected = {"logits": ("F16", (self.seen, self.num_classes))}
        check_tensors(self._fixed, expected, kind=FIXED_KIND, again="get the bundle again")
        return read_tensors(self._fixed, kind=FIXED_KIND)[0]["logits"].float()

    def stored_labels(self, device: torch.device | str = "cpu") -> StoredLabels:
        """Soft labels of every view, as ``relabel`` stored them: logits ``(N, K)`` of an epoch.

        Raises:
            TeddyError: they are not there, or are damaged.
        """
        if self._labels is None or not self._labels[1].get("shards"):
            raise TeddyError(
                f"{self.path}: has no soft labels beside it; open a bundle, or a set in the "
                "checkout that made it (where relabel.store: false left none, teddy pack makes "
                "them)"
            )
        folder, manifest = self._labels
        shape = (self.recipe.relabel.epochs, self.seen, self.num_classes)
        if self._check:
            self._check()
            self._check = None  # once is enough
        labels = StoredLabels(folder, manifest, device, shape)
        weakref.finalize(labels, id, self._keep)  # which must not go before these labels
        return labels

    def loader(
        self,
        batch_size: int | None = None,
        soft: bool = True,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> "Loader":
        """Views and targets of every epoch, as students of this set get them.

        Args:
            batch_size: images per batch at most; by default the recipe's. Views and labels are the
                same for every size (but for DSA, which draws an operation for every batch).
            soft: targets from the pool; otherwise from the classes, mixed as CutMix mixes images.
            device: where views are made; by default a GPU if there is one.
            seed: of the student, which the order of the images depends on.

        Example:
            >>> import teddy
            >>> data = teddy.load("bundle")  # doctest: +SKIP
            >>> loader = data.loader(batch_size=50)  # doctest: +SKIP
            >>> for epoch in loader:  # doctest: +SKIP
            ...     for inputs, targets in epoch:
            ...         loss = loader.loss(network(inputs), targets)

        Raises:
            TeddyError: no recipe, no soft labels, a batch size below 1, or no such device.
        """
        return Loader(self, batch_size, soft, _device(device), seed)

    def network(self, seed: int = 0) -> nn.Module:
        """A fresh network of the recipe, initialised as the student of that seed."""
        shape, config = self.images.shape[1:], self.recipe.evaluate
        start = derive(self.recipe.student_seed(seed), "student")
        return build(config.network, (shape[0], shape[1], shape[2]), self.num_classes, start)


class Loader:
    """Epochs of ``(inputs, targets)``; :meth:`TrainingSet.loader` makes it.

    ``inputs`` are normalised float32 ``(n, C, H, W)``, ``targets`` class probabilities, float32
    ``(n, K)``: of soft labels at the recipe's temperature. Going through it again gives the same.
    """

    def __init__(
        self,
        data: TrainingSet,
        batch_size: int | None,
        soft: bool,
        device: torch.device,
        seed: int,
    ) -> None:
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise TeddyError(f"batch_size must be a whole number, 1 or more, got {batch_size!r}")
        recipe = data.recipe
        self._data, self._config = data, recipe.evaluate
        self.batch_size = batch_size or recipe.evaluate.batch_size
        self.soft = soft
        self._student = recipe.student_seed(seed)
        self._labels = data.stored_labels(device) if soft else None
        images = data.as_images().to(device)
        self._views = TrainingViews(images, data.normalisation, recipe.relabel, recipe.seed)

    def __len__(self) -> int:
        """Epochs."""
        return self._views.config.epochs

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self._data.seen / self.batch_size)

    def __iter__(self) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        return map(self.epoch, range(len(self)))

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of one epoch, counted from 0.

        Raises:
            TeddyError: there is no such epoch.
        """
        for batch, logits in self._batches(number):
            yield batch.inputs, self._targets(batch, logits)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The recipe's loss of a network's outputs, mean over images.

        KL(targets ‖ softmax(outputs / τ)) for soft targets, times τ² if the recipe says so, and
        the cross-entropy for hard ones.

        Args:
            outputs: logits ``(n, K)``.
            targets: as this loader gave them.
        """
        if not self.soft:
            return -(targets * outputs.float().log_softmax(1)).sum(1).mean()
        scale = self._config.temperature**2 if self._config.temperature_squared else 1.0
        prediction = (outputs.float() / self._config.temperature).log_softmax(1)
        return scale * kl_div(prediction, targets, reduction="batchmean")

    def steps_of(self, epoch: int) -> Iterator[training.Step]:
        """Inputs and losses of an epoch for the training loop, to the bit those of ``evaluate``."""
        for batch, logits in self._batches(epoch):
            yield batch.inputs, partial(self._exact_loss, batch, logits)

    def _batches(self, epoch: int) -> Iterator[tuple[Batch, Tensor | None]]:
        if not 0 <= epoch < len(self):
            raise TeddyError(f"epoch must be from 0 to {len(self) - 1}, got {epoch}")
        device = self._views.images.labels.device
        order = permutation(self._data.seen, self._student, "student order", epoch).to(device)
        parts = training.equal_parts(order, self.batch_size)
        logits = self._labels.epoch(epoch) if self._labels else None
        for part, batch in zip(parts, self._views.batches(epoch, parts), strict=True):
            yield batch, None if logits is None else logits[part]
        self._views.forget()

    def _targets(self, batch: Batch, logits: Tensor | None) -> Tensor:
        if logits is not None:
            return (logits.float() / self._config.temperature).softmax(1)
        own, partner = (
            one_hot(labels, self._data.num_classes)
            for labels in (batch.labels, batch.partner_labels)
        )
        kept = batch.kept[:, None]
        return kept * own + (1 - kept) * partner

    def _exact_loss(self, batch: Batch, logits: Tensor | None, outputs: Tensor) -> Tensor:
        config = self._config
        if logits is None:
            return mixed_cross_entropy(outputs, batch.labels, batch.partner_labels, batch.kept)
        return soft_label_loss(
            outputs, logits, config.temperature, squared=config.temperature_squared
        )


def fit(
    network: nn.Module,
    data: TrainingSet,
    soft: bool = True,
    device: torch.device | str | None = None,
    seed: int = 0,
    epochs: int | None = None,
) -> nn.Module:
    """Train a network on a distilled set with the set's own recipe, in place.

    With ``data.network(seed)`` and the same seed this is the student that ``evaluate`` trained.

    Args:
        network: takes normalised ``(n, C, H, W)`` and returns logits ``(n, K)``.
        data: with recipe, and for soft labels these.
        soft: learn from the pool's labels; otherwise from the classes.
        device: to train on; by default a GPU if there is one.
        seed: of the order of the images.
        epochs: stop after so many; the schedule is that of all.

    Returns:
        The network, on that device and in the mode for inference.

    Raises:
        TeddyError: no recipe or labels, or the loss is not finite.
    """
    loader, recipe = data.loader(soft=soft, device=device, seed=seed), data.recipe
    last = len(loader) if epochs is None else epochs
    if not 1 <= last <= len(loader):
        raise TeddyError(f"epochs must be from 1 to {len(loader)}, got {epochs}")
    run = training.Run(
        name=f"fit {data.path.name}",
        seed=recipe.student_seed(seed),
        epochs=len(loader),
        steps_per_epoch=loader.steps,
        batches=loader.steps_of,
        after_epoch=lambda epoch: {},
        precision=recipe.evaluate.precision,
        resume=Path(os.devnull, "none"),  # nothing is kept
        save_every_seconds=math.inf,
        stop=lambda history: len(history) >= last,
    )
    training.fit(network, recipe.evaluate.optimizer, run, _device(device))
    return network.eval()


def accuracy(
    network: nn.Module,
    folder: str | Path,
    data: TrainingSet | None = None,
    split: str = "test",
) -> float:
    """Top-1 accuracy of a network on real images, percent.

    Args:
        network: on the device to use.
        folder: a prepared dataset, ``data/prepared/digits`` say.
        data: what it was trained on: classes are compared, and images normalised as the set's and
            computed in the recipe's precision, as ``evaluate`` does. By default images are
            normalised as the prepared dataset says, and all is computed in float32.
        split: ``train``, ``val`` or ``test``.

    Raises:
        TeddyError: it is no prepared dataset, has no such split, or is of other classes than
            ``data``.
    """
    if split not in ("train", "val", "test"):
        raise TeddyError(f"split must be train, val or test, got {split!r}")
    dataset = read_dataset(Path(folder))
    images: LabelledImages = dataset.split(split)  # type: ignore[arg-type]
    if data is None:
        return training.accuracy(network, images, dataset.normalisation)
    refuse_other_classes(dataset.class_names, data.class_names, f"{folder}", f"{data.path}")
    check_of_dataset(data.path, data, dataset)
    precision = "float32" if data._recipe is None else data._recipe.evaluate.precision
    return training.accuracy(network, images, data.normalisation, precision)


def refuse_other_classes(
    found: Sequence[str], expected: Sequence[str], where: str, of: str
) -> None:
    """Refuse real images of other classes, or of the same in another order, than a set's.

    Raises:
        TeddyError: naming the first class that differs.
    """
    if tuple(found) == tuple(expected):
        return
    pairs = enumerate(zip(found, expected, strict=False))
    at = next((label for label, (one, other) in pairs if one != other), None)
    what = (
        f"{len(found)} classes, not {len(expected)}" if at is None
        else f"class {at} is {found[at]!r}, not {expected[at]!r}"
    )  # fmt: skip
    raise TeddyError(f"{where}: has other classes than {of}: {what}")


def _device(device: torch.device | str | None) -> torch.device:
    """The device, if there is such."""
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # the latter of a PyTorch without CUDA
        reason = str(error).splitlines()[0]
        raise TeddyError(f"device must be one of this machine, got {name!r}: {reason}") from None
    return found
