"""Prepared datasets: splits, classes and normalisation, and how they are read from disk.

A prepared dataset is a folder with ``manifest.json`` (counts, classes, checksums) and either the
images themselves (``arrays.safetensors``, small sets) or the list of the files they are read from
while training (``files.json``, sets too large for memory). :mod:`teddy.data.preparation` writes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Len
from torch import Tensor

from teddy.core.artifacts import read_tensors
from teddy.core.errors import TeddyError
from teddy.core.files import Json, digest, read_json
from teddy.core.seeding import permutation
from teddy.data.images import Images, Normalisation
from teddy.data.lazy_images import ImageFiles
from teddy.settings.configs import Count, Positive, SmallClasses
from teddy.settings.schema import check, config_keys, from_json, settings, shown

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
ARRAYS_KIND = "teddy.dataset.v1"
ARRAYS, FILES, MANIFEST = "arrays.safetensors", "files.json", "manifest.json"

LabelledImages = Images | ImageFiles
"""Images of one split, in memory or on disk; both have the same methods."""


@dataclass(frozen=True, slots=True)
class ImageDataset:
    """A prepared dataset: three splits that share classes, size and normalisation."""

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages
    class_names: tuple[str, ...]
    normalisation: Normalisation

    @property
    def num_classes(self) -> int:
        """Classes, K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.train.shape

    def split(self, name: Split) -> LabelledImages:
        """One of the three splits."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


@settings
class _Manifest:
    """What is read of a manifest."""

    storage: Literal["memory", "files"]
    root: str = ""
    class_names: Annotated[tuple[str, ...], Len(2)]
    image_shape: tuple[Count, Count, Count]
    mean: Annotated[tuple[float, ...], Len(1)]
    std: Annotated[tuple[Positive, ...], Len(1)]
    sha256: str

    def __post_init__(self) -> None:
        channels = self.image_shape[0]
        check(
            len(self.mean) == len(self.std) == channels,
            f"mean and std must have {channels} entries, as image_shape says",
        )


def read_manifest(folder: Path) -> Json:
    """Manifest of a prepared dataset."""
    if not (folder / MANIFEST).is_file():
        raise TeddyError(f"{folder}: expected a prepared dataset; run the prepare stage first")
    return read_json(folder / MANIFEST)


def read_dataset(folder: Path) -> ImageDataset:
    """Read a prepared dataset.

    Raises:
        TeddyError: missing, or its content is not what the manifest describes.
    """
    raw, known = read_manifest(folder), config_keys(_Manifest)
    own = {key: value for key, value in raw.items() if key in known}
    manifest = from_json(_Manifest, own, f"{folder / MANIFEST} (run the prepare stage again)")
    content = folder / (FILES if manifest.storage == "files" else ARRAYS)
    if digest(content) != manifest.sha256:
        raise TeddyError(
            f"{content}: checksum differs from {MANIFEST}; run the prepare stage again"
        )
    if manifest.storage == "files":
        splits = _file_splits(content, manifest)
    else:
        tensors, _ = read_tensors(content, kind=ARRAYS_KIND)
        splits = {
            name: Images(tensors[f"{name}.images"], tensors[f"{name}.labels"]) for name in SPLITS
        }
    highest = max(int(split.labels.max()) for split in splits.values())
    if highest >= len(manifest.class_names):
        raise TeddyError(
            f"{folder / MANIFEST}: class_names must have a name for each label up to {highest}, "
            f"got {len(manifest.class_names)}; run the prepare stage again"
        )
    return ImageDataset(
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        class_names=manifest.class_names,
        normalisation=Normalisation(manifest.mean, manifest.std),
    )


def _file_splits(content: Path, manifest: _Manifest) -> dict[Split, LabelledImages]:
    channels, size, _ = manifest.image_shape
    record = read_json(content)
    return {
        name: ImageFiles(
            root=Path(manifest.root),
            files=record[name]["files"],
            sizes=record[name]["sizes"],
            labels=torch.tensor(record[name]["labels"], dtype=torch.int64),
            image_size=size,
            channels=channels,
        )
        for name in SPLITS
    }


def select_random(
    labels: Tensor,
    class_names: Sequence[str],
    indices: Sequence[int],
    seed: int,
    small_classes: SmallClasses | None = None,
) -> Tensor:
    """Random images without replacement: the ``indices``-th of each class's own shuffle.

    Args:
        labels: int64 ``(N,)``.
        class_names: of the K classes.
        indices: IPC indices wanted, non-negative.
        seed: experiment seed.
        small_classes: ``repeat`` and ``fewer`` begin the shuffle of a class of fewer images again,
            whose repeats :func:`without_repeats` finds; None where it is no choice.

    Returns:
        int64 ``(len(indices), K)``; entry ``[i, c]`` does not depend on the other entries.

    Raises:
        TeddyError: a class has fewer images than asked for, and may not repeat them.
    """
    counts = labels.bincount(minlength=len(class_names))
    label, wanted = int(counts.argmin()), max(indices) + 1
    if wanted > counts[label] and small_classes not in ("repeat", "fewer"):
        raise TeddyError(
            f"expected {wanted} real images of each class for training, but class "
            f"{shown(class_names[label])} has {counts[label]}; choose a smaller ipc (and of images "
            "that start from real ones a divisor of it for synthesize.indices_per_batch)"
            + (
                ", or prepare.small_classes: repeat, which takes the images of such a class again, "
                "or fewer, which takes those that there are"
                if small_classes == "refuse" else ""
            )
        )  # fmt: skip
    columns = []
    for label in range(len(class_names)):
        members = torch.nonzero(labels == label)[:, 0]
        order = members[permutation(len(members), seed, "random real", label)]
        columns.append(order[[index % len(members) for index in indices]])
    return torch.stack(columns, dim=1)


def without_repeats(labels: Tensor, real: Tensor) -> Tensor:
    """Images of a set but those that :func:`select_random` has taken again.

    Args:
        labels: int64 ``(N,)``, of the set, whose images of a class are in the order of its shuffle.
        real: int64, labels of the real images that it was selected from.

    Returns:
        int64, ascending: of every class as many as there are real ones, at most.
    """
    counts = real.bincount(minlength=int(labels.max()) + 1)
    kept = [torch.nonzero(labels == c)[: counts[c], 0] for c in labels.unique().tolist()]
    return torch.cat(kept).sort().values
