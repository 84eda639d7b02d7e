"""``teddy.load``: a distilled set from a checkout, a bundle or a file, with what lies beside it."""

from pathlib import Path

from teddy.core.errors import TeddyError
from teddy.core.files import digest, read_json
from teddy.core.seeding import of_synthesis
from teddy.data.distilled import DistilledSet
from teddy.settings.sets import synthesis_file
from teddy.settings.stages import EvaluateSettings, read_settings
from teddy.sharing.bundles import is_bundle, open_bundle
from teddy.sharing.training_set import Recipe, TrainingSet, refuse_other_labels
from teddy.students import sets
from teddy.students.labels import MANIFEST

_SETS = ("data", "distilled")


def load(path: str | Path, synthesis: int | None = None) -> TrainingSet:
    """Open a distilled set.

    Args:
        path: a bundle, folder or ``.zip``; the folder ``data/distilled/<row>`` of a set, or one of
            the files there. In a checkout soft labels and recipe are found beside a set.
        synthesis: which of several, where the path is the folder of a set; by default the first.

    Example:
        >>> import teddy
        >>> data = teddy.load("data/distilled/digits/main/ipc10/plus")  # doctest: +SKIP
        >>> image, label = data[0]  # doctest: +SKIP
        >>> network = teddy.fit(data.network(), data)  # doctest: +SKIP

    Raises:
        TeddyError: missing, truncated or not a distilled set, its parts do not belong together, or
            a synthesis is named of what has one alone.
    """
    path = Path(path)
    if synthesis is not None and (is_bundle(path) or path.is_file()):
        raise TeddyError(
            f"{path}: holds one synthesis; leave out synthesis {synthesis}, or name the folder "
            "data/distilled/<row>"
        )
    if is_bundle(path):
        return open_bundle(path)
    if path.is_dir():
        file = synthesis_file(path, synthesis or 0)
        if not file.is_file():
            raise TeddyError(
                f"{path}: expected a bundle (recipe.yaml) or a set ({file.name}), found neither"
            )
        path = file
    distilled = sets.load(path)
    return _with_neighbours(distilled, path)


def _with_neighbours(distilled: DistilledSet, path: Path) -> TrainingSet:
    """The set with labels and recipe of the checkout that it lies in, if it does and has them."""
    found = row_of(path)
    if found is None:
        return TrainingSet(distilled, path)
    root, row, number = found
    settings_file = root / "inputs" / "evaluate" / f"{row}.json"
    folder = root / "data" / "labels" / row / str(number)
    if not (settings_file.is_file() and (folder / MANIFEST).is_file()):
        return TrainingSet(distilled, path)
    manifest = read_json(folder / MANIFEST)
    if manifest.get("set") != digest(path):
        raise TeddyError(
            f"{folder}: labels are of another set than {path}; run: dvc repro relabel@{row}"
        )
    settings = read_settings(EvaluateSettings, settings_file)
    seed = of_synthesis(settings.seed, number)
    recipe = Recipe(seed=seed, relabel=settings.relabel, evaluate=settings.config)
    refuse_other_labels(str(folder), manifest, recipe, f"run: dvc repro relabel@{row}")
    return TrainingSet(distilled, path, recipe, (folder, manifest))


def row_of(path: Path) -> tuple[Path, str, int] | None:
    """Checkout, row and number of a file ``<checkout>/data/distilled/<row>/<number>.safetensors``.

    None for a file that lies elsewhere.
    """
    parts = path.absolute().parts
    for at in range(len(parts) - 3, 0, -1):
        if parts[at : at + 2] == _SETS and path.stem.isdigit():
            return Path(*parts[:at]), "/".join(parts[at + 2 : -1]), int(path.stem)
    return None
