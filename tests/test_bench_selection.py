"""The selection benchmark: the plain loop does what ours does, and the command. No times."""

from pathlib import Path

import pytest
import torch

from benchmarks import selection
from benchmarks.__main__ import main
from benchmarks.selection import PROGRAMS, Workload
from teddy.core.artifacts import WorkDir
from teddy.core.files import read_json
from teddy.settings.baselines import MosaicConfig
from teddy.synthesis.mosaics import Mosaics

TINY = Workload(images=80, ipc=2, candidates=8, factor=2, width=4, teachers=2)


def test_the_loop_chooses_as_many_of_the_same_images(tmp_path: Path, workplace: Path) -> None:
    """Where nothing is left to chance: whole images, one crop of each, and no mosaics."""
    selection._write_pool(TINY, tmp_path)
    given = selection._ingredients(TINY, str(tmp_path), "cpu")
    assert selection.image_by_image(selection.mosaics(TINY, given), 2).shape == (10, 2, 3, 32, 32)
    whole = MosaicConfig(candidates=8, crops=1, crop_scale=1.0, factor=1)
    method = Mosaics(whole, given)
    ours = method.make(2, WorkDir("bench", "test")).images.unflatten(0, (2, 10))
    assert torch.equal(selection.image_by_image(method, 2), ours.transpose(0, 1))


def test_selection_writes_a_record_and_a_table(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    out = tmp_path / "selection.json"
    sizes = ["--images", "80", "--ipc", "1", "--candidates", "8", "--width", "4", "--teachers", "2"]
    chosen = ["--programs", *PROGRAMS, "--threads", "1", "--repeats", "1"]
    main(["selection", *sizes, *chosen, "--out", str(out)])
    found = read_json(out)
    assert found["seconds"].keys() == set(PROGRAMS) and found["settings"]["images"] == 80
    assert "rded, image by image" in out.with_suffix(".md").read_text(encoding="utf-8")
