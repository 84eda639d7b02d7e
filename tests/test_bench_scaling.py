"""The scaling benchmark: its fits, one point, and the command end to end. No times."""

from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.__main__ import main
from benchmarks.scaling import Point, linear_fit, run_point
from teddy.core.errors import TeddyError
from teddy.core.files import read_json

TINY = Point(ipc=1, classes=3, teachers=1, pool=2, size=8, iterations=1)


def test_a_line_is_found_with_its_growth() -> None:
    fit = linear_fit([1, 2, 4], [5.0, 7.0, 11.0])
    assert fit == pytest.approx({"slope": 2, "intercept": 3, "r2": 1, "growth": 6 / 5})
    assert linear_fit([1, 2, 3], [1.0, 3.0, 1.0])["r2"] == pytest.approx(0)


def test_a_point_is_a_synthesis(workplace: Path) -> None:
    found = run_point(TINY, Path("params.yaml"))
    assert found["seconds"] > 0
    assert found["peak_rss_mib"] > 50


def test_a_point_that_fails_says_which(tmp_path: Path) -> None:
    with pytest.raises(TeddyError, match=r"Point\(.*size=8.*nowhere.yaml"):
        scaling._in_fresh_process(TINY, tmp_path / "nowhere.yaml")


def test_scaling_writes_a_record_a_table_and_a_figure(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    monkeypatch.setattr(scaling, "_AXES", {"teachers": ("teachers k", (1, 2))})
    out = tmp_path / "scaling.json"
    sizes = ["--iterations", "1", "--size", "8", "--repeats", "1"]
    main(["scaling", *sizes, "--out", str(out)])
    found = read_json(out)["axes"]["teachers"]
    assert found["values"] == [1, 2]
    assert min(found["seconds"]) > 0
    assert found["seconds_fit"]["r2"] == pytest.approx(1), "two points lie on a line"
    assert "teachers k" in out.with_suffix(".md").read_text(encoding="utf-8")
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
