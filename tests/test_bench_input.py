"""The benchmark command: its record and table, and that both sides do the same work. No times."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import input as bench
from benchmarks.__main__ import main
from benchmarks.command import take_turns
from teddy.core.files import read_json
from teddy.core.hardware import describe


def test_input_writes_a_record_and_prints_a_table(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("TEDDY_LOGS", str(tmp_path / "logs"))
    out = tmp_path / "bench" / "input.json"
    main(["input", "--images", "24", "--batch", "8", "--repeats", "2", "--out", str(out)])
    record = read_json(out)
    assert record["benchmark"] == "input"
    used = {name: record["hardware"].pop(name) for name in ("threads", "cores_used")}
    assert min(used.values()) >= 1
    assert len(record["hardware"].pop("load_average_before")) == 3
    assert record["hardware"] == describe(), "as in the records of stages"
    assert {"torch", "torchvision", "pillow", "numpy"} <= record["hardware"]["packages"].keys()
    assert record["settings"] | {"batch": 8, "repeats": 2, "seed": 0} == record["settings"]
    assert [case["image_size"] for case in record["cases"]] == [32, 64]
    for case in record["cases"]:
        speeds = case["images_per_second"]
        assert len(speeds) == 5
        assert all(len(values) == 2 and min(values) > 0 for values in speeds.values())
        ours = case["median"].pop("teddy.data.images.Images")
        fastest = max(case["median"].values())
        assert case["ratio_to_fastest_reference"] == pytest.approx(ours / fastest)
    assert "teddy.data.images.Images" in capsys.readouterr().out


def test_every_reference_makes_what_we_make() -> None:
    images = bench._random_images(1, 32)
    for transform in bench._references(32).values():
        made = bench._PilDataset(images, transform)[0][0]
        assert made.shape == (3, 32, 32)
        assert made.dtype == torch.float32
        assert made.min() < -1, "normalised"
        assert made.max() > 1


def test_programs_take_turns_after_an_untimed_round() -> None:
    calls: list[tuple[str, int]] = []

    def program(name: str) -> Callable[[int], float]:
        def run(turn: int) -> float:
            calls.append((name, turn))
            return float(turn)

        return run

    measured = take_turns({"a": program("a"), "b": program("b")}, 2)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert measured == {"a": [1.0, 2.0], "b": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cifar10", "nowhere"], "nowhere: expected CIFAR-10"),
        (["--images", "10", "--batch", "8"], "at least two batches"),
    ],
)
def test_impossible_requests_are_refused(
    options: list[str], message: str, workplace: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "input.json"
    with pytest.raises(SystemExit):
        main(["input", "--out", str(out), *options])
    assert message in capsys.readouterr().err
    assert not out.exists()
