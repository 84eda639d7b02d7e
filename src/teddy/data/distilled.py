"""A distilled set: one self-describing file, and a ``Dataset`` in one line (``teddy.load``)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from teddy.core.artifacts import read_tensors, write_tensors
from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.data.images import Images, Normalisation
from teddy.data.partition import expand

_KIND = "teddy.distilled.v1"


class DistilledSet(Dataset[tuple[Tensor, int]]):
    """Synthetic (or selected real) images with hard labels and their provenance.

    Images are ordered by IPC index, then by class, so the first ``i·K`` images are the set of
    ``i`` images per class (unless ``prepare.small_classes: fewer`` left some classes with less). An
    item is ``(image, label)``: a normalised float32 image ``(C, H, W)`` ready for a network, and
    its class.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        class_names: tuple[str, ...],
        normalisation: Normalisation,
        provenance: Json,
        partition: int = 1,
    ) -> None:
        self.images = images
        """uint8 ``(N, C, H, W)``."""
        self.labels = labels
        """int64 ``(N,)``."""
        self.class_names = class_names
        self.normalisation = normalisation
        self.provenance = provenance
        """How the set was made: method, settings, seed, checksums of what it was made from."""
        self.partition = partition
        """Smaller images along a side of each image; 1 where they are whole."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        image = self.normalisation.apply(self.images[index][None])[0]
        return image, int(self.labels[index])

    @property
    def num_classes(self) -> int:
        """Classes, K."""
        return len(self.class_names)

    @property
    def ipc(self) -> int:
        """Images per class, the most that any has."""
        return int(self.labels.bincount().max())

    def as_images(self) -> Images:
        """The uint8 images and labels that students see: smaller ones are taken out, enlarged."""
        if self.partition == 1:
            return Images(self.images, self.labels)
        images = expand(self.images.float(), self.partition).round().to(torch.uint8)
        return Images(images, self.labels.repeat(self.partition**2))

    def __repr__(self) -> str:
        method = self.provenance.get("method", "unknown method")
        shape = "×".join(map(str, self.images.shape[1:]))
        return (
            f"DistilledSet({len(self)} images of {shape}, {self.num_classes} classes, "
            f"ipc {self.ipc}, {method})"
        )


def save_distilled(path: Path, distilled: DistilledSet) -> None:
    """Write a distilled set as one safetensors file."""
    record: dict[str, Any] = {
        "class_names": list(distilled.class_names),
        "mean": list(distilled.normalisation.mean),
        "std": list(distilled.normalisation.std),
        "ipc": distilled.ipc,
        "provenance": distilled.provenance,
    }
    if distilled.partition > 1:
        record["partition"] = distilled.partition
    tensors = {"images": distilled.images, "labels": distilled.labels}
    write_tensors(path, tensors, kind=_KIND, record=record)


def read_set(path: Path) -> DistilledSet:
    """Read a distilled set whose parts fit each other, which ``teddy.load`` checks first.

    Raises:
        TeddyError: missing, truncated or not a distilled set.
    """
    tensors, record = read_tensors(path, kind=_KIND)
    images, labels = tensors["images"], tensors["labels"]
    if images.dtype != torch.uint8 or len(images) != len(labels):
        raise TeddyError(f"{path}: expected uint8 images and as many labels")
    return DistilledSet(
        images,
        labels,
        tuple(record["class_names"]),
        Normalisation(tuple(record["mean"]), tuple(record["std"])),
        record["provenance"],
        record.get("partition", 1),
    )
