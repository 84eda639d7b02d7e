"""Which stages a change of ``params.yaml`` makes stale: those that read it, and no others."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from teddy.report.results import Kept
from teddy.settings.params import Params
from tools.dependencies import write_inputs
from tools.profile import switch
from tools.stage_settings import settings_of

ROOT = Path(__file__).parents[1]
TABLES = "table|fig2c|fig3|fig4|ablations|precision|overview|report"
STUDENTS = "evaluate/|score/|continual/"


def inputs(folder: Path, params: Path, kept: tuple[Kept, ...] = ()) -> dict[str, str]:
    """What every stage depends on, by stage and row."""
    files = write_inputs(folder, ROOT / "dvc.yaml", Params(params), kept)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """As the repository is."""
    return inputs(tmp_path_factory.mktemp("before"), ROOT / "params.yaml")


def changed(tmp_path: Path, before: dict[str, str], *keys: tuple[list[str], Any]) -> set[str]:
    """Stages whose file is another after values have been set."""
    yaml = YAML()
    raw = yaml.load(ROOT / "params.yaml")
    for path, value in keys:
        section = raw
        for part in path[:-1]:
            section = section[part]
        assert section.get(path[-1]) != value
        section[path[-1]] = value
    yaml.dump(raw, tmp_path / "params.yaml")
    after = inputs(tmp_path / "inputs", tmp_path / "params.yaml")
    return {name for name in before | after if before.get(name) != after.get(name)}


@pytest.mark.parametrize("section", ["methods", "datasets", "pools", "sets", "scores"])
def test_order_of_rows_is_an_input_of_what_shows_them(
    section: str, tmp_path: Path, before: dict[str, str]
) -> None:
    yaml = YAML()
    raw = yaml.load(ROOT / "params.yaml")
    for name in reversed(list(raw[section])):
        raw[section].move_to_end(name)
    yaml.dump(raw, tmp_path / "params.yaml")
    after = inputs(tmp_path / "inputs", tmp_path / "params.yaml")
    stale = {name for name in before if before[name] != after[name]}
    if section == "methods":
        assert {"table1.json", "overview.json", "report.json"} <= stale
    if section not in ("methods", "datasets"):  # of one dataset, whose place says nothing
        assert stale == {"overview.json", "report.json"}
    assert not any(name.startswith(("synthesize/", "evaluate/")) for name in stale)


@pytest.mark.parametrize(
    ("key", "value", "some", "exactly"),
    [
        ("prepare.val_fraction", 0.1, "", "$"),  # digits have their own
        ("datasets.digits.prepare.val_fraction", 0.21, "prepare/digits.json", "prepare/"),
        (
            "train_teacher.optimizer.momentum", 0.8, "train_teacher/digits/base.json",
            "train_teacher/|train_step_teachers/|measure_costs",
        ),
        (
            "train_teacher.claimed_top1", 70, "", "$",  # all bases are trained
        ),
        ("pool.post.momentum", 0.8, "build_pool/digits/post.json", "build_pool/.*post"),
        (
            "datasets.digits.pool.prior.epochs", [2, 4, 6, 8, 10, 12, 14],
            "build_pool/digits/post.json",
            "build_pool/.*(prior|post)|measure_costs|continual/.*strict",
        ),
        (
            "synthesize.weight_decay", 0.5, "synthesize/digits/prior/ipc1.json",
            "synthesize/|continual/digits/(prior|sre2l)/.*strict|measure_costs|fig1",
        ),
        (
            "synthesize.dm.momentum", 0.6, "synthesize/digits/dm/noise/ipc1.json",
            "synthesize/.*/dm/",
        ),
        (
            "datasets.digits.relabel.epochs", 149, "relabel/digits/prior/ipc1.json",
            f"relabel/|{STUDENTS}",
        ),
        ("relabel.cutmix", False, "relabel/digits/prior/ipc1.json", f"relabel/|{STUDENTS}"),
        ("relabel.store", False, "relabel/digits/prior/ipc1.json", "relabel/|evaluate/|score/"),
        (
            "evaluate.temperature", 10, "evaluate/digits/prior/ipc1.json",
            f"(?!evaluate/.*/(dm|sre2l-hard|teddy-hard)/)({STUDENTS})",
        ),
        ("continual.steps", 2, "continual/", "continual/|train_step_teachers/"),
        ("datasets.digits.title", "Digits", "table1.json", f"{TABLES}|fig1|fig5"),
        ("methods.random.title", "Chance", "table1.json", TABLES),
        ("methods.random.labels", ["soft"], "evaluate/digits/random/ipc1.json", None),
        ("datasets.mnist.title", "M", "", "$"),
        ("fig5.lr", 0.123, "fig5.json", "fig5"),
        ("theory.tau", 0.123, "theory.json", "theory"),
    ],
)  # fmt: skip
def test_a_setting_reaches_the_stages_that_read_it_and_no_others(
    tmp_path: Path, before: dict[str, str], key: str, value: Any, some: str, exactly: str | None
) -> None:
    found = changed(tmp_path, before, (key.split("."), value))
    assert not some or any(name.startswith(some) for name in found)
    if exactly is not None:
        assert all(re.match(exactly, name) for name in found), found
        assert found or exactly == "$"


def test_a_row_reaches_its_own_stages(tmp_path: Path, before: dict[str, str]) -> None:
    row = ["sets", "digits/prior/ipc10-draw2", "draw"]
    found = changed(tmp_path, before, (row, 5))
    assert found == {"synthesize/digits/prior/ipc10-draw2.json", "measure_costs.json"}
    row = ["scores", "digits/prior/ipc10-members2", "members"]
    assert "score/digits/prior/ipc10-members2.json" in changed(tmp_path, before, (row, 3))


def test_a_base_from_elsewhere_reads_nothing_of_training(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    profile = (ROOT / "profiles/imagenet-1k.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(switch(text, profile, on=True))
    params = Params(tmp_path / "params.yaml")
    (taken,) = (name for name in params.bases if params.train_teacher(name).checkpoint)
    settings = settings_of("train_teacher", taken, params)["settings"]
    assert set(settings) == {"network", "views", "checkpoint", "claimed_top1"}


def test_the_seed_reaches_all_that_is_random(tmp_path: Path, before: dict[str, str]) -> None:
    found = changed(tmp_path, before, (["seed"], 1))
    rest = {name for name in before if name not in found}
    assert all(re.match(TABLES, name) for name in rest), rest
    assert "overview.json" in rest


def test_a_row_that_goes_reaches_what_shows_all_rows(
    tmp_path: Path, before: dict[str, str]
) -> None:
    """Records do not tell; nor which method a pool is of."""
    raw = YAML().load(ROOT / "params.yaml")
    name = "digits/random/ipc10-converged"
    raw["targets"]["ablations"].remove(name)
    del raw["scores"][name]
    YAML().dump(raw, tmp_path / "params.yaml")
    after = inputs(tmp_path / "inputs", tmp_path / "params.yaml")
    found = {name for name in before if before[name] != after.get(name)}
    assert found == {f"score/{name}.json", "ablations.json", "overview.json", "report.json"}
    row = ["sets", "digits/random/ipc1", "pool"]
    assert "overview.json" in changed(tmp_path, before, (row, "digits/prior-size15"))


def test_tables_depend_on_the_titles_of_runs_that_are_kept() -> None:
    """Whose rows need not be there."""
    params = Params(ROOT / "params.yaml")
    kept = Kept(
        dataset="mnist", target="table1", date="", commit="", command="", hardware={}, scores=()
    )
    shown = settings_of("target", "table1", params, [kept])["datasets"]
    assert [name for name, _ in shown] == ["digits", "mnist"]
    assert "mnist" not in settings_of("target", "table2", params, [kept])["datasets"]
    assert "mnist" not in settings_of("target", "table1", params)["datasets"]
