"""The parameter files: three layers of settings, rows, and a clear refusal for everything else.

Most tests edit a small but complete checkout; the last ones read the repository's own.
"""

import copy
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from checkouts import METHODS, ROOT, listed
from hypothesis import given
from hypothesis import strategies as st

from teddy.core.errors import TeddyError
from teddy.core.files import write_json
from teddy.data import sources
from teddy.settings.baselines import ResidualMatchingConfig
from teddy.settings.configs import (
    SOURCES,
    STAGES,
    DmConfig,
    EvaluateConfig,
    NetworkConfig,
    OptimizerConfig,
    PriorConfig,
    RelabelConfig,
    SynthesizeConfig,
    TrainTeacherConfig,
    ViewConfig,
)
from teddy.settings.declared import Declared
from teddy.settings.parameters import OPTIONS
from teddy.settings.resolve import stage_files
from teddy.settings.schema import from_json, read_yaml, to_json
from teddy.settings.stages import (
    MeasureCostsSettings,
    SynthesizeSettings,
    TableSettings,
    read_settings,
)
from teddy.settings.theory import EXPERIMENTS
from teddy.stages import commands
from teddy.stages.commands import COMMANDS
from teddy.stages.resolve import write_inputs
from tools.repro import refuse_unfit

VIEWS = {"crop_scale": 0.5, "hflip": False, "roll": [0, 0]}
DSA = {
    "operations": ["color", "flip"], "scale": 1.2, "rotate": 15, "crop": 0.125, "cutout": 0.5,
    "brightness": 1, "saturation": 2, "contrast": 0.5,
}  # fmt: skip
DM = {
    "network": {"arch": "convnet3", "width": 32, "norm": "instance"}, "initialise": "noise",
    "iterations": 9, "classes_per_batch": 10, "real_batch": 256, "lr": 1, "momentum": 0.5,
    "clip": True,
}  # fmt: skip
NETWORK = {"arch": "convnet3", "width": 32, "norm": "batch"}
OPTIMIZER = {
    "name": "sgd", "lr": 0.05, "momentum": 0.9, "betas": [0.9, 0.999], "weight_decay": 1e-4,
    "decay_1d": True, "schedule": "cosine", "step_epochs": 30, "step_factor": 0.1,
    "warmup_epochs": 0,
}  # fmt: skip
REAL = read_yaml(ROOT / "params.yaml")


def of_toy(section: dict[str, Any]) -> dict[str, Any]:
    """An experiment's own settings, on the dataset of these tests."""
    return dict(section) | {key: "toy" for key in ("dataset", "data") if key in section}


PARAMS: dict[str, Any] = {
    "seed": 0,
    "syntheses": 3,
    **{name: of_toy(REAL[name]) for name in EXPERIMENTS},
    "continual": {"steps": 2, "orders": [0, 1]},
    "datasets": {"toy": {"title": "Toy"} | {stage: {} for stage in STAGES}},
    "prepare": {
        "source": "digits", "root": "", "download": False, "num_classes": 10, "image_size": 8,
        "channels": 1, "storage": "memory", "checksums": "contents",
        "on_checksum_mismatch": "refuse", "on_unreadable": "refuse", "mean": [], "std": [],
        "val_fraction": 0.15, "test_fraction": 0.25, "keep": [1, 1], "classes": [],
        "small_classes": "refuse",
    },
    "train_teacher": {
        "network": NETWORK, "epochs": 30, "batch_size": 64, "optimizer": OPTIMIZER,
        "views": VIEWS, "precision": "float32", "checkpoint": "", "claimed_top1": 0,
    },
    "pool": {
        "prior": {"first": 1, "last": 4, "step": 1},
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
        "augmentation": "views", "views": VIEWS, "views_per": "batch",
        "curriculum": "none", "milestone": 1, "clip": True, "class_statistics": "none",
        "gradient": "two_pass", "precision": "float32",
    },
    "dm": DM,
    "plus": {
        "initialise": "kmeans", "easiest": 0.3, "iterations": 100, "classes_per_batch": 100,
        "real_images": 32, "views_per_image": 2, "views": VIEWS, "classifier_weight": 1,
        "lr": 0.05, "betas": [0.5, 0.9], "eps": 1e-8, "clip": True,
    },
    "coreset": {"choose": "kmeans", "scores": "lowest", "easiest": 1, "crops": 10, "views": VIEWS},
    "dsa": DSA,
    "relabel": {
        "epochs": 150, "augmentation": "views", "views": VIEWS, "cutmix": True,
        "ensemble": "logits", "precision": "float32", "store": True, "label_epochs": 0,
        "label_bits": 16, "label_top_k": 0,
    },
    "evaluate": {
        "network": NETWORK, "batch_size": 100, "optimizer": OPTIMIZER, "temperature": 20,
        "temperature_squared": False, "seeds": [0, 1, 2], "eval_epochs": 10,
        "precision": "float32", "divergence": True,
    },
}  # fmt: skip
POOL = {"data": "toy", "base": "toy/base", "curve": "toy/base"}
SET = {"data": "toy", "ipc": 1}
PRIOR, SRE2L, RANDOM = (f"toy/main/ipc1/{name}" for name in ("prior", "sre2l", "random"))
AGAIN, LEARNER = "toy/fig3b/members2", "toy/fig3e/strict"
ROWS: dict[str, Any] = {
    "on": {"toy": True},
    "methods": {
        "teddy": {"title": "T", "algorithm": "teddy", "labels": ["hard", "soft"]},
        "sre2l": {"title": "S", "algorithm": "teddy", "labels": ["hard", "soft"]},
        "random": {"title": "R", "algorithm": "random", "labels": ["soft"], "paper": "Random"},
        "dm": {"title": "D", "algorithm": "dm", "labels": ["hard"]},
    },
    "prepared": {"toy": {"dataset": "toy"}},
    "bases": {"toy/base": {"data": "toy"}},
    "pools": {f"toy/{kind}": {**POOL, "kind": kind} for kind in ("prior", "post", "converged")},
    "sets": {
        PRIOR: {**SET, "method": "teddy", "pool": "toy/prior"},
        SRE2L: {**SET, "method": "sre2l", "pool": "toy/converged", "draw": 1},
        RANDOM: {**SET, "method": "random", "pool": "toy/converged"},
    },
    "evaluations": {
        AGAIN: {
            "data": "toy", "set": PRIOR, "pool": "toy/prior", "members": 2, "labels": ["soft"],
        },
    },
    "experts": {},
    "step_teachers": {"toy/by-step": {"data": "toy"}},
    "learners": {
        LEARNER: {
            "data": "toy", "set": PRIOR, "pool": "toy/prior", "teachers": "toy/by-step",
            "labels": ["soft"],
        },
    },
    "targets": {
        "table1": {"toy": {}},
        "fig3b": {"toy": {"beside": ["main/ipc1/prior"], "after": "main/ipc1/prior.json"}},
        "fig3e": {"toy": {}},
    },
}  # fmt: skip
TOY = "experiments/toy.yaml"

Read = Callable[..., Declared]
MISSING = object()


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read a checkout with some entries replaced, by their path with colons."""

    def read_edited(edits: dict[str, Any] | None = None) -> Declared:
        files = {"params.yaml": copy.deepcopy(PARAMS), TOY: copy.deepcopy(ROWS)}
        for place, value in (edits or {}).items():
            *parents, last = place.split(":")
            first = parents[0] if parents else last
            section = files[TOY if first in ROWS else "params.yaml"]
            for parent in parents:
                section = section[parent]
            if value is MISSING:
                del section[last]
            else:
                section[last] = copy.deepcopy(value)
        write(tmp_path, files)
        return Declared(tmp_path)

    return read_edited


def write(root: Path, files: dict[str, Any], switched_on: tuple[str, ...] = (TOY,)) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)  # JSON is YAML
        (root / name).write_text(text, encoding="utf-8")
    (root / "dvc.yaml").write_text(listed(switched_on), encoding="utf-8")


def refused(ask: Callable[[], object], *words: str) -> str:
    """The one line that something is refused with."""
    with pytest.raises(TeddyError) as caught:
        ask()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    missing = [word for word in words if word not in message]
    assert not missing, message
    return message


def refusal(read: Read, edits: dict[str, Any], *words: str) -> str:
    """The one line that an edited checkout, or a row of it, is refused with; it names a file."""

    def ask() -> None:
        for reason in read(edits).unfit.values():
            raise TeddyError(reason)

    return refused(ask, ".yaml", *words)


# ------------------------------------------------------------------------------------------ layers


def test_whole_checkout_is_read(read: Read) -> None:
    declared = read()
    assert declared.seed == 0
    config = declared.algorithm_config(PRIOR)
    assert isinstance(config, SynthesizeConfig)
    assert config.views == ViewConfig(crop_scale=0.5, hflip=False, roll=(0, 0))
    assert config.betas == (0.5, 0.9)
    assert declared.train_teacher("toy/base").network.width == 32
    assert declared.prior_epochs("toy/prior") == (1, 2, 3, 4)
    assert declared.relabel(PRIOR).epochs == 150
    assert declared.evaluate(PRIOR).seeds == (0, 1, 2)
    assert declared.prepare("toy").source == "digits"
    assert declared.sets[PRIOR].ipc == 1
    sizes = [declared.pool_size(f"toy/{kind}") for kind in ("prior", "post", "converged")]
    assert sizes == [4, 9, 1]
    assert declared.datasets["toy"].title == "Toy"


def test_dataset_overrides_default_and_row_overrides_dataset(read: Read) -> None:
    assert read().algorithm_config(PRIOR).lr == 0.1
    dataset = {"datasets:toy:synthesize": {"lr": 0.2, "views": {"hflip": True}}}
    config = read(dataset).algorithm_config(PRIOR)
    assert (config.lr, config.alpha_bn) == (0.2, 0.1)
    assert config.views == ViewConfig(crop_scale=0.5, hflip=True, roll=(0, 0))
    row = {f"sets:{PRIOR}:lr": 0.3, f"sets:{PRIOR}:views": {"roll": [-4, 4]}}
    declared = read(dataset | row)
    config = declared.algorithm_config(PRIOR)
    assert config.lr == 0.3
    assert config.views == ViewConfig(crop_scale=0.5, hflip=True, roll=(-4, 4))
    other = declared.algorithm_config(SRE2L)
    assert (other.lr, other.draw) == (0.2, 1)


RECIPES = {
    "long": {"relabel": {"epochs": 400}, "evaluate": {"batch_size": 50, "temperature": 3}},
    "hard": {
        "relabel": {"augmentation": "dsa", "cutmix": False, "store": False},
        "evaluate": {"optimizer": {"lr": 0.01, "schedule": "half_cosine"}},
    },
}


def students(declared: Declared, name: str) -> tuple[int, int, float]:
    """What recipes of these tests change: epochs, batch size and temperature."""
    config = declared.evaluate(name)
    return declared.relabel(name).epochs, config.batch_size, config.temperature


def test_recipe_lies_between_a_dataset_and_its_rows(read: Read) -> None:
    own = {"relabel": {"epochs": 20}, "evaluate": {"batch_size": 30}}
    edits = {
        "recipes": RECIPES, "datasets:toy:relabel": own["relabel"],
        "datasets:toy:evaluate": own["evaluate"], f"sets:{PRIOR}:recipe": "long",
    }  # fmt: skip
    assert students(read(edits), SRE2L) == (20, 30, 20)
    assert students(read(edits), PRIOR) == students(read(edits), AGAIN) == (400, 50, 3)
    assert students(read(edits), LEARNER) == (20, 30, 20), "what its set says does not hold for it"
    edits |= {
        f"sets:{PRIOR}:evaluate": {"batch_size": 70},
        f"evaluations:{AGAIN}:relabel": own["relabel"],
    }
    assert students(read(edits), PRIOR) == (400, 70, 3)
    assert students(read(edits), AGAIN) == (20, 70, 3)
    edits |= {"datasets:toy:recipes": {"long": {"relabel": {"epochs": 40}}}}
    assert students(read(edits), PRIOR) == (40, 70, 3), "what the dataset changes of the recipe"
    named = [read(edits).evaluation(name).recipe for name in (PRIOR, AGAIN, SRE2L)]
    assert named == ["long", "long", ""]


def test_evaluation_with_a_recipe_does_not_take_what_its_set_says(read: Read) -> None:
    edits: dict[str, Any] = {
        "recipes": RECIPES, "methods:teddy:labels": ["hard"], f"sets:{PRIOR}:recipe": "hard",
        f"sets:{PRIOR}:evaluate": {"batch_size": 70}, f"evaluations:{AGAIN}:recipe": "long",
        f"learners:{LEARNER}:recipe": "long",
    }  # fmt: skip
    declared = read(edits)
    assert declared.relabel(PRIOR).augmentation == "dsa"
    assert declared.evaluate(PRIOR).optimizer.schedule == "half_cosine"
    assert declared.relabel(AGAIN).augmentation == "views"
    assert declared.evaluate(AGAIN).optimizer == declared.evaluate(SRE2L).optimizer
    assert students(declared, AGAIN) == students(declared, LEARNER) == (400, 50, 3)


def test_recipe_of_a_dataset_holds_for_rows_that_name_none(read: Read) -> None:
    declared = read(
        {"recipes": RECIPES, "datasets:toy:recipe": "long", f"sets:{RANDOM}:relabel": {"epochs": 9}}
    )
    for name in (PRIOR, SRE2L, AGAIN, LEARNER):
        assert students(declared, name) == (400, 50, 3)
        assert declared.recipe(name) == "long"
    assert students(declared, RANDOM) == (9, 50, 3)
    files = {path: made for _, path, made in stage_files(declared)}
    assert files[f"evaluate/{PRIOR}"].evaluation.recipe == "long"
    assert files[f"continual/{LEARNER}"].recipe == "long"
    assert {row.recipe for row in files["table1/toy"].evaluations} == {"long"}
    assert declared.recipes_used() == declared.recipes_used("toy") == ["long"]


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"recipes:long:evaluate:batch_size": 1},
         ["params.yaml: recipes.long.evaluate.batch_size must be at least 2; got 1"]),
        ({"recipes:long:evaluate:optimizer": {"schedule": "half"}},
         ["params.yaml: recipes.long.evaluate.optimizer.schedule must be one of", "half_cosine"]),
        ({"recipes:long:relabel:epoch": 3},
         ["params.yaml: recipes.long.relabel: unknown key 'epoch'", "'epochs'"]),
        ({"recipes:long:evaluate": 3}, ["recipes.long.evaluate must be keys; got 3"]),
        ({"recipes:long:synthesize": {}}, ["recipes.long: unknown key 'synthesize'"]),
        ({"recipes:long": None}, ["recipes.long must be keys; got None"]),
        ({"recipes": []}, ["params.yaml: recipes must be keys; got []"]),
        ({"recipes:a.b": {}}, ["recipes: the name 'a.b' must be letters"]),
        ({"datasets:toy:recipes": {"lnog": {}}},
         ["datasets.toy.recipes: unknown key 'lnog'; did you mean 'long'?"]),
        ({"datasets:toy:recipes": {"long": {"relabel": {"epochs": 0}}}},
         ["params.yaml: datasets.toy.recipes.long.relabel.epochs must be at least 1; got 0"]),
        ({"datasets:toy:recipe": "lnog"},
         ["datasets.toy.recipe must be '' or a key of recipes in params.yaml (hard, long)",
          "got 'lnog'; did you mean 'long'?"]),
        ({"datasets:toy:recipe": None}, ["datasets.toy.recipe must be", "got None"]),
        ({f"sets:{PRIOR}:recipe": "lnog"}, [f"{TOY}: sets.{PRIOR}.recipe must be", "'long'?"]),
        ({f"evaluations:{AGAIN}:recipe": "x"}, [f"evaluations.{AGAIN}.recipe", "got 'x'"]),
        ({f"learners:{LEARNER}:recipe": "x"}, [f"learners.{LEARNER}.recipe", "got 'x'"]),
        ({f"sets:{PRIOR}:recipe": 3}, [f"sets.{PRIOR}.recipe must be text; got 3"]),
        ({f"sets:{PRIOR}:recipe": "hard"}, [f"sets.{PRIOR}", "which has no soft labels"]),
    ],
)  # fmt: skip
def test_wrong_recipes_are_refused_by_name(
    read: Read, edits: dict[str, Any], words: list[str]
) -> None:
    refusal(read, {"recipes": copy.deepcopy(RECIPES), **edits}, *words)


def test_without_recipes_a_row_cannot_name_one(read: Read) -> None:
    assert read().recipes() == {}
    refusal(read, {f"sets:{PRIOR}:recipe": "long"}, "params.yaml (which has none); got 'long'")


def test_settings_of_a_dataset_stand_in_any_one_place(read: Read, tmp_path: Path) -> None:
    own = {"title": "Toy", "evaluate": {"temperature": 5}}
    in_params = read({"datasets:toy": own})
    assert in_params.evaluate(PRIOR).temperature == 5
    files = {"params.yaml": PARAMS | {"datasets": {}}, TOY: ROWS}
    write(tmp_path, files | {"params/toy.yaml": own})
    assert Declared(tmp_path).evaluate(PRIOR).temperature == 5
    assert Declared(tmp_path).where_of_dataset("toy") == str(tmp_path / "params/toy.yaml")
    write(tmp_path, files | {TOY: ROWS | {"datasets": {"toy": own}}})
    refused(
        lambda: Declared(tmp_path),
        f"{TOY}: datasets.toy: settings of that dataset stand in", "params/toy.yaml too",
    )  # fmt: skip
    (tmp_path / "params/toy.yaml").unlink()
    assert Declared(tmp_path).evaluate(PRIOR).temperature == 5
    assert Declared(tmp_path).where_of_dataset("toy") == f"{tmp_path / TOY}: datasets.toy"
    write(tmp_path, {"params.yaml": PARAMS})
    refused(
        lambda: Declared(tmp_path),
        f"{TOY}: datasets.toy: settings of that dataset stand in", "params.yaml too",
    )  # fmt: skip


def test_rows_of_bases_and_pools_override_their_stages(read: Read) -> None:
    declared = read(
        {
            "datasets:toy:train_teacher": {"optimizer": {"momentum": 0.5}},
            "bases:toy/base:epochs": 7,
            "bases:toy/base:optimizer": {"lr": 1},
            "pools:toy/prior:prior": {"first": 2, "last": 7, "step": 2.5},
            "step_teachers:toy/by-step:epochs": 8,
        }
    )
    teacher = declared.train_teacher("toy/base")
    assert (teacher.epochs, teacher.optimizer.lr, teacher.optimizer.momentum) == (7, 1.0, 0.5)
    assert declared.prior_epochs("toy/prior") == (2, 4, 7)
    assert declared.prior_epochs("toy/post") == (1, 2, 3, 4)
    steps = declared.train_step_teachers("toy/by-step")
    assert (steps.epochs, steps.optimizer.momentum) == (8, 0.5)


def test_dataset_overrides_reach_all_stages(read: Read) -> None:
    declared = read(
        {
            "datasets:toy:prepare": {"val_fraction": 0.3},
            "datasets:toy:relabel": {"cutmix": False},
            "datasets:toy:evaluate": {"network": {"width": 8}},
            "datasets:toy:dsa": {"operations": ["flip"]},
        }
    )
    assert declared.prepare("toy").val_fraction == 0.3
    assert not declared.relabel(PRIOR).cutmix
    assert declared.evaluate(PRIOR).network == NetworkConfig(arch="convnet3", width=8, norm="batch")
    assert declared.relabel(PRIOR).dsa.operations == ("flip",)
    assert declared.algorithm_config(PRIOR).dsa == declared.relabel(PRIOR).dsa


def test_a_set_has_the_settings_of_its_algorithm(read: Read) -> None:
    row = {**SET, "method": "dm", "pool": "toy/prior", "iterations": 5}
    made = read({"sets:toy/main/ipc1/dm": row, "datasets:toy:dm": {"lr": 7}})
    config = made.algorithm_config("toy/main/ipc1/dm")
    assert isinstance(config, DmConfig)
    assert (config.iterations, config.lr, config.dsa.rotate) == (5, 7, 15)
    words = "unknown key 'draw'"
    refusal(read, {"sets:toy/main/ipc1/dm": row | {"draw": 1}}, TOY, "toy/main/ipc1/dm", words)
    refusal(read, {f"sets:{RANDOM}:lr": 1}, f"sets.{RANDOM}", "unknown key 'lr'")


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
        "dm:draw",
        "dsa:rotation",
        "relabel:cutmixx",
        "evaluate:tempratur",
        "continual:step",
        "fig1:networks",
        "fig5:eta",
        "theory:tolerance",
        "datasets:toy:titel",
        "datasets:toy:synthesize:alpha",
        "datasets:toy:evaluate:optimizer",
        "datasets:toy:dm:alpha",
        "prepared:toy:keeps",
        "bases:toy/base:epoch",
        "pools:toy/prior:kinds",
        f"sets:{PRIOR}:drew",
        f"sets:{PRIOR}:views",
        f"evaluations:{AGAIN}:lr",
        f"learners:{LEARNER}:draw",
        "step_teachers:toy/by-step:checkpoints",
        "methods:teddy:lables",
        "targets:table1:toy:besides",
    ],
)
def test_unknown_key_is_refused_by_name_at_every_level(read: Read, place: str) -> None:
    key = place.rpartition(":")[2]
    value: Any = 1
    if key in ("optimizer", "views"):
        key, value = "lrate", {"lrate": 1}
    refusal(read, {place: value}, f"unknown key {key!r}")


def test_near_miss_is_suggested(read: Read) -> None:
    refusal(read, {"synthesize:iteration": 5}, "did you mean 'iterations'?")
    refusal(read, {f"sets:{PRIOR}:pool": "toy/priro"}, "did you mean 'toy/prior'?")
    refusal(read, {"train_teacher:network:arch": "resnet19"}, "did you mean 'resnet18'?")
    refusal(read, {"methods:teddy:algorithm": "tedy"}, "did you mean 'teddy'?")
    refusal(read, {f"sets:{PRIOR}:pool": "priro"}, "did you mean 'toy/prior'?")
    refusal(read, {"prepared:toy:dataset": "toi"}, "no settings of the dataset 'toi'", "'toy'?")
    refusal(read, {"targets:fig3f": {"toy": {}}}, "no stage of dvc.yaml makes 'fig3f'", "did you")


@pytest.mark.parametrize(
    ("row", "key", "meant"),
    [
        (f"sets:{PRIOR}", "method", "metod"),
        (f"sets:{PRIOR}", "pool", "pol"),
        (f"sets:{PRIOR}", "ipc", "ipcs"),
        (f"sets:{PRIOR}", "data", "dataa"),
        (f"sets:{RANDOM}", "method", "metod"),
        ("bases:toy/base", "data", "dta"),
        ("pools:toy/prior", "kind", "knd"),
        ("prepared:toy", "dataset", "datset"),
        (f"evaluations:{AGAIN}", "pool", "pol"),
    ],
)
def test_a_mistyped_key_of_a_row_is_named_before_the_one_that_is_missing(
    read: Read, row: str, key: str, meant: str
) -> None:
    section, name = row.split(":")
    edits = {f"{row}:{key}": MISSING, f"{row}:{meant}": ROWS[section][name][key]}
    words = f"{section}.{name}: unknown key {meant!r}; did you mean {key!r}?"
    refusal(read, edits, words)


def test_keys_of_a_row_and_its_stages_are_suggested_beside_those_of_its_settings(
    read: Read,
) -> None:
    for key, meant in (("synthesis", "syntheses"), ("relabl", "relabel"), ("drw", "draw")):
        words = f"sets.{PRIOR}: unknown key {key!r}; did you mean {meant!r}?"
        refusal(read, {f"sets:{PRIOR}:{key}": 1}, words)
    refusal(read, {"bases:toy/base:epoch": 1}, "unknown key 'epoch'; did you mean 'epochs'?")


@pytest.mark.parametrize("stage", ["relabel", "evaluate"])
@pytest.mark.parametrize(
    ("section", "name"), [("sets", PRIOR), ("evaluations", AGAIN), ("learners", LEARNER)]
)
def test_unknown_keys_of_a_stage_within_a_row_are_named_with_the_stage(
    read: Read, section: str, name: str, stage: str
) -> None:
    words = f"{TOY}: {section}.{name}.{stage}: unknown key 'epoch'"
    refusal(read, {f"{section}:{name}:{stage}": {"epoch": 3}}, words)


def test_keys_of_mixed_types_are_refused_in_one_line(read: Read, tmp_path: Path) -> None:
    for place in ("experiments/toy.yaml", "params.yaml"):
        for key in ("1", "~", "true", "1.5", "2024-01-01"):
            read()
            path = tmp_path / place
            path.write_text(path.read_text()[:-1] + f", {key}: {{{key}: 1}}}}", encoding="utf-8")
            refused(lambda: Declared(tmp_path), f"{path}: unknown key")
    read()
    path = tmp_path / "params.yaml"
    path.write_text(path.read_text().replace('"clip": true', "1: 2, ~: 3, clip: true, x: 4"))
    refused(lambda: Declared(tmp_path), f"{path}: synthesize", "unknown key")


def test_names_of_mixed_types_are_no_reason_to_fail(read: Read, tmp_path: Path) -> None:
    read()
    path = tmp_path / "params.yaml"
    text = path.read_text()
    path.write_text(text.replace('"datasets": {"toy"', '1.5: 1, "datasets": {"toy"'))
    refused(lambda: Declared(tmp_path), "unknown key 1.5")
    path.write_text(text.replace('"datasets": {"toy"', '"datasets": {1.5: {}, ~: {}, "tox"'))
    refused(lambda: Declared(tmp_path), "no settings of the dataset 'toy'", "did you mean 'tox'?")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("sets", "a", "kind"), "sets.a: unknown key 'kind'; expected one of: config, data, ipc"),
        (("sets", "a", "config", "lrs"), "sets.a.config: unknown key 'lrs'; did you mean 'lr'?"),
        (("bases", "a", "config", "network", "with"), "did you mean 'width'?"),
    ],
)
def test_unknown_keys_within_rows_of_a_settings_file_are_suggested(
    tmp_path: Path, path: tuple[str, ...], expected: str
) -> None:
    """Which are keys of keys, or entries of lists."""
    whole: Any = {}
    for key in reversed(path):
        whole = {key: whole or 1}
    write_json(tmp_path / "s.json", whole)
    refused(lambda: read_settings(MeasureCostsSettings, tmp_path / "s.json"), expected)


@pytest.mark.parametrize(
    "place",
    [
        "seed", "datasets", "continual", "synthesize", "evaluate", "dsa", "synthesize:lr",
        "synthesize:views:roll", "train_teacher:network:arch", "pool:post:size", "pool:prior:step",
        "relabel:store", "datasets:toy:title", "fig1:ipc", "prepared:toy:dataset",
        "bases:toy/base:data", "pools:toy/prior:kind", f"sets:{PRIOR}:ipc", "methods:teddy:labels",
        f"evaluations:{AGAIN}:set", f"learners:{LEARNER}:teachers",
    ],
)  # fmt: skip
def test_missing_key_is_refused_by_name(read: Read, place: str) -> None:
    refusal(read, {place: MISSING}, f"lacks the key {place.rpartition(':')[2]!r}")


# ------------------------------------------------------------------------------------------ types


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("seed", "0", "params.yaml: seed must be a whole number; got '0'"),
        ("seed", True, "seed must be a whole number; got True"),
        ("seed", 1.0, "seed must be a whole number; got 1.0"),
        ("seed", 2**64, "seed must be below 9.22337e+18; got 18446744073709551616"),
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
        ("synthesize:betas", [0.5], "betas must have 2 entries; got [0.5]"),
        ("synthesize:betas", [0.5, 0.9, 0.9], "betas must have 2 entries; got [0.5, 0.9, 0.9]"),
        ("synthesize:betas", [0.5, "x"], "betas[1] must be a number; got 'x'"),
        ("synthesize:views", 3, "views must be keys; got 3"),
        ("synthesize:views:roll", [0, 0.5], "roll[1] must be a whole number; got 0.5"),
        ("synthesize", 3, "params.yaml: synthesize must be keys; got 3"),
        ("evaluate:seeds", [0, True], "seeds[1] must be a whole number; got True"),
        ("train_teacher:network:arch", "vgg", "got 'vgg'; expected one of: convnet3, densenet121"),
        ("train_teacher:network:arch", 3, "arch must be text; got 3"),
        ("prepare:source", 3, "params.yaml: prepare.source must be text; got 3"),
        ("prepare:channels", 2, "channels must be one of 1, 3; got 2"),
        ("datasets:toy:title", 3, "params.yaml: datasets.toy.title must be text; got 3"),
        ("datasets:toy:synthesize", 3, "datasets.toy.synthesize must be keys; got 3"),
        ("datasets:toy:synthesize", {"views": 3}, "datasets.toy.synthesize.views must be keys"),
        ("datasets", [], "datasets must be keys; got []"),
        ("datasets:toy", 3, "datasets.toy must be keys; got 3"),
        ("datasets:toy", None, "params.yaml: datasets.toy must be keys; got None"),
        (f"sets:{PRIOR}", None, f"sets.{PRIOR} must be keys; got None"),
        (
            "synthesize:views",
            None,
            "params.yaml: synthesize.views must be keys; got None",
        ),
        ("sets", 3, "toy.yaml: sets must be rows; got 3"),
        ("bases:toy/base", 3, "toy.yaml: bases.toy/base must be keys; got 3"),
        (f"sets:{PRIOR}:ipc", "1", "ipc must be a whole number; got '1'"),
        (f"sets:{PRIOR}:views", 3, f"sets.{PRIOR}.views must be keys; got 3"),
        (f"sets:{PRIOR}:relabel", 3, f"sets.{PRIOR}.relabel must be keys; got 3"),
        ("pools:toy/prior:kind", "best", "kind must be one of converged, prior, post"),
        (
            "methods:teddy:labels",
            ["hart"],
            "labels[0] must be one of hard, fixed, soft; got 'hart'",
        ),
        ("targets:table1", "toy", "targets.table1 must be datasets; got 'toy'"),
        ("targets:table1:toy", 3, "targets.table1/toy must be keys; got 3"),
        ("targets:fig3b:toy:beside", "main", "targets.fig3b/toy.beside must be a list; got 'main'"),
    ],
)
def test_wrong_type_is_refused_with_key_and_value(
    read: Read, place: str, value: Any, expected: str
) -> None:
    refusal(read, {place: value}, expected)


def test_whole_numbers_become_floats_where_floats_are_meant(read: Read) -> None:
    config = read({"synthesize:lr": 1, "synthesize:first_bn_weight": 10}).algorithm_config(PRIOR)
    assert type(config.lr) is type(config.first_bn_weight) is float
    assert type(config.iterations) is int


# ------------------------------------------------------------------------------------------ ranges


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("seed", -1, "seed must be at least 0; got -1"),
        ("continual:steps", 0, "continual.steps must be at least 1; got 0"),
        ("continual:orders", [1, 1], "continual: orders must be distinct, got [1, 1]"),
        (f"sets:{PRIOR}:ipc", 0, "ipc must be at least 1; got 0"),
        ("synthesize:iterations", 0, "iterations must be at least 1; got 0"),
        ("synthesize:iterations", 10**12, "iterations must be at most 1e+09"),
        ("synthesize:draw", 0, "draw must be at least 1; got 0"),
        ("synthesize:classes_per_batch", 0, "classes_per_batch must be at least 1; got 0"),
        ("synthesize:lr", 0, "lr must be above 0; got 0"),
        ("synthesize:eps", 0, "eps must be above 0; got 0"),
        ("synthesize:alpha_bn", -1, "alpha_bn must be at least 0; got -1"),
        ("synthesize:betas", [1, 2], "betas[0] must be below 1; got 1"),
        ("synthesize:class_statistics", "per_class", "per_class needs classes_per_batch 1"),
        ("synthesize:views:crop_scale", 0, "views.crop_scale must be above 0; got 0"),
        ("synthesize:views:crop_scale", 1.5, "views.crop_scale must be at most 1; got 1.5"),
        ("synthesize:views:roll", [2, 1], "views: roll must be [low, high], got [2, 1]"),
        ("dm:network:norm", "batch", "network must be convnet3 without BatchNorm"),
        ("dsa:scale", 0.5, "dsa.scale must be at least 1; got 0.5"),
        ("dsa:operations", [], "operations must name at least one"),
        ("train_teacher:epochs", 0, "epochs must be at least 1; got 0"),
        ("train_teacher:batch_size", 1, "batch_size must be at least 2; got 1"),
        ("train_teacher:network:norm", "instance", "network.norm must be batch"),
        ("train_teacher:network:width", 0, "network.width must be at least 1; got 0"),
        ("train_teacher:checkpoint", "torchvision", "claimed_top1 must say what accuracy"),
        ("train_teacher:optimizer:lr", 0, "optimizer.lr must be above 0; got 0"),
        ("train_teacher:optimizer:weight_decay", -1, "optimizer.weight_decay must be at least 0"),
        ("train_teacher:optimizer:step_epochs", 0, "optimizer.step_epochs must be at least 1"),
        ("train_teacher:optimizer:momentum", 1.5, "optimizer.momentum must be below 1; got 1.5"),
        ("train_teacher:optimizer:warmup_epochs", -1, "optimizer.warmup_epochs must be at least 0"),
        ("prepare:image_size", 0, "image_size must be at least 1; got 0"),
        ("prepare:image_size", 10**6, "image_size must be at most 4096; got 1000000"),
        ("prepare:mean", [0.5], "mean and std must be empty or have 1 entries"),
        (
            "train_teacher:network:arch",
            "x" * 999,
            "arch must be path/to/file.py:Name or known, got",
        ),
        ("prepare:source", "x" * 999, "source must be path/to/file.py:name or known, got"),
        ("methods:teddy:algorithm", "x" * 999, "algorithm must be path/to/file.py:Name or known"),
        ("prepare:mean", [0.5] * 999, "must be empty or have 1 entries, got [0.5, 0.5"),
        ("prepare:val_fraction", 0, "val_fraction must be above 0; got 0"),
        ("prepare:val_fraction", 0.75, "must leave training images, got 0.75 and 0.25"),
        (
            "prepare:keep",
            [0, 1],
            "keep must be [low, high] with 0 < low ≤ high ≤ 1, got [0.0, 1.0]",
        ),
        ("prepared:toy:keep", [0.8, 0.4], "keep must be [low, high]"),
        ("prepared:toy:keep", [0.5, 1.5], "keep must be [low, high]"),
        ("pool:prior:first", 0, "prior.first must be at least 1; got 0"),
        ("pool:prior:first", 5, "prior: first is 5, after last, 4"),
        ("pool:prior", {"first": 1, "last": 10**9, "step": 1}, "prior.last must be at most 100000"),
        ("train_teacher:network:width", 10**5, "network.width must be at most 16384; got 100000"),
        ("fig5:depth", 13, "fig5.depth must be at most 12; got 13"),
        ("train_teacher:epochs", 10**6, "epochs must be at most 100000; got 1000000"),
        ("pool:post:size", 10**5, "post.size must be at most 10000; got 100000"),
        ("pool:post:weight_decay", -1, "post.weight_decay must be at least 0; got -1"),
        ("synthesize:weight_decay", -1, "synthesize.weight_decay must be at least 0; got -1"),
        ("synthesize:first_bn_weight", -1, "first_bn_weight must be at least 0; got -1"),
        ("evaluate:optimizer:step_factor", 0, "optimizer.step_factor must be above 0; got 0"),
        ("evaluate:optimizer:step_factor", -1, "optimizer.step_factor must be above 0; got -1"),
        ("synthesize:views:roll", [-(10**19), 10**19], "views.roll[0] must be at least -4096"),
        ("pool:prior:step", 0.5, "prior.step must be at least 1; got 0.5"),
        ("pool:post:size", 0, "post.size must be at least 1; got 0"),
        ("pool:post:pruning_ratio", 1, "post.pruning_ratio must be below 1; got 1"),
        ("pool:post:max_epochs", -1, "post.max_epochs must be at least 0; got -1"),
        ("pool:post:checks_per_epoch", 0, "post.checks_per_epoch must be at least 1; got 0"),
        ("pool:post:lr", [0, 0.1], "post.lr[0] must be above 0; got 0"),
        ("pool:post:batch_size", 0, "post.batch_size must be at least 2; got 0"),
        ("relabel:epochs", 0, "epochs must be at least 1; got 0"),
        ("evaluate:batch_size", 1, "batch_size must be at least 2; got 1"),
        ("evaluate:optimizer:betas", [0.9, 1.0], "optimizer.betas[1] must be below 1; got 1"),
        ("evaluate:temperature", 0, "temperature must be above 0; got 0"),
        ("evaluate:eval_epochs", 0, "eval_epochs must be at least 1; got 0"),
        ("evaluate:seeds", [], "seeds must be distinct, got []"),
        ("evaluate:seeds", [1, 1], "seeds must be distinct, got [1, 1]"),
        ("methods:teddy:labels", [], "labels must be some of hard, fixed, soft, each once, got []"),
        (
            "methods:teddy:labels",
            ["soft", "soft"],
            "labels must be some of hard, fixed, soft, each once",
        ),
    ],
)
def test_value_out_of_range_is_refused_with_its_key(
    read: Read, place: str, value: Any, expected: str
) -> None:
    refusal(read, {place: value}, expected)


@pytest.mark.parametrize(
    "number", [".nan", ".inf", "-.inf", "1e999", "9" * 400, "9" * 5000, "0x" + "f" * 5000]
)
@pytest.mark.parametrize("key", ["lr", "alpha_bn", "iterations"])
def test_numbers_that_are_not_finite_or_too_long_are_refused(
    read: Read, tmp_path: Path, key: str, number: str
) -> None:
    path = tmp_path / "params.yaml"
    read({f"synthesize:{key}": 123})
    path.write_text(path.read_text().replace(f'"{key}": 123', f'"{key}": {number}'))
    refused(lambda: Declared(tmp_path), str(path), key if len(number) < 100 else "digits")


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("synthesize:lr", -1, "params.yaml: synthesize.lr must be above 0"),
        ("datasets:toy:synthesize", {"lr": -1}, "params.yaml: datasets.toy.synthesize.lr must be"),
        (f"sets:{PRIOR}:lr", "x", f"{TOY}: sets.{PRIOR}.lr must be a number; got 'x'"),
        (f"sets:{PRIOR}:draw", 0, f"{TOY}: sets.{PRIOR}.draw must be at least 1; got 0"),
        (f"sets:{PRIOR}:views", {"roll": [2, 1]}, f"{TOY}: sets.{PRIOR}.views: roll must be [low"),
        (f"sets:{PRIOR}:dsa", {"scale": 0}, f"{TOY}: sets.{PRIOR}.dsa.scale must be at least 1"),
        ("datasets:toy:dsa", {"scale": 0}, "params.yaml: datasets.toy.dsa.scale must be at least"),
        ("bases:toy/base:network", {"width": 0}, f"{TOY}: bases.toy/base.network.width must be"),
        ("pools:toy/prior:prior", {"last": 0}, f"{TOY}: pools.toy/prior.prior.last must be at"),
        ("prepared:toy:channels", 2, f"{TOY}: prepared.toy.channels must be one of 1, 3"),
        (f"sets:{PRIOR}:relabel", {"epochs": 0}, f"{TOY}: sets.{PRIOR}.relabel.epochs must be"),
        (
            f"evaluations:{AGAIN}:evaluate",
            {"temperature": 0},
            f"{TOY}: evaluations.{AGAIN}.evaluate.temperature must be above 0; got 0",
        ),
        (
            f"learners:{LEARNER}:evaluate",
            {"network": {"arch": "resnet18", "norm": "none"}},
            f"{TOY}: learners.{LEARNER}.evaluate.network: norm must be batch with arch resnet18",
        ),
        (
            "step_teachers:toy/by-step:epochs",
            0,
            f"{TOY}: step_teachers.toy/by-step.epochs must be at least 1; got 0",
        ),
    ],
)
def test_a_value_is_refused_with_the_file_and_key_that_it_stands_at(
    read: Read, tmp_path: Path, place: str, value: Any, expected: str
) -> None:
    assert refusal(read, {place: value}).startswith(f"{tmp_path}/{expected}")


def test_a_value_of_a_datasets_own_file_is_refused_with_that_file(tmp_path: Path) -> None:
    own = {"title": "Toy", "synthesize": {"lr": -0.1}}
    files = {"params.yaml": PARAMS | {"datasets": {}}, TOY: ROWS, "params/toy.yaml": own}
    write(tmp_path, files)
    words = f"{tmp_path}/params/toy.yaml: synthesize.lr must be above 0; got -0.1"
    refused(lambda: Declared(tmp_path), words)


@pytest.mark.parametrize(("key", "value"), [("lr", "abc"), ("alpha_bn", -3)])
def test_a_default_that_a_dataset_hides_is_checked(read: Read, key: str, value: Any) -> None:
    edits = {f"synthesize:{key}": value, "datasets:toy:synthesize": {key: 1}}
    refusal(read, edits, f"params.yaml: synthesize.{key} must be")


def test_a_default_that_is_not_there_is_no_fault_of_the_dataset(read: Read) -> None:
    edits = {"synthesize:iterations": MISSING, "datasets:toy:synthesize": {"iterations": 1}}
    refusal(read, edits, "params.yaml: synthesize lacks the key 'iterations'")
    refusal(read, {"synthesize:dsa": DSA}, "params.yaml: synthesize: unknown key 'dsa'")


PAPER = [
    ((1, 41, 5), (1, 6, 11, 16, 21, 26, 31, 36, 41)),
    ((21, 61, 5), (21, 26, 31, 36, 41, 46, 51, 56, 61)),
    ((31, 71, 5), (31, 36, 41, 46, 51, 56, 61, 66, 71)),
    ((11, 46, 5), (11, 16, 21, 26, 31, 36, 41, 46)),
    ((16, 50, 5), (16, 21, 26, 31, 36, 41, 46, 50)),
    ((11, 46, 17.5), (11, 28, 46)),
    ((11, 46, 2.5), (11, 13, 16, 18, 21, 23, 26, 28, 31, 33, 36, 38, 41, 43, 46)),
    ((11, 45, 2), tuple(range(11, 46, 2))),
    ((7, 7, 5), (7,)),
    ((1, 2, 100), (1, 2)),
]


@pytest.mark.parametrize(("given", "epochs"), PAPER)
def test_epochs_of_pools_are_the_papers(
    given: tuple[int, int, float], epochs: tuple[int, ...]
) -> None:
    first, last, step = given
    assert PriorConfig(first=first, last=last, step=step).epochs == epochs


@given(st.integers(1, 300), st.integers(0, 300), st.integers(10, 500))
def test_epochs_ascend_from_first_to_last(first: int, more: int, tenths: int) -> None:
    epochs = PriorConfig(first=first, last=first + more, step=tenths / 10).epochs
    assert list(epochs) == sorted(set(epochs))
    assert (epochs[0], epochs[-1]) == (first, first + more)


# ------------------------------------------------------------------------------------------ rows


def test_draw_beyond_the_pool_is_refused(read: Read) -> None:
    draw = "synthesize.draw is 5, but the pool 'toy/prior' has 4 members"
    refusal(read, {f"sets:{PRIOR}:draw": 5}, f"sets.{PRIOR}", draw)
    draw = "synthesize.draw is 3, but the pool 'toy/converged' has 1 member"
    assert not refusal(read, {f"sets:{SRE2L}:draw": MISSING}, draw).endswith("members")


CORESET = "toy/main/ipc1/coreset"


@pytest.mark.parametrize("kind", ["converged", "post", "prior"])
def test_forgetting_asks_for_checkpoints_of_one_run(read: Read, kind: str) -> None:
    edits: dict[str, Any] = {
        "methods:coreset": {"title": "C", "algorithm": "coreset", "labels": ["soft"]},
        f"sets:{CORESET}": {
            **SET, "method": "coreset", "pool": f"toy/{kind}", "choose": "forgetting",
        },
    }  # fmt: skip
    if kind == "prior":
        assert not read(edits).unfit
        edits["pools:toy/prior:prior"] = {"first": 4}
        edits[f"sets:{PRIOR}:draw"] = 1
    refusal(read, edits, f"sets.{CORESET}: choose is forgetting, which needs", f"is {kind} and has")


def test_gradient_matching_without_loops_is_refused_by_name(read: Read) -> None:
    edits: dict[str, Any] = {
        "methods:dc": {"title": "D", "algorithm": "gradient", "labels": ["hard"]},
        f"sets:{CORESET}": {**SET, "method": "dc", "pool": "toy/prior", "ipc": 10},
    }
    assert not read(edits).unfit
    edits[f"sets:{CORESET}"]["ipc"] = 7
    words = f"sets.{CORESET}: outer_loops and inner_loops must be set for ipc 7; the papers have"
    refusal(read, edits, words)
    edits[f"sets:{CORESET}"] |= {"outer_loops": 1, "inner_loops": 1}
    assert not read(edits).unfit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factor": 3}, "factor must divide the sides of the images, 8 pixels"),
        ({"factor": 4}, "leave 4 pixels or more of each crop; got 4"),
        ({"factor": 2, "ipc": 80}, "candidates must be at least the crops of 80 images per class, "
         "320 with factor 2; got 300"),
        ({"crop_scale": 0}, "crop_scale must be above 0"),
        ({"tiles": 2}, "unknown key 'tiles'"),
    ],
)  # fmt: skip
def test_mosaics_that_do_not_fit_are_refused_by_name(
    read: Read, changes: dict[str, Any], words: str
) -> None:
    edits: dict[str, Any] = {
        "methods:rded": {"title": "M", "algorithm": "mosaic", "labels": ["soft"]},
        f"sets:{CORESET}": {**SET, "method": "rded", "pool": "toy/prior", "factor": 2},
    }
    declared = read(edits)
    assert not declared.unfit
    files = {path: made for _, path, made in stage_files(declared)}
    assert files["prepare/toy"].demand.images == 4
    for key, value in changes.items():
        edits[f"sets:{CORESET}:{key}"] = value
    refusal(read, edits, f"sets.{CORESET}", words)


def test_a_row_that_does_not_fit_refuses_no_other(
    read: Read, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read({f"sets:{PRIOR}:draw": 5})
    inputs = tmp_path / "inputs"
    commands.main(["resolve", "--root", str(tmp_path), "--out", str(inputs)])
    warning, _ = capsys.readouterr().err.splitlines()
    reason = f"{tmp_path / TOY}: sets.{PRIOR}: synthesize.draw is 5, but the pool 'toy/prior' has 4"
    assert warning.startswith(f"warning: {reason}")
    for stage in ("synthesize", "relabel", "evaluate"):
        with pytest.raises(SystemExit):
            settings = ["--settings", str(inputs / stage / f"{PRIOR}.json")]
            paths = COMMANDS[stage].reads.keys() | COMMANDS[stage].writes.keys()
            given = [text for key in paths for text in (f"--{key}", str(tmp_path / key))]
            commands.main([stage, *settings, *given])
        assert capsys.readouterr().err.startswith(f"error: {reason}")
    assert read_settings(SynthesizeSettings, inputs / "synthesize" / f"{SRE2L}.json").name == SRE2L
    assert read_settings(TableSettings, inputs / "table1/toy.json").evaluations
    refused(lambda: refuse_unfit({"evaluate@toy", f"synthesize@{PRIOR}"}, inputs), reason)
    refuse_unfit({f"synthesize@{SRE2L}", "table1@toy", "report", "fig9"}, inputs)


MTT = "toy/main/ipc1/mtt"
EXPERTS: dict[str, Any] = {
    "methods:mtt": {"title": "M", "algorithm": "trajectory", "labels": ["hard"]},
    "experts:toy/experts": {"data": "toy", "count": 2, "epochs": 4},
    f"sets:{MTT}": {
        "data": "toy", "method": "mtt", "pool": "toy/experts", "ipc": 1, "max_start": 3,
        "expert_epochs": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["gradient", "idm", "trajectory"])
def test_methods_of_others_and_experts_have_the_datasets_dsa(read: Read, name: str) -> None:
    no_flips = ["color", "crop"]
    edits = {"methods:mtt:algorithm": name, "datasets:toy:dsa": {"operations": no_flips}}
    own = {} if name == "trajectory" else {f"sets:{MTT}": {
        "data": "toy", "method": "mtt", "pool": "toy/prior", "ipc": 1,
    }}  # fmt: skip
    declared = read({**EXPERTS, **own, **edits, f"sets:{MTT}:dsa": {"rotate": 0}})
    found = declared.algorithm_config(MTT).dsa
    assert list(found.operations) == no_flips and found.rotate == 0 and found.scale == DSA["scale"]
    experts = declared.experts_config("toy/experts").dsa
    assert list(experts.operations) == no_flips and experts.rotate == DSA["rotate"]
    wrong = {**EXPERTS, **own, **edits, f"sets:{MTT}:dsa": {"rotation": 0}}
    refusal(read, wrong, f"sets.{MTT}.dsa: unknown key 'rotation'")


def test_experts_are_a_pool_of_their_own_kind(read: Read) -> None:
    declared = read(EXPERTS)
    assert not declared.unfit and declared.pool_size("toy/experts") == 2
    files = {path: made for _, path, made in stage_files(declared)}
    assert files["train_experts/toy/experts"].config.epochs == 4
    assert files[f"synthesize/{MTT}"].config["max_start"] == 3


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (f"sets:{MTT}:max_start", 4, f"sets.{MTT}: max_start 4 and expert_epochs 2 need 5 epochs"),
        (f"sets:{MTT}:pool", "toy/prior", f"sets.{MTT}: pool must be a row of experts"),
        (f"sets:{MTT}:pool", "toy/absent", f"sets.{MTT}: no row 'toy/absent' in pools"),
        (f"sets:{PRIOR}:pool", "toy/experts", f"sets.{PRIOR}: pool 'toy/experts' has experts"),
        ("experts:toy/experts:network", {"arch": "convnet3", "width": 8, "norm": "batch"},
         "experts.toy/experts: network must have no BatchNorm"),
        ("experts:toy/experts:epoch", 4, "experts.toy/experts: unknown key 'epoch'"),
        ("experts:toy/experts:count", 0, "experts.toy/experts.count must be at least 1"),
        ("experts:toy/base", {"data": "toy"}, "experts.toy/base:"),
        (f"learners:{LEARNER}:pool", "toy/experts", f"learners.{LEARNER}: strict teachers need"),
    ],
)  # fmt: skip
def test_experts_that_do_not_fit_are_refused_by_name(
    read: Read, key: str, value: object, words: str
) -> None:
    refusal(read, {**EXPERTS, key: value}, words)


FADRM = "toy/main/ipc1/fadrm"
RESIDUAL: dict[str, Any] = {
    "methods:fadrm": {"title": "F", "algorithm": "residual", "labels": ["hard"]},
    f"sets:{FADRM}": {
        "data": "toy", "method": "fadrm", "pool": "toy/converged", "ipc": 1, "draw": 1,
        "initialise": "real", "crop_views": {"hflip": True},
    },
}  # fmt: skip


def test_residual_matching_has_the_section_of_eq7_and_keys_of_its_own(read: Read) -> None:
    declared = read(RESIDUAL)
    config = declared.algorithm_config(FADRM)
    assert isinstance(config, ResidualMatchingConfig) and not declared.unfit
    smaller = {f"sets:{FADRM}:sizes": [4, 7, 8]}  # padded to 8, 11 and 12 pixels
    assert not read(RESIDUAL | smaller).unfit
    assert (config.sizes, config.alpha, config.lr) == ((0, 0, 0, 0), 0.5, 0.1)
    assert config.crop_views == ViewConfig(crop_scale=0.5, hflip=True, roll=(0, 0))
    assert type(declared.algorithm_config(PRIOR)) is SynthesizeConfig
    files = {path: made for _, path, made in stage_files(declared)}
    made = files[f"synthesize/{FADRM}"]
    assert made.config["crops"] == 10 and made.small_classes == "refuse"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("initialise", "noise", "initialise must be real: images begin with real crops"),
        ("sizes", [9, 0], "sizes must be at most 8, the side of the images, and end with it or 0"),
        ("sizes", [0, 6], "sizes must be at most 8, the side of the images, and end with it or 0"),
        ("sizes", [3, 8], "sizes must have as many pixels after convnet3's three halvings"),
        ("sizes", [], "sizes must be those of 1 to 400 phases"),
        ("sizes", [-1], "sizes[0] must be at least 0; got -1"),
        ("alpha", 1.5, "alpha must be at most 1; got 1.5"),
        ("crops", 0, "crops must be at least 1; got 0"),
        ("size", [0], "unknown key 'size'; did you mean 'sizes'?"),
    ],
)
def test_phases_that_do_not_fit_are_refused_by_name(
    read: Read, key: str, value: object, words: str
) -> None:
    refusal(read, {**RESIDUAL, f"sets:{FADRM}:{key}": value}, f"sets.{FADRM}", words)


def test_keys_of_residual_matching_are_no_keys_of_eq7(read: Read) -> None:
    refusal(read, {f"sets:{PRIOR}:alpha": 0.5}, f"sets.{PRIOR}: unknown key 'alpha'")
    refusal(read, {"synthesize:sizes": [0]}, "params.yaml: synthesize: unknown key 'sizes'")


def test_epochs_beyond_the_trajectory_are_refused(read: Read) -> None:
    ends = "reaches epoch 4, but the base run 'toy/base' ends at epoch 3"
    refusal(read, {"bases:toy/base:epochs": 3}, "pools.toy/p", ends)
    refusal(read, {"pools:toy/prior:prior": {"last": 31}}, "pools.toy/prior", "reaches epoch 31")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("bases:toy/base:data", "bases.toy/base: no row 'absent' in prepared"),
        ("pools:toy/prior:data", "pools.toy/prior: no row 'absent' in prepared"),
        ("pools:toy/prior:base", "pools.toy/prior: no row 'absent' in bases"),
        ("pools:toy/prior:curve", "pools.toy/prior: no row 'absent' in bases"),
        (f"sets:{PRIOR}:data", f"sets.{PRIOR}: no row 'absent' in prepared"),
        (f"sets:{PRIOR}:method", f"sets.{PRIOR}: no row 'absent' in methods"),
        (f"sets:{PRIOR}:pool", f"sets.{PRIOR}: no row 'absent' in pools"),
        (f"evaluations:{AGAIN}:set", f"evaluations.{AGAIN}: no row 'absent' in sets"),
        (f"evaluations:{AGAIN}:pool", f"evaluations.{AGAIN}: no row 'absent' in pools"),
        ("step_teachers:toy/by-step:data", "step_teachers.toy/by-step: no row 'absent'"),
        (f"learners:{LEARNER}:set", f"learners.{LEARNER}: no row 'absent' in sets"),
        (f"learners:{LEARNER}:pool", f"learners.{LEARNER}: no row 'absent' in pools"),
        (f"learners:{LEARNER}:teachers", "a row of step_teachers, got 'absent'"),
        ("fig1:data", "params.yaml: fig1.data: no row 'absent' in prepared"),
        ("fig5:dataset", "fig5 is of dataset 'absent', but its parent 'toy' is of 'toy'"),
    ],
)
def test_row_without_its_parent_is_refused(read: Read, place: str, expected: str) -> None:
    refusal(read, {place: "absent"}, expected)


def test_soft_labels_are_refused_with_dsa(read: Read) -> None:
    dsa = {"relabel:augmentation": "dsa"}
    refusal(read, dsa, f"sets.{PRIOR}", "relabel.augmentation is dsa, which has no soft labels")
    hard: dict[str, Any] = {f"methods:{name}:labels": ["hard"] for name in ROWS["methods"]}
    hard |= {f"evaluations:{AGAIN}:labels": ["hard"], f"learners:{LEARNER}:labels": ["hard"]}
    assert read(dsa | hard).relabel(PRIOR).augmentation == "dsa"


def test_a_set_is_made_as_often_as_it_or_all_of_them_say(read: Read) -> None:
    everyone = read({"syntheses": 4})
    assert (everyone.syntheses(PRIOR), everyone.syntheses(RANDOM)) == (4, 4)
    own = read({"syntheses": 4, f"sets:{PRIOR}:syntheses": 2})
    assert (own.syntheses(PRIOR), own.syntheses(RANDOM)) == (2, 4)
    refusal(read, {f"sets:{PRIOR}:syntheses": -1}, "syntheses must be at least 0; got -1")
    refusal(read, {"syntheses": 0}, "syntheses must be at least 1; got 0")


def test_parent_of_another_dataset_is_refused(read: Read) -> None:
    other = {
        "datasets:other": {"title": "Other"},
        "prepared": {name: {"dataset": name} for name in ("toy", "other")},
    }
    expected = f"sets.{PRIOR} is of dataset 'other', but its parent 'toy/prior' is of 'toy'"
    refusal(read, other | {f"sets:{PRIOR}:data": "other"}, expected)
    expected = "pools.toy/prior is of dataset 'other', but its parent 'toy/base' is of 'toy'"
    refusal(read, other | {"pools:toy/prior:data": "other"}, expected)
    refusal(read, other | {"bases:toy/base:data": "other"}, "but its parent 'toy/base' is of")
    refusal(read, other | {f"evaluations:{AGAIN}:data": "other"}, f"but its parent {PRIOR!r} is of")
    refusal(read, other | {f"learners:{LEARNER}:data": "other"}, f"but its parent {PRIOR!r} is of")


def test_rows_of_a_dataset_that_is_not_prepared_are_refused(read: Read) -> None:
    refusal(read, {"prepared": {}}, "no row 'toy' in prepared; expected one of: nothing")
    refusal(read, {"fig5:data": "tox"}, "fig5.data: no row 'tox' in prepared; did you mean 'toy'?")


def test_a_dataset_without_settings_is_refused(read: Read, tmp_path: Path) -> None:
    refusal(
        read, {"datasets": {}},
        f"{tmp_path / TOY}: prepared.toy: no settings of the dataset 'toy': expected "
        f"{tmp_path / 'params/toy.yaml'}, or datasets.toy in params.yaml",
    )  # fmt: skip


def test_post_pool_imitates_the_curve_of_another_base(read: Read) -> None:
    """As ImageNet-1K's, whose converged network is downloaded."""
    taken = {"data": "toy", "checkpoint": "torchvision", "claimed_top1": 69.76}
    edits = {"bases:toy/taken": taken, "pools:toy/post:base": "toy/taken"}
    assert read(edits).pools["toy/post"].curve == "toy/base"
    refusal(read, edits | {"pools:toy/post:curve": "toy/taken"}, "'toy/taken' ends at epoch 1")
    words = "shufflenet_v2_x1_0 cannot be pruned; choose kind prior or converged"
    refusal(read, {"train_teacher:network:arch": "shufflenet_v2_x1_0"}, "pools.toy/post", words)


def test_prepared_rows_override_the_preparation_of_their_dataset(read: Read) -> None:
    declared = read({"prepared:toy-keep40": {"dataset": "toy", "keep": [0.4, 1]}})
    assert declared.prepare("toy-keep40").keep == (0.4, 1)
    assert declared.prepare("toy").keep == (1, 1)


def test_an_evaluation_has_the_settings_of_its_set_and_what_it_changes(read: Read) -> None:
    declared = read(
        {
            f"sets:{PRIOR}:evaluate": {"temperature": 4, "batch_size": 10},
            f"sets:{PRIOR}:lr": 0.5,
            f"evaluations:{AGAIN}:evaluate": {"batch_size": 20},
            f"evaluations:{AGAIN}:relabel": {"epochs": 3},
        }
    )
    assert declared.algorithm_config(PRIOR).lr == 0.5
    assert (declared.evaluate(AGAIN).temperature, declared.evaluate(AGAIN).batch_size) == (4, 20)
    assert declared.evaluate(PRIOR).batch_size == 10
    assert declared.evaluate(SRE2L).batch_size == 100
    assert (declared.relabel(AGAIN).epochs, declared.relabel(PRIOR).epochs) == (3, 150)


def test_a_learner_leaves_what_its_set_overrides(read: Read) -> None:
    edits = {
        f"sets:{PRIOR}:evaluate": {"temperature": 4},
        f"learners:{LEARNER}:relabel": {"epochs": 2},
    }
    declared = read(edits)
    assert (declared.evaluate(PRIOR).temperature, declared.evaluate(LEARNER).temperature) == (4, 20)
    assert declared.relabel(LEARNER).epochs == 2


def test_an_evaluation_says_what_students_learn_from(read: Read) -> None:
    declared = read()
    own, again = declared.evaluation(PRIOR), declared.evaluation(AGAIN)
    assert (own.members, own.labels, own.set) == (0, ("hard", "soft"), own.name)
    assert (again.members, again.labels, again.set) == (2, ("soft",), PRIOR)
    assert (again.method, again.ipc, again.pool, again.dataset) == ("teddy", 1, "toy/prior", "toy")
    assert declared.is_default(PRIOR) and not declared.is_default(AGAIN)


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"members": 5}, "members is 5, but the pool 'toy/prior' has 4"),
        ({"members": -1}, "members must be at least 0; got -1"),
        ({"labels": []}, "labels must be some of hard, fixed, soft, each once, got []"),
        ({"relabel": 3}, "relabel must be keys; got 3"),
        ({"evaluate": {"epochs": 3}}, "unknown key 'epochs'"),
    ],
)
def test_bad_evaluations_are_refused_by_name(read: Read, edits: dict[str, Any], words: str) -> None:
    changes = {f"evaluations:{AGAIN}:{key}": value for key, value in edits.items()}
    refusal(read, changes, words, TOY, AGAIN)


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"pool": "toy/post"}, "cannot be pruned copies"),
        ({"teachers": "toy/post"}, "teachers must be its pool 'toy/prior'"),
        ({"labels": []}, "labels must be some of hard, fixed, soft, each once"),
        ({"relabel": {"augmentation": "dsa"}}, "has no soft labels"),
    ],
)
def test_bad_learners_are_refused_by_name(read: Read, edits: dict[str, Any], words: str) -> None:
    changes = {f"learners:{LEARNER}:{key}": value for key, value in edits.items()}
    refusal(read, changes, words, TOY, LEARNER)


def test_strict_teachers_are_the_epochs_of_the_pool(read: Read) -> None:
    assert read().step_epochs(LEARNER) == (1, 2, 3, 4)
    alone = {f"learners:{LEARNER}:pool": "toy/converged"}
    assert read(alone).step_epochs(LEARNER) == (30,)
    assert read({f"learners:{LEARNER}:teachers": "toy/prior"}).step_epochs(LEARNER) == ()
    needs = f"learners.{LEARNER}: needs epoch 4 of step_teachers.toy/by-step, whose runs end at"
    refusal(read, {"step_teachers:toy/by-step:epochs": 3}, needs)
    taken = {"checkpoint": "torchvision", "claimed_top1": 60, "data": "toy"}
    refusal(read, {"step_teachers:toy/by-step": taken}, "checkpoint must be ''")


# ----------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["a-lr0.2", "toy//ipc1", "/toy", "../toy", "toy/", "--help", "-x", "toy/-x", "_x", " ",
             "", "ä", "toy/a b", "toy/$x", "x" * 300, "toy\n"],
)  # fmt: skip
def test_row_names_that_dvc_or_files_cannot_take_are_refused(read: Read, name: str) -> None:
    words = "must be letters, digits, '_' and '-', in parts joined by '/'"
    row = {**SET, "method": "random", "pool": "toy/prior"}
    refusal(read, {"sets": ROWS["sets"] | {name: row}}, f"{TOY}: sets: the name", words)
    refusal(read, {"prepared": ROWS["prepared"] | {name: {"dataset": "toy"}}}, words)


@pytest.mark.parametrize("name", ["1", "~", "true", "1.5", "null"])
def test_row_names_that_yaml_takes_for_something_else_are_refused(
    read: Read, tmp_path: Path, name: str
) -> None:
    read()
    path = tmp_path / TOY
    path.write_text(
        path.read_text().replace('"bases": {', f'"bases": {{{name}: {{"data": "toy"}}, ')
    )
    refused(lambda: Declared(tmp_path), f"{path}: bases: the name", "must be letters")


def test_outputs_of_two_rows_may_not_be_one_or_lie_in_each_other(read: Read) -> None:
    base = {"pools:toy/base": {**POOL, "kind": "prior"}}
    refusal(read, base, "pools.toy/base: ", f"{TOY}: bases.toy/base has that name too")
    inside = {"bases:toy/prior/base": {"data": "toy"}}
    words = "bases.toy/prior/base: its files would lie in those of"
    refusal(read, inside, words, "pools.toy/prior; rename one")
    deep = {"sets": ROWS["sets"] | {f"{PRIOR}/again": ROWS["sets"][RANDOM]}}
    refusal(read, deep, f"sets.{PRIOR}/again: its files would lie in those of", f"sets.{PRIOR};")
    row = ROWS["evaluations"][AGAIN]
    refusal(read, {f"evaluations:{PRIOR}": row}, "there is a set of that name too; rename one")
    row = ROWS["learners"][LEARNER]
    refusal(read, {f"learners:{PRIOR}": row}, "there is a set or evaluation of that name too")


def test_rows_of_one_name_in_two_files_are_refused(read: Read, tmp_path: Path) -> None:
    read()
    other = "experiments/other.yaml"
    write(
        tmp_path, {other: {"on": {"other": True}, "bases": {"toy/base": {"data": "toy"}}}},
        (TOY, other),
    )  # fmt: skip
    refused(
        lambda: Declared(tmp_path),
        f"{tmp_path / other}: bases.toy/base: there is a row of that name in {tmp_path / TOY} too",
    )
    write(
        tmp_path, {other: {"on": {"other": True}, "targets": {"table1": {"toy": {}}}}}, (TOY, other)
    )
    refused(lambda: Declared(tmp_path), "targets.table1/toy: there is a row of that name in")
    write(tmp_path, {other: {"on": {"other": True}, "datasets": {"toy": {}}}}, (TOY, other))
    refused(lambda: Declared(tmp_path), f"{other}: datasets.toy: settings of that dataset stand in")


# --------------------------------------------------------------------------- tables and figures


def test_a_target_shows_the_rows_named_after_it_and_those_beside(read: Read) -> None:
    declared = read()
    assert declared.shown("table1", "toy") == [PRIOR, SRE2L, RANDOM]
    assert declared.shown("fig3b", "toy") == [PRIOR, AGAIN]
    assert declared.shown("fig3e", "toy") == [LEARNER]
    for beside in (["main/ipc1"], ["main/ipc1/prior", "main/ipc1"]):
        folder = {"targets:fig4-6-7": {"toy": {"beside": beside, "after": "main"}}}
        assert read(folder).shown("fig4-6-7", "toy") == [PRIOR, SRE2L, RANDOM], "each once"


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        (
            {"sets:toy/main/other": {**ROWS["sets"][PRIOR], "draw": 2}},
            f"sets.toy/main/other: {PRIOR} (hard) and toy/main/other (hard) would share a place in "
            "table1 of toy (arch convnet3, method teddy, ipc 1, labels hard): change one of these",
        ),
        (
            {"evaluations:toy/fig3b/again": ROWS["evaluations"][AGAIN]},
            f"evaluations.toy/fig3b/again: {AGAIN} (soft) and toy/fig3b/again (soft) would share a "
            "place in fig3b of toy (arch convnet3, members 2, ipc 1, labels soft)",
        ),
        (
            {f"evaluations:{AGAIN}:members": 0},
            f"evaluations.{AGAIN}: {PRIOR} (soft) and {AGAIN} (soft) would share a place in fig3b "
            "of toy (arch convnet3, members 4, ipc 1, labels soft)",
        ),
        (
            {"sets:toy/fig2c/post": {**ROWS["sets"][PRIOR], "pool": "toy/post"}},
            "sets.toy/fig2c/post: it has no stages, along which fig2c of toy shows it",
        ),
        (
            {"sets:toy/fig3a/random": ROWS["sets"][RANDOM]},
            "sets.toy/fig3a/random: it has no teachers drawn, along which fig3a of toy shows it",
        ),
    ],
)
def test_rows_that_would_share_a_place_in_a_table_are_refused(
    read: Read, edits: dict[str, Any], words: str
) -> None:
    after = {"after": "main/ipc1/prior.json", "beside": ["main/ipc1/prior"]}
    added = {
        f"targets:{target}": {"toy": row}
        for target, row in (("fig2c", {}), ("fig3a", after))
        if any(target in place for place in edits)
    }
    refusal(read, added | edits, f"{TOY}: {words}")
    apart = {"sets:toy/main/other": {**ROWS["sets"][PRIOR], "ipc": 2}}
    assert read(apart).shown("table1", "toy")[-1] == "toy/main/other"


def test_rows_of_the_one_recipe_differ_in_their_images_alone(read: Read) -> None:
    def unfit(**changes: Any) -> dict[tuple[str, str], str]:
        one = {**ROWS["evaluations"][AGAIN], "members": 0, "recipe": "long"}
        return read(
            {
                "recipes": RECIPES,
                "targets:recipes": {"toy": {}},
                "evaluations:toy/recipes/random": {**one, "set": RANDOM},
                "evaluations:toy/recipes/prior": {**one, **changes},
            }
        ).unfit

    other_network = {"evaluate": {"network": {"arch": "resnet18"}}}  # a table of its own
    assert unfit() == unfit(**other_network) == {}
    for change in ({"pool": "toy/post"}, {"members": 1}, {"relabel": {"epochs": 6}}):
        assert (
            f"{TOY}: targets.recipes/toy: toy/recipes/random and toy/recipes/prior have the recipe "
            "long, but differ in pool, members or settings of labels and students"
        ) in unfit(**change)["targets", "recipes/toy"]


def test_a_row_that_nobody_shows_is_refused(read: Read) -> None:
    row = ROWS["sets"][RANDOM]
    nobody = "no table or figure shows it: its name must begin with toy/ and one of main, fig3b"
    for name in ("toy/table5/a", "toy/mains/a", "toy/a", "other/main/a", "toy/fig3e/a"):
        refusal(read, {f"sets:{name}": row}, f"sets.{name}: {nobody}")
    again, learner = ROWS["evaluations"][AGAIN], ROWS["learners"][LEARNER]
    refusal(read, {"evaluations:toy/fig3e/a": again}, "evaluations.toy/fig3e/a: no table")
    refusal(read, {"learners:toy/fig3b/a": learner}, "with toy/ and one of fig3e")
    none = f"sets.{SRE2L}: no table or figure shows it: targets has none of toy for sets"
    refusal(read, {"targets": {}}, none)
    no_rows: dict[str, Any] = {key: {} for key in ("sets", "evaluations", "learners", "targets")}
    assert {"overview", "report"} < {path for _, path, _ in stage_files(read(no_rows))}
    used = {"sets:toy/images": row, f"evaluations:{AGAIN}:set": "toy/images"}
    assert "toy/images" in read(used | {f"evaluations:{AGAIN}:pool": "toy/prior"}).sets


def test_a_target_that_shows_no_row_is_refused(read: Read) -> None:
    refusal(
        read, {"targets:table2": {"toy": {}}},
        f"{TOY}: targets.table2/toy: shows no row: name rows toy/table2/…, or remove it",
    )  # fmt: skip
    refusal(read, {"targets:fig3e": MISSING}, f"learners.{LEARNER}: no table or figure shows it")
    beside = {"beside": ["main/ipc1/prior"], "after": "main/ipc1/prior.json"}
    refusal(read, {"targets:fig3a": {"toy": beside}}, "fig3a/toy: shows no row of its own")
    grid = {"beside": ["main/ipc1"], "after": "main/ipc1"}
    assert len(read({"targets:fig4-6-7": {"toy": grid}}).shown("fig4-6-7", "toy")) == 3
    refusal(read, {"targets:table1": {"tox": {}}}, "targets.table1/tox: no dataset 'tox'; did you")
    refusal(read, {"targets:table9": {"toy": {}}}, "no stage of dvc.yaml makes 'table9'")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"beside": ["main/ipc2"], "after": "main"}, ".beside: no row 'main/ipc2' of toy"),
        ({"beside": ["main/ipc1/pri"], "after": "main"}, "did you mean 'main/ipc1/prior'?"),
        ({"beside": ["main/ipc1"], "after": "main/ipc1/prior.json"}, "does not lie in"),
        ({"beside": ["main/ipc1/prior"], "after": "main/ipc"}, "no record or folder of toy"),
        ({"beside": ["main/ipc1/prior"], "after": "main/ipc1/prior"}, "no record or folder"),
        ({"beside": ["main/ipc1/prior"], "after": "main/ipc1.json"}, "no record or folder"),
        ({"beside": ["main/ipc1/prior"]}, "lacks the key 'after', which its stage reads"),
        ({}, "lacks the key 'after', which its stage reads"),
    ],
)
def test_what_a_target_shows_beside_its_own_rows_is_checked(
    read: Read, row: dict[str, Any], words: str
) -> None:
    refusal(read, {"targets:fig3b:toy": row}, f"{TOY}: targets.fig3b/toy", words)


def test_figure_3d_measures_no_set_that_does_not_fit(read: Read) -> None:
    target = {"beside": ["main/ipc1/prior"], "data": "toy", "converged": "toy/converged",
              "prior": "toy/prior"}  # fmt: skip
    edits = {"targets:fig3d": {"toy": target}}
    assert not read(edits).unfit
    found = read(edits | {f"sets:{PRIOR}:draw": 5}).unfit
    why = found["sets", PRIOR]
    assert found["targets", "fig3d/toy"].endswith(f"it measures a set that is refused ({why})")


def test_figure_3d_names_what_its_sets_need(read: Read) -> None:
    row = {"beside": ["main/ipc1/prior"], "data": "toy", "converged": "toy/converged"}
    refusal(read, {"targets:fig3d": {"toy": row}}, "fig3d/toy lacks the key 'prior'")
    refusal(read, {"targets:fig3d": {"toy": row | {"prior": "toy/priors"}}}, "no row 'toy/priors'")
    declared = read({"targets:fig3d": {"toy": row | {"prior": "toy/prior"}}})
    files = {path: settings for _, path, settings in stage_files(declared)}
    assert list(files["measure_costs/toy"].sets) == [PRIOR]
    for edits, words in (
        ({"beside": ["main/ipc1/random"]}, "is not made by Eq. 7"),
        ({"prior": "toy/post"}, f"{PRIOR} needs toy and toy/prior; name them"),
    ):
        other = read({"targets:fig3d": {"toy": row | {"prior": "toy/prior"} | edits}})
        refused(partial(list, stage_files(other)), f"{TOY}: targets.fig3d/toy", words)


# ------------------------------------------------------------------------------------- whole files


@pytest.mark.parametrize(
    "text", ["", "on: {tox: true}", "on: {toy: false}", "on: {toy: 1}", "on: true", "on: [toy]"]
)
def test_an_experiment_file_says_that_it_is_on(read: Read, tmp_path: Path, text: str) -> None:
    read()
    (tmp_path / TOY).write_text(text)
    refused(lambda: Declared(tmp_path), f"{tmp_path / TOY}: expected `on: {{toy: true}}`")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a: [", "not valid YAML"), ("- 1", "must be keys; got [1]"), ("1", "must be keys; got 1"),
     ("a: *b", "not valid YAML: found undefined alias"), ("a: &a {b: *a}", "in itself"),
     ("? [a, b]\n: 1", "unhashable key in line 1"), ("a: 1\n---\nb: 2", "a single document"),
     ("a: !!bool x", "not what its tag"), ("a: !!float ''", "not what its tag"),
     ("a: !!timestamp x", "not what its tag"), ("a: !!int x", "not valid YAML"),
     ("a: 1" + 400 * "0", "a number of 401 digits (line 1)"), ("a: 1e400", ""),
     ("\t a: 1", "not valid YAML"), ("a: b: c", "mapping values are not allowed"),
     ("", ""), ("# nothing", "")],
)  # fmt: skip
@pytest.mark.parametrize("file", ["params.yaml", TOY, "dvc.yaml", "params/toy.yaml"])
def test_file_that_is_not_a_mapping_is_refused(
    tmp_path: Path, text: str, expected: str, file: str
) -> None:
    own = "params/toy.yaml"
    write(tmp_path, {"params.yaml": PARAMS | {"datasets": {}}, TOY: ROWS, own: {"title": "Toy"}})
    assert Declared(tmp_path).sets
    (tmp_path / file).write_text(text)
    refused(lambda: Declared(tmp_path), f"{tmp_path}/", expected)


@pytest.mark.parametrize("value", ["!!binary eA==", "!!set {a}", "!!timestamp 2024-01-01"])
def test_values_that_tags_make_are_no_text(read: Read, tmp_path: Path, value: str) -> None:
    read({})
    path = tmp_path / "params.yaml"
    text = path.read_text().replace('"title": "Toy"', f'"title": {value}')
    assert value in text
    path.write_text(text)
    refused(lambda: Declared(tmp_path), f"{path}: datasets.toy", "values must be text, numbers")


def test_a_key_that_stands_twice_is_refused(read: Read, tmp_path: Path) -> None:
    read()
    for file, first in ((TOY, '"bases": {'), ("params.yaml", '"seed": 0')):
        text = (tmp_path / file).read_text()
        twice = text.replace(first, f'"bases": {{}}, "seed": 1,\n {first}')
        (tmp_path / file).write_text(twice)
        words = f"{tmp_path / file}: not valid YAML: the key "
        refused(lambda: Declared(tmp_path), words, "stands there twice (line 2)")
        (tmp_path / file).write_text(text)
    (tmp_path / TOY).write_text("on: {toy: true}\nbases:\n  a: {data: b, data: c}\n")
    refused(lambda: Declared(tmp_path), "the key 'data' stands there twice (line 3)")


@pytest.mark.parametrize("stem", [*OPTIONS, "out=x", "a b", "a;b", "ä"])
def test_an_experiment_file_that_would_be_an_option_is_refused(
    read: Read, tmp_path: Path, stem: str
) -> None:
    read()
    file = f"experiments/{stem}.yaml"
    write(tmp_path, {file: {"on": {stem: True}}}, (TOY, file))
    words = f"{tmp_path / file}: rename this file: DVC gives the stage resolve its name as the"
    refused(lambda: Declared(tmp_path), words, f"option --{stem}, which")
    write(
        tmp_path,
        {"experiments/h.v-2.yaml": {"on": {"h.v-2": True}}},
        (TOY, "experiments/h.v-2.yaml"),
    )
    assert Declared(tmp_path).sets


def test_options_of_the_stage_are_known() -> None:
    resolve = COMMANDS["resolve"]
    assert {*OPTIONS} == {"help", *resolve.reads, *resolve.writes, *resolve.optional}


@pytest.mark.parametrize("entry", [f"{TOY}:sets", 3, None, ["a"], "a: b"])
def test_an_entry_of_vars_that_is_no_path_is_refused(
    read: Read, tmp_path: Path, entry: object
) -> None:
    read()
    (tmp_path / "dvc.yaml").write_text(json.dumps({"vars": [entry]}))
    words = (
        "dvc.yaml: vars: an entry must be a path, with all that the file has, or keys and values"
    )
    refused(lambda: Declared(tmp_path), words, str(entry))
    (tmp_path / "dvc.yaml").write_text(json.dumps({"vars": [TOY, {"a": 3}]}))
    assert Declared(tmp_path).sets


def test_a_file_of_vars_whose_edits_would_rerun_nothing_is_refused(
    read: Read, tmp_path: Path
) -> None:
    read()
    for file in ("toy.yaml", "rows/toy.yaml"):
        write(tmp_path, {file: ROWS}, (file,))
        words = f"dvc.yaml: vars: {file} does not lie in what the stage resolve depends on (params"
        refused(lambda: Declared(tmp_path), words, "move it there, or add its folder to deps")
    for file in (f"{tmp_path}/{TOY}", f"../{tmp_path.name}/{TOY}"):
        write(tmp_path, {}, (file,))
        words = f"dvc.yaml: vars: {file}: expected a path inside the checkout"
        refused(lambda: Declared(tmp_path), words)


@pytest.mark.parametrize("stages", [[1], {"a": "hello"}, {"a": None}, "text", {"resolve": [1]}])
def test_stages_that_dvc_would_refuse_are_none(read: Read, tmp_path: Path, stages: object) -> None:
    read()
    (tmp_path / "dvc.yaml").write_text(json.dumps({"vars": [TOY], "stages": stages}))
    assert Declared(tmp_path).sets


def test_missing_files_are_refused(read: Read, tmp_path: Path) -> None:
    read()
    for file in (TOY, "dvc.yaml", "params.yaml"):
        (tmp_path / file).unlink()
        refused(lambda: Declared(tmp_path), f"{tmp_path / file}: cannot read: No such file")
    read()
    (tmp_path / "dvc.yaml").write_text("vars: experiments/toy.yaml")
    refused(lambda: Declared(tmp_path), "dvc.yaml: vars must be a list")
    (tmp_path / "params.yaml").write_bytes(b"a: \xff")
    refused(lambda: Declared(tmp_path), "params.yaml: not valid YAML: 'utf-8' codec")


@pytest.mark.parametrize(
    ("cls", "section"),
    [
        (NetworkConfig, NETWORK), (OptimizerConfig, OPTIMIZER), (ViewConfig, VIEWS),
        (TrainTeacherConfig, PARAMS["train_teacher"]),
        (RelabelConfig, PARAMS["relabel"] | {"dsa": DSA}),
        (SynthesizeConfig, PARAMS["synthesize"] | {"dsa": DSA}), (DmConfig, DM | {"dsa": DSA}),
    ],
)  # fmt: skip
def test_settings_survive_json(cls: type[Any], section: dict[str, Any]) -> None:
    config = from_json(cls, section, "here")
    assert from_json(cls, json.loads(json.dumps(to_json(config))), "there") == config


def test_what_stages_read_survives_json(read: Read) -> None:
    declared = read({"targets:fig4-6-7": {"toy": {"beside": ["main"], "after": "main"}}})
    files = [(path, made) for _, path, made in stage_files(declared)]
    assert len({path for path, _ in files}) == len(files) > 25
    for path, made in files:
        record = json.loads(json.dumps(to_json(made)))
        again = from_json(type(made), record, path)
        assert json.loads(json.dumps(to_json(again))) == record
        other = record | {"x": 1}
        refused(partial(from_json, type(made), other, path), path, "unknown key 'x'")


@given(st.integers(1, 10**6))
def test_record_with_other_keys_is_refused_with_its_place(width: int) -> None:
    record = to_json(NetworkConfig(arch="convnet3", width=width, norm="batch"))
    with pytest.raises(TeddyError, match=r"file: network: unknown key 'depth'"):
        from_json(NetworkConfig, record | {"depth": 3}, "file: network")
    with pytest.raises(TeddyError, match="file: network lacks the key 'width'"):
        from_json(NetworkConfig, {k: v for k, v in record.items() if k != "width"}, "file: network")


# --------------------------------------------------------------------------- code of the user's own

OWN = """
from teddy.settings.configs import NoConfig
from teddy.synthesis.methods import Method

class Own(Method):
    Config = NoConfig

    def make(self, ipc, work):
        raise NotImplementedError

class Net:
    pass

class Other:
    pass

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A file of the user's own in the checkout, under a name that no other test has."""
    monkeypatch.chdir(tmp_path)
    name = f"examples/own_{abs(hash(request.node.name))}.py"
    (tmp_path / "examples").mkdir()
    (tmp_path / name).write_text(OWN)
    return name


def test_a_method_of_the_users_own_is_known_by_its_file(read: Read, own: str) -> None:
    declared = read({"methods:random:algorithm": f"{own}:Own"})
    assert not declared.algorithm("random").by_pool
    files = {path: settings for _, path, settings in stage_files(declared)}
    assert own in files[f"synthesize/{RANDOM}"].code
    assert own not in files[f"synthesize/{PRIOR}"].code
    assert "core" in files[f"synthesize/{RANDOM}"].code, "and this package's, as ever"


def test_keys_of_a_set_of_the_users_own_method_are_checked(read: Read, own: str) -> None:
    edits: dict[str, Any] = {"methods:random:algorithm": f"{own}:Own"}
    words = "; did you mean 'syntheses'?"
    refusal(
        read,
        edits | {f"sets:{RANDOM}:synthesis": 1},
        f"sets.{RANDOM}: unknown key 'synthesis'",
        words,
    )
    mistyped = {f"sets:{RANDOM}:pool": MISSING, f"sets:{RANDOM}:pol": "toy/prior"}
    refusal(read, edits | mistyped, "unknown key 'pol'; did you mean 'pool'?")


@pytest.mark.parametrize(
    ("name", "words"),
    [("Absent", "does not define 'Absent'"), ("Other", "must be a subclass of"),
     ("number", "must be a subclass of"), ("not-a-name", "must be path/to/file.py:Name or known")],
)  # fmt: skip
def test_names_that_are_no_method_are_refused(read: Read, own: str, name: str, words: str) -> None:
    refusal(read, {"methods:random:algorithm": f"{own}:{name}"}, own, words)


@pytest.mark.parametrize(
    ("text", "words"),
    [("def (", "SyntaxError"), ("1 / 0", "ZeroDivisionError: division by zero"),
     ("import absent_module", "ModuleNotFoundError: No module named 'absent_module'"),
     ("raise ValueError('two\\nlines')", "ValueError: two lines")],
)  # fmt: skip
def test_a_file_that_fails_is_refused(read: Read, own: str, text: str, words: str) -> None:
    Path(own).write_text(f"{text}\n{OWN}")
    refused(lambda: read({"methods:random:algorithm": f"{own}:Own"}), own, words)


REFERENCES = {
    "methods:random:algorithm": ("experiments/toy.yaml: methods.random.algorithm", None),
    "prepare:source": ("params.yaml: prepare.source", None),
    "datasets:toy:prepare": ("params.yaml: datasets.toy.prepare.source", "source"),
    "prepared:toy:source": ("experiments/toy.yaml: prepared.toy.source", None),
    "train_teacher:network:arch": ("params.yaml: train_teacher.network.arch", None),
    "bases:toy/base:network": ("experiments/toy.yaml: bases.toy/base.network.arch", "arch"),
    "fig1:teacher:arch": ("params.yaml: fig1.teacher.arch", None),
    f"sets:{PRIOR}:evaluate": (f"sets.{PRIOR}.evaluate.network.arch", "network"),
    f"evaluations:{AGAIN}:evaluate": (f"evaluations.{AGAIN}.evaluate.network.arch", "network"),
    f"learners:{LEARNER}:evaluate": (f"learners.{LEARNER}.evaluate.network.arch", "network"),
}


def naming(place: str, reference: str) -> dict[str, Any]:
    """An edit that names code of the user's own at one of the places above."""
    key = REFERENCES[place][1]
    value: Any = {"arch": reference} if key == "network" else reference
    return {place: {key: value} if key else value}


@pytest.mark.parametrize("place", REFERENCES)
def test_code_that_settings_name_must_be_there(read: Read, own: str, place: str) -> None:
    where = REFERENCES[place][0]
    refusal(read, naming(place, f"{own}:Nat"), f"{where}: {own}: does not define 'Nat'")
    Path(own).write_text("def (")
    refusal(read, naming(place, f"{own}:Net"), f"{where}: {own}: SyntaxError: ")
    Path(own).unlink()
    words = f"{where}: {own}: expected a Python file that defines Net"
    refusal(read, naming(place, f"{own}:Net"), words)
    for outside in (f"../{own}", f"/tmp/{own}", f"src/../{own}"):
        words = f"{where}: {outside}: expected a path inside the checkout"
        refusal(read, naming(place, f"{outside}:Net"), words)


@pytest.mark.parametrize("place", REFERENCES)
def test_code_whose_edits_would_rerun_nothing_is_refused(
    read: Read, own: str, place: str, tmp_path: Path
) -> None:
    for file in ("mine.py", "models/mine.py", "examples2/mine.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(OWN)
        words = f"{REFERENCES[place][0]}: {file} does not lie in what the stage resolve depends on"
        refusal(read, naming(place, f"{file}:Own"), words, "add its folder to deps of resolve")


def test_code_in_a_folder_that_resolve_depends_on_is_accepted(
    read: Read, own: str, tmp_path: Path
) -> None:
    edits = naming("train_teacher:network:arch", "models/mine.py:Net")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.py").write_text(OWN)
    refusal(read, edits, "does not lie in")
    text = (tmp_path / "dvc.yaml").read_text()
    for deps in ("[params.yaml, {models: {}}, experiments]", "['${folders}']", "here"):
        changed = re.sub(r"(?m)^    deps:\n(      - .*\n)+", f"    deps: {deps}\n", text, count=1)
        (tmp_path / "dvc.yaml").write_text(changed)
        assert Declared(tmp_path).train_teacher("toy/base").network.arch == "models/mine.py:Net"
    (tmp_path / "dvc.yaml").write_text(f"vars: [{TOY}]")
    assert Declared(tmp_path).sets, "without a stage resolve nothing is known"


@pytest.mark.parametrize(
    "text",
    [
        "def Net(shape, classes): ...",
        "async def Net(): ...",
        "Net = 3",
        "a = (b, Net) = 1, 2",
        "Net: object = 3",
        "if True:\n    class Net: ...",
        "try:\n    import a\nexcept ImportError:\n    Net = 3",
        "from torch.nn import Module as Net",
        "import Net.b",
        "from torch.nn import *",
        "for Net in range(3): pass",
        "match 3:\n    case 3:\n        Net = 4",
        "def __getattr__(name): ...",
    ],
)
def test_every_way_to_define_a_name_counts(read: Read, own: str, text: str) -> None:
    Path(own).write_text(text)
    assert read(naming("train_teacher:network:arch", f"{own}:Net")).sets


@pytest.mark.parametrize(
    "text",
    ["class Nets: ...", "def f():\n    Net = 3", "Net.a = 3", "print(Net)", "class A:\n Net=1"],
)
def test_other_mentions_of_a_name_do_not_count(read: Read, own: str, text: str) -> None:
    Path(own).write_text(text)
    words = "does not define 'Net'"
    refusal(read, naming("train_teacher:network:arch", f"{own}:Net"), words)


def test_a_source_that_is_not_built_in_is_refused(read: Read) -> None:
    words = "params.yaml: prepare.source must be path/to/file.py:name or known, got 'digit'; did "
    refusal(read, {"prepare:source": "digit"}, words, "did you mean 'digits'?")
    words = f"{TOY}: prepared.toy.source must be path/to/file.py:name or known, got 'x'"
    refusal(read, {"prepared:toy:source": "x"}, words)
    assert set(SOURCES) == set(sources.SOURCES)


def test_small_classes_concern_only_sets_that_need_real_images(read: Read) -> None:
    edits = {f"sets:{SRE2L}:initialise": "real"}
    for chosen in ("refuse", "repeat"):
        declared = read({**edits, "prepared:toy:small_classes": chosen})
        files = {path: settings for _, path, settings in stage_files(declared)}
        asked = [files[f"synthesize/{name}"].small_classes for name in (PRIOR, SRE2L, RANDOM)]
        assert asked == [None, chosen, chosen]
        assert (files["prepare/toy"].demand is None) == (chosen == "repeat")
    refusal(read, {"prepared:toy:small_classes": "all"}, "small_classes", "refuse", "repeat")


def test_images_that_hold_smaller_ones_need_so_many_more_real_ones(read: Read) -> None:
    row = {"data": "toy", "method": "idm", "pool": "toy/prior", "ipc": 3, "partition": 2}
    method = {"title": "I", "algorithm": "idm", "labels": ["hard"]}
    declared = read({"methods:idm": method, "sets:toy/main/ipc3/idm": row})
    (demand,) = (s.demand for _, path, s in stage_files(declared) if path == "prepare/toy")
    assert (demand.row, demand.images) == ("toy/main/ipc3/idm", 12)


def test_a_network_of_the_users_own_is_part_of_what_stages_run(read: Read, own: str) -> None:
    declared = read({f"sets:{PRIOR}:evaluate": {"network": {"arch": f"{own}:Net"}}})
    files = {path: settings for _, path, settings in stage_files(declared)}
    before = files[f"evaluate/{PRIOR}"].code[own]
    assert own in files[f"reevaluate/{AGAIN}"].code
    assert own not in files[f"evaluate/{RANDOM}"].code
    assert own not in files[f"relabel/{PRIOR}"].code
    Path(own).write_text("# changed")
    again = {path: settings for _, path, settings in stage_files(declared)}
    assert again[f"evaluate/{PRIOR}"].code[own] != before


# --------------------------------------------------------------------------- what resolve replaces


def test_what_the_stage_wrote_is_replaced(read: Read, tmp_path: Path) -> None:
    read({"targets:fig4-6-7": {"toy": {"beside": ["main"], "after": "main"}}})
    out = tmp_path / "inputs"
    assert write_inputs(tmp_path, out) > 20
    read()
    count = write_inputs(tmp_path, out)
    assert count == len([path for path in out.rglob("*.json")])
    assert not (out / "fig4-6-7").exists()


@pytest.mark.parametrize(
    "file",
    ["notes.txt", "prepare/notes.txt", "evaluations/toy/a.json", "a.json", ".git/config",
     "prepare/toy/.hidden", "evaluate/a.json.txt"],
)  # fmt: skip
def test_a_folder_with_anything_else_is_not_removed(read: Read, tmp_path: Path, file: str) -> None:
    read()
    out = tmp_path / "inputs"
    write_inputs(tmp_path, out)
    (out / file).parent.mkdir(parents=True, exist_ok=True)
    (out / file).write_text("kept")
    before = sorted(out.rglob("*"))
    words = f"{out}: cannot replace a folder that has other files than this stage's, such as "
    assert file.startswith(refused(partial(write_inputs, tmp_path, out), words)
                           .removeprefix(words).split(";")[0])  # fmt: skip
    assert sorted(out.rglob("*")) == before


def test_links_and_folders_without_a_name_are_not_replaced(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    monkeypatch.chdir(tmp_path / "empty")
    for out in (Path(), Path("/"), Path("../empty/.."), tmp_path / "link"):
        refused(partial(write_inputs, tmp_path, out), f"{out}: cannot replace this; name a folder")
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "prepare").symlink_to(tmp_path / "experiments")
    refused(partial(write_inputs, tmp_path, inputs), "such as prepare; name another, or remove it")
    assert (tmp_path / TOY).is_file()


# --------------------------------------------------------------------------- the repository's own

FILES = sorted(f"experiments/{path.name}" for path in (ROOT / "experiments").glob("*.yaml"))
EXAMPLES = sorted(f"examples/{path.name}" for path in (ROOT / "examples").glob("*.yaml"))


def repository(root: Path, files: list[str]) -> Declared:
    """The repository's parameter files, with experiment files switched on."""
    for name in ("params.yaml", "params", "experiments", "examples"):
        (root / name).symlink_to(ROOT / name)
    (root / "dvc.yaml").write_text(listed(files), encoding="utf-8")
    return Declared(root)


def test_settings_of_the_repository_are_valid() -> None:
    declared = Declared(ROOT)
    assert declared.sets
    assert len(list(stage_files(declared))) > 200


@pytest.mark.parametrize("name", sorted(REAL["recipes"]))
def test_recipes_of_the_repository_fit_every_dataset(tmp_path: Path, name: str) -> None:
    declared = repository(tmp_path, FILES)
    for dataset in declared.datasets:
        layers = declared._layers_of(name, dataset)
        relabel = declared._resolved(RelabelConfig, "relabel", dataset, *layers)
        evaluate = declared._resolved(EvaluateConfig, "evaluate", dataset, *layers)
        wanted = REAL["recipes"][name]["evaluate"]["optimizer"]["schedule"]
        assert evaluate.optimizer.schedule == wanted, dataset
        assert (relabel.augmentation == "dsa") == (name == "dm")


@pytest.mark.parametrize("file", [*FILES, *EXAMPLES])
def test_every_experiment_file_is_valid_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Beside the default dataset, which Figures 1 and 5 need."""
    monkeypatch.chdir(ROOT)  # code of the user's own is named from there
    files = list(dict.fromkeys([METHODS, "experiments/digits.yaml", file]))
    assert len(list(stage_files(repository(tmp_path, files)))) > 200


def test_a_preset_may_be_cut_down_for_one_table(tmp_path: Path) -> None:
    """By `-S` alone: three epochs and three teachers, of which other figures draw four."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    for name in ("params.yaml", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    files = [METHODS, "experiments/digits.yaml", "experiments/cifar10-cpu.yaml"]
    (tmp_path / "dvc.yaml").write_text(listed(files), encoding="utf-8")
    path = tmp_path / "params/cifar10-cpu.yaml"
    raw = copy.deepcopy(dict(read_yaml(path)))
    raw["train_teacher"]["epochs"] = raw["pool"]["prior"]["last"] = 3
    path.write_text(json.dumps(raw), encoding="utf-8")
    unfit = {name for _, name in Declared(tmp_path).unfit}
    assert unfit == {"cifar10-cpu/fig3a/draw4", "cifar10-cpu/fig3b/members4"}


def test_all_experiment_files_together_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    declared = repository(tmp_path, [*FILES, *EXAMPLES])
    assert set(declared.datasets) >= {Path(file).stem for file in FILES} - {"methods"}
    paths = [path for _, path, _ in stage_files(declared)]
    assert len(paths) == len(set(paths)) > 900
