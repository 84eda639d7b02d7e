"""The examples work as they stand: a method, a network and a dataset in files of their own.

No GPU, no downloads.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkouts import DIGITS, METHODS, ROOT, assign, commands, listed
from ruamel.yaml import YAML

import teddy
from teddy.core import user_code
from teddy.core.errors import TeddyError
from teddy.core.files import read_json
from teddy.data import sources
from teddy.settings.configs import PrepareConfig
from teddy.settings.declared import Declared
from teddy.settings.schema import read_yaml
from teddy.stages.commands import main
from teddy.stages.resolve import write_inputs
from teddy.synthesis.methods import method_class

MINE = """
on: {mine: true}

methods:
  nearest: {title: Nearest to the mean, labels: [hard, soft],
            algorithm: "examples/nearest_to_mean.py:NearestToMean"}

bases:
  shapes/small: {data: shapes, network: {arch: "examples/small_net.py:SmallNet"}}

pools:
  shapes/small-post: {data: shapes, base: shapes/small, curve: shapes/small, kind: post}

sets:
  shapes/main/ipc5/nearest:
    {data: shapes, pool: shapes/prior, method: nearest, ipc: 5, pixels: 4}
  shapes/main/ipc5/small: {data: shapes, pool: shapes/small-post, method: teddy-post, ipc: 5}

evaluations:
  shapes/table2/nearest-small:
    {set: shapes/main/ipc5/nearest, data: shapes, pool: shapes/prior, labels: [soft],
     evaluate: {network: {arch: "examples/small_net.py:SmallNet"}}}

targets:
  table2: {shapes: {}}
"""
"""What the three examples add to each other, as a user's own experiment file."""
TINY = {
    "train_teacher.epochs": 4,
    "pool.prior": {"first": 2, "last": 4, "step": 1},
    "pool.post": {"size": 2, "max_epochs": 1},
    "synthesize.iterations": 5,
    "synthesize.draw": 2,
    "relabel.epochs": 4,
    "evaluate.seeds": [0],
}
SWITCH = "  - experiments/digits.yaml"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what is declared, with examples/shapes.yaml switched on."""
    for name in ("experiments", "params", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert text.count(SWITCH) == 1
    text = text.replace(SWITCH, f"  - examples/shapes.yaml\n{SWITCH}")
    (tmp_path / "dvc.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    user_code.load.cache_clear()
    return tmp_path


def prepare_config(checkout: Path) -> PrepareConfig:
    return Declared(checkout).prepare("shapes")


def test_dvc_reads_the_experiment_file_as_we_do() -> None:
    """A reference that is not quoted is text for PyYAML and an error for DVC's parser."""
    path = ROOT / "examples" / "shapes.yaml"
    assert YAML(typ="safe").load(path) == read_yaml(path)


def test_dataset_is_declared_and_loaded(checkout: Path) -> None:
    raw = sources.load(prepare_config(checkout))
    assert raw.class_names == ("disc", "square", "cross")
    assert isinstance(raw.train, sources.RawArrays)
    assert raw.train.images.shape == (600, 1, 16, 16)
    assert raw.train.images.dtype == torch.uint8
    assert raw.train.labels.bincount().tolist() == [200, 200, 200]


def test_loader_that_gives_something_else_is_refused(checkout: Path) -> None:
    (checkout / "mine.py").write_text("def load(config): return 3\n", encoding="utf-8")
    config = replace(prepare_config(checkout), source="mine.py:load")
    with pytest.raises(TeddyError, match=r"mine\.py:load: expected a RawDataset, got int"):
        sources.load(config)


def test_method_is_one(checkout: Path) -> None:
    assert method_class("examples/nearest_to_mean.py:NearestToMean").real


def test_network_gives_logits(checkout: Path) -> None:
    network = user_code.load("examples/small_net.py:SmallNet")((1, 8, 8), 10)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_all_three_go_through_the_whole_pipeline(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but files of the user's own is added, and lines under ``vars`` name these."""
    yaml = YAML()
    shapes = yaml.load(checkout / "examples" / "shapes.yaml")
    for key, value in TINY.items():
        assign(shapes["datasets"]["shapes"], key, value)
    yaml.dump(shapes, checkout / "examples" / "shapes.yaml")
    (checkout / "experiments" / "mine.yaml").write_text(MINE.lstrip(), encoding="utf-8")
    files = [METHODS, "examples/shapes.yaml", "experiments/mine.yaml", DIGITS]
    (checkout / "dvc.yaml").write_text(listed(files), encoding="utf-8")
    shutil.copytree(ROOT / "metrics" / "reference", checkout / "metrics" / "reference")
    for name, value in (("WORKERS", "1"), ("DEVICE", "cpu"), ("LOGS", "logs")):
        monkeypatch.setenv(f"TEDDY_{name}", value)
    write_inputs(checkout, checkout / "inputs")
    for stage in ("prepare", "train_teacher", "build_pool", "synthesize", "relabel", "evaluate",
                  "reevaluate", "table1", "table2", "fig4-6-7"):  # fmt: skip
        for arguments in commands(checkout, stage):
            if any("shapes" in argument for argument in arguments):
                main(arguments)
    table = (checkout / "metrics/tables/shapes/table1/table.md").read_text(encoding="utf-8")
    assert "| Nearest to the mean |" in table
    other = (checkout / "metrics/tables/shapes/table2/table.md").read_text(encoding="utf-8")
    assert "examples/small_net.py:SmallNet" in other
    assert (checkout / "plots/figures/shapes/fig4-6-7/shapes_nearest.png").is_file()
    nearest = teddy.load(checkout / "data/distilled/shapes/main/ipc5/nearest/0.safetensors")
    assert nearest.labels.tolist() == [0, 1, 2] * 5
    read = read_json(checkout / "inputs/relabel/shapes/main/ipc5/small.json")["code"]
    assert "examples/small_net.py" in read
