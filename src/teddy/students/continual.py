"""Class-incremental learning with GDumb on distilled sets (Fig. 3e, §8-24).

Classes arrive in steps, in a random order. Before each test a model is trained from scratch on the
buffer, the distilled images of all classes seen so far (GDumb: Prabhu, Torr & Dokania, 2020), by
the recipe of ordinary students, with outputs for all K classes of which none is masked; the test is
on seen classes alone.

Who makes and labels the images decides what the buffer knows of classes that are still to come:

- *Paper-like*: a pool trained on all classes, and the images it has made, are there from the start.
  Views and CutMix are drawn among the seen images, so no pixel of an unseen class is used, but soft
  labels are K-way and tell of unseen classes too.
- *Strict*: every step has teachers of its own, trained on the real images of that step's classes.
  They make and label the step's images when it comes, and views and CutMix are drawn within the
  step. They have outputs for all K classes, as the student has, but of classes of other steps they
  know no more than that these are none of theirs.

Dimensions: ``N`` images of a buffer, ``K`` classes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from teddy.core.errors import TeddyError
from teddy.core.files import Json, digest
from teddy.core.seeding import permutation
from teddy.data.datasets import ImageDataset, LabelledImages
from teddy.data.images import Images
from teddy.data.lazy_images import ImageFiles
from teddy.settings.configs import SynthesizeConfig
from teddy.students.labels import Batch, SoftLabels, TrainingViews
from teddy.synthesis.engine.batches import join_batches
from teddy.synthesis.methods import Ingredients
from teddy.synthesis.teddy import Teddy
from teddy.teachers.making import checkpoint_name
from teddy.teachers.pools import Pool


def class_steps(num_classes: int, steps: int, order: int) -> list[tuple[int, ...]]:
    """Classes that arrive at each step.

    Args:
        num_classes: K.
        steps: how many; their sizes differ by one at most.
        order: seed of the order in which classes arrive (§8-24 takes 0 to 4). It is not of the
            experiment: all methods, and all experiments, see the same orders.

    Raises:
        TeddyError: more steps than classes.
    """
    if steps > num_classes:
        raise TeddyError(f"continual.steps is {steps}, but there are only {num_classes} classes")
    arriving = permutation(num_classes, order, "order of classes")
    return [tuple(part.tolist()) for part in arriving.tensor_split(steps)]


def seen_classes(steps: Sequence[Sequence[int]], step: int) -> tuple[int, ...]:
    """Classes of all steps up to and including ``step`` (0-based), in order of arrival."""
    return tuple(label for part in steps[: step + 1] for label in part)


def of_classes(images: LabelledImages, classes: Sequence[int]) -> LabelledImages:
    """The images of some classes in their old order, with their own labels."""
    wanted = torch.tensor(classes, device=images.labels.device)
    kept = torch.isin(images.labels, wanted).nonzero()[:, 0]
    if isinstance(images, Images):
        return Images(images.images[kept], images.labels[kept])
    places = kept.tolist()
    return ImageFiles(
        images.root,
        [images.files[i] for i in places],
        [images.sizes[i] for i in places],
        images.labels[kept],
        images.shape[1],
        images.shape[0],
    )


def places(num_classes: int, classes: Sequence[int]) -> list[int]:
    """Class of every output of a step's teachers: those of the step, then all others ascending."""
    return [*classes, *(label for label in range(num_classes) if label not in set(classes))]


def only_classes(
    data: ImageDataset, classes: Sequence[int], *, all_outputs: bool = False
) -> ImageDataset:
    """A dataset of some classes alone, which get the labels 0, 1, … in the order given.

    Args:
        data: with all classes.
        classes: those wanted.
        all_outputs: count the other classes too, as labels that no image has, so that a network
            gets outputs for them; see :func:`places`.
    """
    names = places(data.num_classes, classes) if all_outputs else classes
    place = torch.full((data.num_classes,), -1, dtype=torch.int64)
    place[list(classes)] = torch.arange(len(classes))

    def part(images: LabelledImages) -> LabelledImages:
        kept = of_classes(images, classes)
        labels = place.to(kept.labels.device)[kept.labels]
        if isinstance(kept, Images):
            return Images(kept.images, labels)
        return ImageFiles(kept.root, kept.files, kept.sizes, labels, kept.shape[1], kept.shape[0])

    return replace(
        data,
        train=part(data.train),
        val=part(data.val),
        test=part(data.test),
        class_names=tuple(data.class_names[label] for label in names),
    )


class UnionViews(TrainingViews):
    """Views of a buffer whose parts are augmented and mixed each within itself.

    Args:
        parts: in order; the images of the union are those of the first, of the second and so on.
    """

    def __init__(self, parts: Sequence[TrainingViews]) -> None:
        first = parts[0]
        images = Images(
            torch.cat([part.images.images for part in parts]),
            torch.cat([part.images.labels for part in parts]),
        )
        super().__init__(images, first.normalisation, first.config, first.seed)
        self.parts = parts

    def _draw(self, epoch: int, parts: Iterable[Tensor]) -> Iterator[Batch]:
        whole = self._whole(epoch)
        yield from (whole[part] for part in parts)

    def _whole(self, epoch: int) -> Batch:
        drawn = []
        for part in self.parts:
            everything = torch.arange(len(part), device=part.images.labels.device)
            drawn += list(part.batches(epoch, [everything]))
        return Batch(
            torch.cat([batch.inputs for batch in drawn]),
            torch.cat([batch.labels for batch in drawn]),
            torch.cat([batch.partner_labels for batch in drawn]),
            torch.cat([batch.kept for batch in drawn]),
        )


class UnionLabels:
    """Soft labels of a buffer whose parts are labelled by teachers of their own.

    Args:
        parts: labels of every part, and the class of each of its teachers' outputs.
    """

    def __init__(self, parts: Sequence[tuple[SoftLabels, Sequence[int]]]) -> None:
        self.parts = parts

    def epoch(self, epoch: int) -> Tensor:
        """Logits of an epoch's views, float16 ``(N, K)``, with the classes in their own order."""
        rows = []
        for labels, classes in self.parts:
            order = torch.tensor(classes).argsort()
            logits = labels.epoch(epoch)
            rows.append(logits[:, order.to(logits.device)])
        return torch.cat(rows)


# ------------------------------------------------------------------------------- strict teachers


def step_folder(order: int, step: int) -> str:
    """Name of a step's folder of teachers."""
    return f"order{order}-step{step}"


def step_pool(folder: Path, epochs: Sequence[int]) -> Pool:
    """The pool of checkpoints that a step's base run left in a folder.

    Raises:
        TeddyError: a checkpoint is missing.
    """
    entries: list[Json] = []
    for epoch in epochs:
        path = folder / checkpoint_name(epoch)
        if not path.is_file():
            raise TeddyError(f"{path}: expected a checkpoint; run train_step_teachers first")
        entries.append({"file": path.name, "sha256": digest(path)})
    return Pool(folder, entries)


def synthesise_step(config: SynthesizeConfig, given: Ingredients, ipc: int, resume: Path) -> Tensor:
    """Images of a step by its own teachers, in one process.

    Args:
        config: as for a set of all classes; batches are smaller where there are fewer classes.
        given: teachers of the step, whose first outputs are its classes; real images of these
            classes alone; the step's seed.
        ipc: images per class.
        resume: file that an unfinished batch's state is kept in.

    Returns:
        uint8 ``(ipc·K, C, H, W)`` ordered by index, then class of the data.
    """
    teddy = Teddy(config, given)
    batches, images = teddy.batches(ipc), []
    for number, batch in enumerate(batches):
        own = resume.with_name(f"{resume.name}-{number}")
        images.append(teddy.run(batch, own)["images"])
        own.unlink(missing_ok=True)
    return join_batches(batches, images, ipc)
