"""``teddy export``: a set in another format; ``teddy import``: a file of a set from one."""

import copy
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from teddy.core.errors import TeddyError
from teddy.core.files import manifest_digest
from teddy.core.runtime import log
from teddy.data.datasets import read_dataset
from teddy.data.distilled import DistilledSet, save_distilled
from teddy.data.images import Normalisation
from teddy.settings.rows import KINDS
from teddy.sharing.bundles import sha256, whole
from teddy.sharing.formats import fkd, imagefolder, parquet, trajectories
from teddy.sharing.formats.classes import counted
from teddy.sharing.formats.found import Wanted, by_index
from teddy.sharing.opening import load
from teddy.sharing.training_set import TrainingSet

_ALGORITHM = "src/teddy/sharing/imported.py:Imported"
_READ = {
    "imagefolder": imagefolder.read, "parquet": parquet.read, "pt": trajectories.read,
    "fkd": fkd.read,
}  # fmt: skip
_SOFT = ("parquet", "pt")
"""Formats that have a soft label of each image."""
_PACKED = {".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"}


def export(
    path: Path,
    out: Path,
    kind: str,
    *,
    synthesis: int | None = None,
    layout: str = "plain",
    jpeg: bool = False,
    rate: float = 0.01,
    views: fkd.Options | None = None,
    class_order: str | None = None,
) -> str:
    """Write a set in another format.

    Args:
        path: what :func:`teddy.load` opens.
        out: folder to write.
        kind: ``imagefolder``, ``parquet``, ``pt`` or ``fkd``.
        synthesis: which of several.
        layout: names of folders and files of ``imagefolder``.
        jpeg: JPEG of quality 95 instead of PNG, of ``imagefolder``.
        rate: learning rate that ``pt`` says.
        views: teachers, epochs and batches of ``fkd``, where they are not the set's own.
        class_order: which class a number is: ``ours`` counts the set's, ``sorted`` their sorted
            names; None where that makes no difference.

    Returns:
        What was written.

    Raises:
        TeddyError: there is no such set, the format cannot hold it, ``out`` is there already, or
            it is not said what numbers count.
    """
    if out.suffix.lower() in _PACKED:
        raise TeddyError(
            f"{out}: expected a folder to write, got the name of an archive ({out.suffix}); name a "
            "folder with --out and pack that"
        )
    data = load(path, synthesis)
    _refuse_smaller_images(data)
    if class_order is None and kind == "parquet":  # which names classes beside their numbers
        class_order = "ours"
    places = counted(data.class_names, class_order, str(path))
    soft = data.fixed_labels[:, places] if kind in _SOFT and data.has_fixed_labels else None
    data, note = _numbered(data, places), ""
    with _leaving_nothing(out):
        if kind == "fkd":  # which continues an export that was stopped
            said = fkd.write(out, data, views or fkd.Options(), places)
            return f"wrote {out}: {data}; {said}"
        with whole(out) as folder:
            if kind == "imagefolder":
                note = imagefolder.write(folder, data, layout, jpeg, class_order or "ours")
            elif kind == "parquet":
                parquet.write(folder, data, soft)
            else:
                trajectories.write(folder, data, soft, rate, class_order or "ours")
    return f"wrote {out}: {data}" + (f"; {note}" if note else "")


def _refuse_smaller_images(data: TrainingSet) -> None:
    side = data.partition
    if side > 1:
        raise TeddyError(
            f"{data.path}: expected whole images, got {side}×{side} smaller ones in each, which "
            "students see enlarged and no other format can say; share it by: teddy pack"
        )


def _numbered(data: TrainingSet, places: list[int]) -> TrainingSet:
    """The set with its classes in another order.

    Args:
        data: the set.
        places: label of the classes in that order.
    """
    numbers = torch.tensor(places).argsort()
    other = copy.copy(data)
    other.labels = numbers[data.labels]
    other.class_names = tuple(data.class_names[label] for label in places)
    return other


@contextmanager
def _leaving_nothing(out: Path) -> Iterator[None]:
    """Folders above ``out`` that the block makes go again if it fails."""
    made = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        yield
    except BaseException as error:
        for folder in made:  # the innermost first
            with suppress(OSError):  # it has something in it
                folder.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise TeddyError(f"{out}: cannot write here: {reason}") from error
        raise


def import_set(
    path: Path,
    kind: str,
    out: Path,
    dataset: Path,
    size: int | None = None,
    *,
    class_order: str | None = None,
    statistics: Normalisation | None = None,
) -> str:
    """Write a file of a set from another format.

    Args:
        path: what to read.
        kind: ``imagefolder``, ``parquet``, ``pt`` or ``fkd``.
        out: file to write, ``.safetensors``.
        dataset: prepared dataset whose classes, size and normalisation the set must have.
        size: resize images to this side, which must be the dataset's; None refuses others.
        class_order: what numbers of classes count: classes of the dataset (``ours``), or their
            ``sorted`` names; None where that makes no difference.
        statistics: what images of ``pt`` are denormalised by; None: what their own files say, or
            else the dataset.

    Returns:
        Lines for an experiment file, which declare a method and a set of these images.

    Raises:
        TeddyError: ``path`` is not of that format, classes or images do not fit the dataset,
            ``out`` is there already, or it is not said what numbers count.
    """
    if out.exists() or out.suffix != ".safetensors":
        raise TeddyError(
            f"{out}: expected a .safetensors file to write, which is not there yet; name another "
            "with --out"
        )
    real = read_dataset(dataset)
    if size not in (None, real.image_shape[1]):
        raise TeddyError(
            f"--size must be {real.image_shape[1]}, the size of the images of {dataset}, which "
            f"students know; got {size}"
        )
    if not path.exists():
        raise TeddyError(f"{path}: expected a set to import, found nothing there")
    wanted = Wanted(
        dataset, real.class_names, real.image_shape, real.normalisation, size is not None,
        class_order, statistics,
    )  # fmt: skip
    try:
        found = _READ[kind](path, wanted)
    except OSError as error:
        raise TeddyError(f"{path}: cannot read: {error.strerror or error}") from error
    order = by_index(found.labels)
    provenance = {
        "method": "imported",
        "format": kind,
        "files": found.files,
        "classes_of": manifest_digest(dataset),
        **({"class_order": class_order} if class_order else {}),
        **found.facts,
    }
    distilled = DistilledSet(
        found.images[order], found.labels[order], real.class_names, real.normalisation, provenance
    )
    with _leaving_nothing(out):
        save_distilled(out, distilled)
    for note in found.notes:
        log(note)
    return rows(out, distilled, dataset.resolve().name)


def rows(file: Path, distilled: DistilledSet, data: str) -> str:
    """Lines for an experiment file, which declare a method and a set of imported images.

    Args:
        file: of the set.
        distilled: the same.
        data: name of the prepared dataset.
    """
    shown = Path(os.path.relpath(file))
    shown = file.absolute() if ".." in shown.parts else shown
    name = re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-") or "set"
    name = name if name.startswith("imported") else f"imported-{name}"
    ipc = int(distilled.labels.bincount(minlength=distilled.num_classes).min())
    return "\n".join(
        [
            "methods:",
            f'  {name}: {{title: {name}, labels: [{", ".join(KINDS)}], algorithm: "{_ALGORITHM}"}}',
            "sets:",
            f"  {data}/main/ipc{ipc}/{name}: {{<<: *random, method: {name}, ipc: {ipc}, "
            f'file: {json.dumps(shown.as_posix())}, sha256: "{sha256(file)}"}}',
        ]
    )
