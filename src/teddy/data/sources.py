"""Raw datasets: where images come from, before they are split and stored.

A source is a function from :class:`~teddy.settings.configs.PrepareConfig` to a
:class:`RawDataset`, entered in :data:`SOURCES` under the name that ``prepare.source`` gives.

Order of classes (what a label means): of CIFAR and MNIST torchvision's, of Tiny-ImageNet that of
its ``wnids.txt``, of class folders that of their sorted names, as torchvision's ``ImageFolder``.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teddy.core import user_code
from teddy.core.errors import TeddyError
from teddy.core.runtime import log, progress
from teddy.data.downloads import Published, checksum, extract, fetch
from teddy.data.formats import (
    as_images,
    as_labels,
    as_text,
    read_cifar_batch,
    read_cifar_names,
    read_columns,
    read_idx,
    read_npz,
)
from teddy.settings.configs import PrepareConfig
from teddy.settings.schema import shown, suggest


@dataclass(frozen=True, slots=True)
class RawArrays:
    """Decoded images of equal size: uint8 ``(N, C, H, W)`` and int64 labels ``(N,)``."""

    images: Tensor
    labels: Tensor

    def take(self, indices: Tensor) -> "RawArrays":
        """The images at ``indices``, in that order."""
        return RawArrays(self.images[indices], self.labels[indices])


@dataclass(frozen=True, slots=True)
class RawFiles:
    """Image files that are not decoded yet."""

    root: Path
    files: Sequence[str]
    """Paths relative to ``root``, one per image."""
    sizes: Sequence[int]
    """Bytes of each file."""
    labels: Tensor
    """int64 ``(N,)``."""

    def take(self, indices: Tensor) -> "RawFiles":
        """The images at ``indices``, in that order."""
        chosen = indices.tolist()
        files, sizes = [self.files[i] for i in chosen], [self.sizes[i] for i in chosen]
        return RawFiles(self.root, files, sizes, self.labels[indices])


RawSplit = RawArrays | RawFiles


@dataclass(frozen=True, slots=True)
class RawDataset:
    """What a source yields."""

    train: RawSplit
    """All images that may be trained on."""
    test: RawSplit | None
    """The official test images (or validation images with public labels), or None: split off."""
    class_names: tuple[str, ...]
    checksums: dict[str, str] = field(default_factory=dict)
    """Files of arrays by name and ``<algorithm>:<digest>``, for the manifest."""
    val: RawSplit | None = None
    """Validation images of the source's own, or None: split off the training images."""


def load(config: PrepareConfig) -> RawDataset:
    """The raw dataset that ``prepare.source`` names.

    Raises:
        TeddyError: no such source; missing, damaged or unexpected raw data.
    """
    made = _load(config)
    return choose(made, config.classes) if config.classes else made


def choose(raw: RawDataset, classes: Sequence[str]) -> RawDataset:
    """The images of some classes, which are labelled in the order that they are named in.

    Raises:
        TeddyError: there is no class of that name.
    """
    for name in classes:
        if name not in raw.class_names:
            raise TeddyError(
                f"prepare.classes: no class {shown(name)}; {suggest(name, raw.class_names)}"
            )
    labels = torch.full((len(raw.class_names),), -1)
    labels[[raw.class_names.index(name) for name in classes]] = torch.arange(len(classes))

    def chosen(split: RawSplit | None, what: str) -> RawSplit | None:
        if split is None:
            return None
        check_labels(split.labels, raw.class_names, what)
        kept = split.take((labels[split.labels] >= 0).nonzero().flatten())
        return replace(kept, labels=labels[kept.labels])

    train = chosen(raw.train, "the training images")
    assert train is not None, "every source has training images"
    test, val = chosen(raw.test, "the test images"), chosen(raw.val, "the validation images")
    return RawDataset(train, test, tuple(classes), raw.checksums, val)


def check_labels(labels: Tensor, class_names: Sequence[str], where: str) -> None:
    """Refuse labels that no class has."""
    outside = labels[(labels < 0) | (labels >= len(class_names))].unique().tolist()
    if outside:
        raise TeddyError(
            f"{where}: expected labels from 0 to {len(class_names) - 1}, got "
            f"{_some(list(map(str, outside)))}"
        )


def _load(config: PrepareConfig) -> RawDataset:
    if user_code.is_reference(config.source):
        made = user_code.load(config.source)(config)
        if not isinstance(made, RawDataset):
            raise TeddyError(f"{config.source}: expected a RawDataset, got {type(made).__name__}")
        return made
    if config.source not in SOURCES:
        choices = ", ".join(sorted(SOURCES))
        raise TeddyError(f"prepare.source must be one of {choices}; got {config.source!r}")
    return SOURCES[config.source](config)


# ------------------------------------------------------------------------------- sets of arrays


def _digits(config: PrepareConfig) -> RawDataset:
    """scikit-learn's handwritten digits: 1,797 grey 8×8 images, sixteen levels, ten classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    names = tuple(str(name) for name in bunch.target_names)
    return RawDataset(_arrays(images, bunch.target.astype(np.int64)), None, names)


def _cifar(config: PrepareConfig, name: str) -> RawDataset:
    """CIFAR-10 or -100 in torchvision's layout: ``<root>/cifar-10-batches-py/data_batch_1`` ..."""
    from torchvision import datasets

    facts = getattr(datasets, name)
    archive = Published(facts.filename, (facts.url,), f"md5:{facts.tgz_md5}")
    folder = _unpacked(config, archive, facts.base_folder, marker=facts.meta["filename"])
    batches = [*facts.train_list, *facts.test_list]
    published = {file: f"md5:{md5}" for file, md5 in batches}
    published[facts.meta["filename"]] = f"md5:{facts.meta['md5']}"
    checksums = {file: _verify(config, folder / file, sum_) for file, sum_ in published.items()}

    def read(files: Sequence[Sequence[str]]) -> RawArrays:
        images, labels = zip(*(read_cifar_batch(folder / file) for file, _ in files), strict=True)
        return _arrays(np.concatenate(images), np.concatenate(labels))

    names = read_cifar_names(folder / facts.meta["filename"], facts.meta["key"])
    return RawDataset(read(facts.train_list), read(facts.test_list), names, checksums)


def _mnist(config: PrepareConfig, name: str) -> RawDataset:
    """MNIST or Fashion-MNIST in torchvision's layout, ``<root>/MNIST/raw``, or in the root."""
    from torchvision import datasets

    facts = getattr(datasets, name)
    root, usual = _root(config), _root(config) / name / "raw"
    folder = root if any(root.glob("*-ubyte*")) else usual
    checksums, arrays = {}, []
    for file, md5 in facts.resources:  # train images, train labels, test images, test labels
        path, plain = folder / file, folder / Path(file).stem
        if not path.exists() and plain.is_file():
            path = plain  # unpacked by hand or by an old torchvision: there is no published sum
            checksums[path.name] = checksum(path, "md5")
        else:
            urls = [mirror + file for mirror in facts.mirrors]
            checksums[file] = _obtain(config, Published(file, urls, f"md5:{md5}"), path)
        arrays.append((str(path), read_idx(path)))

    def split(
        images: tuple[str, NDArray[np.uint8]], labels: tuple[str, NDArray[np.uint8]]
    ) -> RawArrays:
        pixels = as_images(images[1], images[0])
        return _arrays(pixels, as_labels(labels[1], len(pixels), labels[0]))

    return RawDataset(split(*arrays[:2]), split(*arrays[2:]), tuple(facts.classes), checksums)


_OWN, _MEDMNIST = ("x_{}", "y_{}"), ("{}_images", "{}_labels")  # images and labels of a split


def _npz(config: PrepareConfig) -> RawDataset:
    """Arrays of one file: ``x_train``, ``y_train``, perhaps ``x_val``, ``y_val``, ``x_test``,
    ``y_test`` and ``class_names``, or MedMNIST's ``train_images``, ``train_labels`` and so on.

    Validation images serve as such, and none are split off. Other arrays are named and not used.
    """
    path = _root(config)
    splits = ("train", "val", "test")
    keys = {key.format(split) for key in (*_OWN, *_MEDMNIST) for split in splits} | {"class_names"}
    arrays, unused = read_npz(path, keys)
    own = "x_train" in arrays or "train_images" not in arrays
    kinds, others = (_OWN, _MEDMNIST) if own else (_MEDMNIST, _OWN)
    unused += set(arrays) & {key.format(split) for key in others for split in splits}

    def split(name: str) -> RawArrays:
        x, y = (kind.format(name) for kind in kinds)
        for key in (x, y):
            if key not in arrays:
                found = ", ".join(sorted({*arrays, *unused}))
                raise TeddyError(f"{path}: expected {x} and {y}, lacks {key}; has {found}")
        images = as_images(arrays[x], f"{path}: {x}")
        labels = as_labels(arrays[y], len(images), f"{path}: {y}")
        _refuse_unnamed(labels, arrays.get("class_names"), path, y)
        return _arrays(images, labels)

    train = split("train")
    held = {
        name: split(name)
        for name in ("val", "test")
        if any(kind.format(name) in arrays for kind in kinds)
    }
    if "val" in held:
        x_val = kinds[0].format("val")
        log(f"{path}: {x_val} are the validation images; val_fraction is not used")
    if unused:
        log(f"{path}: {len(unused)} arrays are not used: {_some(sorted(unused))}")
    # A label beyond the number of images leaves a class empty, and is refused as out of range.
    found = min(int(train.labels.max()), len(train.labels)) + 1
    given = arrays.get("class_names", np.arange(found)).ravel().tolist()
    names = tuple(as_text(name, f"{path}: class_names") for name in given)
    sums = {path.name: checksum(path, "sha256")}
    return RawDataset(train, held.get("test"), names, sums, held.get("val"))


def _refuse_unnamed(
    labels: NDArray[np.int64], names: NDArray[Any] | None, path: Path, key: str
) -> None:
    """Refuse labels that ``class_names`` has no name for, and negative ones."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise TeddyError(f"{path}: {key}: expected labels from 0 on, got {low}")
    if names is not None and high >= names.size:
        raise TeddyError(
            f"{path}: class_names: expected a name for each label up to {high} of {key}, got "
            f"{names.size}; add names in the order of labels, or leave class_names out"
        )


def _arrays(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> RawArrays:
    return RawArrays(torch.tensor(images), torch.tensor(labels))


# ------------------------------------------------------------------------- sets of image files

# The sum is not on the authors' page; several public loaders carry this same one, among them
# Avalanche's (avalanche/benchmarks/datasets/tiny_imagenet).
_TINY_IMAGENET = Published(
    "tiny-imagenet-200.zip",
    ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
    "md5:90528d7ca1a48142e341f4ef8d21d0de",
)

# What torchvision's ImageFolder reads, and two more names of JPEG.
_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".jfif", ".jpe",
)  # fmt: skip

# Folders that are meant as splits. Only train, val and test are read as such.
_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")

_Listed = list[tuple[str, int]]  # path relative to the root, bytes


def _tiny_imagenet(config: PrepareConfig) -> RawDataset:
    """Tiny-ImageNet-200, whose labelled validation images serve as test images.

    ``val`` may be as published (``val/images`` with ``val/val_annotations.txt``) or moved into
    class folders; labels and order of images are the same.
    """
    root = _unpacked(config, _TINY_IMAGENET, "tiny-imagenet-200", marker="wnids.txt")
    names = tuple(_read_text(root / "wnids.txt").split())
    published = _list_images(root, "val", ["images"])["images"]
    test = _annotated(root, published) if published else _class_folders(root, "val")
    test = {name: listed for name, listed in test.items() if listed or name in names}
    train = _class_folders(root, "train")
    _same_classes(names, train, f"{root}: wnids.txt", "train/")
    _same_classes(names, test, f"{root}: wnids.txt", "val/")
    return RawDataset(_files(root, train, names), _files(root, test, names), names)


def _annotated(root: Path, images: _Listed) -> dict[str, _Listed]:
    """Class by class, the images of Tiny-ImageNet's ``val/images``."""
    path = root / "val/val_annotations.txt"
    if not path.is_file():
        raise TeddyError(f"{path}: not found, but val/images needs it: it holds the labels")
    lines = [line.split("\t") for line in _read_text(path).splitlines() if line]
    if any(len(line) < 2 for line in lines):
        raise TeddyError(f"{path}: expected lines of file name, tab, class, got others")
    classes = {f"val/images/{line[0]}": line[1] for line in lines}
    missing, unlabelled = _differences(classes, [name for name, _ in images])
    if missing or unlabelled:
        raise TeddyError(
            f"{path}: names {len(classes)} images, val/images has {len(images)}; "
            f"missing there: {_some(missing)}; without a label: {_some(unlabelled)}"
        )
    by_class: dict[str, _Listed] = {}
    for name, size in images:
        by_class.setdefault(classes[name], []).append((name, size))
    return by_class


def _imagefolder(config: PrepareConfig) -> RawDataset:
    """One folder per class, in ``train`` and ``val`` (or ``test``) or right in the root.

    Images lie in a class's folder itself, in its folder ``images`` alone, or in any folders beside
    images; they are those that torchvision's ``ImageFolder`` reads, .jfif and .jpe. Other files
    are counted.

    ImageNet-1K in torchvision's layout is such a folder. Of ``test`` and ``val``, the first with
    the classes of ``train`` serves as test images.
    """
    root = _root(config)
    if not root.is_dir():
        raise TeddyError(
            f"{root}: expected a folder of class folders, found nothing there; put the images at "
            f"{root / 'train'}/<class>/ and {root / 'val'}/<class>/ (of ImageNet-1K the official "
            f"train and val folders), or set prepare.root"
        )
    splits = [name for name in _subfolders(root) if name.lower() in _SPLITS]
    if not (root / "train").is_dir():
        if len(splits) > 1:
            raise TeddyError(
                f"{root}: expected train/ and val/, or class folders; found {_some(splits)}, which "
                "are no classes: rename them to train and val"
            )
        train = _class_folders(root, "")
        return RawDataset(_files(root, train, tuple(train)), None, tuple(train))
    train = _class_folders(root, "train")
    for name in set(splits) - {"train", "val", "test"}:
        log(f"warning: {root}: {name}/ is not used; rename it to val to test on its images")
    held = [name for name in ("test", "val") if _subfolders(root / name)]
    if not held:
        return RawDataset(_files(root, train, tuple(train)), None, tuple(train))
    alike = [name for name in held if _subfolders(root / name) == list(train)]
    used = (alike or held[::-1])[0]
    for name in set(held) - {used}:
        log(f"{root}: {used}/ serves as test images; {name}/ is not used")
    test = _class_folders(root, used)
    _same_classes(train, test, f"{root}: train/", f"{used}/")
    names = tuple(train)
    return RawDataset(_files(root, train, names), _files(root, test, names), names)


_COLUMNS = {
    "path": ("path", "file_name", "filename", "file", "image"), "label": ("label", "class"),
}  # fmt: skip


def _list(config: PrepareConfig) -> RawDataset:
    """A list of image files with their classes, ``.csv``, ``.tsv`` or ``.parquet``.

    Its columns are ``path`` (from the list's folder), ``label`` (a name) and perhaps ``split``:
    train, val or test. Classes are sorted by name, or by number if all names are numbers.
    """
    path = _root(config)
    columns = read_columns(path)
    names, labels = (_column(columns, path, *entry) for entry in _COLUMNS.items())
    splits = columns.get("split", ["train"] * len(names))
    for column, cells in (("path", names), ("label", labels), ("split", splits)):
        if "" in cells:
            raise TeddyError(f"{path}: {column}: the cell of row {cells.index('') + 1} is empty")
    others = sorted(set(splits) - {"train", "val", "test"})
    if others:
        raise TeddyError(f"{path}: split: expected train, val or test, got {_some(others)}")
    spellings = Counter(map(os.path.normpath, names))  # of one file
    repeated = [name for name, times in spellings.items() if times > 1]
    if repeated:
        raise TeddyError(f"{path}: {len(repeated)} files are there twice: {_some(repeated)}")
    numbers = all(label.isdecimal() and len(label) < 19 for label in labels)
    classes = sorted(set(labels), key=lambda label: (int(label) if numbers else 0, label))
    places = {name: place for place, name in enumerate(classes)}
    sizes, missing = [], []
    with progress(len(names), f"list {path.name}", "img") as bar:
        for name in names:
            as_text(name, str(path))
            try:
                (path.parent / name).stat()
            except (OSError, ValueError):
                missing.append(name)
            else:
                sizes.append(_size(path.parent / name))
            bar.update()
    if missing:
        raise TeddyError(
            f"{path}: {len(missing)} files that it names are not there, from {path.parent}: "
            f"{_some(missing)}"
        )
    every = RawFiles(path.parent, names, sizes, torch.tensor([places[label] for label in labels]))

    def split(wanted: str) -> RawFiles | None:
        indices = [i for i, own in enumerate(splits) if own == wanted]
        return every.take(torch.tensor(indices)) if indices else None

    train = split("train")
    if train is None:
        raise TeddyError(f"{path}: expected images of the split train, found none")
    return RawDataset(train, split("test"), tuple(classes), val=split("val"))


def _column(
    columns: Mapping[str, list[str]], path: Path, name: str, names: Sequence[str]
) -> list[str]:
    found = [column for column in names if column in columns]
    if len(found) != 1:
        raise TeddyError(
            f"{path}: expected one column {name!r} (or {_some(names[1:])}), got the columns "
            f"{_some(list(columns))}"
        )
    return columns[found[0]]


def _files(root: Path, by_class: Mapping[str, _Listed], names: Sequence[str]) -> RawFiles:
    listed = [entry for name in names for entry in by_class.get(name, [])]
    counts = torch.tensor([len(by_class.get(name, [])) for name in names])
    labels = torch.repeat_interleave(torch.arange(len(names)), counts)
    return RawFiles(root, [name for name, _ in listed], [size for _, size in listed], labels)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror}") from error
    except UnicodeError as error:
        raise TeddyError(f"{path}: expected text, got something else ({error})") from error


def _class_folders(root: Path, name: str) -> dict[str, _Listed]:
    """Images below each subfolder of ``root/name``, sorted by class and then by path."""
    if not (root / name).is_dir():
        raise TeddyError(f"{root / name}: expected a folder of class folders, found nothing there")
    entries = _entries(root / name)
    folders = sorted(entry.name for entry, is_folder in entries if is_folder)
    if not folders:
        raise TeddyError(f"{root / name}: expected class folders, found no folder in it")
    beside = sorted(e.name for e, is_folder in entries if not is_folder and _is_image(e.name))
    if beside:
        log(
            f"warning: {root / name}: {len(beside)} images beside the class folders are in none "
            f"and not read: {_some(beside)}"
        )
    by_class = _list_images(root, name, folders)
    for folder, listed in by_class.items():
        start = len(f"{name}/{folder}/" if name else f"{folder}/")
        inside = {file[start:].rpartition("/")[0].partition("/")[0] for file, _ in listed}
        if inside and "" not in inside and inside != {"images"}:  # Tiny-ImageNet has images/
            _refuse_nested(root / name, folder, len(folders), split=bool(name))
    return by_class


def _refuse_nested(root: Path, name: str, count: int, *, split: bool) -> None:
    """Refuse one of ``count`` class folders, and say where class folders may be."""
    which = (
        f"{name}/ is no class: it" if count > 1
        else f"expected at least 2 classes, found ['{name}'], which"
    )  # fmt: skip
    folder, inside = root / name, _subfolders(root / name)
    found = _some(inside)
    while len(inside) == 1 and inside[0] not in _SPLITS and _subfolders(folder / inside[0]):
        folder /= inside[0]
        inside = _subfolders(folder)
    mend = f"move these to {root}" if split else "set prepare.root to it"  # val/ lies beside train/
    raise TeddyError(
        f"{root}: {which} holds no image itself, only folders: {found}. If the classes are those "
        f"in {folder}, {mend}; if not, put the images right into {name}/"
    )


def _subfolders(folder: Path) -> list[str]:
    """Sorted names of subfolders; hidden ones (``.ipynb_checkpoints``) are no classes."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry, is_folder in _entries(folder) if is_folder)


def _list_images(root: Path, name: str, folders: Sequence[str]) -> dict[str, _Listed]:
    """Images anywhere below each of ``folders`` in ``root/name``, sorted; hidden files are none."""
    by_folder: dict[str, _Listed] = {}
    others: Counter[str] = Counter()
    with progress(len(folders), f"list {name or root.name}", "class") as bar:
        for folder in folders:
            by_folder[folder] = _images_below(root, f"{name}/{folder}" if name else folder, others)
            bar.update()
    if others:
        kinds = [f"{suffix} ({count})" for suffix, count in others.most_common()]
        log(
            f"{root / name}: {others.total()} files of {len(others)} kinds are not read: "
            f"{_some(kinds)}"
        )
    return by_folder


def _images_below(root: Path, name: str, others: Counter[str]) -> _Listed:
    listed: _Listed = []
    folders = [name]
    while folders:
        folder = folders.pop()
        if not (root / folder).is_dir():
            continue
        for entry, is_folder in _entries(root / folder):
            if is_folder:
                folders.append(f"{folder}/{entry.name}")
            elif _is_image(entry.name):
                listed.append((f"{folder}/{entry.name}", _size(entry)))
            else:
                suffix = Path(entry.name).suffix.lower()
                others[suffix if suffix[1:].isalnum() else "others"] += 1
    return sorted(listed)


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _entries(folder: Path) -> list[tuple["os.DirEntry[str]", bool]]:
    """What is in a folder and not hidden, and whether it is a folder."""
    try:
        with os.scandir(folder) as entries:
            visible = [(e, e.is_dir()) for e in entries if not e.name.startswith(".")]
    except OSError as error:  # no permission, or links that lead in a circle
        raise TeddyError(f"{str(folder)[:200]}: cannot list: {error.strerror}") from error
    for entry, _ in visible:
        as_text(entry.name, str(folder))
    return visible


def _size(entry: "os.DirEntry[str] | Path") -> int:
    try:
        found = entry.stat()
    except OSError:
        return 0  # a dangling link; reading it says so
    if not stat.S_ISREG(found.st_mode):  # whose content may have no end
        kinds = {"p": "a named pipe", "s": "a socket", "d": "a folder"}
        kind = kinds.get(stat.filemode(found.st_mode)[0], "a device")
        raise TeddyError(f"{os.fspath(entry)}: expected an image, found {kind}")
    return found.st_size


def _same_classes(
    expected: Sequence[str] | Mapping[str, _Listed], found: Mapping[str, _Listed], a: str, b: str
) -> None:
    only_a, only_b = _differences(expected, found)
    if only_a or only_b:
        raise TeddyError(
            f"{a} and {b} have different classes; only in the first: {_some(only_a)}; only in the "
            f"second: {_some(only_b)}"
        )


def _differences(
    a: Sequence[str] | Mapping[str, object], b: Sequence[str] | Mapping[str, object]
) -> tuple[list[str], list[str]]:
    return sorted(set(a) - set(b)), sorted(set(b) - set(a))


def _some(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "none") + more


# ---------------------------------------------------------------------------- finding raw data


def _root(config: PrepareConfig) -> Path:
    """Where raw data lies; of ``dvc exp run --temp``, whose checkout has none, the user's own."""
    if not config.root:
        raise TeddyError(f"prepare.root is empty, but {config.source} is read from there")
    path = Path(config.root).expanduser()
    temporary = next(
        (p for p in Path.cwd().parents if p.parts[-3:] == (".dvc", "tmp", "exps")), None
    )
    return path if temporary is None or path.exists() else temporary.parents[2] / path


def _unpacked(config: PrepareConfig, archive: Published, name: str, marker: str) -> Path:
    """Folder ``name`` of an archive: in the root, the root itself, or unpacked into it now.

    Unpacked into a folder of its own name it lies twice as deep.
    """
    root = _root(config)
    for folder in (root / name, root, root / name / name):
        if (folder / marker).is_file():
            return folder
    if (root / name).exists():
        raise TeddyError(
            f"{root / name}: expected {marker} in it; remove the folder or complete it"
        )
    _obtain(config, archive, root / archive.name)
    extract(root / archive.name, root / name)
    return root / name


def _obtain(config: PrepareConfig, file: Published, path: Path) -> str:
    """Fetch ``file`` to ``path`` if allowed and needed; returns its verified checksum."""
    if not path.is_file():
        if not config.download:
            raise TeddyError(
                f"{path}: not found. Put {file.urls[0]} there, or set prepare.download: true to "
                "fetch it"
            )
        fetch(file, path)
    return _verify(config, path, file.checksum)


def _verify(config: PrepareConfig, path: Path, published: str) -> str:
    """Compare a file with its published checksum; returns its own."""
    if not path.is_file():
        raise TeddyError(f"{path}: not found; unpack the published archive again")
    got = checksum(path, published.partition(":")[0])
    if got != published:
        message = f"{path}: not the published file: expected {published}, got {got}"
        if config.on_checksum_mismatch == "refuse":
            raise TeddyError(f"{message}; prepare.on_checksum_mismatch: warn accepts it")
        log(f"warning: {message}")
    return got


SOURCES: dict[str, Callable[[PrepareConfig], RawDataset]] = {
    "digits": _digits,
    "cifar10": lambda config: _cifar(config, "CIFAR10"),
    "cifar100": lambda config: _cifar(config, "CIFAR100"),
    "mnist": lambda config: _mnist(config, "MNIST"),
    "fashion-mnist": lambda config: _mnist(config, "FashionMNIST"),
    "tiny-imagenet": _tiny_imagenet,
    "imagefolder": _imagefolder,
    "npz": _npz,
    "list": _list,
}
"""Loaders of raw data by the name ``prepare.source`` gives. Add a dataset here."""
