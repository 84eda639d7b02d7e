"""Tuning: what it makes of a set before it tries settings."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML
from test_pipeline import set_row, tiny_params

from teddy.data.datasets import read_dataset
from teddy.settings.params import Params
from tools import tune


def test_a_set_is_tuned_on_its_own_images(
    tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    path, yaml, name = tiny_params(tmp_path / "params.yaml"), YAML(), "digits-keep60/sre2l/ipc3"
    raw = yaml.load(path)
    raw["prepared"]["digits-keep60"] = {"dataset": "digits", "keep": [0.6, 1]}
    for section, like in (("bases", "digits/base"), ("pools", "digits/converged")):
        raw[section]["digits-keep60"] = {**raw[section][like], "data": "digits-keep60"}
    raw["pools"]["digits-keep60"] |= {"base": "digits-keep60", "curve": "digits-keep60"}
    row = {**set_row("sre2l", "converged"), "data": "digits-keep60", "pool": "digits-keep60"}
    raw["sets"][name] = {**row, "draw": 1, "iterations": 2}
    yaml.dump(raw, path)
    config = Params(path)
    tune.main([name, "relabel.epochs=1", "--params", str(path), "--record", "record.jsonl"])
    (folder,) = (tmp_path / "work" / "tune").iterdir()
    assert [data.name for data in (folder / "data").iterdir()] == ["digits-keep60"]
    images = read_dataset(folder / "data" / "digits-keep60").train
    assert 0.6 * 1078 < len(images) < 0.95 * 1078
    assert tune._data_of(config, config.row("sets", name)) == ["digits-keep60"]
    assert tune._data_of(config, config.row("sets", "digits/prior/ipc3")) == ["digits"]
