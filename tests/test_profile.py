"""Profiles: rows in, rows out, and nothing else changed."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from teddy.settings.params import Params
from tools import profile
from tools.profile import edited, switch

ROOT = Path(__file__).parents[1]
PARAMS = (ROOT / "params.yaml").read_text(encoding="utf-8")
DVC = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
TARGETS = YAML(typ="safe").load(PARAMS)["targets"]
PROFILES = {path.stem: path for path in sorted((ROOT / "profiles").glob("*.yaml"))}


@pytest.fixture
def checkout(tmp_path: Path) -> list[str]:
    """Options that point the command at a copy of params.yaml."""
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text(DVC, encoding="utf-8")
    paths = ["--params", str(tmp_path / "params.yaml"), "--dvc", str(tmp_path / "dvc.yaml")]
    return [*paths, "--profiles", str(ROOT / "profiles")]


def rows(path: Path) -> dict[str, set[str]]:
    """Names of rows by section, and entries by target."""
    raw = YAML(typ="safe").load(path)
    sections = ("prepared", "bases", "pools", "sets", "scores")
    found = {section: set(raw.get(section) or ()) for section in sections}
    return found | {target: set(raw["targets"].get(target, ())) for target in TARGETS}


@pytest.mark.parametrize("name", PROFILES)
def test_profile_extends_the_default_and_goes_back(
    name: str, checkout: list[str], tmp_path: Path
) -> None:
    profile.main([name, *checkout])
    before, after = rows(ROOT / "params.yaml"), rows(tmp_path / "params.yaml")
    added = rows(PROFILES[name])
    assert after == {section: before[section] | added[section] for section in before}
    lines = (tmp_path / "params.yaml").read_text(encoding="utf-8").splitlines()
    kept = iter(lines)
    assert all(line in kept for line in PARAMS.splitlines()), "a line of the default is missing"
    dvc = (tmp_path / "dvc.yaml").read_text(encoding="utf-8")
    records = [f"- metrics/runs/{entry}.json" for entry in added["table1"]]
    assert all(record in dvc for record in records)
    profile.main([name, "--off", *checkout])
    assert (tmp_path / "params.yaml").read_text(encoding="utf-8") == PARAMS
    assert (tmp_path / "dvc.yaml").read_text(encoding="utf-8") == DVC


def test_all_profiles_at_once_are_valid_and_leave_no_trace(
    checkout: list[str], tmp_path: Path
) -> None:
    profile.main([*PROFILES, *checkout])
    params = Params(tmp_path / "params.yaml")
    assert {row.dataset for row in params.sets.values()} == set(params.datasets)
    profile.main([*reversed(PROFILES), "--off", *checkout])
    assert (tmp_path / "params.yaml").read_text(encoding="utf-8") == PARAMS


def test_every_dataset_of_params_has_a_profile_or_is_the_default() -> None:
    assert set(YAML(typ="safe").load(PARAMS)["datasets"]) == {"digits", *PROFILES}


def test_settings_that_the_readme_changes_by_command_are_there() -> None:
    """``-S`` refuses a key that params.yaml does not have already."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r" -S ([\w-]+(?:\.[\w-]+)+)=", text)
    assert len(named) >= 4
    for key in named:
        value = YAML(typ="safe").load(PARAMS)
        for part in key.split("."):
            assert part in value, f"{key}: params.yaml has no {part!r}"
            value = value[part]


def test_paper_grids() -> None:
    """Table 1's IPC, Table 6's pools and Table 7's draws."""
    raw = {name: YAML(typ="safe").load(path) for name, path in PROFILES.items()}
    tiny, imagenet = raw["tiny-imagenet"], raw["imagenet-1k"]
    assert {tiny["sets"][name]["ipc"] for name in tiny["targets"]["table1"]} == {50, 100}
    grid = {imagenet["sets"][name]["ipc"] for name in imagenet["targets"]["table1"]}
    assert grid == {10, 50, 100}
    assert tiny["pools"]["tiny-imagenet/prior-late"]["prior"]["epochs"] == [*range(16, 47, 5), 50]
    late = imagenet["pools"]
    assert late["imagenet-1k/prior-50"]["prior"]["epochs"] == list(range(21, 62, 5))
    assert late["imagenet-1k/prior-100"]["prior"]["epochs"] == list(range(31, 72, 5))
    assert {tiny["sets"][f"tiny-imagenet/post/ipc{i}"]["draw"] for i in (50, 100)} == {5}
    assert {imagenet["sets"][f"imagenet-1k/post/ipc{i}"]["draw"] for i in (10, 50, 100)} == {4}


def test_adding_twice_changes_nothing_more() -> None:
    text = PROFILES["cifar10"].read_text(encoding="utf-8")
    once = switch(PARAMS, text, on=True)
    assert switch(once, text, on=True) == once
    assert switch(PARAMS, text, on=False) == PARAMS


def test_own_rows_and_comments_survive() -> None:
    own = PARAMS.replace(
        "\nmethods:", "\n  digits/mine:   # my row\n    dataset: digits\n\nmethods:", 1
    )
    text = PROFILES["mnist"].read_text(encoding="utf-8")
    assert switch(switch(own, text, on=True), text, on=False) == own


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("    method: sre2l\n    pool: mnist/converged\n    ipc: 10\n    draw: 1\n",
         "    method: sre2l\n    pool: mnist/converged\n    ipc: 10\n    draw: 1\n    lr: 0.3\n",
         "sets.mnist/sre2l/ipc10"),
        ("  mnist/prior:\n", "  mnist/prior:  # mine\n", "pools.mnist/prior"),
        ("  - mnist/post/ipc10\n", "  - mnist/post/ipc10   # mine\n",
         "targets.table1: mnist/post/ipc10"),
    ],
)  # fmt: skip
def test_edited_rows_are_taken_out_by_force_only(
    checkout: list[str], capsys: pytest.CaptureFixture[str], old: str, new: str, named: str
) -> None:
    profile.main(["mnist", *checkout])
    path = Path(checkout[1])
    text = path.read_text(encoding="utf-8")
    assert old in text
    own = text.replace(old, new, 1)
    path.write_text(own, encoding="utf-8")
    with pytest.raises(SystemExit):
        profile.main(["mnist", "--off", *checkout])
    assert f"profiles/mnist.yaml has them: {named};" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == own
    profile.main(["mnist", "--off", "--force", *checkout])
    assert path.read_text(encoding="utf-8") == PARAMS


def test_edited_rows_are_all_named_and_empty_lines_are_no_edits() -> None:
    text = "pools:\n  a:\n    kind: prior\n  b:\n    kind: post\ntargets:\n  t:\n  - a\n  - c\n"
    assert edited(text, text) == []
    assert edited(text.replace("  b:", "\n  b:"), text) == []
    assert edited(text.replace("  - c\n", ""), text) == []
    changed = text.replace("prior", "post").replace("kind: post\nt", "kind: prior\nt")
    assert edited(changed.replace("- a", "- a # x"), text) == ["pools.a", "pools.b", "targets.t: a"]


def test_a_section_can_be_emptied_and_filled() -> None:
    text = "prepared:\n  a:\n    dataset: a\nbases:\n  a/b:\n    dataset: a\n"
    default = f"{text}pools: {{}}\nsets: {{}}\nrest: 1\n"
    empty = switch(default, text, on=False)
    assert YAML(typ="safe").load(empty) == {
        "prepared": {}, "bases": {}, "pools": {}, "sets": {}, "rest": 1
    }  # fmt: skip
    assert switch(empty, text, on=True) == default


def test_entries_of_a_target_are_added_to_its_list_and_taken_out() -> None:
    default = "targets:\n  fig3a:\n  - a/1\n  - a/2\n  fig3b:\n  - a/3\nrest: 1\n"
    text = "targets:\n  fig3a:\n  - b/1\n  fig9:\n  - b/2\n"
    both = switch(default, text, on=True)
    assert YAML(typ="safe").load(both)["targets"] == {
        "fig3a": ["a/1", "a/2", "b/1"], "fig3b": ["a/3"], "fig9": ["b/2"]
    }  # fmt: skip
    assert switch(both, text, on=True) == both
    assert switch(both, text, on=False) == default


def test_unknown_profile_is_refused_by_name(
    checkout: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        profile.main(["cifar11", *checkout])
    error = capsys.readouterr().err
    assert "cifar11.yaml: no such profile" in error
    assert "cifar10" in error


def test_profile_that_breaks_params_leaves_them_alone(
    tmp_path: Path, checkout: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text(
        "bases:\n  mine/base:\n    dataset: nowhere\n    data: nowhere\n"
    )
    with pytest.raises(SystemExit):
        profile.main(["bad", *checkout[:4], "--profiles", str(tmp_path)])
    assert "no dataset named 'nowhere'" in capsys.readouterr().err
    assert Path(checkout[1]).read_text(encoding="utf-8") == PARAMS
    (tmp_path / "odd.yaml").write_text("methods:\n  mine: {}\n")
    with pytest.raises(SystemExit):
        profile.main(["odd", *checkout[:4], "--profiles", str(tmp_path)])
    assert "unknown key 'methods'" in capsys.readouterr().err


def test_listing_says_which_are_on(checkout: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    profile.main(["mnist", *checkout])
    profile.main(checkout)
    listed = capsys.readouterr().err
    assert "on   mnist" in listed
    assert "off  cifar10 " in listed


PARENT = "sets:\n  z:\n    ipc: 1\nrest: 1\n"
ADDED = "sets:\n  a:\n    ipc: 1\n  b:\n    ipc: 2\n"


@pytest.mark.parametrize("indent", ["", "  "])
def test_comments_above_a_row_belong_to_it(indent: str) -> None:
    mine = f"{indent}# mine,\n{indent}# really\n  own:\n    ipc: 3\n"
    on = switch(PARENT, ADDED, on=True)
    after = on.replace("rest:", f"{mine}rest:")
    assert edited(after, ADDED) == []
    assert switch(after, ADDED, on=False) == PARENT.replace("rest:", f"{mine}rest:")
    between = on.replace("  b:", f"{mine}  b:")
    assert edited(between, ADDED) == []
    assert switch(between, ADDED, on=False) == PARENT.replace("rest:", f"{mine}rest:")


def test_a_comment_on_a_row_of_the_profile_is_an_edit_of_that_row() -> None:
    on = switch(PARENT, ADDED, on=True)
    assert edited(on.replace("  b:", "  # better\n  b:"), ADDED) == ["sets.b"]
    assert edited(on.replace("  b:", "    # lr: 0.3\n  b:"), ADDED) == ["sets.a"]


def test_comments_that_end_a_section_stay_there() -> None:
    default = PARENT.replace("rest:", "  # further rows go here\nrest:")
    on = switch(default, ADDED, on=True)
    assert edited(on, ADDED) == []
    assert switch(on, ADDED, on=False) == default


def test_comments_of_a_profile_come_and_go_with_its_rows() -> None:
    added = "sets:\n  # why\n  a:\n    ipc: 1\ntargets:\n  # what\n  t:\n  - a\n"
    default = f"{PARENT}targets:\n  s:\n  - z\n"
    on = switch(default, added, on=True)
    assert "  # why\n  a:" in on
    assert "  # what\n  t:\n  - a\n" in on
    assert edited(on, added) == []
    assert edited(on.replace("- a", "- a  # x"), added) == ["targets.t: a"]
    assert switch(on, added, on=False) == default


def test_lines_between_the_entries_of_a_target_are_no_edits() -> None:
    default, added = "targets:\n  t:\n  - z\n", "targets:\n  t:\n  - a\n  - b\n"
    own = switch(default, added, on=True).replace("  - b", "\n    # mine\n  - b")
    assert edited(own, added) == []
    assert switch(own, added, on=False) == "targets:\n  t:\n  - z\n\n    # mine\n"
    alone = "targets:\n  t:\n  - a\n\n  - b\n"
    assert switch(alone, added, on=False) == "targets: {}\n"


def test_entries_are_added_below_the_list_and_above_the_next_comment() -> None:
    default = "targets:\n  # first\n  t:\n  - z\n  # second\n  u:\n  - z\n"
    on = switch(default, "targets:\n  t:\n  - a\n", on=True)
    assert on == default.replace("  # second", "  - a\n  # second")


def test_force_without_off_is_refused(
    checkout: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        profile.main(["mnist", "--force", *checkout])
    assert "--force only goes with --off" in capsys.readouterr().err
    assert Path(checkout[1]).read_text(encoding="utf-8") == PARAMS
