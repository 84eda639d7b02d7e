"""A bundle: a distilled set in one folder or ``.zip`` that stands alone.

| file | holds |
|---|---|
| ``README.md`` | the data card |
| ``recipe.yaml`` | classes in order, normalisation, how students learn, from what it was made |
| ``images.csv``, ``images/`` | the images in order, lossless PNGs by class |
| ``labels/`` | soft labels of every view, safetensors; ``fixed.safetensors`` one for each image |
| ``numbers.json`` | records of its students and of those of random real images |
| ``teachers/`` | weights of the pool, on request |
| ``SHA256SUMS`` | checksums of all of them, for ``sha256sum -c`` too |

Equal content gives equal bytes. Nothing in it is pickled.
"""

import csv
import hashlib
import io
import re
import shutil
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
import yaml
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from teddy.core.errors import TeddyError
from teddy.core.files import Json, atomic_path, check_regular, read_json
from teddy.core.tables import write_text
from teddy.data.distilled import DistilledSet
from teddy.data.images import Normalisation
from teddy.settings.configs import Count, Positive, PrepareConfig, Whole
from teddy.settings.schema import from_json, read_yaml, settings
from teddy.sharing.training_set import Recipe, TrainingSet, refuse_other_labels
from teddy.students.labels import MANIFEST

FORMAT = "teddy.bundle.v1"
RECIPE, INDEX, SUMS, CARD, NUMBERS = (
    "recipe.yaml", "images.csv", "SHA256SUMS", "README.md", "numbers.json",
)  # fmt: skip
LABELS, FIXED, TEACHERS = "labels", "labels/fixed.safetensors", "teachers"
_HEAVY = (f"{LABELS}/epochs", f"{TEACHERS}/")
_MODES = {1: "L", 3: "RGB"}
_ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first date that a zip can have


@settings
class Source:
    """Real images that a set was made from."""

    title: str
    """Name of the dataset."""
    prepare: PrepareConfig
    """How they were prepared; the root is where they lay then."""
    seed: Whole
    """Of their split."""
    manifest: str
    """SHA-256 of the prepared dataset's manifest, which holds the checksum of its content."""


@settings
class Teacher:
    """A member of the pool that labelled."""

    file: str
    sha256: str
    epoch: int | None = None
    """Of its base run; None for a pruned copy."""
    val_top1: float | None = None
    """Accuracy on validation images; percent."""


@settings
class BundleRecord:
    """What ``recipe.yaml`` says."""

    format: Literal["teddy.bundle.v1"]
    name: str
    """Row that made the set."""
    synthesis: Whole
    """Which of the row's."""
    method: str
    """Title of the method."""
    classes: tuple[str, ...]
    """In the order of labels."""
    wordnet: tuple[str, ...]
    """WordNet ids of the classes, in the same order; empty if they are none."""
    mean: tuple[float, ...]
    """Of pixels in [0, 1], per channel: what images are normalised by."""
    std: tuple[Positive, ...]
    recipe: Recipe
    source: Source
    teachers: tuple[Teacher, ...]
    provenance: dict[str, Any]
    """How the images were made: method, settings, seed, checksums of what they were made from."""
    partition: Count = 1
    """Smaller images along a side of each image, which students see enlarged."""


def is_bundle(path: Path) -> bool:
    """Whether a path is meant as a bundle."""
    return path.suffix == ".zip" or (path / RECIPE).is_file()


# ------------------------------------------------------------------------------------------ writing


def write_images(folder: Path, distilled: DistilledSet) -> None:
    """Write lossless PNGs by class, and ``images.csv`` with their order.

    Raises:
        TeddyError: images of neither one nor three channels, which PNG cannot hold as they are.
    """
    channels = distilled.images.shape[1]
    if channels not in _MODES:
        raise TeddyError(
            f"images must have 1 or 3 channels to be written as PNG, got {channels}; share the "
            ".safetensors file instead"
        )
    lines, counts = [], [0] * distilled.num_classes
    for pixels, label in zip(distilled.images, distilled.labels.tolist(), strict=True):
        name = f"images/{class_folder(label, distilled.class_names)}/{counts[label]:05d}.png"
        counts[label] += 1
        write_png(folder / name, pixels)
        lines.append((name, label))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("file", "label"), *lines])
    write_text(folder / INDEX, text.getvalue())


def content_digest(distilled: DistilledSet) -> str:
    """SHA-256 of all pixels and classes in their order, which soft labels belong to."""
    found = hashlib.sha256(distilled.images.contiguous().numpy().tobytes())
    found.update(distilled.labels.contiguous().numpy().tobytes())
    return found.hexdigest()


def write_png(path: Path, pixels: Tensor) -> None:
    """Write one uint8 image ``(C, H, W)`` of 1 or 3 channels, the same bytes every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    as_image(pixels).save(path, format="PNG", compress_level=9)


def as_image(pixels: Tensor) -> Image.Image:
    """A uint8 tensor ``(C, H, W)`` of 1 or 3 channels as Pillow's image."""
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def class_folder(label: int, names: Sequence[str]) -> str:
    """Folder of a class: its label, then what of its name every file system takes."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "_", names[label]).strip("_.")[:40]
    return f"{label:04d}_{slug}" if slug else f"{label:04d}"


def write_record(folder: Path, record: Json) -> None:
    """Write ``recipe.yaml`` in the order of its keys."""
    text = yaml.dump(record, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    write_text(folder / RECIPE, text)


class _Dumper(yaml.SafeDumper):
    """PyYAML that quotes what is a number in YAML 1.2 too, such as a class that is called 1e3."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z|0o[0-7]+\Z"),
    list("-+.0123456789"),
)


def write_sums(folder: Path) -> None:
    """Write the checksums of everything that lies in the folder."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in files_in(folder) if name != SUMS]
    write_text(folder / SUMS, "".join(lines))


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, as ``sha256sum`` prints it.

    Raises:
        TeddyError: it is not there or cannot be read.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror}") from error


def files_in(folder: Path) -> list[str]:
    """Files of a folder and of those in it, relative to it, in order."""
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder to fill, which appears as ``out`` when the block succeeds: as a folder, or packed.

    Args:
        out: what to write; a ``.zip`` packs.

    Raises:
        TeddyError: there is something already, or it cannot be written; nothing is left then.
    """
    if out.suffix in _ARCHIVES:
        raise TeddyError(f"{out}: expected a folder or a .zip to write, not {out.suffix}")
    if out.exists() or out.is_symlink():
        raise TeddyError(f"{out}: is there already; remove it or name another with --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise TeddyError(f"{out}: cannot write here: {error.strerror}") from error
    try:
        filled = temporary / "bundle"
        filled.mkdir()
        yield filled
        if out.suffix == ".zip":
            with atomic_path(out) as packed:
                _pack(filled, packed)
        else:
            filled.rename(out)
    except OSError as error:
        raise TeddyError(f"{out}: cannot write it: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _pack(folder: Path, out: Path) -> None:
    """Zip a folder, not compressed: PNGs and float16 labels hardly are any smaller."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as packed:
        for name in files_in(folder):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            info.file_size = (folder / name).stat().st_size  # ZIP has another form from 2 GiB on
            with (folder / name).open("rb") as source, packed.open(info, "w") as target:
                shutil.copyfileobj(source, target)


# ------------------------------------------------------------------------------------------ reading


def open_bundle(path: Path) -> TrainingSet:
    """Open a bundle; checksums are compared, those of labels of views when they are first used.

    Raises:
        TeddyError: a file is missing or altered, or does not belong to the others.
    """
    folder, keep = unpacked(path)
    with naming(path, folder):
        check_sums(folder, path, heavy=False)
        record = read_record(folder, path)
        images, labels = read_images(folder, path)
        _refuse_other_images(record, folder, path, images, labels)
        normalisation = Normalisation(record.mean, record.std)
        distilled = DistilledSet(
            images, labels, record.classes, normalisation, record.provenance, record.partition
        )
        manifest = read_json(folder / LABELS / MANIFEST)
        if manifest.get("content") != content_digest(distilled):
            raise TeddyError(
                f"{path}: {LABELS}: soft labels are of other images than these, or of these in "
                "another order; get the bundle again"
            )
        refuse_other_labels(f"{path}: {LABELS}", manifest, record.recipe, "get the bundle again")
        opened = TrainingSet(
            distilled, path, record.recipe, (folder / LABELS, manifest),
            folder / FIXED if (folder / FIXED).is_file() else None, record.wordnet,
            read_json(folder / NUMBERS), keep, partial(check_labels, folder, path),
        )  # fmt: skip
    return opened


def _refuse_other_images(
    record: BundleRecord, folder: Path, path: Path, images: Tensor, labels: Tensor
) -> None:
    """Refuse images that are not those of the recipe: of other size, channels or classes."""
    prepare = record.source.prepare
    expected = (prepare.channels, prepare.image_size, prepare.image_size)
    if images.shape[1:] != expected or len(record.mean) != prepare.channels:
        raise TeddyError(
            f"{path}: images must be {_by(expected)}, as {RECIPE} says (source.prepare), with as "
            f"many entries of mean; got {_by(images.shape[1:])} and {len(record.mean)} entries"
        )
    if prepare.image_size % record.partition:
        raise TeddyError(
            f"{path}: {RECIPE}: partition must divide {prepare.image_size}, the side of the "
            f"images; got {record.partition}"
        )
    highest = int(labels.max())
    if highest >= len(record.classes):
        raise TeddyError(
            f"{path}: {INDEX}: labels must be below {len(record.classes)}, the number of classes "
            f"of {RECIPE}; got {highest}"
        )
    for name, label in _lines(folder, path):
        expected_folder = f"images/{class_folder(label, record.classes)}"
        if PurePosixPath(name).parent.as_posix() != expected_folder:
            raise TeddyError(
                f"{path}: {INDEX}: images of class {label}, {record.classes[label]!r} in {RECIPE}, "
                f"must lie in {expected_folder}; got {name}"
            )


def _by(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


@contextmanager
def naming(path: Path, folder: Path) -> Iterator[None]:
    """Errors of the block name the zip of a bundle, and not where it was unpacked."""
    try:
        yield
    except TeddyError as error:
        if path == folder:
            raise
        text = str(error).replace(f"{folder}/", f"{path}: ").replace(str(folder), str(path))
        raise TeddyError(text) from error


class Unpacked:
    """A temporary folder, which goes with this object, or with Python."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="teddy-bundle-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def unpacked(path: Path) -> tuple[Path, Unpacked | None]:
    """Folder of a bundle; a zip is unpacked into a temporary one, which goes with its object.

    Raises:
        TeddyError: it is not there, or is no zip of plain files.
    """
    if path.is_dir():
        return path, None
    if not path.is_file():
        raise TeddyError(f"{path}: expected a bundle, found nothing there")
    try:
        keep = Unpacked()
        with zipfile.ZipFile(path) as packed:
            for name in packed.namelist():
                _refuse_outside(name, path)
            packed.extractall(keep.path)
    except TeddyError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise TeddyError(
            f"{path}: expected a .zip of a bundle, but cannot read it: {error}"
        ) from error
    inside = list(keep.path.iterdir())
    if len(inside) == 1 and (inside[0] / SUMS).is_file():  # zipped together with its folder
        return inside[0], keep
    return keep.path, keep


def _refuse_outside(name: str, path: Path) -> None:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
        raise TeddyError(f"{path}: names {name!r}, which lies outside of the bundle")


def read_record(folder: Path, path: Path) -> BundleRecord:
    """What ``recipe.yaml`` says.

    Raises:
        TeddyError: a key is missing or unknown, or a value is not what it should be.
    """
    record = from_json(BundleRecord, read_yaml(folder / RECIPE), f"{path}: {RECIPE}")
    if len(record.mean) != len(record.std) or len(record.wordnet) not in (0, len(record.classes)):
        raise TeddyError(
            f"{path}: {RECIPE}: mean and std must have as many entries, and wordnet as classes or "
            f"none; got {len(record.mean)}, {len(record.std)}, {len(record.wordnet)} and "
            f"{len(record.classes)} classes"
        )
    return record


def read_images(folder: Path, path: Path) -> tuple[Tensor, Tensor]:
    """Images and labels in the order of ``images.csv``.

    Returns:
        uint8 ``(N, C, H, W)`` and int64 ``(N,)``.

    Raises:
        TeddyError: naming the line or the image that is not as it should be.
    """
    images, labels = list[Tensor](), list[int]()
    for name, label in _lines(folder, path):
        images.append(read_png(folder / name))
        if images[-1].shape != images[0].shape:
            raise TeddyError(
                f"{path}: {name}: image must be {_by(images[0].shape)} as the first; got "
                f"{_by(images[-1].shape)}"
            )
        labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def _lines(folder: Path, path: Path) -> list[tuple[str, int]]:
    """Files and labels of ``images.csv``."""
    where = f"{path}: {INDEX}"
    try:
        with (folder / INDEX).open(encoding="utf-8", newline="") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TeddyError(f"{where}: cannot read: {error}") from error
    if header != ["file", "label"] or not lines:
        raise TeddyError(f"{where}: expected the columns file, label and lines; got {header}")
    for number, line in enumerate(lines, 2):
        if len(line) != 2 or not re.fullmatch(r"[0-9]{1,9}", line[1]):
            raise TeddyError(f"{where}: line {number} must be a file and a label; got {line}")
        _refuse_outside(line[0], path)
    return [(name, int(label)) for name, label in lines]


def read_png(path: Path) -> Tensor:
    """One image of a bundle, uint8 ``(C, H, W)``.

    Raises:
        TeddyError: missing, damaged, or neither grey nor RGB with 8 bits.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in _MODES.values():
                raise TeddyError(f"{path}: expected a grey or RGB image, got mode {image.mode}")
            array = np.array(image)
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise TeddyError(f"{path}: expected a PNG image, but cannot read it: {error}") from error
    array = array[:, :, None] if array.ndim == 2 else array
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def check_sums(folder: Path, path: Path, *, heavy: bool = True) -> None:
    """Compare a bundle with its checksums.

    Args:
        folder: of the bundle.
        path: what to name in messages.
        heavy: also soft labels of views, and teachers, which are most of the bytes.

    Raises:
        TeddyError: naming the first file that is missing, altered, or not listed.
    """
    sums = _sums(folder, path)
    present = set(files_in(folder)) - {SUMS}
    for name in [*(n for n in (RECIPE, INDEX, NUMBERS, f"{LABELS}/{MANIFEST}") if n not in sums),
                 *sorted(sums.keys() - present)]:  # fmt: skip
        raise TeddyError(f"{path}: {name} is missing; get the bundle again")
    for name in sorted(present - sums.keys()):
        raise TeddyError(f"{path}: {name} does not belong to the bundle ({SUMS} has no such file)")
    _compare(folder, path, {k: v for k, v in sums.items() if heavy or not k.startswith(_HEAVY)})


def check_labels(folder: Path, path: Path) -> None:
    """Compare the soft labels of views with their checksums.

    Args:
        folder: of the bundle.
        path: what to name in messages.

    Raises:
        TeddyError: naming the first file that is missing or altered.
    """
    sums = _sums(folder, path)
    _compare(folder, path, {k: v for k, v in sums.items() if k.startswith(_HEAVY[0])})


def _compare(folder: Path, path: Path, sums: Mapping[str, str]) -> None:
    for name, expected in sums.items():
        if sha256(folder / name) != expected:
            raise TeddyError(f"{path}: {name} is altered (its SHA-256 differs); get it again")


def _sums(folder: Path, path: Path) -> dict[str, str]:
    """Checksums of files by name, as the bundle has them."""
    if not (folder / SUMS).is_file():
        raise TeddyError(f"{path}: expected a bundle, but there is no {SUMS}")
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TeddyError(f"{path}: {SUMS}: cannot read: {error}") from error
    sums = dict[str, str]()
    for number, line in enumerate(text.splitlines(), 1):
        found = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if not found:
            raise TeddyError(f"{path}: {SUMS}: line {number} must be a SHA-256, two blanks, a file")
        _refuse_outside(found[2], path)
        sums[found[2]] = found[1]
    return sums
