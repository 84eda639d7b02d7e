"""Parquet files that hold images, as the Hugging Face Hub has them, unpacked into image files.

The files are those that were put in, byte by byte. Nothing is unpickled.
"""

import csv
import re
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from teddy.core.errors import TeddyError
from teddy.core.files import Json, read_json, write_json
from teddy.sharing.bundles import whole
from teddy.sharing.formats import parquet as formats

_IMAGE, _LABEL = ("image", "img"), ("label", "labels", "fine_label")
_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "val": "val",
    "valid": "val", "validation": "val", "dev": "val",
}  # fmt: skip
_LIST, _FACTS = "images.csv", "source.json"


def files_in(path: Path) -> list[Path]:
    """Parquet files of a folder, or of folders in it, at most three deep; a file itself."""
    if path.is_file():
        return [path]
    return sorted(p for depth in ("*", "*/*", "*/*/*") for p in path.glob(f"{depth}.parquet"))


def holds_images(path: Path) -> bool:
    """Whether a Parquet file holds images, and not paths of images.

    Raises:
        TeddyError: pyarrow is not installed, or the file is damaged.
    """
    schema = _reader(path).schema_arrow
    noted = formats.features_of(path, schema).values()
    usual = [schema.field(name).type for name in _IMAGE if name in schema.names]
    return not all(map(_text, usual)) or any(own.get("_type") == "Image" for own in noted)


def _text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def unpack(path: Path, out: Path, fingerprint: str) -> tuple[Path, tuple[str, ...]]:
    """Write the images of Parquet files into a folder, unless it has them.

    Args:
        path: a file, or a folder of files whose names say train, validation or test.
        out: folder to write.
        fingerprint: of the files; a folder that was made from others is made again.

    Returns:
        A list of the images, for the source ``list``, and the classes in the order of their labels.

    Raises:
        TeddyError: pyarrow is not installed; a file is damaged, or has no images or labels.
    """
    facts = out / _FACTS
    if not facts.is_file() or read_json(facts).get("sha256") != fingerprint:
        shutil.rmtree(out, ignore_errors=True)
        files = files_in(path)
        splits = [_split(file, path) for file in files]
        if "test" not in splits:  # validation images whose labels are public
            splits = ["test" if split == "val" else split for split in splits]
        with whole(out) as folder:
            names = _write(list(zip(files, splits, strict=True)), folder)
            write_json(folder / _FACTS, {"sha256": fingerprint, "classes": names})
    return out / _LIST, tuple(read_json(facts)["classes"])


def _split(file: Path, path: Path) -> str:
    """What a file's name, or that of a folder it lies in, says of its images."""
    below = file.name if file == path else file.relative_to(path).as_posix()
    words = re.split(r"[^a-z]+", below.lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), "train")


def _write(files: list[tuple[Path, str]], folder: Path) -> list[str]:
    """Image files and the list; returns the classes of the training images, in order."""
    trained, known = dict[str, None](), list[str]()
    lines = list[tuple[str, str, str]]()
    for file, split in files:
        opened = _open(file)
        names = _class_names(opened)
        known = known or names
        for number, (content, label) in enumerate(_rows(file, opened)):
            where = f"{file}: row {number}"
            if label is None or label == -1:  # as of test images whose labels are secret
                continue
            if isinstance(label, int) and names and not 0 <= label < len(names):
                raise TeddyError(f"{where}: label must be below {len(names)}; got {label}")
            name = names[label] if isinstance(label, int) and names else str(label)
            at = f"{split}/{len(lines):07d}{_suffix(content, where)}"
            (folder / split).mkdir(exist_ok=True)
            (folder / at).write_bytes(content)
            lines.append((at, name, split))
            if split == "train":
                trained[name] = None
    if not trained:
        raise TeddyError(f"{files[0][0]}: no images with labels to train on")
    with (folder / _LIST).open("w", encoding="utf-8", newline="") as listed:
        csv.writer(listed).writerows([("path", "label", "split"), *lines])
    return [name for name in known if name in trained]


def _rows(file: Path, opened: "_Opened") -> Iterator[tuple[bytes, Any]]:
    """Image and label of every row."""
    with formats.refusing(file):
        yield from formats.rows_of(file, opened.reader, opened.columns)


def _suffix(content: bytes, where: str) -> str:
    try:
        with Image.open(BytesIO(content)) as image:
            return {"JPEG": ".jpg"}.get(image.format or "", f".{(image.format or 'png').lower()}")
    except UnidentifiedImageError:
        return ".png"  # which prepare refuses, or leaves out
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise TeddyError(f"{where}: image cannot be read: {error}") from error


def _class_names(opened: "_Opened") -> list[str]:
    """Names that the file's own description gives to labels, in order; none if it has none."""
    found = opened.features.get(opened.columns.label, {}).get("names")
    return list(map(str, found)) if isinstance(found, list) else []


class _Opened(NamedTuple):
    """A file, and where its images and labels are."""

    reader: Any
    features: Json
    columns: formats.Columns


def _open(file: Path) -> _Opened:
    reader = _reader(file)
    names, features = reader.schema_arrow.names, formats.features_of(file, reader.schema_arrow)
    image = _column(file, names, features, _IMAGE, "Image")
    label = _column(file, names, features, _LABEL, "ClassLabel")
    return _Opened(reader, features, formats.Columns(image, label))


def _column(file: Path, names: list[str], features: Json, usual: tuple[str, ...], kind: str) -> str:
    found = next((name for name in usual if name in names), None)
    return found or formats.column(file, features, names, kind, usual[0])


def _reader(file: Path) -> Any:
    """The file, of which only the description is read.

    Raises:
        TeddyError: pyarrow is not installed, or the file is damaged.
    """
    try:
        _, parquet = formats.load_pyarrow()
    except TeddyError as error:
        raise TeddyError(f"{file}: {error}") from error
    with formats.refusing(file):
        return parquet.ParquetFile(file)
