"""What images lie somewhere: the source that reads them is told by the files that are there."""

import hashlib
import math
import os
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from teddy.core.errors import TeddyError
from teddy.core.runtime import progress
from teddy.data.decoding import check_depth
from teddy.data.preparation import stratified_split
from teddy.data.sources import RawArrays, RawDataset, RawFiles
from teddy.settings.configs import PrepareConfig
from tools.distill import parquet

_LOOKED_FOR = (
    "class folders of images (perhaps in train/ and val/); a list .csv, .tsv or .parquet with the "
    "columns path and label; an .npz file with x_train and y_train, or MedMNIST's names; "
    "cifar-10-batches-py or cifar-100-python; tiny-imagenet-200; or Parquet files with the columns "
    "image and label"
)
_SPLITS = ("train", "val", "test")
_HEADERS = 5000
"""Images of all splits together whose size and mode are looked at, evenly spread."""
_KEPT = 100
"""Files among them that are named, to try how long one takes."""
_GREY = ("1", "L", "LA")


@dataclass(frozen=True, slots=True)
class Found:
    """Where images are, and what reads them."""

    source: str
    """A name of :data:`teddy.data.sources.SOURCES`, or "parquet": to be unpacked first."""
    root: Path
    """As ``prepare.root``."""


def recognise(path: Path) -> Found:
    """Tell the source by what lies at a path.

    Raises:
        TeddyError: nothing is there, or nothing that is known.
    """
    if not path.exists():
        raise TeddyError(f"{path}: expected images, found nothing there")
    _refuse_arrow(path)
    if path.is_file():
        kinds = {".npz": "npz", ".csv": "list", ".tsv": "list", ".parquet": "list"}
        suffix = path.suffix.lower()
        if suffix not in kinds:
            hint = (
                "unpack it first, or " if suffix in (".zip", ".tar", ".gz", ".tgz", ".xz") else ""
            )
            raise TeddyError(f"{path}: not known: {hint}name one of these: {_LOOKED_FOR}")
        held = suffix == ".parquet" and parquet.holds_images(path)
        return Found("parquet" if held else kinds[suffix], path)
    for source, folder, marker in (
        ("cifar10", "cifar-10-batches-py", "batches.meta"),
        ("cifar100", "cifar-100-python", "meta"),
        ("tiny-imagenet", "tiny-imagenet-200", "wnids.txt"),
    ):
        if (path / marker).is_file() or (path / folder / marker).is_file():
            return Found(source, path)
    tables = parquet.files_in(path)
    if tables and parquet.holds_images(tables[0]):
        return Found("parquet", path)
    inside = _subfolders(path)
    while len(inside) == 1 and inside[0] not in _SPLITS and _subfolders(path / inside[0]):
        path /= inside[0]  # as archives are unpacked
        inside = _subfolders(path)
    if not inside:
        raise TeddyError(
            f"{path}: no images known to us there; expected one of these: {_LOOKED_FOR}"
        )
    return Found("imagefolder", path)


def _refuse_arrow(path: Path) -> None:
    """Say what to do with a folder of ``save_to_disk``, of one split or of several."""
    inside = any(next(path.glob(depth), None) for depth in ("*.arrow", "*/*.arrow"))
    if inside or path.suffix == ".arrow":
        raise TeddyError(
            f"{path}: expected images, got .arrow files, as save_to_disk of Hugging Face's "
            'datasets writes them; save it by to_parquet, each split as in to_parquet("out/'
            'train.parquet"), and name that folder'
        )


def _subfolders(path: Path) -> list[str]:
    try:
        return sorted(p.name for p in path.iterdir() if p.is_dir() and p.name[0] != ".")
    except OSError as error:
        raise TeddyError(f"{path}: cannot list: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Survey:
    """What settings depend on."""

    classes: tuple[str, ...]
    train: int
    """Images that are trained on, without those held out."""
    smallest: int
    """Of them, those of the smallest class."""
    smallest_class: str
    val: int
    test: int
    own_test: bool
    """Whether the source has test images of its own."""
    side: int
    """Shorter side of the image in the middle, pixels."""
    channels: int
    """1 if all images that were looked at are grey, else 3."""
    looked: int
    """Images of all splits whose mode is known: up to some thousands of files, all of arrays."""
    colour: int
    """Of them, those in colour."""
    files: tuple[Path, ...]
    """Some of the image files; none of arrays."""
    sha256: str
    """Of names, sizes and times of all files, so that other images are noticed."""

    @property
    def images(self) -> int:
        """All of them."""
        return self.train + self.val + self.test


def survey(raw: RawDataset, config: PrepareConfig, root: Path, seed: int) -> Survey:
    """Count and measure, before anything is decoded.

    Args:
        raw: what the source yields.
        config: shares that will be held out; ``test_fraction`` counts where there are no test
            images.
        root: for messages.
        seed: of the split.

    Raises:
        TeddyError: fewer than two classes, or one that has too few images to hold some out.
    """
    names = raw.class_names
    if len(names) < 2:
        raise TeddyError(f"{root}: expected at least 2 classes, found {list(names)}")
    counts = raw.train.labels.bincount(minlength=len(names))
    empty = [name for name, count in zip(names, counts.tolist(), strict=False) if count == 0]
    if empty:
        raise TeddyError(f"{root}: {len(empty)} classes have no image to train on: {_some(empty)}")
    shares = [
        share
        for share, own in ((config.test_fraction, raw.test), (config.val_fraction, raw.val))
        if own is None
    ]
    try:
        *cut, train = stratified_split(raw.train.labels, names, shares, seed)
    except TeddyError as error:
        raise TeddyError(f"{root}: {error}") from None
    left = raw.train.labels[train].bincount(minlength=len(names))
    sizes = iter(map(len, cut))
    test = next(sizes) if raw.test is None else len(raw.test.labels)
    val = next(sizes) if raw.val is None else len(raw.val.labels)
    headers = _headers(raw, root, skip=config.on_unreadable == "skip")
    return Survey(
        classes=names, train=len(train), smallest=int(left.min()),
        smallest_class=names[int(left.argmin())], val=val, test=test,
        own_test=raw.test is not None, side=headers.side,
        channels=3 if headers.colour else 1, looked=headers.looked, colour=headers.colour,
        files=headers.files, sha256=_fingerprint(raw, root),
    )  # fmt: skip


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class _Headers(NamedTuple):
    """What files say of their images before these are decoded; see :class:`Survey`."""

    side: int
    looked: int
    colour: int
    files: tuple[Path, ...]


def _headers(raw: RawDataset, root: Path, skip: bool) -> _Headers:
    """Look at the images of all splits; the side is that of the training image in the middle."""
    splits = [split for split in (raw.train, raw.val, raw.test) if split is not None]
    arrays = [split.images for split in splits if isinstance(split, RawArrays)]
    if arrays:
        colour = sum(len(images) for images in arrays if images.shape[1] > 1)
        return _Headers(min(arrays[0].shape[2:]), sum(map(len, arrays)), colour, ())
    paths = [
        split.root / name for split in splits if isinstance(split, RawFiles) for name in split.files
    ]
    trained = len(raw.train.labels)
    assert isinstance(raw.train, RawFiles), "no split has arrays"
    places = torch.linspace(0, len(paths) - 1, min(len(paths), _HEADERS)).round().int().tolist()
    sides, modes, files, bad = list[int](), list[str](), list[Path](), list[str]()
    with warnings.catch_warnings(), progress(len(places), "look at images", "img") as bar:
        warnings.simplefilter("ignore")  # of metadata, and of large images
        for place in places:
            bar.update()
            try:
                with Image.open(paths[place]) as image:
                    check_depth(image)  # of images that nothing reads no mode counts
                    modes.append(image.mode)
                    if place < trained:
                        sides.append(min(image.size))
                        files.append(paths[place])
            except Exception:  # decoders raise whatever damaged bytes mean; prepare says why
                bad.append(os.path.relpath(paths[place], root if root.is_dir() else root.parent))
    if not sides:
        count = sum(place < trained for place in places)
        raise TeddyError(
            f"{raw.train.root}: none of {count} images can be read, such as {raw.train.files[0]}"
        )
    if bad and not skip:
        raise TeddyError(
            f"{root}: {len(bad)} of {len(places)} images cannot be read: {_some(bad)}; "
            "mend or remove them, or leave them out by --set prepare.on_unreadable=skip"
        )
    colour = sum(mode not in _GREY for mode in modes)
    kept = files[:: math.ceil(len(files) / _KEPT)]
    return _Headers(round(statistics.median(sides)), len(modes), colour, tuple(kept))


def _fingerprint(raw: RawDataset, root: Path) -> str:
    files: list[Path] = []
    for split in (raw.train, raw.val, raw.test):
        if isinstance(split, RawFiles):
            files += [split.root / name for name in split.files]
    if not files:
        files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
    return fingerprint(files)


def fingerprint(files: Sequence[Path]) -> str:
    """SHA-256 of names, sizes and times of files; one that is gone counts as empty."""
    sha = hashlib.sha256()
    for file in files:
        try:
            found = file.stat()
            sha.update(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
        except OSError:
            sha.update(f"{file}\0\n".encode(errors="surrogateescape"))
    return sha.hexdigest()


def described(found: Survey) -> str:
    """A line on the images."""
    own = "of its own" if found.own_test else "split off"
    return (
        f"{found.images:,} images of {len(found.classes)} classes: {found.train:,} to train on, "
        f"{found.val:,} for validation, {found.test:,} to test on ({own}); {found.side} pixels on "
        "the shorter side"
    )


def in_colour(found: Survey, told: bool, mirrored: bool) -> str:
    """A line on whether images are treated as grey or as colour ones, and why.

    Args:
        found: what was looked at; its ``channels`` are decided.
        told: whether the user has decided.
        mirrored: whether networks see them from both sides.
    """
    every = f"all {found.looked:,} images"
    if found.looked < found.images:
        every += f" of {found.images:,} that were looked at"
    some = every.removeprefix("all ")
    if told:
        why = f"as --set says ({found.colour:,} of {some} are in colour)"
    elif found.channels == 1:
        why = f"as {every} are; otherwise --set prepare.channels=3"
    elif found.colour == found.looked:
        why = f"as {every} are"
    else:
        why = f"as {found.colour:,} of {some} are; otherwise --set prepare.channels=1"
    kind = f"{'grey' if found.channels == 1 else 'colour'} images"
    return f"treated as {kind}, {'mirrored' if mirrored else 'not mirrored'}, {why}"
