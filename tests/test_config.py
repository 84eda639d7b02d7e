"""``params.yaml``: three layers of settings, and a clear refusal for everything else.

Each test edits a small but complete file; only the last ones read the repository's own.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from teddy.core.errors import TeddyError
from teddy.settings.configs import (
    STAGES,
    NetworkConfig,
    OptimizerConfig,
    RelabelConfig,
    SynthesizeConfig,
    TrainTeacherConfig,
    ViewConfig,
)
from teddy.settings.params import Params
from teddy.settings.schema import from_json, to_json
from teddy.settings.theory import EXPERIMENTS

VIEWS = {"crop_scale": 0.5, "hflip": False, "roll": [0, 0]}
DSA = {
    "operations": ["color", "flip"], "scale": 1.2, "rotate": 15, "crop": 0.125, "cutout": 0.5,
    "brightness": 1, "saturation": 2, "contrast": 0.5,
}  # fmt: skip
DM = {
    "network": {"arch": "convnet3", "width": 32, "norm": "instance"}, "iterations": 9,
    "real_batch": 256, "lr": 1, "momentum": 0.5,
}  # fmt: skip
NETWORK = {"arch": "convnet3", "width": 32, "norm": "batch"}
OPTIMIZER = {
    "name": "sgd", "lr": 0.05, "momentum": 0.9, "betas": [0.9, 0.999], "weight_decay": 1e-4,
    "decay_1d": True, "schedule": "cosine", "step_epochs": 30, "step_factor": 0.1,
    "warmup_epochs": 0,
}  # fmt: skip
REAL: dict[str, Any] = YAML(typ="safe").load(Path(__file__).parents[1] / "params.yaml")


def of_toy(section: dict[str, Any]) -> dict[str, Any]:
    """An experiment's own settings, on the dataset of these tests."""
    return section | {key: "toy" for key in ("dataset", "data") if key in section}


DOCUMENT: dict[str, Any] = {
    "seed": 0,
    **{name: of_toy(REAL[name]) for name in EXPERIMENTS},
    "continual": {"steps": 2, "orders": [0, 1]},
    "step_teachers": {},
    "streams": {},
    "prepared": {"toy": {"dataset": "toy"}},
    "bases": {"toy/base": {"dataset": "toy", "data": "toy"}},
    "pools": {
        "toy/prior": {
            "dataset": "toy", "data": "toy", "base": "toy/base", "curve": "toy/base",
            "kind": "prior",
        },
        "toy/post": {
            "dataset": "toy", "data": "toy", "base": "toy/base", "curve": "toy/base",
            "kind": "post",
        },
        "toy/converged": {
            "dataset": "toy", "data": "toy", "base": "toy/base", "curve": "toy/base",
            "kind": "converged",
        },
    },
    "sets": {
        "toy/prior/ipc1": {
            "dataset": "toy", "data": "toy", "method": "teddy", "pool": "toy/prior", "ipc": 1,
        },
        "toy/sre2l/ipc1": {
            "dataset": "toy", "data": "toy", "method": "sre2l", "pool": "toy/converged",
            "ipc": 1, "draw": 1,
        },
        "toy/random/ipc1": {
            "dataset": "toy", "data": "toy", "method": "random", "pool": "toy/converged", "ipc": 1,
        },
    },
    "scores": {
        "toy/prior/ipc1-members2": {
            "dataset": "toy", "data": "toy", "set": "toy/prior/ipc1", "pool": "toy/prior",
            "members": 2, "labels": ["soft"],
        },
    },
    "targets": {"table1": ["toy/random/ipc1", "toy/prior/ipc1"]},
    "methods": {
        "teddy": {"title": "T", "images": "synthesised", "labels": ["hard", "soft"], "paper": ""},
        "sre2l": {"title": "S", "images": "synthesised", "labels": ["hard", "soft"], "paper": ""},
        "random": {"title": "R", "images": "random", "labels": ["soft"], "paper": "Random"},
    },
    "datasets": {
        "toy": {"title": "Toy", "paper": ""} | {stage: {} for stage in STAGES},
    },
    "prepare": {
        "source": "digits", "root": "", "download": False, "num_classes": 10, "image_size": 8,
        "channels": 1, "storage": "memory", "checksums": "contents",
        "on_checksum_mismatch": "refuse", "on_unreadable": "refuse", "mean": [], "std": [],
        "val_fraction": 0.15, "test_fraction": 0.25, "keep": [1, 1],
    },
    "train_teacher": {
        "network": NETWORK, "epochs": 30, "batch_size": 64, "optimizer": OPTIMIZER,
        "views": VIEWS, "precision": "float32", "checkpoint": "", "claimed_top1": 0,
    },
    "pool": {
        "prior": {"epochs": [1, 2, 3, 4]},
        "post": {
            "size": 9, "pruning_ratio": 0.19, "max_epochs": 2, "checks_per_epoch": 4,
            "lr": [0.001, 0.1], "batch_size": 64, "momentum": 0.9, "weight_decay": 1e-4,
            "views": VIEWS, "bn_recalibrate": False,
        },
    },
    "synthesize": {
        "initialise": "noise", "iterations": 400, "classes_per_batch": 100,
        "indices_per_batch": 10, "lr": 0.1, "betas": [0.5, 0.9], "eps": 1e-8, "weight_decay": 0,
        "alpha_bn": 0.1, "first_bn_weight": 10, "norm": "l2", "variance": "biased",
        "over_teachers": "mean", "ensemble": "logits", "draw": 3, "draw_per": "index",
        "augmentation": "views", "views": VIEWS, "dsa": DSA, "views_per": "batch", "clip": True,
        "class_statistics": "none", "gradient": "two_pass", "dm": DM, "precision": "float32",
    },
    "relabel": {
        "epochs": 150, "augmentation": "views", "views": VIEWS, "dsa": DSA, "cutmix": True,
        "ensemble": "logits", "precision": "float32", "store": True,
    },
    "evaluate": {
        "network": NETWORK, "batch_size": 100, "optimizer": OPTIMIZER, "temperature": 20,
        "temperature_squared": False, "seeds": [0, 1, 2], "eval_epochs": 10,
        "precision": "float32", "divergence": True,
    },
}  # fmt: skip

Read = Callable[..., Params]
MISSING = object()


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read the document with some entries replaced, by their dotted-with-colons path."""

    def read_edited(edits: dict[str, Any] | None = None) -> Params:
        document = copy.deepcopy(DOCUMENT)
        for place, value in (edits or {}).items():
            *parents, last = place.split(":")
            section = document
            for parent in parents:
                section = section[parent]
            if value is MISSING:
                del section[last]
            else:
                section[last] = value
        path = tmp_path / "params.yaml"
        path.write_text(json.dumps(document))  # JSON is YAML
        return Params(path)

    return read_edited


def refusal(read: Read, edits: dict[str, Any]) -> str:
    """The one line that an edited document is refused with."""
    with pytest.raises(TeddyError) as caught:
        read(edits)
    message = str(caught.value)
    assert "\n" not in message
    assert "params.yaml" in message
    return message


# ------------------------------------------------------------------------------------------ layers


def test_whole_document_is_read(read: Read) -> None:
    params = read()
    assert params.seed == 0
    config = params.synthesize("toy/prior/ipc1")
    assert isinstance(config, SynthesizeConfig)
    assert config.views == ViewConfig(crop_scale=0.5, hflip=False, roll=(0, 0))
    assert config.betas == (0.5, 0.9)
    assert params.train_teacher("toy/base").network.width == 32
    assert params.pool("toy/post").prior.epochs == (1, 2, 3, 4)
    assert params.relabel("toy/prior/ipc1").epochs == 150
    assert params.evaluate("toy/prior/ipc1").seeds == (0, 1, 2)
    assert params.prepare("toy").source == "digits"
    assert params.row("sets", "toy/prior/ipc1").ipc == 1
    sizes = [params.pool_size(f"toy/{kind}") for kind in ("prior", "post", "converged")]
    assert sizes == [4, 9, 1]


def test_dataset_overrides_default_and_row_overrides_dataset(read: Read) -> None:
    name = "toy/prior/ipc1"
    assert read().synthesize(name).lr == 0.1
    dataset = {"datasets:toy:synthesize": {"lr": 0.2, "views": {"hflip": True}}}
    config = read(dataset).synthesize(name)
    assert (config.lr, config.alpha_bn) == (0.2, 0.1)
    assert config.views == ViewConfig(crop_scale=0.5, hflip=True, roll=(0, 0))
    row = {f"sets:{name}:lr": 0.3, f"sets:{name}:views": {"roll": [-4, 4]}}
    params = read(dataset | row)
    config = params.synthesize(name)
    assert config.lr == 0.3
    assert config.views == ViewConfig(crop_scale=0.5, hflip=True, roll=(-4, 4))
    other = params.synthesize("toy/sre2l/ipc1")
    assert (other.lr, other.draw) == (0.2, 1)


def test_rows_of_bases_and_pools_override_their_stages(read: Read) -> None:
    params = read(
        {
            "datasets:toy:train_teacher": {"optimizer": {"momentum": 0.5}},
            "bases:toy/base:epochs": 7,
            "bases:toy/base:optimizer": {"lr": 1},
            "pools:toy/prior:prior": {"epochs": [2, 3, 7]},
        }
    )
    teacher = params.train_teacher("toy/base")
    assert (teacher.epochs, teacher.optimizer.lr, teacher.optimizer.momentum) == (7, 1.0, 0.5)
    assert params.pool("toy/prior").prior.epochs == (2, 3, 7)
    assert params.pool("toy/post").prior.epochs == (1, 2, 3, 4)


def test_dataset_overrides_reach_the_stages_without_rows(read: Read) -> None:
    params = read(
        {
            "datasets:toy:prepare": {"val_fraction": 0.3},
            "datasets:toy:relabel": {"cutmix": False},
            "datasets:toy:evaluate": {"network": {"width": 8}},
        }
    )
    assert params.prepare("toy").val_fraction == 0.3
    assert not params.relabel("toy/prior/ipc1").cutmix
    assert params.evaluate("toy/prior/ipc1").network == NetworkConfig(
        arch="convnet3", width=8, norm="batch"
    )


# ---------------------------------------------------------------------------- unknown and missing


@pytest.mark.parametrize(
    "place",
    [
        "sythesize",
        "prepare:sorce",
        "train_teacher:network:widht",
        "train_teacher:optimizer:lrr",
        "pool:priors",
        "pool:prior:epoch",
        "pool:post:views:hflp",
        "synthesize:alpha",
        "synthesize:views:rolls",
        "relabel:cutmixx",
        "evaluate:tempratur",
        "datasets:toy:titel",
        "datasets:toy:synthesize:alpha",
        "datasets:toy:evaluate:optimizer",
        "bases:toy/base:epoch",
        "pools:toy/prior:kinds",
        "sets:toy/prior/ipc1:drew",
        "sets:toy/prior/ipc1:views",
        "methods:teddy:lables",
    ],
)
def test_unknown_key_is_refused_by_name_at_every_level(read: Read, place: str) -> None:
    key = place.rpartition(":")[2]
    value: Any = 1
    if key in ("optimizer", "views"):
        key, value = "lrate", {"lrate": 1}
    assert f"unknown key {key!r}" in refusal(read, {place: value})


def test_unknown_key_of_the_stages_of_a_dataset_is_refused_even_if_no_row_uses_it(
    read: Read,
) -> None:
    edits = {"datasets:other": DOCUMENT["datasets"]["toy"] | {"synthesize": {"alpha": 1}}}
    assert "unknown key 'alpha'" in refusal(read, edits)


def test_near_miss_is_suggested(read: Read) -> None:
    assert "did you mean 'iterations'?" in refusal(read, {"synthesize:iteration": 5})
    assert "did you mean 'toy/prior'?" in refusal(read, {"sets:toy/prior/ipc1:pool": "toy/priro"})


@pytest.mark.parametrize(
    "place",
    [
        "seed", "sets", "datasets", "synthesize", "evaluate", "synthesize:lr",
        "synthesize:views:roll", "train_teacher:network:arch", "pool:post:size", "relabel:store",
        "datasets:toy:title", "datasets:toy:synthesize", "bases:toy/base:dataset",
        "pools:toy/prior:kind", "sets:toy/prior/ipc1:ipc", "methods:teddy:labels",
    ],
)  # fmt: skip
def test_missing_key_is_refused_by_name(read: Read, place: str) -> None:
    message = refusal(read, {place: MISSING})
    assert "lacks the key" in message
    assert place.rpartition(":")[2] in message


# ------------------------------------------------------------------------------------------ types


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("seed", "0", "seed must be a whole number; got '0'"),
        ("seed", True, "seed must be a whole number; got True"),
        ("seed", 1.0, "seed must be a whole number; got 1.0"),
        ("synthesize:iterations", True, "iterations must be a whole number; got True"),
        ("synthesize:iterations", 400.0, "iterations must be a whole number; got 400.0"),
        ("synthesize:lr", "0.1", "lr must be a number; got '0.1'"),
        ("synthesize:lr", True, "lr must be a number; got True"),
        ("synthesize:lr", None, "lr must be a number; got None"),
        ("synthesize:clip", 1, "clip must be true or false; got 1"),
        ("synthesize:clip", "yes", "clip must be true or false; got 'yes'"),
        ("synthesize:norm", "l1", "norm must be one of l2, l2_squared; got 'l1'"),
        ("synthesize:norm", True, "norm must be one of l2, l2_squared; got True"),
        ("synthesize:betas", 0.5, "betas must be a list; got 0.5"),
        ("synthesize:betas", [0.5], r"betas must have 2 entries; got [0.5]"),
        ("synthesize:betas", [0.5, "x"], r"betas[1] must be a number; got 'x'"),
        ("synthesize:views", 3, "views: expected keys, got 3"),
        ("synthesize:views:roll", [0, 0.5], "roll[1] must be a whole number; got 0.5"),
        ("synthesize", 3, "synthesize: expected keys, got 3"),
        ("evaluate:seeds", [0, True], "seeds[1] must be a whole number; got True"),
        ("train_teacher:network:arch", "vgg", "arch must be one of convnet3, resnet18"),
        ("prepare:source", 3, "prepare (for toy).source must be text; got 3"),
        ("prepare:channels", 2, "channels must be one of 1, 3; got 2"),
        ("targets:table1", "toy", "targets.table1 must be a list; got 'toy'"),
        ("datasets:toy:title", 3, "title must be text; got 3"),
        ("datasets:toy:synthesize", 3, "datasets.toy.synthesize: expected keys, got 3"),
        ("datasets:toy:synthesize", {"views": 3}, "views: expected keys, got 3"),
        ("datasets", [], "datasets: expected keys, got []"),
        ("datasets:toy", 3, "datasets.toy"),
        ("bases:toy/base", 3, "bases.toy/base: expected a row of keys"),
        ("sets:toy/prior/ipc1:ipc", "1", "ipc must be a whole number; got '1'"),
        ("pools:toy/prior:kind", "best", "kind must be one of converged, prior, post"),
        ("methods:teddy:labels", ["hart"], "labels[0] must be one of hard, soft; got 'hart'"),
    ],
)
def test_wrong_type_is_refused_with_key_and_value(
    read: Read, place: str, value: Any, expected: str
) -> None:
    assert expected in refusal(read, {place: value})


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "1e-03", "0.001", ".001", "0.1e-2"])
def test_all_spellings_of_a_number_are_numbers(read: Read, tmp_path: Path, text: str) -> None:
    read()
    path = tmp_path / "params.yaml"
    before = '"eps": 1e-08'
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, f'"eps": {text}'))
    eps = Params(path).synthesize("toy/prior/ipc1").eps
    assert (eps, type(eps)) == (0.001, float)


def test_whole_numbers_become_floats_where_floats_are_meant(read: Read) -> None:
    config = read({"synthesize:lr": 1, "synthesize:first_bn_weight": 10}).synthesize(
        "toy/prior/ipc1"
    )
    assert type(config.lr) is type(config.first_bn_weight) is float
    assert type(config.iterations) is int


# ------------------------------------------------------------------------------------------ ranges


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("sets:toy/prior/ipc1:ipc", 0, "ipc must be at least 1, got 0"),
        ("synthesize:iterations", 0, "synthesize.iterations must be at least 1, got 0"),
        ("synthesize:draw", 0, "synthesize.draw must be at least 1, got 0"),
        ("synthesize:classes_per_batch", 0, "synthesize.classes_per_batch must be at least 1"),
        ("synthesize:lr", 0, "synthesize.lr must be above 0, got 0.0"),
        ("synthesize:alpha_bn", -1, "synthesize.alpha_bn must be"),
        ("synthesize:class_statistics", "per_class", "needs synthesize.classes_per_batch 1"),
        ("synthesize:views:crop_scale", 0, "views.crop_scale must be in (0, 1], got 0.0"),
        ("synthesize:views:crop_scale", 1.5, "views.crop_scale must be in (0, 1], got 1.5"),
        ("synthesize:views:roll", [2, 1], "views.roll must be [low, high]"),
        ("train_teacher:epochs", 0, "train_teacher.epochs must be at least 1, got 0"),
        ("train_teacher:batch_size", 1, "train_teacher.batch_size must be"),
        ("train_teacher:network:norm", "instance", "train_teacher.network.norm must be batch"),
        ("prepare:image_size", 0, "image_size must be at least 1"),
        ("prepare:mean", [0.5], "mean and std must be empty or have 1 entries"),
        ("train_teacher:checkpoint", "torchvision", "claimed_top1 must say what accuracy"),
        ("train_teacher:network:width", 0, "network.width must be at least 1, got 0"),
        ("train_teacher:optimizer:lr", 0, "optimizer.lr must be above 0"),
        ("train_teacher:optimizer:weight_decay", -1, "optimizer.weight_decay must be"),
        ("train_teacher:optimizer:step_epochs", 0, "optimizer.step_epochs must be"),
        ("prepare:val_fraction", 0, "val_fraction must be above 0, test_fraction at least 0"),
        ("prepare:val_fraction", 0.75, "val_fraction must be above 0, test_fraction at least 0"),
        ("pool:prior:epochs", [], "pool.prior.epochs must be ascending"),
        ("pool:prior:epochs", [3, 2], "pool.prior.epochs must be ascending"),
        ("pool:prior:epochs", [0, 2], "pool.prior.epochs must be ascending"),
        ("pool:post:size", 0, "pool.post.size must be at least 1"),
        ("pool:post:pruning_ratio", 1, "pool.post.pruning_ratio must be in [0, 1)"),
        ("pool:post:max_epochs", -1, "pool.post.max_epochs must be"),
        ("pool:post:checks_per_epoch", 0, "pool.post.checks_per_epoch must be"),
        ("pool:post:lr", [0, 0.1], "pool.post.lr must be above 0"),
        ("relabel:epochs", 0, "relabel.epochs must be at least 1"),
        ("evaluate:batch_size", 1, "evaluate.batch_size must be"),
        ("evaluate:temperature", 0, "evaluate.temperature must be > 0"),
        ("evaluate:eval_epochs", 0, "evaluate.eval_epochs must be"),
        ("evaluate:seeds", [], "evaluate.seeds must be distinct"),
        ("evaluate:seeds", [1, 1], "evaluate.seeds must be distinct"),
    ],
)
def test_value_out_of_range_is_refused_with_its_key(
    read: Read, place: str, value: Any, expected: str
) -> None:
    assert expected in refusal(read, {place: value})


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("key", ["lr", "alpha_bn", "eps"])
def test_values_that_are_not_finite_are_refused(
    read: Read, tmp_path: Path, key: str, value: str
) -> None:
    read({f"synthesize:{key}": 123.5})
    path = tmp_path / "params.yaml"
    path.write_text(path.read_text().replace("123.5", value))
    with pytest.raises(TeddyError, match=key):
        Params(path)


# ------------------------------------------------------------------------------------------ rows


def test_draw_beyond_the_pool_is_refused(read: Read) -> None:
    message = refusal(read, {"sets:toy/prior/ipc1:draw": 5})
    assert "sets.toy/prior/ipc1" in message
    assert "synthesize.draw is 5, but the pool 'toy/prior' has 4 members" in message
    message = refusal(read, {"sets:toy/sre2l/ipc1:draw": MISSING})
    assert "synthesize.draw is 3, but the pool 'toy/converged' has 1 member" in message
    assert not message.endswith("members")


def test_draw_does_not_matter_to_random_images(read: Read) -> None:
    assert read({"sets:toy/random/ipc1:draw": 3}).synthesize("toy/random/ipc1").draw == 3


def test_epochs_beyond_the_trajectory_are_refused(read: Read) -> None:
    message = refusal(read, {"bases:toy/base:epochs": 3})
    assert "reaches epoch 4, but the base run 'toy/base' ends at epoch 3" in message
    assert "pools.toy/p" in message
    message = refusal(read, {"pools:toy/prior:prior": {"epochs": [1, 31]}})
    assert "pools.toy/prior: pool.prior.epochs reaches epoch 31" in message


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("bases:toy/base:dataset", "bases.toy/base: no dataset named 'absent'"),
        ("pools:toy/prior:dataset", "pools.toy/prior: no dataset named 'absent'"),
        ("pools:toy/prior:base", "pools.toy/prior: no base named 'absent'"),
        ("sets:toy/prior/ipc1:dataset", "sets.toy/prior/ipc1: no dataset named 'absent'"),
        ("sets:toy/prior/ipc1:method", "sets.toy/prior/ipc1: no method named 'absent'"),
        ("sets:toy/prior/ipc1:pool", "sets.toy/prior/ipc1: no pool named 'absent'"),
    ],
)
def test_row_without_its_parent_is_refused(read: Read, place: str, expected: str) -> None:
    assert expected in refusal(read, {place: "absent"})


def test_soft_labels_are_refused_with_dsa(read: Read) -> None:
    dsa = {"relabel:augmentation": "dsa"}
    assert "relabel.augmentation is dsa, which has no soft labels" in refusal(read, dsa)
    hard: dict[str, Any] = {f"methods:{name}:labels": ["hard"] for name in DOCUMENT["methods"]}
    hard["scores"] = {}
    hard["targets"] = {}
    assert read(dsa | hard).relabel("toy/prior/ipc1").augmentation == "dsa"


def test_a_set_that_is_no_repeat_need_not_say_so(read: Read) -> None:
    assert read({}).sets["toy/prior/ipc1"].repeat == 0
    assert read({"sets:toy/prior/ipc1:repeat": 2}).sets["toy/prior/ipc1"].repeat == 2
    assert "repeat must be ≥ 0, got -1" in refusal(read, {"sets:toy/prior/ipc1:repeat": -1})


def test_parent_of_another_dataset_is_refused(read: Read) -> None:
    other = {
        "datasets:other": DOCUMENT["datasets"]["toy"],
        "prepared": {name: {"dataset": name} for name in ("toy", "other")},
    }
    moved = {"sets:toy/prior/ipc1:dataset": "other", "sets:toy/prior/ipc1:data": "other"}
    message = refusal(read, other | moved)
    assert (
        "sets.toy/prior/ipc1 is of dataset 'other', but its parent 'toy/prior' is of 'toy'"
        in message
    )
    moved = {"pools:toy/prior:dataset": "other", "pools:toy/prior:data": "other"}
    message = refusal(read, other | moved)
    assert "pools.toy/prior is of dataset 'other'" in message
    message = refusal(read, other | {"bases:toy/base:data": "other"})
    assert "bases.toy/base is of dataset 'toy', but its parent 'other' is of 'other'" in message


def test_rows_of_a_dataset_that_is_not_prepared_are_refused(read: Read) -> None:
    message = refusal(read, {"prepared": {}})
    assert "bases.toy/base needs the data 'toy': add it to 'prepared', which has nothing" in message
    assert "fig5 needs the data 'tox'; 'prepared' has toy" in refusal(read, {"fig5:data": "tox"})
    assert "no dataset named 'tox'" in refusal(read, {"prepared:tox": {"dataset": "tox"}})


def test_post_pool_imitates_the_curve_of_another_base(read: Read) -> None:
    """As ImageNet-1K's, whose converged network is downloaded."""
    taken = {"dataset": "toy", "data": "toy", "checkpoint": "torchvision", "claimed_top1": 69.76}
    edits = {"bases:toy/taken": taken, "pools:toy/post:base": "toy/taken"}
    assert read(edits).pools["toy/post"].curve == "toy/base"
    message = refusal(read, edits | {"pools:toy/post:curve": "toy/taken"})
    assert "'toy/taken' ends at epoch 1" in message
    assert "no base named 'absent'" in refusal(read, {"pools:toy/post:curve": "absent"})


def test_row_that_does_not_exist_is_refused(read: Read) -> None:
    params = read()
    for ask in (
        lambda: params.synthesize("toy/prior/ipc2"),
        lambda: params.row("sets", "toy/prior/ipc2"),
        lambda: params.evaluate("toy/prior/ipc2"),
        lambda: params.leaf("toy/prior/ipc2"),
    ):
        with pytest.raises(TeddyError, match=r"no .*'toy/prior/ipc2'.*; did you mean"):
            ask()
    with pytest.raises(TeddyError, match="no row 'mnist' in 'prepared'; expected one of: toy"):
        params.prepare("mnist")


# ------------------------------------------------------------------------------------- whole files


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: [", "not valid YAML"), ("- 1", "expected keys, got"), ("", "expected keys, got None"),
     ("a: 1\na: 2", "not valid YAML")],
)  # fmt: skip
def test_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(TeddyError, match=expected) as caught:
        Params(path)
    assert "\n" not in str(caught.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeddyError, match=r"gone\.yaml: cannot read: No such file"):
        Params(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("cls", "section"),
    [
        (NetworkConfig, NETWORK), (OptimizerConfig, OPTIMIZER), (ViewConfig, VIEWS),
        (TrainTeacherConfig, DOCUMENT["train_teacher"]), (RelabelConfig, DOCUMENT["relabel"]),
        (SynthesizeConfig, DOCUMENT["synthesize"]),
    ],
)  # fmt: skip
def test_settings_survive_json(cls: type[Any], section: dict[str, Any]) -> None:
    config = from_json(cls, section, "here")
    assert from_json(cls, json.loads(json.dumps(to_json(config))), "there") == config


@given(st.integers(1, 10**6))
def test_record_with_other_keys_is_refused_with_its_place(width: int) -> None:
    record = to_json(NetworkConfig(arch="convnet3", width=width, norm="batch"))
    with pytest.raises(TeddyError, match=r"file: network: unknown key 'depth'"):
        from_json(NetworkConfig, record | {"depth": 3}, "file: network")
    with pytest.raises(TeddyError, match="file: network lacks the key 'width'"):
        from_json(NetworkConfig, {k: v for k, v in record.items() if k != "width"}, "file: network")


def test_settings_of_the_repository_are_valid() -> None:
    params = Params(Path(__file__).parent.parent / "params.yaml")
    assert params.sets
    for name in params.sets:
        params.synthesize(name), params.relabel(name), params.evaluate(name)


def test_a_score_has_the_settings_of_its_set_and_what_it_changes(read: Read) -> None:
    name = "toy/prior/ipc1-members2"
    params = read(
        {
            "sets:toy/prior/ipc1:evaluate": {"temperature": 4, "batch_size": 10},
            "sets:toy/prior/ipc1:lr": 0.5,
            f"scores:{name}:evaluate": {"batch_size": 20},
            f"scores:{name}:relabel": {"epochs": 3},
        }
    )
    assert params.synthesize("toy/prior/ipc1").lr == 0.5
    assert (params.evaluate(name).temperature, params.evaluate(name).batch_size) == (4, 20)
    assert params.evaluate("toy/prior/ipc1").batch_size == 10
    assert params.evaluate("toy/sre2l/ipc1").batch_size == 100
    assert (params.relabel(name).epochs, params.relabel("toy/prior/ipc1").epochs) == (3, 150)


def test_leaf_says_what_a_score_is_of(read: Read) -> None:
    params = read()
    default, further = params.leaf("toy/prior/ipc1"), params.leaf("toy/prior/ipc1-members2")
    assert (default.members, default.labels, default.set) == (0, ("hard", "soft"), default.name)
    assert (further.members, further.labels, further.set) == (2, ("soft",), "toy/prior/ipc1")
    assert (further.method, further.ipc, further.pool) == ("teddy", 1, "toy/prior")
    assert [leaf.name for leaf in params.leaves()] == [*params.sets, *params.scores]


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"set": "toy/prior/ipc2"}, "no set named 'toy/prior/ipc2'; did you mean"),
        ({"pool": "toy/priors"}, "no pool named 'toy/priors'; did you mean 'toy/prior'"),
        ({"members": 5}, "members is 5, but the pool 'toy/prior' has 4"),
        ({"members": -1}, "members must be ≥ 0, got -1"),
        ({"labels": []}, "labels must be hard, soft or both, got []"),
        ({"lr": 0.1}, "unknown key 'lr'"),
        ({"relabel": 3}, "relabel: expected keys, got 3"),
        ({"evaluate": {"epochs": 3}}, "unknown key 'epochs'"),
    ],
)
def test_bad_scores_are_refused_by_name(read: Read, edits: dict[str, Any], words: str) -> None:
    name = "toy/prior/ipc1-members2"
    message = refusal(read, {f"scores:{name}:{key}": value for key, value in edits.items()})
    assert words in message and name in message


def test_a_score_with_the_name_of_a_set_is_refused(read: Read) -> None:
    row = DOCUMENT["scores"]["toy/prior/ipc1-members2"]
    assert "there is a set of that name" in refusal(read, {"scores": {"toy/prior/ipc1": row}})


def test_targets_list_declared_rows_once(read: Read) -> None:
    message = refusal(read, {"targets:table1": ["toy/prior/ipc2"]})
    assert "targets.table1: no set or score named 'toy/prior/ipc2'; did you mean" in message
    assert "stands there twice" in refusal(read, {"targets:table1": ["toy/prior/ipc1"] * 2})


def test_prepared_rows_override_the_preparation_of_their_dataset(read: Read) -> None:
    thin = {"dataset": "toy", "keep": [0.4, 1]}
    params = read({"prepared:toy-keep40": thin})
    assert params.prepare("toy-keep40").keep == (0.4, 1)
    assert params.prepare("toy").keep == (1, 1)
    for keep in ([0, 1], [0.8, 0.4], [0.5, 1.5]):
        assert "keep must be" in refusal(read, {"prepared:toy:keep": keep})


@pytest.mark.parametrize("name", ["toy/prior/ipc1-lr0.2", "toy//ipc1", "/toy", "../toy"])
def test_row_names_that_dvc_or_files_cannot_take_are_refused(read: Read, name: str) -> None:
    row = {"dataset": "toy", "data": "toy", "method": "teddy", "pool": "toy/prior", "ipc": 2}
    assert repr(name) in refusal(read, {f"sets:{name}": row})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_teacher:optimizer:momentum", 1.5),
        ("train_teacher:optimizer:warmup_epochs", -1),
        ("evaluate:optimizer:betas", [0.9, 1.0]),
        ("synthesize:betas", [1, 2]),
        ("synthesize:eps", 0),
        ("pool:post:batch_size", 0),
        ("methods:teddy:labels", []),
        ("methods:teddy:labels", ["soft", "soft"]),
    ],
)
def test_values_no_run_survives_are_refused(read: Read, key: str, value: object) -> None:
    assert key.rsplit(":", 1)[1] in refusal(read, {key: value})
