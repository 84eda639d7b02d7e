"""Settings by the size of the data, and the small checkout that they are written to.

Chosen by rules from sizes alone, never by an accuracy. The rules follow digits and CIFAR-10's CPU
preset, whose settings were chosen on validation images, and Tiny-ImageNet's, which are untuned.
"""

import copy
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from teddy.core.errors import TeddyError
from teddy.core.files import Json, read_json, write_json
from teddy.core.memory import machine_memory
from teddy.core.tables import write_text
from teddy.settings.parameters import OPTIONS
from teddy.settings.schema import parse_yaml, read_yaml
from tools.distill.found import Survey

ROOT = Path(__file__).parents[2]
"""The checkout, whose defaults hold."""
RECORD, RAW = "distill.json", "raw.json"
PARTS = {
    "prepare": "preparing the images", "train_teacher": "teachers", "build_pool": "teachers",
    "synthesize": "images", "relabel": "soft labels", "evaluate": "students",
}  # fmt: skip
"""What stages do, in order, for people."""
_PICTURES = "fig4-6-7"
_STAGES = ("resolve", *PARTS, _PICTURES)
_SIZES = (8, 12, 16, 20, 24, 28, 32, 48, 64, 96, 128, 224)
_LARGEST_ON_CPU = 64  # pixels
_CONVNET_UP_TO = 64  # pixels; larger images are for a ResNet18
_SMALL = 32  # pixels; still smaller images lose their object in small crops
_MANY = 5000  # training images, of which a wider network learns more
_PIXELS_AT_A_TIME = 1.5e6  # of views in an update of images, which bounds memory


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for."""

    ipc: int
    quick: bool = False
    epochs: int = 0
    """Of the base run; 0 is by the size of the data."""
    image_size: int = 0
    """Likewise."""
    syntheses: int = 1


@dataclass(frozen=True, slots=True)
class Machine:
    """What settings depend on besides the data."""

    gpu: bool
    cores: int


def choose(found: Survey, wanted: Wanted, machine: Machine) -> Json:
    """Settings of the dataset, as a file of ``params/`` has them, but for where the images are.

    Args:
        found: what the images are like.
        wanted: by the user.
        machine: that will run it.
    """
    size = wanted.image_size or image_size(found.side, machine.gpu)
    flips = found.channels == 3  # grey ones may be characters
    network = _network(found, machine, size)
    precision = {} if machine.gpu else {"precision": "float32"}
    batch = _between(16, 2 ** int(math.log2(max(16, found.train) / 16)), 128)
    epochs = wanted.epochs or _fewer(wanted, _epochs_of_base(found.train, batch, machine.gpu))
    images = len(found.classes) * wanted.ipc
    labelled = _fewer(wanted, _epochs_of_students(images, size, machine.gpu))

    def views() -> Json:  # a mapping of its own wherever it stands
        return {"crop_scale": 0.5 if size < _SMALL else 0.08, "hflip": flips}

    return {
        "prepare": {
            "image_size": size, "channels": found.channels,
            "val_fraction": 0.1, "test_fraction": 0 if found.own_test else 0.2,
            **_storage(found, size),
        },
        "train_teacher": precision | {
            "network": network, "epochs": epochs, "batch_size": batch,
            "optimizer": {
                "lr": round(0.1 * batch / 128, 6), "schedule": "cosine", "weight_decay": 0.0005,
                "warmup_epochs": min(1, epochs // 10),
            },
            "views": {"crop_scale": 0.5, "hflip": flips},
        },
        "pool": {"prior": _members(epochs, 8 if machine.gpu or size < 48 else 4)},
        "plus": _plus(found, wanted, machine, size) | {"views": views()},
        "relabel": precision | {"epochs": labelled, "views": views()},
        "evaluate": precision | _students(network, images) | {
            "seeds": [0] if wanted.quick else [0, 1, 2],
            "eval_epochs": max(1, labelled // 4), "divergence": False,
        },
    }  # fmt: skip


def image_size(side: int, gpu: bool) -> int:
    """Side of the squares that networks see: the images', or the next smaller one that is usual."""
    largest = _SIZES[-1] if gpu else _LARGEST_ON_CPU
    return max((s for s in _SIZES if s <= min(side, largest)), default=_SIZES[0])


def _between(low: int, value: float, high: int) -> int:
    return round(min(max(low, value), high))


def _fewer(wanted: Wanted, epochs: int) -> int:
    return max(4, epochs // 4) if wanted.quick else epochs


def _epochs_of_base(images: int, batch: int, gpu: bool) -> int:
    """As many as 7,000 steps take (20,000 on a GPU), 20 of CIFAR-10's; small sets stop at 100."""
    return _between(8, (20000 if gpu else 7000) / math.ceil(images / batch), 100)


def _network(found: Survey, machine: Machine, size: int) -> Json:
    """A ConvNet as wide as this machine and so many images allow; a ResNet for large images."""
    if size > _CONVNET_UP_TO:
        return {"arch": "resnet18"}
    wide = found.train >= _MANY and size <= _SMALL
    return {"arch": "convnet3", "width": 128 if machine.gpu else 64 if wide else 32}


def _students(network: Json, images: int) -> Json:
    """Students of a set: small steps at a small rate, and no BatchNorm over few images."""
    if network["arch"] == "resnet18":
        return {"network": network, "batch_size": _between(32, images / 10, 128)}
    batch = _between(10, images / 10, 50)
    rate = round(1e-4 * batch, 6)  # 0.001 of ten and 0.005 of fifty: docs/log.md
    return {
        "network": {**network, "norm": "group"}, "batch_size": batch, "optimizer": {"lr": rate},
    }  # fmt: skip


def _epochs_of_students(images: int, size: int, gpu: bool) -> int:
    """Of sets as small as CIFAR-10's 100 images 400; fewer of large images on a CPU."""
    views = 400_000 if gpu else 40_000 if size <= _SMALL else 4_000
    return _between(100, views / images, 1600)


def _members(epochs: int, count: int) -> Json:
    """Checkpoints from a tenth of the run to eight."""
    first = max(1, round(0.1 * epochs))
    last = max(first, round(0.8 * epochs))
    step = math.ceil(1000 * max(1, (last - first) / (count - 1))) / 1000
    return {"first": first, "last": last, "step": step}


def _plus(found: Survey, wanted: Wanted, machine: Machine, size: int) -> Json:
    """Teddy plus; at one image per class as CIFAR-10's preset, else the defaults."""
    own: Json = {"iterations": 150}
    if wanted.ipc == 1:
        own = {"initialise": "real", "iterations": 200, "views_per_image": 8, "lr": 0.1}
    own["iterations"] = own["iterations"] // 3 if wanted.quick else own["iterations"]
    pixels = size**2 * wanted.ipc * own.get("views_per_image", 2)
    fits = _PIXELS_AT_A_TIME * (8 if machine.gpu else 1) / pixels
    share = len(found.classes) if machine.gpu else math.ceil(len(found.classes) / machine.cores)
    return own | {"classes_per_batch": _between(1, math.floor(fits), share)}


def _storage(found: Survey, size: int) -> Json:
    """On disk what a quarter of the memory does not hold."""
    large = found.images * found.channels * size**2 > machine_memory() / 4
    return {"storage": "files", "checksums": "sizes"} if large and found.files else {}


# ----------------------------------------------------------------------------------- what is asked


def overrides(texts: Sequence[str]) -> Json:
    """Settings of ``--set key=value``, nested.

    Raises:
        TeddyError: no key and value.
    """
    found: Json = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not (separator and value.strip() and re.fullmatch(r"\w+(\.\w+)+", key)):
            raise TeddyError(f"--set: expected stage.key=value, got {text!r}")
        inner: Json = found
        *parents, last = key.split(".")
        for part in parents:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise TeddyError(f"--set: {text}: {part} has a value already")
        inner[last] = parse_yaml(value, f"--set {key}")
    return found


def joined(one: Json, other: Json) -> Json:
    """Settings with others on top, key by key."""
    both = {
        key: joined(one[key], value) if isinstance(value, dict) and isinstance(one.get(key), dict)
        else value for key, value in other.items()
    }  # fmt: skip
    return {**one, **both}


def name_of(path: Path) -> str:
    """Name of the dataset in rows: what DVC and every file system take of a path's own name."""
    stem = path.name if path.is_dir() else path.stem
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:60] or "images"
    return f"{name}-images" if name in (*OPTIONS, "methods") else name


# ------------------------------------------------------------------------------------ the checkout


def check_folder(out: Path, data: Path) -> None:
    """Refuse a folder that has anything but a former run on the same images.

    Raises:
        TeddyError: saying what is there.
    """
    if data.is_dir() and out.is_relative_to(data):
        raise TeddyError(f"{out}: lies among the images of {data}; name another folder with --out")
    record = out / RECORD
    if record.is_file():
        other = read_json(record).get("data")
        if other != str(data):
            raise TeddyError(
                f"{out}: holds what was made of {other}, not of {data}; name another folder with "
                "--out"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TeddyError(f"{out}: is there already; name another folder with --out")


def write_record(out: Path, data: Path) -> None:
    """Make a folder one of this command, and of these images."""
    write_json(out / RECORD, {"data": str(data)})
    write_text(out / ".gitignore", "*\n")  # so that neither Git nor DVC of a checkout above looks


def write_checkout(
    out: Path, name: str, found: Survey, settings: Mapping[str, Any], wanted: Wanted
) -> None:
    """Write the parameter files, rows and stages of a run; what was made is left alone.

    Args:
        out: folder to write to.
        name: of the dataset.
        found: of its images.
        settings: of the dataset.
        wanted: by the user.
    """
    for folder in ("params", "experiments"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    write_json(out / RAW, {"images": found.images, "sha256": found.sha256})
    write_text(out / "params.yaml", _without_experiments(ROOT / "params.yaml"))
    shutil.copyfile(ROOT / "experiments" / "methods.yaml", out / "experiments" / "methods.yaml")
    _write_yaml(out / "params" / f"{name}.yaml", settings)
    _write_yaml(out / "experiments" / f"{name}.yaml", _rows(name, wanted))
    _write_yaml(out / "dvc.yaml", _stages(name))


def sets_of(name: str, ipc: int) -> dict[str, str]:
    """Rows of the two sets, by method."""
    folder = f"{name}/main/ipc{ipc}"
    return {"teddy-plus": f"{folder}/plus", "random": f"{folder}/random"}


def _rows(name: str, wanted: Wanted) -> Json:
    base, pool, shown = f"{name}/base", f"{name}/prior", f"main/ipc{wanted.ipc}"
    return {
        "on": {name: True},
        "prepared": {name: {"dataset": name}},
        "bases": {base: {"data": name}},
        "pools": {pool: {"data": name, "base": base, "curve": base, "kind": "prior"}},
        "sets": {
            row: {"data": name, "pool": pool, "method": method, "ipc": wanted.ipc,
                  "syntheses": wanted.syntheses}
            for method, row in sets_of(name, wanted.ipc).items()
        },
        "targets": {_PICTURES: {name: {"beside": [shown], "after": shown}}},
    }  # fmt: skip


def _stages(name: str) -> Json:
    """Those of this repository's ``dvc.yaml`` that are needed; other raw files rerun the first."""
    stages = copy.deepcopy(_stages_of_repository())
    stages["resolve"]["deps"] = ["params.yaml", "params", "experiments"]
    stages["prepare"]["do"]["deps"].append(RAW)
    return {"vars": ["experiments/methods.yaml", f"experiments/{name}.yaml"], "stages": stages}


@cache
def _stages_of_repository() -> Json:
    every = read_yaml(ROOT / "dvc.yaml")["stages"]
    own = {stage: every[stage] for stage in _STAGES}
    stages: Json = yaml.safe_load(yaml.safe_dump(own, sort_keys=False))  # to be changed
    return stages


def _without_experiments(path: Path) -> str:
    """The defaults, without settings of other datasets and of figures that need digits."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^(fig1|fig5|theory):.*\n(?: .*\n|\n)*", "", text)
    return re.sub(r"(?m)^datasets:.*\n(?: .*\n|\n)*", "datasets: {}\n\n", text)


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)
    write_text(
        path, "# Written by tools.distill, anew in every run: use --set to change it.\n" + text
    )
