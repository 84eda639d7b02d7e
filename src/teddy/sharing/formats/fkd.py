"""A set with FKD soft labels as ``teddy export`` and ``teddy import`` have it.

:mod:`teddy.sharing.fkd` says what lies in the files; here is where a set's teachers and recipe are
found, and which set an import makes of the images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from teddy.core.errors import TeddyError
from teddy.core.files import read_json
from teddy.core.runtime import progress
from teddy.core.seeding import of_synthesis
from teddy.settings.stages import EvaluateSettings, read_settings
from teddy.sharing import bundles
from teddy.sharing.fkd import IMAGES, RECORD, export_fkd, read_fkd
from teddy.sharing.formats import imagefolder
from teddy.sharing.formats.classes import in_order
from teddy.sharing.formats.found import Found, Wanted
from teddy.sharing.opening import row_of
from teddy.sharing.training_set import Recipe, TrainingSet


class Options(NamedTuple):
    """What an export may be told; None leaves it to the set."""

    pool: Path | None = None
    """Teachers that label, ``models/<pool>``."""
    epochs: int | None = None
    """That are labelled."""
    batch_size: int | None = None
    """Images of a label file."""


def write(
    out: Path, data: TrainingSet, options: Options, columns: Sequence[int] | None = None
) -> str:
    """Write images and soft labels of their views.

    Teachers and recipe are those of the bundle or of the checkout that the set lies in, whether it
    was labelled there or not.

    Args:
        out: folder to write.
        data: the set.
        options: what is to be other than there.
        columns: class of the teachers that each class of the set is; None if they are the same.

    Returns:
        What the views are, in words.

    Raises:
        TeddyError: no teachers are known, or what :func:`teddy.sharing.fkd.export_fkd` refuses.
    """
    there, recipe = _of_checkout(data)
    bundle = None if options.pool else _of_bundle(data)
    pool = options.pool or there or bundle
    if pool is None:
        raise TeddyError(
            f"{data.path}: nothing beside it tells which teachers label its views; name them with "
            "--pool models/<pool>"
        )
    if data._recipe is None:
        data = TrainingSet(data, data.path, recipe)
    with bundles.naming(data.path, bundle.parent if bundle else data.path):
        export_fkd(data, pool, out, options.epochs, options.batch_size, columns=columns)
    teachers = len(read_json(out / RECORD)["teachers"])
    return ", ".join([
        read_fkd(out).summary(),
        f"labelled by {teachers} teachers of {data.path if bundle else pool}",
        "views of the set's recipe" if data._recipe else "views of SRe2L, for want of a recipe",
    ])  # fmt: skip


def _of_checkout(data: TrainingSet) -> tuple[Path | None, Recipe | None]:
    """Pool and recipe of a set that lies in a checkout."""
    found = row_of(data.path)
    if found is None:
        return None, None
    root, row, number = found
    root = Path() if root == Path.cwd() else root
    file = root / "inputs" / "evaluate" / f"{row}.json"
    if not file.is_file():
        return None, None
    own = read_settings(EvaluateSettings, file)
    seed = of_synthesis(own.seed, number)
    recipe = Recipe(seed=seed, relabel=own.relabel, evaluate=own.config)
    return root / "models" / own.evaluation.pool, recipe


def _of_bundle(data: TrainingSet) -> Path | None:
    """Teachers that a bundle holds, after its checksums were compared."""
    if not bundles.is_bundle(data.path) or data._labels is None:
        return None
    folder = data._labels[0].parent  # where a .zip was unpacked
    if not (folder / bundles.TEACHERS).is_dir():
        return None
    bundles.check_sums(folder, data.path)
    return folder / bundles.TEACHERS


def read(path: Path, wanted: Wanted) -> Found:
    """Read the images of a folder with FKD soft labels, and check every file of these.

    The labels are not kept: they belong to views that students of ours do not see.

    Args:
        path: folder with ``images/`` in class folders, and ``fkd/`` or ``epoch_0``, ….
        wanted: classes, and shape of the images.

    Raises:
        TeddyError: images or classes do not fit, or label files are missing, damaged or of another
            set.
    """
    if not (path / IMAGES).is_dir():
        raise TeddyError(
            f"{path}: expected {IMAGES}/ with class folders beside the soft labels, found none; "
            "put both into one folder, or import the images with --format imagefolder"
        )
    told = None
    if (path / RECORD).exists():
        classes = read_json(path / RECORD).get("classes")
        if not isinstance(classes, list):
            raise TeddyError(f"{path / RECORD}: classes must be a list of names; export it again")
        told = in_order(list(map(str, classes)), wanted, f"{path / RECORD}")
    found = imagefolder.read(path / IMAGES, wanted, told)
    files = {f"{IMAGES}/{name}": sha for name, sha in found.files.items()}
    files |= {RECORD: bundles.sha256(path / RECORD)} if told else {}
    labels = read_fkd(path, wanted.folder)
    if labels.images != len(found.images):
        raise TeddyError(
            f"{labels.folder}: has soft labels of {labels.images} images, but {path / IMAGES} has "
            f"{len(found.images)}"
        )
    with progress(labels.epochs, "check soft labels", "epoch") as bar:
        for epoch in range(labels.epochs):
            for _ in labels.epoch(epoch):
                pass
            bar.update()
    sound = (
        f"{labels.summary()} of soft labels are sound; they are not kept, since students of ours "
        "have views and labels of their own"
    )
    return Found(found.images, found.labels, files, found.facts, (*found.notes, sound))
