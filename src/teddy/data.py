"""Datasets as tensors: raw sources, splits, pixel range and normalisation.

Images at rest are uint8 in ``[0, 255]``; a network sees ``(x / 255 − mean) / std`` per channel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from teddy.artifacts import Json, digest, read_json, read_tensors, write_json, write_tensors
from teddy.config import PrepareConfig
from teddy.errors import TeddyError
from teddy.seeding import permutation

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_KIND = "teddy.dataset.v1"
_ARRAYS, _MANIFEST = "arrays.safetensors", "manifest.json"


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Per-channel mean and standard deviation of pixels in ``[0, 1]``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, images: Tensor) -> Tensor:
        """uint8 ``(N, C, H, W)`` to normalised float32."""
        mean, std = self._tensors(images.device)
        return (images.to(torch.float32) / 255 - mean) / std

    def to_uint8(self, images: Tensor) -> Tensor:
        """Normalised float ``(N, C, H, W)`` to uint8: denormalise, clamp to [0, 1], truncate.

        SRe2L truncates where rounding would be nearer (0.999 becomes 254); kept for parity. The
        tiny offset keeps values that came from uint8 exact through float32.
        """
        mean, std = self._tensors(images.device)
        pixels = (images.to(torch.float32) * std + mean).clamp(0, 1) * 255
        return (pixels + 1e-3).to(torch.uint8)

    def bounds(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Normalised values of black and white per channel, float32 ``(1, C, 1, 1)`` each."""
        mean, std = self._tensors(device)
        return -mean / std, (1 - mean) / std

    def _tensors(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device)
        std = torch.tensor(self.std, dtype=torch.float32, device=device)
        return mean[None, :, None, None], std[None, :, None, None]


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images of one split."""

    images: Tensor
    """uint8 ``(N, C, H, W)``."""
    labels: Tensor
    """int64 ``(N,)`` in ``[0, K)``."""

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Images":
        """The same images on another device."""
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, slots=True)
class ImageDataset:
    """A prepared dataset: three splits that share classes, size and normalisation."""

    train: Images
    val: Images
    test: Images
    class_names: tuple[str, ...]
    normalisation: Normalisation

    @property
    def num_classes(self) -> int:
        """Classes, K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def split(self, name: Split) -> Images:
        """One of the three splits."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


# ------------------------------------------------------------------------------------- sources


@dataclass(frozen=True, slots=True)
class RawImages:
    """What a source yields before it is split: uint8 ``(N, C, H, W)``, int64 ``(N,)``, names."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def _digits() -> RawImages:
    """scikit-learn's handwritten digits: 1,797 grey 8×8 images, sixteen levels, ten classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return RawImages(images, labels, tuple(str(name) for name in bunch.target_names))


SOURCES: dict[str, Callable[[], RawImages]] = {"digits": _digits}
"""Loaders of raw data by the name ``prepare.source`` gives. Add a dataset here."""


def prepare(config: PrepareConfig, seed: int) -> ImageDataset:
    """Load a source and split it, each class by the same fractions (stratified, fixed by seed)."""
    raw = SOURCES[config.source]()
    num_classes = len(raw.class_names)
    parts = stratified_split(
        raw.labels, num_classes, (config.test_fraction, config.val_fraction), seed
    )
    test, val, train = (Images(raw.images[part], raw.labels[part]) for part in parts)
    pixels = train.images.to(torch.float64) / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    statistics = Normalisation(tuple(_rounded(mean)), tuple(_rounded(std)))
    return ImageDataset(train, val, test, raw.class_names, statistics)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def stratified_split(
    labels: Tensor, num_classes: int, fractions: Sequence[float], seed: int
) -> list[Tensor]:
    """Cut every class into parts of the given fractions; the rest is the last part.

    Args:
        labels: int64 ``(N,)``.
        num_classes: K.
        fractions: share of each class in each part but the last.
        seed: experiment seed; a class has its own stream.

    Returns:
        ``len(fractions) + 1`` ascending index tensors that partition ``range(N)``.

    Raises:
        TeddyError: a class is too small to have an image in every part.
    """
    parts: list[list[Tensor]] = [[] for _ in range(len(fractions) + 1)]
    for label in range(num_classes):
        members = torch.nonzero(labels == label)[:, 0]
        shuffled = members[permutation(len(members), seed, "split", label)]
        sizes = [round(fraction * len(members)) for fraction in fractions]
        sizes.append(len(members) - sum(sizes))
        if min(sizes) < 1:
            raise TeddyError(
                f"class {label} has {len(members)} images, too few for parts of {list(fractions)}"
            )
        for part, indices in zip(parts, shuffled.split(sizes), strict=True):
            part.append(indices)
    return [torch.cat(part).sort().values for part in parts]


# ------------------------------------------------------------------------------------ on disk


def write_dataset(folder: Path, dataset: ImageDataset, source: str) -> None:
    """Write a prepared dataset: its arrays, and a manifest of counts and checksum."""
    tensors = {}
    for name in SPLITS:
        tensors[f"{name}.images"] = dataset.split(name).images
        tensors[f"{name}.labels"] = dataset.split(name).labels
    write_tensors(folder / _ARRAYS, tensors, kind=_KIND, record={})
    counts = {
        name: torch.bincount(dataset.split(name).labels, minlength=dataset.num_classes).tolist()
        for name in SPLITS
    }
    manifest = {
        "source": source,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape),
        "mean": list(dataset.normalisation.mean),
        "std": list(dataset.normalisation.std),
        "images_per_class": counts,
        "sha256": digest(folder / _ARRAYS),
    }
    write_json(folder / _MANIFEST, manifest)


def read_manifest(folder: Path) -> Json:
    """Manifest of a prepared dataset."""
    if not (folder / _MANIFEST).is_file():
        raise TeddyError(f"{folder}: expected a prepared dataset; run the prepare stage first")
    return read_json(folder / _MANIFEST)


def read_dataset(folder: Path) -> ImageDataset:
    """Read a prepared dataset.

    Raises:
        TeddyError: missing, or its arrays are not those the manifest describes.
    """
    manifest = read_manifest(folder)
    if digest(folder / _ARRAYS) != manifest["sha256"]:
        raise TeddyError(
            f"{folder / _ARRAYS}: checksum differs from {_MANIFEST}; run the prepare stage again"
        )
    tensors, _ = read_tensors(folder / _ARRAYS, kind=_KIND)
    splits = {name: Images(tensors[f"{name}.images"], tensors[f"{name}.labels"]) for name in SPLITS}
    return ImageDataset(
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        class_names=tuple(manifest["class_names"]),
        normalisation=Normalisation(tuple(manifest["mean"]), tuple(manifest["std"])),
    )


def select_random(labels: Tensor, num_classes: int, indices: Sequence[int], seed: int) -> Tensor:
    """Random images without replacement: the ``indices``-th of each class's own shuffle.

    Args:
        labels: int64 ``(N,)``.
        num_classes: K.
        indices: IPC indices wanted, non-negative.
        seed: experiment seed.

    Returns:
        int64 ``(len(indices), K)``; entry ``[i, c]`` does not depend on the other entries.

    Raises:
        TeddyError: a class has fewer images than asked for.
    """
    columns = []
    for label in range(num_classes):
        members = torch.nonzero(labels == label)[:, 0]
        if max(indices) >= len(members):
            raise TeddyError(
                f"ipc {max(indices) + 1} is more than the {len(members)} training images of "
                f"class {label}; choose a smaller ipc"
            )
        order = members[permutation(len(members), seed, "random real", label)]
        columns.append(order[list(indices)])
    return torch.stack(columns, dim=1)
