"""A folder that Hugging Face's ``datasets`` opens by ``load_dataset(folder)``; needs ``pyarrow``.

One file, ``data/train-00000-of-00001.parquet``, with the columns ``image`` (PNG) and ``label``,
and ``soft_label_logits`` where the set has fixed labels. The schema's metadata say what the columns
are, as ``datasets`` writes it.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from teddy.core.errors import TeddyError
from teddy.core.files import Json
from teddy.core.runtime import progress
from teddy.settings.schema import shown
from teddy.sharing.bundles import sha256
from teddy.sharing.formats import pixels
from teddy.sharing.formats.classes import (
    Told,
    by_number,
    check_labels,
    check_range,
    in_order,
    labels_of,
)
from teddy.sharing.formats.found import Found, Wanted, index_in_class
from teddy.sharing.formats.notes import write_readme
from teddy.sharing.training_set import TrainingSet

FILE = "data/train-00000-of-00001.parquet"
SOFT = "soft_label_logits"
_ROWS = 100  # of a group: what a viewer reads to show an image
_SPLITS = {"train", "test", "val", "valid", "validation", "dev", "eval"}
"""Words in names of files and folders that tell a split."""
_ARROW = (
    "{}: expected .parquet files, got .arrow files, which save_to_disk of datasets writes; load "
    "them by datasets.load_from_disk and save one split by to_parquet"
)
_FRONT = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---

"""
"""What tells ``datasets`` which files are data."""


def write(folder: Path, data: TrainingSet, soft: Tensor | None) -> None:
    """Write images and labels in the order of the set.

    Args:
        folder: to write to.
        data: the set.
        soft: a soft label of each image, logits ``(N, K)``, if there are such.

    Raises:
        TeddyError: images of neither one nor three channels, or there is no ``pyarrow``.
    """
    pa, parquet = load_pyarrow()
    pixels.check_channels(data.images)
    types = {
        "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "label": pa.int64(),
    }  # fmt: skip
    features: Json = {
        "image": {"_type": "Image"},
        "label": {"names": list(data.class_names), "_type": "ClassLabel"},
    }
    if soft is not None:
        types[SOFT] = pa.list_(pa.float32())
        features[SOFT] = {
            "feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence",
        }  # fmt: skip
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema(list(types.items()), metadata=metadata)
    index = index_in_class(data.labels).tolist()
    (folder / FILE).parent.mkdir()
    with parquet.ParquetWriter(folder / FILE, schema) as writer:
        for part in torch.arange(len(data)).split(_ROWS):
            labels = data.labels[part].tolist()
            columns: Json = {
                "image": [
                    {"bytes": pixels.encoded(image), "path": f"{label:04d}_{index[i]:05d}.png"}
                    for image, label, i in zip(
                        data.images[part], labels, part.tolist(), strict=True
                    )
                ],
                "label": labels,
            }
            if soft is not None:
                columns[SOFT] = soft[part].float().tolist()
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))
    write_readme(
        folder, data,
        '`datasets.load_dataset("this folder", split="train")` opens it: `image` is a lossless '
        "PNG, `label` the class.",
        f"`{SOFT}` is a soft label of each image: the mean logits of the teachers, without a "
        "temperature; a softmax makes probabilities of them." if soft is not None else
        "There are no soft labels.",
        before=_FRONT,
    )  # fmt: skip


def read(path: Path, wanted: Wanted) -> Found:
    """Read images and classes of one file, or of a folder of files that are one split.

    Columns are found by the features that ``datasets`` has noted, or else by the names ``image``
    and ``label``. Classes are compared by name if there are names. Other columns, soft labels
    among them, are left out.

    Args:
        path: a file, or a folder.
        wanted: classes, and shape of the images.

    Raises:
        TeddyError: not Parquet, no such columns, other classes, an image that does not fit, or
            there is no ``pyarrow``.
    """
    _, reader = load_pyarrow()
    found, resized, sums = list[Tensor](), set[int](), dict[str, str]()
    labels, told = list[Any](), list[Told | None]()
    for file in _files(path):
        sums[file.relative_to(path if path.is_dir() else path.parent).as_posix()] = sha256(file)
        with refusing(file), progress(None, "read images", "img") as bar:
            opened = reader.ParquetFile(file)
            columns = _columns(file, opened.schema_arrow, wanted)
            for row, (content, label) in enumerate(rows_of(file, opened, columns)):
                image, before = pixels.decoded(content, wanted, f"{file}: row {row}")
                found.append(image)
                labels.append(label)
                told.append(columns.told)
                resized |= {before} if before else set()
                bar.update()
    if not found:
        raise TeddyError(f"{path}: expected images, got no row")
    own, said = _labels(labels, told, wanted, str(path))
    facts, notes = pixels.of_resizing(resized, wanted)
    return Found(torch.stack(found), own, sums, facts, notes + said)


def load_pyarrow() -> tuple[Any, Any]:
    """The package and its module ``parquet``.

    Raises:
        TeddyError: it is not installed.
    """
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise TeddyError("Parquet needs the package pyarrow; run: pip install pyarrow") from None


def _files(path: Path) -> list[Path]:
    """Files of one split, in order."""
    if not path.is_dir():
        if path.suffix == ".arrow":
            raise TeddyError(_ARROW.format(path))
        return [path]
    files = sorted(path.rglob("*.parquet"))
    if not files and any(path.rglob("*.arrow")):
        raise TeddyError(_ARROW.format(path))
    if not files:
        raise TeddyError(f"{path}: expected .parquet files, found none")
    words = re.findall("[a-z]+", " ".join(str(file.relative_to(path)).lower() for file in files))
    splits = sorted(_SPLITS & set(words))
    if len(splits) > 1:
        raise TeddyError(
            f"{path}: expected the files of one split, got {', '.join(splits)}; name one file"
        )
    return files


@contextmanager
def refusing(file: Path) -> Iterator[None]:
    """Turn what reading damaged bytes leads to into a refusal."""
    pa, _ = load_pyarrow()
    try:
        yield
    except TeddyError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TeddyError(f"{file}: expected Parquet, but cannot read it: {reason}") from error


class Columns(NamedTuple):
    """Where the images and labels of a file are, and which classes its names are."""

    image: str
    label: str
    told: Told | None = None


def _columns(file: Path, schema: Any, wanted: Wanted) -> Columns:
    """Find columns, and compare names of classes."""
    features = features_of(file, schema)
    image = column(file, features, schema.names, "Image", "image")
    label = column(file, features, schema.names, "ClassLabel", "label")
    names = features.get(label, {}).get("names")
    if names is not None:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TeddyError(f"{file}: names of {label} must be a list of text; got {shown(names)}")
        return Columns(image, label, in_order(names, wanted, str(file)))
    return Columns(image, label)


def features_of(file: Path, schema: Any) -> Json:
    """What ``datasets`` has noted of the columns; {} if it has not."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        found = json.loads(text)["info"]["features"]
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TeddyError(
            f"{file}: metadata huggingface must have info.features, as datasets writes it"
        ) from error


def column(file: Path, features: Json, names: list[str], kind: str, usual: str) -> str:
    """The column of a usual name, or else the only one that is noted to be of a kind.

    Raises:
        TeddyError: there is neither.
    """
    noted = [name for name in names if features.get(name, {}).get("_type") == kind]
    if usual in names:
        return usual
    if len(noted) == 1:
        return noted[0]
    raise TeddyError(
        f"{file}: expected a column {usual!r}, or one of type {kind}; got {', '.join(names)}"
    )


def rows_of(file: Path, opened: Any, columns: Columns) -> Iterator[tuple[bytes, Any]]:
    """Content of the image, and label, of every row."""
    row = 0
    for batch in opened.iter_batches(batch_size=_ROWS, columns=list(columns[:2])):
        for entry in batch.to_pylist():
            own = entry[columns.image]
            content = own.get("bytes") if isinstance(own, dict) else own
            if not isinstance(content, bytes):
                raise TeddyError(
                    f"{file}: row {row}: {columns.image} must have the bytes of an image; got "
                    f"{shown(own)}"
                )
            yield content, entry[columns.label]
            row += 1


def _labels(
    labels: list[Any], told: list[Told | None], wanted: Wanted, where: str
) -> tuple[Tensor, tuple[str, ...]]:
    """Our labels of all images, int64 ``(N,)``, and what is to be said of them.

    Args:
        labels: of each image, as its row has it.
        told: which classes the numbers of its file are, where names say it.
        wanted: the prepared dataset's classes.
        where: what messages begin with.
    """
    if all(isinstance(label, str) for label in labels):
        by_name, notes = labels_of(set(labels), wanted, where)
        return torch.tensor([by_name[label] for label in labels]), notes
    for label in labels:
        if not isinstance(label, int) or isinstance(label, bool):
            raise TeddyError(f"{where}: labels must be whole numbers or names; got {shown(label)}")
    most = 2**62
    theirs = torch.tensor([max(-most, min(label, most)) for label in labels])
    check_range(theirs, wanted, where)
    plain = by_number(wanted, where) if None in told else None
    each = [one for one in (own or plain for own in told) if one]
    own = [one.labels[label] for one, label in zip(each, theirs.tolist(), strict=True)]
    check_labels(torch.tensor(own), wanted, where)
    return torch.tensor(own), tuple(dict.fromkeys(note for one in each for note in one.notes))
