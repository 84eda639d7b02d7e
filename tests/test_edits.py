"""What is said of edited parameters that change nothing, in a small checkout under Git."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from checkouts import METHODS, ROOT, assign, listed, tiny_checkout

from teddy.settings.declared import Declared
from teddy.settings.edits import without_effect
from teddy.settings.schema import read_yaml
from teddy.stages import commands

OTHER = "experiments/other.yaml"


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of which nothing was edited since its last commit."""
    root = tiny_checkout(tmp_path_factory.mktemp("edits") / "checkout")
    shutil.copy(ROOT / "params/cifar10-cpu.yaml", root / "params")
    (root / OTHER).write_text(
        "on: {other: true}\nprepared: {other: {dataset: other}}\nbases: {other/b: {data: other}}\n"
    )
    (root / "params/other.yaml").write_text("title: Other\ntrain_teacher: {epochs: 9}\n")
    who = {f"GIT_{who}_{key}": "x" for who in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "start"]):
        environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull}
        subprocess.run(["git", *command], cwd=root, check=True, env=environment)
    return root


@pytest.fixture
def root(committed: Path, tmp_path: Path) -> Path:
    shutil.copytree(committed, tmp_path / "checkout")
    return tmp_path / "checkout"


def said(root: Path, edits: Mapping[str, Any], file: str = "params.yaml") -> list[str]:
    """What is said after an edit of some keys, by their path with colons."""
    raw = json.loads(json.dumps(read_yaml(root / file)))  # in which nothing is shared
    for place, value in edits.items():
        assign(raw, place, value, ":")
    (root / file).write_text(json.dumps(raw), encoding="utf-8")  # JSON is YAML
    return list(without_effect(Declared(root), root))


def own_iterations(root: Path) -> int:
    value = read_yaml(root / "params.yaml")["datasets"]["digits"]["synthesize"]["iterations"]
    assert isinstance(value, int)
    return value


def switch_other_on(root: Path) -> None:
    files = [METHODS, "experiments/digits.yaml", OTHER]
    (root / "dvc.yaml").write_text(listed(files), encoding="utf-8")


def test_nothing_is_said_of_a_checkout_as_it_was_committed(root: Path) -> None:
    assert said(root, {}) == []


def test_a_default_that_the_dataset_hides_is_said_with_the_key_that_acts(root: Path) -> None:
    assert said(root, {"synthesize:iterations": 20}) == [
        "params.yaml: synthesize.iterations = 20 changes nothing: what the dataset says wins; try "
        "-S datasets.digits.synthesize.iterations=20"
    ]


def test_a_hidden_default_is_not_talked_about_where_the_dataset_says_the_same(root: Path) -> None:
    lines = {
        value: said(root, {"synthesize:iterations": value}) for value in (own_iterations(root), 7)
    }
    assert [len(found) for found in lines.values()] == [0, 1]


def test_an_edit_that_acts_is_not_talked_about(root: Path) -> None:
    acts = {
        "synthesize:ensemble": "probs", "datasets:digits:synthesize:iterations": 20, "seed": 7,
        "continual:steps": 5, "fig1:repeats": 2, "datasets:digits:title": "Other",
    }  # fmt: skip
    assert said(root, acts) == []


def test_the_size_and_time_of_a_file_do_not_hide_an_edit(root: Path) -> None:
    """DVC keeps the length of a line, and what Git noted of the file, when it sets a key."""
    path = root / "params.yaml"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("iterations: 6000", "iterations: 7000", 1), encoding="utf-8")
    os.utime(path, ns=times)
    assert len(list(without_effect(Declared(root), root))) == 1


def test_keys_of_every_dataset_that_wins_are_named(root: Path) -> None:
    switch_other_on(root)
    (line,) = said(root, {"train_teacher:epochs": 8})
    assert line.endswith(
        "try -S datasets.digits.train_teacher.epochs=8 -S params/other.yaml:train_teacher.epochs=8"
    )
    assert said(root, {"train_teacher:batch_size": 8}) == [line], "the other dataset takes it"


@pytest.mark.parametrize(
    ("edits", "file", "words"),
    [
        ({"relabel:epochs": 3}, "params/cifar10-cpu.yaml",
         "params/cifar10-cpu.yaml: relabel.epochs = 3 changes nothing: no row that is switched on "
         "is of the dataset cifar10-cpu"),
        ({"dm:initialise": "real"}, "params.yaml",
         "dm.initialise = real changes nothing: rows say it themselves, such as "),
        ({"datasets:digits:dm": {"initialise": "real"}}, "params.yaml",
         "datasets.digits.dm.initialise = real changes nothing: rows say it themselves"),
        ({"dsa:operations": ["flip"]}, "params.yaml",
         "try -S 'datasets.digits.dsa.operations=[\"flip\"]'"),
    ],
)  # fmt: skip
def test_what_else_an_edit_may_lack_is_said(
    root: Path, edits: dict[str, Any], file: str, words: str
) -> None:
    lines = said(root, edits, file)
    assert words in lines[-1]
    assert "experiments/digits.yaml: sets.digits/table5/dm" in lines[-1] or "rows" not in words


def test_a_key_that_no_row_reads_is_said(root: Path) -> None:
    switch_other_on(root)
    (line,) = said(root, {"relabel": {"views": {"hflip": False}}}, "params/other.yaml")
    assert line == (
        "params/other.yaml: relabel.views.hflip = false changes nothing: no row that is switched "
        "on reads it"
    )


def test_an_edited_recipe_that_no_row_has_is_said(root: Path) -> None:
    assert said(root, {"recipes:rd3:evaluate:batch_size": 20}) == [
        "params.yaml: recipes.rd3.evaluate.batch_size = 20 changes nothing: no row that is "
        "switched on has the recipe rd3"
    ]
    assert said(root, {"recipes:own": {"relabel": {"epochs": 3}}})[1:] == [], "it is new"


def test_a_recipe_may_be_given_to_a_dataset_and_hides_its_settings(root: Path) -> None:
    assert said(root, {"datasets:digits:recipe": "rd3"}) == []
    assert Declared(root).evaluate("digits/main/ipc3/prior").optimizer.schedule == "half_cosine"
    hidden = {"datasets:digits:evaluate:temperature": 3, "evaluate:optimizer:weight_decay": 0.5}
    assert said(root, hidden) == [
        f"params.yaml: {key} = {value} changes nothing: the recipe {recipe} says it; try "
        f"-S recipes.{recipe}.{key.removeprefix('datasets.digits.')}={value}"
        for key, value, recipe in (
            ("evaluate.optimizer.weight_decay", 0.5, "rd3"),
            ("datasets.digits.evaluate.temperature", 3, "rd3"),
        )
    ]
    assert said(root, {"recipes:rd3:relabel:epochs": 3})[2:] == [], "which acts"


def test_a_recipe_that_a_dataset_changes_is_said_with_the_key_that_acts(root: Path) -> None:
    assert said(root, {"recipes:dm:relabel:epochs": 900}) == [
        "params.yaml: recipes.dm.relabel.epochs = 900 changes nothing: what the dataset says "
        "wins; try -S datasets.digits.recipes.dm.relabel.epochs=900"
    ]


def test_rows_that_an_edit_breaks_are_no_sign_that_it_does_nothing(root: Path) -> None:
    assert said(root, {"datasets:digits:synthesize:draw": 9}) == []
    assert Declared(root).unfit


def test_without_git_nothing_is_said(root: Path) -> None:
    shutil.rmtree(root / ".git")
    assert said(root, {"synthesize:iterations": 20}) == []


def test_the_stage_warns_and_goes_on(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(root, {"synthesize:iterations": 20})
    commands.main(["resolve", "--root", str(root), "--out", str(root / "inputs")])
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: params.yaml: synthesize.iterations = 20 changes nothing: ")
    assert last.startswith("resolve ")
