"""Class folders of images, as torchvision's ``ImageFolder`` reads them: sorted folders are labels.

Layouts, beside our own (``0003_cat/00007.png``), are those of public code that validates such sets:

- ``sre2l``: ``new003/class003_id007``, VILA-Lab/SRe2L, ``SRe2L/recover/data_synthesis.py`` (so do
  CDA and SCDD of the same repository);
- ``rded``: ``00003/class00003_id00007``, LINs-lab/RDED, ``synthesize/main.py``, whose validation
  asks for folders of five digits.

The folder of the class folders has nothing else in it, because SRe2L's validation lists it.
"""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from teddy.core.errors import TeddyError
from teddy.core.runtime import progress
from teddy.sharing.bundles import sha256
from teddy.sharing.formats import pixels
from teddy.sharing.formats.classes import (
    Told,
    check_labels,
    in_order,
    labels_of,
    plain_folders,
)
from teddy.sharing.formats.found import Found, Wanted, index_in_class
from teddy.sharing.formats.notes import (
    CLASSES,
    ClassesRecord,
    read_classes,
    refuse_none_of_a_class,
    write_classes,
    write_readme,
)
from teddy.sharing.training_set import TrainingSet

IMAGES = "images"


class _Layout(NamedTuple):
    """Names, and least digits of the numbers in them."""

    folder: str
    file: str
    label_digits: int
    index_digits: int


_LAYOUTS = {
    "sre2l": _Layout("new{label}", "class{label}_id{index}", 3, 3),
    "rded": _Layout("{label}", "class{label}_id{index}", 5, 5),
}
LAYOUTS = ("plain", *_LAYOUTS)


def names_of(layout: str, classes: tuple[str, ...], labels: Tensor) -> tuple[list[str], list[str]]:
    """Names whose sorted order is that of labels, and within a class that of its images.

    Args:
        layout: of :data:`LAYOUTS`.
        classes: names of the K classes.
        labels: int64 ``(N,)``.

    Returns:
        Folders of the K classes, and paths of the N images, without suffix.
    """
    index = index_in_class(labels).tolist()
    own = _LAYOUTS.get(layout, _Layout("", "{index}", 0, 5))
    label_digits = max(own.label_digits, len(str(len(classes) - 1)))
    index_digits = max(own.index_digits, len(str(max(index))))
    numbers = [f"{label:0{label_digits}d}" for label in range(len(classes))]
    folders = (
        plain_folders(classes) if layout == "plain"
        else [own.folder.format(label=number) for number in numbers]
    )  # fmt: skip
    files = [
        f"{folders[label]}/{own.file.format(label=numbers[label], index=f'{i:0{index_digits}d}')}"
        for label, i in zip(labels.tolist(), index, strict=True)
    ]
    return folders, files


def write(
    folder: Path, data: TrainingSet, layout: str = "plain", jpeg: bool = False, order: str = "ours"
) -> str:
    """Write class folders below ``images/``, and what they are beside it.

    Args:
        folder: to write to.
        data: the set.
        layout: of :data:`LAYOUTS`.
        jpeg: JPEG of quality 95 instead of lossless PNG.
        order: that the classes were put into, of ``classes.ORDERS``.

    Returns:
        What JPEG costs, in words; "" for PNG.

    Raises:
        TeddyError: images of neither one nor three channels, or a class without images.
    """
    pixels.check_channels(data.images)
    refuse_none_of_a_class(data)
    folders, files = names_of(layout, data.class_names, data.labels)
    for name in folders:
        (folder / IMAGES / name).mkdir(parents=True)
    suffix, lossy = (".jpg" if jpeg else ".png"), list[Tensor]()
    for image, name in zip(data.images, files, strict=True):
        content = pixels.encoded(image, jpeg=jpeg)
        (folder / IMAGES / f"{name}{suffix}").write_bytes(content)
        if jpeg:
            lossy.append(pixels.as_tensor(Image.open(BytesIO(content))))
    cost = pixels.summary(pixels.psnr(data.images, torch.stack(lossy))) if jpeg else {}
    text = f"JPEG costs: {pixels.in_words(cost)}" if jpeg else ""
    write_classes(folder, data, order, folders, cost if jpeg else None)
    write_readme(
        folder, data,
        f"`{IMAGES}/` has a folder for each class, named as layout `{layout}` names them; "
        f"`{CLASSES}` says which is which. Sorted folders are the labels, so that "
        f'`torchvision.datasets.ImageFolder("{IMAGES}")` reads them as they are.',
        f"Files are JPEG of quality 95. {text}." if jpeg else "Files are lossless PNGs.",
    )  # fmt: skip
    return text


def read(path: Path, wanted: Wanted, told: Told | None = None) -> Found:
    """Read class folders, of ``teddy export`` or of a peer.

    Args:
        path: folder of the class folders; or one with ``classes.json`` and ``images/``.
        wanted: classes, and shape of the images.
        told: which classes sorted folders are, if that is known.

    Raises:
        TeddyError: there are none, classes cannot be told, or an image does not fit.
    """
    record = read_classes(path)
    record = record if record is not None and record.folders else None
    root, labels, sums, said = _class_folders(path, record, wanted, told)
    listed = [
        (file, label) for name, label in sorted(labels.items()) for file in _images_in(root / name)
    ]
    found, resized = list[Tensor](), set[int]()
    with progress(len(listed), "read images", "img") as bar:
        for file, _ in listed:
            content, sums[file.relative_to(path).as_posix()] = pixels.content_of(file)
            image, before = pixels.decoded(content, wanted, str(file))
            found.append(image)
            resized |= {before} if before else set()
            bar.update()
    own = torch.tensor([label for _, label in listed], dtype=torch.int64)
    check_labels(own, wanted, str(path))
    facts, notes = pixels.of_resizing(resized, wanted)
    if record is not None and record.jpeg_psnr_db is not None:
        facts |= {"jpeg_psnr_db": record.jpeg_psnr_db}
        cost = pixels.in_words(record.jpeg_psnr_db)
        notes += (f"exported as JPEG of quality 95, which cost: {cost}",)
    return Found(torch.stack(found), own, sums, facts, notes + said)


def _class_folders(
    path: Path, record: ClassesRecord | None, wanted: Wanted, told: Told | None
) -> tuple[Path, dict[str, int], dict[str, str], tuple[str, ...]]:
    """Folder of the class folders, their labels, checksums of what said so, and what to say."""
    if record is not None:
        told = in_order(record.classes, wanted, f"{path / CLASSES}")
        present = {one.name for one in (path / IMAGES).iterdir() if one.is_dir()}
        for name in record.folders:
            if name not in present:
                raise TeddyError(f"{path}: {CLASSES} names the folder {name!r}, which is not there")
        labels = dict(zip(record.folders, told.labels, strict=True))
        sums = {CLASSES: sha256(path / CLASSES)}
        return path / IMAGES, labels, sums, told.notes
    if not path.is_dir():
        raise TeddyError(f"{path}: expected a folder of class folders, found none there")
    folders = [one.name for one in path.iterdir() if one.is_dir() and one.name[0] != "."]
    known = wanted if told is None else replace(wanted, order=told.order)
    labels, notes = labels_of(folders, known, str(path))
    return path, labels, {}, notes if told is None else told.notes


def _images_in(folder: Path) -> list[Path]:
    """Images of a folder, sorted by name as torchvision sorts them."""
    names = (one for one in folder.iterdir() if one.suffix.lower() in IMG_EXTENSIONS)
    return sorted(one for one in names if one.name[0] != ".")
