"""``dvc.yaml`` and the parameter files against each other and against the code; nothing runs."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkouts import (
    COMPUTING,
    DVC,
    METHODS,
    RESOLVE,
    ROOT,
    all_outs,
    body,
    filled,
    instances,
    listed,
    module,
    outs,
    own_inputs,
)

from teddy.settings import code
from teddy.settings.configs import STAGES
from teddy.settings.declared import Declared
from teddy.settings.resolve import stage_files
from teddy.settings.rows import ROWS
from teddy.settings.schema import parse_yaml, read_yaml
from teddy.stages.commands import COMMANDS
from tools.by_hand import variables

SOURCE = ROOT / "src" / "teddy"
EXPERIMENTS = sorted(path.name for path in (ROOT / "experiments").glob("*.yaml"))
PARAMS = sorted((ROOT / "params").glob("*.yaml"))
TARGETS = [stage for stage in DVC if "targets." in str(DVC[stage].get("foreach"))]
RECORDS_ONLY = [name for name, command in COMMANDS.items() if not command.computes]
ALONE = ("fig1", "fig5", "theory", "overview", "report")


@pytest.fixture(scope="module")
def rows(everything: Path) -> dict[str, Any]:
    """What ``${…}`` means with all of them."""
    return variables(everything)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's parameter files with all experiment files switched on."""
    root = tmp_path_factory.mktemp("everything")
    for name in ("params.yaml", "params", "experiments"):
        (root / name).symlink_to(ROOT / name)
    files = [f"experiments/{name}" for name in EXPERIMENTS]
    (root / "dvc.yaml").write_text(listed(files), encoding="utf-8")
    return root


def used(stage: str) -> dict[str, str]:
    """Options and paths of a command, without that of the settings."""
    found = dict(re.findall(r"(--[a-z]+)\s+(\S+)", body(stage)["cmd"]))
    assert found.pop("--settings") == own_inputs(stage)
    return found


def other_deps(stage: str) -> list[str]:
    return [dep for dep in body(stage)["deps"] if dep != own_inputs(stage)]


# ------------------------------------------------------------------------------- every one of them


@pytest.mark.parametrize("stage", DVC)
def test_stage_depends_on_its_own_settings_file(stage: str) -> None:
    assert own_inputs(stage) == f"inputs/{stage}{'/${key}' if 'foreach' in DVC[stage] else ''}.json"
    assert not [dep for dep in body(stage)["deps"] if dep.startswith(("src", "params", "exper"))]
    assert "params" not in body(stage), "which DVC would copy into dvc.lock"
    assert "always_changed" not in body(stage)


@pytest.mark.parametrize("stage", [*COMPUTING, "fig1", "fig5", "theory"])
def test_command_uses_exactly_the_declared_paths(stage: str) -> None:
    assert sorted(used(stage).values()) == sorted(other_deps(stage) + outs(stage))


@pytest.mark.parametrize("stage", [*TARGETS, "overview", "report"])
def test_command_of_a_table_or_figure_uses_its_outputs_and_where_its_records_lie(
    stage: str,
) -> None:
    paths, written, deps = set(used(stage).values()), set(outs(stage)), other_deps(stage)
    assert written <= paths
    folders = paths - written
    assert all(any(f"{dep}/".startswith(f"{path}/") for path in folders) for dep in deps)
    assert all(any(f"{dep}/".startswith(f"{path}/") for dep in deps) for path in folders)


@pytest.mark.parametrize("stage", DVC)
def test_a_figure_is_declared_as_png_and_as_svg(stage: str) -> None:
    kinds = {suffix: {Path(path).with_suffix("") for path in all_outs(stage)
                      if Path(path).suffix == suffix} for suffix in (".png", ".svg")}  # fmt: skip
    assert kinds[".svg"] == kinds[".png"]


def test_resolve_depends_on_all_that_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert RESOLVE["cmd"] == "python -m teddy resolve --out inputs ${on}"
    assert RESOLVE["outs"] == [{"inputs": {"cache": False}}]
    for name in ("params.yaml", "params", "experiments", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    files = [f"experiments/{name}" for name in EXPERIMENTS] + ["examples/shapes.yaml"]
    (tmp_path / "dvc.yaml").write_text(listed(files), encoding="utf-8")
    monkeypatch.chdir(ROOT)  # code of the user's own is named from there
    declared = Declared(tmp_path)
    named = {file for _, _, made in stage_files(declared) for file in made.code if "." in file}
    read = {*declared.files, *named, "src/teddy"} - {"dvc.yaml"}
    assert {*files, "params.yaml", "params/cifar10.yaml", "examples/shapes.py"} <= read
    assert not {f for f in read if not any(Path(f).is_relative_to(d) for d in RESOLVE["deps"])}


def test_stages_run_for_the_rows_of_their_section() -> None:
    sections = {
        "prepare": "prepared", "train_teacher": "bases", "build_pool": "pools",
        "train_experts": "experts", "synthesize": "sets", "relabel": "sets", "evaluate": "sets",
        "reevaluate": "evaluations", "train_step_teachers": "step_teachers",
        "continual": "learners", "measure_costs": "targets.fig3d",
    }  # fmt: skip
    sections |= {stage: f"targets.{stage}" for stage in TARGETS if stage not in sections}
    assert {s: DVC[s]["foreach"] for s in DVC if "foreach" in DVC[s]} == {
        stage: f"${{{section}}}" for stage, section in sections.items()
    }
    assert set(DVC) - set(sections) == set(ALONE)


def test_every_stage_has_an_entrypoint_and_the_other_way_round() -> None:
    files = {file.stem for file in (SOURCE / "stages").glob("*.py")} - {"__init__", "commands"}
    assert files == {*map(module, DVC), "resolve"} == COMMANDS.keys()


def test_every_target_that_is_declared_is_a_stage(everything: Path) -> None:
    assert set(Declared(everything).targets) <= set(TARGETS)


def test_there_is_a_settings_file_for_every_stage_and_row(
    everything: Path, rows: dict[str, Any]
) -> None:
    written = {f"inputs/{path}.json": made for made, path, _ in stage_files(Declared(everything))}
    expected = {
        filled(own_inputs(stage), fields): module(stage)
        for stage in DVC
        for fields in instances(rows, stage)
    }
    assert written == expected


def test_no_output_lies_inside_another(rows: dict[str, Any]) -> None:
    """DVC refuses that; names of rows must not make it happen."""
    made = [
        filled(out, fields)
        for stage in DVC
        for fields in instances(rows, stage)
        for out in outs(stage)
    ]
    assert not [path for path in made if "${" in path]
    assert len(made) == len(set(made)) > 1000
    folders = {
        "/".join(path.split("/")[:n]) for path in made for n in range(1, path.count("/") + 1)
    }
    assert not folders & set(made)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "methods.yaml"])
def test_any_dataset_may_be_the_only_one(name: str, tmp_path: Path) -> None:
    """DVC stops if a section that a stage loops over is nowhere."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "params.yaml").symlink_to(ROOT / "params.yaml")
    files = [METHODS, f"experiments/{name}"]
    (tmp_path / "dvc.yaml").write_text(listed(files), encoding="utf-8")
    known = variables(tmp_path)
    assert len([fields for stage in DVC for fields in instances(known, stage)]) > 15


def test_what_is_depended_on_is_made_or_kept(rows: dict[str, Any]) -> None:
    """A folder that nothing is written into would stop DVC."""
    made = {"metrics/reference", "metrics/reference/paper.yaml"}
    for stage in DVC:
        for fields in instances(rows, stage):
            for out in outs(stage):
                parts = filled(out, fields).split("/")
                made |= {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
    for stage in DVC:
        for fields in instances(rows, stage):
            assert {filled(dep, fields) for dep in other_deps(stage)} <= made


# ------------------------------------------------------------------------------------------- code


def by_parsing(file: Path) -> set[Path]:
    """Modules of this package that a file imports, from its syntax tree."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    ours = {name for name in names if name.split(".")[0] == "teddy"}
    return {path for path in map(code._file, ours) if path.is_file()}


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: file.stem)
def test_imports_are_found_without_parsing(file: Path) -> None:
    assert code._imports(file) == by_parsing(file)


@pytest.fixture(scope="module")
def declared() -> Declared:
    return Declared(ROOT)


def codes(declared: Declared) -> dict[str, dict[str, str]]:
    """Checksums in every settings file, made anew."""
    code.checksums.cache_clear()
    found = {
        path: code.checksums(f"teddy.stages.{made}") | settings.code
        for made, path, settings in stage_files(declared)
    }
    code.checksums.cache_clear()
    return found


PRIOR, DM = "synthesize/digits/main/ipc10/prior", "synthesize/digits/table5/real-ipc10-dm"
RANDOM, LEARNER = "synthesize/digits/main/ipc10/random", "continual/digits/fig3e/prior-strict"
RELABEL, EVALUATE = "relabel/digits/main/ipc10/prior", "evaluate/digits/main/ipc10/prior"
AGAIN, TABLE, BASE = (
    "reevaluate/digits/fig3b/members1",
    "table1/digits",
    "train_teacher/digits/base",
)
ALL = (BASE, PRIOR, DM, RANDOM, RELABEL, EVALUATE, AGAIN, LEARNER, TABLE)


@pytest.mark.parametrize(
    ("file", "stale"),
    [
        ("synthesis/teddy.py", [PRIOR, LEARNER]),
        ("synthesis/class_statistics.py", [PRIOR, LEARNER]),
        ("synthesis/distribution_matching.py", [DM]),
        ("synthesis/real_images.py", [RANDOM]),
        ("synthesis/methods.py", [PRIOR, DM, RANDOM, LEARNER]),
        ("students/labels.py", [RELABEL, EVALUATE, AGAIN, LEARNER]),
        ("students/evaluation.py", [EVALUATE, AGAIN, LEARNER]),
        ("stages/evaluate.py", [EVALUATE, AGAIN]),
        ("report/results.py", [TABLE]),
        ("core/errors.py", list(ALL)),
    ],
)
def test_an_edit_of_a_module_reaches_what_runs_it(
    declared: Declared, monkeypatch: pytest.MonkeyPatch, file: str, stale: list[str]
) -> None:
    before, read, edited = codes(declared), Path.read_bytes, SOURCE / file
    assert edited.is_file()
    monkeypatch.setattr(Path, "read_bytes", lambda p: read(p) + (b"#" if p == edited else b""))
    after = codes(declared)
    assert [path for path in ALL if before[path] != after[path]] == [p for p in ALL if p in stale]


@pytest.mark.parametrize("stage", [*RECORDS_ONLY, "commands"])
def test_stages_that_only_read_records_import_no_pytorch(stage: str) -> None:
    """Which costs them four seconds."""
    script = f"import sys; import teddy.stages.{stage}; sys.exit('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", script], env=env, check=True)


# --------------------------------------------------------------------------- files that people edit


@pytest.fixture
def set_by_dvc(tmp_path: Path) -> Callable[[Path, dict[str, Any]], str]:
    """A copy of a file after `dvc exp run -S key=value` for some keys."""
    from dvc.utils.hydra import apply_overrides  # type: ignore[import-untyped]

    def text(path: Path, values: dict[str, Any]) -> str:
        changed = tmp_path / "params.yaml"
        changed.write_bytes(path.read_bytes())
        texts = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
        apply_overrides(str(changed), [f"{key}={value}" for key, value in texts.items()])
        return changed.read_text(encoding="utf-8")

    return text


def leaves(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield above + key, value


def with_lists_longer(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: [*v, *v[-1:]] for key, v in values.items() if isinstance(v, list)}


FILES_TO_SET = pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *PARAMS], ids=lambda path: path.stem
)


@FILES_TO_SET
def test_dvc_changes_one_line_of_parameters(
    set_by_dvc: Callable[[Path, dict[str, Any]], str], path: Path
) -> None:
    """`dvc exp run -S key=value` leaves comments: none stands behind a list, which DVC replaces."""
    new = set_by_dvc(path, {"prepare.source": "changed"}).splitlines()
    old = path.read_text(encoding="utf-8").splitlines()
    pairs = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
    assert len(pairs) == 1
    assert "source: changed" in pairs[0][1]


@FILES_TO_SET
def test_setting_every_key_to_what_it_is_changes_no_byte(
    set_by_dvc: Callable[[Path, dict[str, Any]], str], path: Path
) -> None:
    """Numbers stand there as DVC writes them, and comments where it leaves them."""
    values, old = dict(leaves(read_yaml(path))), path.read_text(encoding="utf-8")
    assert set_by_dvc(path, values) == old
    longer = set_by_dvc(path, with_lists_longer(values)).splitlines()
    entry = re.compile(" *- ")
    assert [line for line in longer if not entry.match(line)] == [
        line for line in old.splitlines() if not entry.match(line)
    ]


def test_two_pluses_set_a_key_whether_it_is_there_or_not(
    set_by_dvc: Callable[[Path, dict[str, Any]], str],
) -> None:
    """`-S ++key=value`: every key of a stage can be set for a dataset in this one form."""
    params = read_yaml(ROOT / "params.yaml")
    values = {
        f"++datasets.digits.{key}": value
        for stage in (*STAGES, "dsa")
        for key, value in leaves({stage: params[stage]})
    }
    digits = parse_yaml(set_by_dvc(ROOT / "params.yaml", values), "")["datasets"]["digits"]
    assert {stage: digits[stage] for stage in STAGES} == {stage: params[stage] for stage in STAGES}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_rows_of_experiments_take_a_line_each(name: str) -> None:
    """DVC never writes these files, so that they may have the style that reads best."""
    document: Any = yaml.compose((ROOT / "experiments" / name).read_text(encoding="utf-8"))
    sections = {key.value: value for key, value in document.value}
    for section in sections.keys() & {"methods", *ROWS}:
        for row, keys in sections[section].value:
            assert keys.flow_style, row.value
            assert keys.end_mark.line - keys.start_mark.line < 3, row.value


def test_files_are_short_enough_to_read() -> None:
    def lines(*paths: Path) -> int:
        return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)

    assert lines(ROOT / "dvc.yaml") <= 490
    assert lines(ROOT / "params.yaml") <= 510
    assert lines(ROOT / "experiments" / "digits.yaml") <= 290
    experiments = (ROOT / "experiments" / name for name in EXPERIMENTS)
    assert lines(ROOT / "params.yaml", *PARAMS, *experiments) <= 2200
