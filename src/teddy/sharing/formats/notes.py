"""What lies beside exported images: ``classes.json`` for programs, ``README.md`` for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Len

from teddy.core.errors import TeddyError
from teddy.core.files import Json, read_json, write_json
from teddy.core.tables import write_text
from teddy.data.images import Normalisation
from teddy.settings.configs import Positive
from teddy.settings.schema import check, config_keys, from_json, settings, shown
from teddy.sharing.training_set import TrainingSet

CLASSES, README = "classes.json", "README.md"


@settings
class ClassesRecord:
    """What ``classes.json`` says."""

    format: Literal["teddy.classes.v1"]
    classes: Annotated[tuple[str, ...], Len(1)]
    """Names in the order of labels."""
    folders: tuple[str, ...] = ()
    """Of the classes, in the same order, below ``images/``; none but for class folders."""
    mean: Annotated[tuple[float, ...], Len(1)]
    """Of pixels in [0, 1], per channel: what images are normalised by."""
    std: tuple[Positive, ...]
    class_order: Literal["sorted", "ours"] = "ours"
    """Whether classes are in the order of the set, or in that of their names."""
    jpeg_psnr_db: dict[str, float] | None = None
    """What JPEG cost, mean and worst; None of other files, {} if it changed no image."""

    def __post_init__(self) -> None:
        check(
            len(self.mean) == len(self.std) and len(self.folders) in (0, len(self.classes)),
            "mean and std must have as many entries, and folders as classes or none",
        )
        check(
            set(self.jpeg_psnr_db or {}) in (set(), {"mean", "worst"}),
            f"jpeg_psnr_db must have mean and worst, or nothing; got {shown(self.jpeg_psnr_db)}",
        )

    @property
    def normalisation(self) -> Normalisation:
        """Of the images."""
        return Normalisation(self.mean, self.std)


def write_classes(
    folder: Path,
    data: TrainingSet,
    order: str = "ours",
    folders: Sequence[str] = (),
    cost: Json | None = None,
) -> None:
    """Write ``classes.json``: classes in order, normalisation, and how the images were made.

    Args:
        folder: to write to.
        data: the set.
        order: that its classes were put into.
        folders: of the classes, if they have such.
        cost: of JPEG, if that is what images are.
    """
    record: Json = {
        "format": "teddy.classes.v1",
        "classes": list(data.class_names),
        "mean": list(data.normalisation.mean),
        "std": list(data.normalisation.std),
        "class_order": order,
        "provenance": data.provenance,
    }
    if cost is not None:
        record["jpeg_psnr_db"] = cost
    if folders:
        record["folders"] = list(folders)
    write_json(folder / CLASSES, record)


def read_classes(folder: Path) -> ClassesRecord | None:
    """What ``classes.json`` of a folder says; None if there is none.

    Raises:
        TeddyError: it is not as it should be.
    """
    path = folder / CLASSES
    if not path.exists():
        return None
    raw = read_json(path)
    own = {key: value for key, value in raw.items() if key in config_keys(ClassesRecord)}
    return from_json(ClassesRecord, own, str(path))


def write_readme(folder: Path, data: TrainingSet, *parts: str, before: str = "") -> None:
    """Write ``README.md``.

    Args:
        folder: to write to.
        data: the set.
        parts: paragraphs that say what lies in the folder, and how it is read.
        before: what begins the file, for programs.
    """
    channels, height, width = data.images.shape[1:]
    text = [
        f"# {len(data)} distilled images of {data.num_classes} classes",
        f"{height}×{width} pixels of {channels} channel{'s' * (channels != 1)}, at most {data.ipc} "
        f"of a class, made by the method `{data.provenance.get('method', 'unknown')}` and exported "
        "by `teddy export`. The terms of the images are those of the images that they were made "
        "from.",
        *parts,
        "Networks see pixels in [0, 1] minus the mean "
        f"{list(data.normalisation.mean)}, divided by {list(data.normalisation.std)}.",
        f"Classes in the order of labels: {', '.join(data.class_names)}.",
    ]
    write_text(folder / README, before + "\n\n".join(text) + "\n")


def refuse_none_of_a_class(data: TrainingSet) -> None:
    """Refuse a set in which a class has no image, where readers would number the others anew.

    Raises:
        TeddyError: naming the class.
    """
    counts = data.labels.bincount(minlength=data.num_classes).tolist()
    if 0 in counts:
        raise TeddyError(
            f"{data.path}: class {data.class_names[counts.index(0)]!r} has no image, so that "
            "readers of class folders would number the classes anew; choose --format parquet"
        )
