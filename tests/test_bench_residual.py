"""The benchmark of residual matching: both sides make the same images. No times."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import residual
from benchmarks.__main__ import main
from benchmarks.engine import Workload
from teddy.core.files import read_json
from teddy.settings.baselines import ResidualMatchingConfig
from teddy.settings.configs import SynthesizeConfig, ViewConfig
from teddy.settings.schema import to_json

SMALL = Workload("small", "resnet18", 8, 10, 4)


def test_both_sides_make_the_same_images_where_nothing_is_random(
    synthesis_config: SynthesizeConfig,
) -> None:
    shared = {key: getattr(synthesis_config, key) for key in to_json(synthesis_config)}
    config = ResidualMatchingConfig(**shared, sizes=(6, 8, 4, 8), alpha=0.3)
    config = replace(
        config, draw=1, views=ViewConfig(crop_scale=1.0, hflip=False, roll=(0, 0)), iterations=8
    )
    ours, theirs = (residual.run_of(own, SMALL, config, 4, "cpu")() for own in (True, False))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
    again = [residual.run_of(own, SMALL, config, 4, "cpu")() for own in (True, False)]
    assert torch.equal(again[0], ours) and torch.equal(again[1], theirs), "from the start again"


def test_a_record_and_a_table_are_written(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    monkeypatch.setitem(residual.WORKLOADS, "64", residual.Phased(SMALL, (6, 8)))
    out = tmp_path / "residual.json"
    main(["residual", "--workloads", "64", "--repeats", "2", "--out", str(out)])
    found = read_json(out)["workloads"]["64"]
    assert {name: len(values) for name, values in found["seconds"].items()} == {
        "ours": 2, "theirs": 2,
    }  # fmt: skip
    assert "phases of 6, 8" in out.with_suffix(".md").read_text(encoding="utf-8")
