"""Distilled sets opened: whatever is wrong with a file is found before it is used."""

from pathlib import Path

from teddy.core.artifacts import check_tensors
from teddy.core.errors import TeddyError
from teddy.data.datasets import ImageDataset
from teddy.data.distilled import DistilledSet, read_set
from teddy.settings.sets import AGAIN, KIND, set_record


def load(path: str | Path) -> DistilledSet:
    """Load a distilled set.

    Example:
        >>> import teddy
        >>> path = "data/distilled/digits/main/ipc10/prior/0.safetensors"
        >>> dataset = teddy.load(path)  # doctest: +SKIP
        >>> image, label = dataset[0]  # doctest: +SKIP

    Raises:
        TeddyError: missing, truncated or not a distilled set, or its images, labels and record do
            not belong together.
    """
    path = Path(path)
    any_images = {"images": ("U8", (None,) * 4), "labels": ("I64", (None,))}
    raw = check_tensors(path, any_images, kind=KIND, again=AGAIN)
    record = set_record(raw, path)
    distilled = read_set(path)
    images, labels, classes = distilled.images, distilled.labels, len(record.class_names)
    channels = images.shape[1]
    if channels != len(record.mean):
        raise TeddyError(
            f"{path}: mean has {len(record.mean)} entries, but images have {channels} channels; "
            f"{AGAIN}"
        )
    if images.numel() == 0:
        raise TeddyError(f"{path}: images must be some; got {' × '.join(map(str, images.shape))}")
    if any(side % record.partition for side in images.shape[2:]):
        raise TeddyError(
            f"{path}: partition must divide the sides of the images; got {record.partition}; "
            f"{AGAIN}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise TeddyError(
            f"{path}: labels must be from 0 to {classes - 1}, as there are {classes} class_names; "
            f"got {low} to {high}; {AGAIN}"
        )
    return distilled


def check_of_dataset(path: Path, distilled: DistilledSet, dataset: ImageDataset) -> None:
    """Refuse a set whose images or classes are not those of a prepared dataset.

    Raises:
        TeddyError: naming the file and what differs.
    """
    differing = {
        "images of": (tuple(distilled.images.shape[1:]), tuple(dataset.image_shape)),
        "classes": (distilled.num_classes, dataset.num_classes),
    }
    for what, (own, expected) in differing.items():
        if own != expected:
            raise TeddyError(
                f"{path}: has {what} {own}, but the prepared dataset has {expected}; name a set of "
                "this dataset, or run the stages prepare and synthesize again"
            )
