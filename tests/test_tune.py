"""Tuning: what it makes of a set before it tries settings, and what it records."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from checkouts import PRIOR, ROOT, edit_rows, tiny_checkout

from teddy.data.datasets import read_dataset
from teddy.settings.declared import Declared
from teddy.settings.schema import read_yaml
from tools import tune

KEEP60 = "digits/table3/keep60"


@pytest.fixture
def root(tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny checkout with images of another kind, and being in it."""
    monkeypatch.setenv("TEDDY_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    tiny_checkout(tmp_path)
    own = {"data": "digits-keep60", "base": "digits-keep60/base", "curve": "digits-keep60/base"}
    row = {"data": "digits-keep60", "pool": "digits-keep60/converged", "method": "sre2l", "ipc": 3}
    rows: dict[str, Any] = {
        "prepared:digits-keep60": {"dataset": "digits", "keep": [0.6, 1]},
        "bases:digits-keep60/base": {"data": "digits-keep60"},
        "pools:digits-keep60/converged": own | {"kind": "converged"},
        f"sets:{KEEP60}": row | {"draw": 1, "iterations": 2},
        "targets:table3": {"digits": {}},
    }
    edit_rows(tmp_path, rows)
    return tmp_path


def test_a_set_is_tuned_on_its_own_images(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*.yaml")}
    tune.main([KEEP60, "relabel.epochs=1", "evaluate.temperature=5,10", "--record", "record.jsonl"])
    (made,) = (root / "work" / "tune").iterdir()  # which both combinations share
    assert [data.name for data in (made / "data").iterdir()] == ["digits-keep60"]
    images = read_dataset(made / "data" / "digits-keep60").train
    assert 0.6 * 1078 < len(images) < 0.95 * 1078
    lines = [json.loads(line) for line in Path("record.jsonl").read_text().splitlines()]
    assert [line["tried"] for line in lines] == [
        {"relabel.epochs": 1, "evaluate.temperature": value} for value in (5, 10)
    ]
    for line in lines:
        assert (line["set"], line["split"]) == (KEEP60, "val")
        assert line["hard"]["n"] == line["soft"]["n"] == 2
        assert line["settings"]["relabel"]["epochs"] == 1
        assert line["settings"]["evaluate"]["temperature"] == line["tried"]["evaluate.temperature"]
        assert line["settings"]["prepare"][0][1]["keep"] == [0.6, 1.0]
    old = json.loads((ROOT / "metrics/tuning.jsonl").read_text().splitlines()[-1])
    assert lines[0].keys() == old.keys() | {"fixed"}  # labels that there were not then
    stages = {"prepare", "train_teacher", "pool", "synthesize", "relabel", "evaluate"}
    assert lines[0]["settings"].keys() == {"seed", *stages}
    assert {path: path.read_bytes() for path in before} == before


def test_images_of_all_parents_are_made(root: Path) -> None:
    declared = Declared(root)
    assert tune._data(declared, KEEP60) == ["digits-keep60"]
    assert tune._data(declared, PRIOR) == ["digits"]


@pytest.mark.parametrize("place", ["params.yaml", "params/digits.yaml", "experiments/digits.yaml"])
def test_settings_are_changed_where_those_of_the_dataset_stand(
    root: Path, tmp_path: Path, place: str
) -> None:
    own = dict(read_yaml(root / "params.yaml")["datasets"]["digits"])
    if place != "params.yaml":
        edit_rows(root, {"datasets": {}}, "params.yaml")
    if place == "params/digits.yaml":
        (root / place).write_text(json.dumps(own), encoding="utf-8")
    elif place == "experiments/digits.yaml":
        edit_rows(root, {"datasets:digits": json.loads(json.dumps(own))})
    overrides: Sequence[tuple[str, Any]] = [
        ("synthesize.views.crop_scale", 0.25), ("dsa.rotate", 1), ("seed", 7), ("dm.lr", 2),
    ]  # fmt: skip
    changed = tune._checkout(Declared(Path()), "digits", overrides, tmp_path / "other")
    assert changed.place_of_dataset("digits")[0] == place
    config = changed.algorithm_config(PRIOR)
    assert (config.views.crop_scale, config.views.hflip, config.dsa.rotate) == (0.25, False, 1)
    assert changed.algorithm_config("digits/table5/dm").lr == 2
    assert changed.seed == 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["digits/main/ipc3/priro", "seed=1"],
            "no row 'digits/main/ipc3/priro' in sets; did you mean",
        ),
        ([PRIOR], f"{PRIOR}: expected settings to try"),
        ([PRIOR, "synthesize.lr"], "expected key=value, got 'synthesize.lr'"),
        ([PRIOR, "synthesize.lr="], "expected key=value"),
        ([PRIOR, "synthesize.lr=fast"], "error: synthesize.lr=fast: params.yaml: "),
        ([PRIOR, "synthesize.rate=1"], "unknown key 'rate'"),
        ([PRIOR, "synthesize.lr=0.1"], "{'synthesize.lr': 0.1} changes nothing for"),
        ([PRIOR, "synthesize.lr=["], "synthesize.lr=[: not valid YAML"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_one_line(
    root: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(tune, "_upstream", lambda *_: pytest.fail("started"))
    with pytest.raises(SystemExit):
        tune.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_values_are_read_as_yaml() -> None:
    assert tune._values("a.b=1,1e-3,x") == [("a.b", 1), ("a.b", 0.001), ("a.b", "x")]
    assert tune._values("a=[1, 2]") == [("a", [1, 2])]
    assert tune._values("a=[1, 2],[3]") == [("a", [1, 2]), ("a", [3])]
