"""The pipeline as users meet it: ``dvc.yaml`` against the code, stages through their entrypoints,
kill and resume, refusals. Needs no GPU and no data beyond scikit-learn's digits.
"""

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from ruamel.yaml import YAML

import teddy
from teddy.core.files import digest, read_json
from teddy.data.datasets import read_dataset
from teddy.settings import params as config
from teddy.settings.configs import KINDS, SynthesizeConfig, settings_of_images
from teddy.settings.rows import MethodRow
from teddy.stages import (
    build_pool,
    continual,
    costs,
    evaluate,
    fig1,
    fig5,
    grids,
    measure_costs,
    overview,
    prepare,
    relabel,
    report,
    streams,
    synthesize,
    target,
    theory,
    train_step_teachers,
    train_teacher,
)
from teddy.students.continual import class_steps, seen_classes
from teddy.teachers.networks import classifier, load_network
from teddy.teachers.pools import Pool
from tools.dependencies import (
    imported,
    target_inputs,
    target_of,
    update,
    with_inputs,
    write_inputs,
)
from tools.readme import with_results

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "teddy"
DVC: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
INPUTS = DVC.pop("inputs")  # the stage that all others depend on
MAINS = {
    "prepare": prepare.main,
    "train_teacher": train_teacher.main,
    "build_pool": build_pool.main,
    "synthesize": synthesize.main,
    "relabel": relabel.main,
    "evaluate": evaluate.main,
    "train_step_teachers": train_step_teachers.main,
    "continual": continual.main,
    "target": target.main,
    "streams": streams.main,
    "measure_costs": measure_costs.main,
    "costs": costs.main,
    "grids": grids.main,
    "fig1": fig1.main,
    "fig5": fig5.main,
    "theory": theory.main,
    "overview": overview.main,
    "report": report.main,
}
RECORDS_ONLY = ("target", "streams", "costs", "grids", "overview", "report")

# ------------------------------------------------------------------- dvc.yaml agrees with the code


def body(stage: str) -> dict[str, Any]:
    found: dict[str, Any] = DVC[stage].get("do", DVC[stage])
    return found


def module(stage: str) -> str:
    """Module that a stage runs; several tables and figures share one."""
    found = re.search(r"-m teddy\.stages\.(\w+)(?=\s)", body(stage)["cmd"])
    assert found, stage
    return found[1]


def outs(stage: str) -> list[str]:
    return [next(iter(out)) if isinstance(out, dict) else out for out in body(stage)["outs"]]


def shows(stage: str) -> str:
    """Target whose rows a stage reads, or ""."""
    return target_of(body(stage))


@pytest.mark.parametrize("stage", DVC)
def test_stage_depends_on_its_file_of_code_and_settings(stage: str) -> None:
    own = [dep for dep in body(stage)["deps"] if dep.startswith(("inputs/", "src/"))]
    assert own == [f"inputs/{stage}{'/${key}' if 'foreach' in DVC[stage] else ''}.json"]
    assert "params" not in body(stage), "which DVC would copy into dvc.lock"


def test_inputs_are_looked_at_in_every_run() -> None:
    assert INPUTS["always_changed"]
    assert INPUTS["cmd"] == "python -m tools.dependencies --inputs inputs"


def test_there_is_a_file_for_every_stage_and_row_also_of_all_profiles(tmp_path: Path) -> None:
    raw = YAML().load(ROOT / "params.yaml")
    for profile in (ROOT / "profiles").glob("*.yaml"):
        for section, rows in YAML(typ="safe").load(profile).items():
            raw[section] = raw[section] | rows
    YAML().dump(raw, tmp_path / "params.yaml")
    params = config.Params(tmp_path / "params.yaml")
    written = write_inputs(tmp_path / "inputs", ROOT / "dvc.yaml", params)
    expected = set()
    for stage in DVC:
        (path,) = [dep for dep in body(stage)["deps"] if dep.startswith("inputs/")]
        for fields in instances(raw, stage):
            expected.add(path.replace("${key}", fields.get("${key}", "")))
    assert {path.relative_to(tmp_path).as_posix() for path in written} == expected


def test_code_of_a_stage_is_every_module_that_it_imports(tmp_path: Path) -> None:
    write_inputs(tmp_path, ROOT / "dvc.yaml", config.Params(ROOT / "params.yaml"))
    source = "src/teddy/objectives.py"
    of_synthesis = read_json(tmp_path / "synthesize/digits/prior/ipc1.json")["code"]
    assert set(of_synthesis) == imported("teddy.stages.synthesize")
    assert of_synthesis[source] == hashlib.sha256((ROOT / source).read_bytes()).hexdigest()
    assert source not in read_json(tmp_path / "table1.json")["code"]


@pytest.mark.parametrize("stage", [stage for stage in DVC if shows(stage)])
def test_target_depends_on_exactly_the_files_of_its_rows(stage: str) -> None:
    declared = {dep for dep in body(stage)["deps"] if not dep.startswith("inputs/")}
    params = config.Params(ROOT / "params.yaml")
    assert declared == target_inputs(body(stage), params), "run: python -m tools.dependencies"


def test_a_row_of_a_target_reaches_the_lists(tmp_path: Path) -> None:
    """One line of params.yaml, one command: the new row and no other is depended on."""
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    raw = YAML().load(ROOT / "params.yaml")
    raw["targets"]["fig3a"].append("digits/prior/ipc1")
    YAML().dump(raw, tmp_path / "params.yaml")
    after = with_inputs(text, config.Params(tmp_path / "params.yaml"))
    added = set(after.splitlines()) - set(text.splitlines())
    lines = after.splitlines()
    assert len(lines) == len(text.splitlines()) + 1
    place = lines.index("  fig3a:")
    assert "      - metrics/runs/digits/prior/ipc1.json" in lines[place : place + 20]
    assert not added, "the file is one that Table 1 lists too"


def test_every_target_of_params_is_a_stage() -> None:
    listed = {shows(stage) for stage in DVC} - {""}
    assert listed == set(YAML(typ="safe").load(ROOT / "params.yaml")["targets"])


@pytest.mark.parametrize("stage", [stage for stage in DVC if not shows(stage)])
def test_stage_command_uses_exactly_the_declared_paths(stage: str) -> None:
    entry = body(stage)
    inputs = [dep for dep in entry["deps"] if not dep.startswith("inputs/")]
    used = re.findall(r"--(?!params)[a-z]+\s+(\S+)", entry["cmd"])
    assert sorted(used) == sorted(inputs + outs(stage))


@pytest.mark.parametrize("stage", [stage for stage in DVC if shows(stage)])
def test_target_command_uses_exactly_its_outputs(stage: str) -> None:
    used = re.findall(r"--(?!params)[a-z]+\s+(\S+)", body(stage)["cmd"])
    assert set(outs(stage)) <= set(used)
    rest = set(used) - set(outs(stage))
    deps = body(stage)["deps"]
    assert all(any(dep == path or dep.startswith(f"{path}/") for dep in deps) for path in rest)


def test_no_output_lies_inside_another() -> None:
    """DVC refuses that; names of rows must not make it happen."""
    rows = YAML(typ="safe").load(ROOT / "params.yaml")
    made = []
    for stage in DVC:
        for fields in instances(rows, stage):
            for out in outs(stage):
                for pattern, value in fields.items():
                    out = out.replace(pattern, value)
                made.append(out)
    assert len(made) == len(set(made))
    inside = [(a, b) for a in made for b in made if a.startswith(f"{b}/")]
    assert not inside


@pytest.mark.parametrize("stage", RECORDS_ONLY)
def test_stages_that_only_read_records_import_no_pytorch(stage: str) -> None:
    """Which costs them four seconds."""
    script = f"import sys; import teddy.stages.{stage}; sys.exit('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", script], env=env, check=True)


def test_every_stage_has_an_entrypoint_and_the_other_way_round() -> None:
    files = {file.stem for file in (SOURCE / "stages").glob("*.py")} - {"__init__"}
    assert files == set(map(module, DVC)) == set(MAINS)


@pytest.mark.parametrize(
    ("stage", "rows"),
    [("prepare", "prepared"), ("train_teacher", "bases"), ("build_pool", "pools"),
     ("synthesize", "sets"), ("relabel", "sets"), ("evaluate", "sets"), ("score", "scores"),
     ("train_step_teachers", "step_teachers"), ("continual", "streams")],
)  # fmt: skip
def test_stage_runs_for_every_row(stage: str, rows: str) -> None:
    assert DVC[stage]["foreach"] == f"${{{rows}}}"


def test_params_are_written_as_dvc_writes_them(tmp_path: Path) -> None:
    """So that `dvc exp run -S key=value` changes one line."""
    YAML().dump(YAML().load(ROOT / "params.yaml"), tmp_path / "params.yaml")
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert (tmp_path / "params.yaml").read_text(encoding="utf-8") == text
    assert not re.search(r"^[^#]*[:-] +[\[{](?![]}])", text, re.MULTILINE), (
        "flow style is rewritten"
    )


# ----------------------------------------------------------------------------- a tiny pipeline run


def tiny_params(path: Path, **changes: Any) -> Path:
    """The repository's settings, shrunk until the whole method takes seconds."""
    yaml = YAML()
    raw = yaml.load(ROOT / "params.yaml")
    small = {
        "train_teacher.network.width": 4,
        "train_teacher.epochs": 6,
        "pool.prior.epochs": [3, 4, 6],
        "pool.post.size": 3,
        "pool.post.max_epochs": 1,
        "synthesize.iterations": 120,
        "synthesize.indices_per_batch": 2,
        "synthesize.draw": 2,
        "synthesize.dm.network.width": 4,
        "synthesize.dm.iterations": 4,
        "relabel.epochs": 8,
        "evaluate.network.width": 4,
        "evaluate.seeds": [0, 1],
        "evaluate.eval_epochs": 4,
    }
    for key, value in {**small, **{k.replace("__", "."): v for k, v in changes.items()}}.items():
        assign(raw["datasets"]["digits"], key, value)
    small_rows = {
        "prepared": ("digits",),
        "bases": ("digits/base",),
        "pools": ("digits/converged", "digits/post", "digits/prior"),
    }
    for section, names in small_rows.items():
        raw[section] = {name: raw[section][name] for name in names}
    raw["sets"] = {
        "digits/random/ipc3": set_row("random", "prior"),
        "digits/sre2l/ipc3": {**set_row("sre2l", "converged"), "draw": 1},
        "digits/post/ipc3": set_row("teddy-post", "post"),
        "digits/prior/ipc3": set_row("teddy-prior", "prior"),
        "digits/dm/ipc3": {
            **set_row("dm", "prior"),
            "initialise": "real",
            "relabel": {"augmentation": "dsa", "cutmix": False, "store": False},
        },
    }
    raw["scores"] = {
        "digits/prior/ipc3-members1": score_row(members=1),
        "digits/prior/ipc3-resnet18": score_row(
            relabel={"epochs": 2}, evaluate={"network": {"arch": "resnet18"}, "seeds": [0]}
        ),
    }
    raw["continual"] = {"steps": 2, "orders": [0, 1]}
    raw["step_teachers"] = {
        "digits/by-step": {"dataset": "digits", "data": "digits", "checkpoints": [3, 4, 6]}
    }
    raw["streams"] = {
        "digits/prior/ipc3-all": stream_row("prior", "digits/prior"),
        "digits/prior/ipc3-strict": stream_row("prior", "digits/by-step"),
        "digits/dm/ipc3-strict": stream_row("dm", "digits/by-step", labels=["hard", "soft"]),
    }
    four = list(raw["sets"])[:4]
    raw["targets"] = {name: four for name in raw["targets"]} | {
        "table2": ["digits/prior/ipc3-resnet18"],
        **{
            name: ["digits/sre2l/ipc3", "digits/prior/ipc3"] for name in ("fig2c", "fig3a", "fig3c")
        },
        "fig3b": ["digits/prior/ipc3-members1", "digits/prior/ipc3"],
        "fig3d": ["digits/sre2l/ipc3", "digits/prior/ipc3"],
        "fig3e": list(raw["streams"]),
        "table5": list(raw["sets"]),
    }
    raw["fig1"] |= {"ipc": 2, "inner_steps": [1, 2], "repeats": 1}
    raw["fig5"] |= {
        "width": 4, "inner_steps": 2, "real_per_class": 2, "iterations": 2, "measured_inits": 1,
        "seeds": [0, 1], "law_lrs": [0.1, 0.05], "law_steps": [2],
    }  # fmt: skip
    yaml.dump(raw, path)
    return path


def assign(section: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        section = section.setdefault(part, {})
    section[last] = value


def set_row(method: str, pool: str) -> dict[str, Any]:
    row = {"dataset": "digits", "data": "digits", "method": method, "pool": f"digits/{pool}"}
    return row | {"ipc": 3}


def score_row(members: int = 0, **stages: Any) -> dict[str, Any]:
    row = {"dataset": "digits", "data": "digits", "set": "digits/prior/ipc3"}
    return row | {"pool": "digits/prior", "members": members, "labels": ["soft"]} | stages


def stream_row(method: str, teachers: str, **changes: Any) -> dict[str, Any]:
    row = {"dataset": "digits", "data": "digits", "set": f"digits/{method}/ipc3"}
    more = {"pool": "digits/prior", "teachers": teachers, "labels": ["soft"]}
    return row | more | {"relabel": {"epochs": 2}, "evaluate": {"seeds": [0]}} | changes


def instances(rows: dict[str, Any], stage: str) -> Iterator[dict[str, str]]:
    """What DVC puts for each placeholder, for every instance of a stage."""
    if "foreach" not in DVC[stage]:
        yield {
            f"${{{section}.{key}}}": str(rows[section][key])
            for section in ("fig1", "fig5")
            for key in ("dataset", "data")
        }
        return
    for key, row in rows[DVC[stage]["foreach"][2:-1]].items():
        yield {"${key}": key, **{f"${{item.{name}}}": str(value) for name, value in row.items()}}


def commands(rows: dict[str, Any], stage: str) -> Iterator[list[str]]:
    """Command lines of a stage, as ``dvc.yaml`` writes them, without the launcher."""
    for fields in instances(rows, stage):
        command = body(stage)["cmd"]
        for pattern, value in fields.items():
            command = command.replace(pattern, value)
        yield command.split(f"teddy.stages.{module(stage)}")[1].split()


def run_all(folder: Path, stages: list[str]) -> None:
    rows = YAML(typ="safe").load(folder / "params.yaml")
    for stage in stages:
        for arguments in commands(rows, stage):
            MAINS[module(stage)](arguments)


MEASURED = ("measure_costs", "fig3d", "report")
STAGES = [stage for stage in DVC if stage not in MEASURED] + list(MEASURED)
"""What is measured comes last but for the report; its numbers differ from run to run."""


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which every stage of the tiny pipeline has run."""
    folder = tmp_path_factory.mktemp("tiny")
    shutil.copytree(ROOT / "metrics" / "reference", folder / "metrics" / "reference")
    tiny_params(folder / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TEDDY_WORKERS", "1")
        patch.setenv("TEDDY_DEVICE", "cpu")
        run_all(folder, STAGES)
    yield folder


def outputs(folder: Path) -> dict[str, str]:
    """Checksum of every file that stages wrote; timings and resume state left out."""
    return {
        file.relative_to(folder).as_posix(): digest(file)
        for name in ("data", "models", "metrics", "plots")
        for file in sorted((folder / name).rglob("*"))
        if file.is_file() and file.stem not in ("costs", "fig1_seconds", "fig3d", "report")
    }


def test_pipeline_makes_every_declared_output(tiny_run: Path) -> None:
    summary = read_json(tiny_run / "metrics" / "summary.json")
    for method in ("random", "sre2l", "teddy-post", "teddy-prior"):
        for labels in ("hard", "soft"):
            cell = summary["digits"][method.removeprefix("teddy-")]["ipc3"][labels]
            assert cell["n"] == 2
            assert 0 <= cell["top1_mean"] <= 100
    assert (tiny_run / "metrics" / "tables" / "table1.md").is_file()
    assert not list((tiny_run / "work").rglob("*.safetensors")), "work of finished stages is kept"


def test_streams_test_every_order_and_step_on_seen_classes_alone(tiny_run: Path) -> None:
    labels = teddy.load(tiny_run / "data/distilled/digits/prior/ipc3.safetensors").labels
    for name, kinds in (("prior/ipc3-all", 1), ("prior/ipc3-strict", 1), ("dm/ipc3-strict", 2)):
        record = read_json(tiny_run / f"metrics/streams/digits/{name}.json")
        results = record["results"]
        assert len(results) == 2 * 2 * kinds
        for result in results:
            arriving = class_steps(10, 2, result["order"])
            assert result["classes"] == list(seen_classes(arriving, result["step"] - 1))
            assert result["images"] == 3 * len(result["classes"])
            assert 0 <= result["top1"] <= 100
        last = [result["images_held_out"] for result in results if result["step"] == 2]
        assert set(last) == {450}, "after the last step every test image counts"
        first = [result["images_held_out"] for result in results if result["step"] == 1]
        assert max(first) < 450
    assert len(labels) == 30
    folders = sorted(p.name for p in (tiny_run / "models/digits/by-step").iterdir())
    assert folders == [f"order{i}-step{j}" for i in range(2) for j in range(2)] + ["record.json"]
    kept = sorted(p.name for p in (tiny_run / "models/digits/by-step/order1-step0").iterdir())
    assert kept == [f"epoch{epoch:04d}.safetensors" for epoch in (3, 4, 6)]


def test_teachers_of_a_step_know_its_classes_alone(tiny_run: Path) -> None:
    record = read_json(tiny_run / "models/digits/by-step/record.json")
    for step in record["steps"]:
        assert step["classes"] == list(class_steps(10, 2, step["order"])[step["step"]])
        path = tiny_run / f"models/digits/by-step/order{step['order']}-step{step['step']}"
        network, facts = load_network(path / "epoch0006.safetensors")
        assert facts["num_classes"] == classifier(network).out_features == 10
        assert facts["val_top1"] > 100 / 5, "better than chance on the step's own classes"


def test_distilled_sets_load_in_one_line(tiny_run: Path) -> None:
    dataset = teddy.load(tiny_run / "data/distilled/digits/prior/ipc3.safetensors")
    image, label = dataset[11]
    assert (len(dataset), dataset.ipc, label) == (30, 3, 1)
    assert image.shape == (1, 8, 8)
    assert dataset.provenance["method"] == "teddy-prior"


def test_post_pool_is_pruned_and_described(tiny_run: Path) -> None:
    members = read_json(tiny_run / "metrics/pools/digits/post.json")["members"]
    base = read_json(tiny_run / "metrics/pools/digits/converged.json")["members"][0]
    assert len({member["seed"] for member in members}) == 3
    for member in members:
        assert member["parameters"] < base["parameters"]
        assert member["macs"] < base["macs"]
        assert member["finetune_epochs"] <= 1


def test_a_second_run_gives_the_same_bytes(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "metrics" / "reference", tmp_path / "metrics" / "reference")
    shutil.copy(tiny_run / "params.yaml", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("TEDDY_WORKERS", "1")
        patch.setenv("TEDDY_DEVICE", "cpu")
        run_all(tmp_path, STAGES)
    assert outputs(tmp_path) == outputs(tiny_run)


def test_online_labels_train_the_same_students(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_run)
    monkeypatch.setenv("TEDDY_WORKERS", "1")
    params = str(tiny_params(tmp_path / "params.yaml", relabel__store=False))
    name, pool = "digits/prior/ipc3", "models/digits/prior"
    made = f"data/distilled/{name}.safetensors"
    labels, score = str(tmp_path / "labels"), str(tmp_path / "score.json")
    relabel.main([name, "--set", made, "--pool", pool, "--out", labels, "--params", params])
    evaluate.main(
        [name, "--data", "data/prepared/digits", "--set", made, "--labels", labels, "--pool", pool,
         "--out", score, "--params", params]
    )  # fmt: skip
    assert not list(Path(labels).glob("*.safetensors"))
    assert read_json(Path(score)) == read_json(tiny_run / f"metrics/runs/{name}.json")


def test_students_with_hard_labels_alone_load_no_teachers(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_run)
    monkeypatch.setenv("TEDDY_WORKERS", "1")

    def member(*_: object) -> None:
        raise AssertionError("a member of the pool was loaded")

    monkeypatch.setattr(Pool, "member", member)
    name, score = "digits/dm/ipc3", tmp_path / "score.json"
    evaluate.main(
        [name, "--data", "data/prepared/digits", "--set", f"data/distilled/{name}.safetensors",
         "--labels", f"data/labels/{name}", "--pool", "models/digits/prior", "--out", str(score)]
    )  # fmt: skip
    assert read_json(score) == read_json(Path(f"metrics/runs/{name}.json"))


def test_changing_a_method_leaves_the_images_of_others(tiny_run: Path, tmp_path: Path) -> None:
    """More images per class only add to a set: the first ones stay byte for byte."""
    params = tiny_params(tmp_path / "params.yaml")
    yaml = YAML()
    raw = yaml.load(params)
    keep = {"digits/prior/ipc7": {**raw["sets"]["digits/prior/ipc3"], "ipc": 7}}
    raw |= {"sets": keep, "scores": {}, "streams": {}, "targets": {}}
    yaml.dump(raw, params)
    out = tmp_path / "ipc7"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_run)
        patch.setenv("TEDDY_WORKERS", "1")
        synthesize.main(
            ["digits/prior/ipc7", "--data", "data/prepared/digits", "--pool", "models/digits/prior",
             "--out", str(out), "--history", str(tmp_path / "h.json"), "--params", str(params)]
        )  # fmt: skip
    few = teddy.load(tiny_run / "data/distilled/digits/prior/ipc3.safetensors")
    many = teddy.load(out)
    assert many.ipc == 7
    assert many.images[: len(few)].equal(few.images)


def test_every_kind_of_images_has_a_maker_and_settings(synthesis_config: SynthesizeConfig) -> None:
    """What the README asks for of a new one."""
    kinds = get_args(get_type_hints(MethodRow)["images"])
    assert set(kinds) == {"random", *synthesize.MAKERS} == set(KINDS)
    for kind in kinds:
        assert bool(settings_of_images(synthesis_config, kind)) == (kind != "random")


class Recorded:
    """Settings that note which of them are read."""

    def __init__(self, config: SynthesizeConfig) -> None:
        self.config, self.read = config, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self.config, name)


@pytest.mark.parametrize("kind", ["synthesised", "dm"])
@pytest.mark.parametrize("initialise", ["noise", "real"])
def test_a_maker_reads_no_setting_but_those_of_its_kind(
    kind: str, initialise: Any, tiny_run: Path, tmp_path: Path, synthesis_config: SynthesizeConfig
) -> None:
    """Others are not in its inputs, so that a change of them would be overlooked."""
    config: Any = Recorded(replace(synthesis_config, initialise=initialise))
    dataset = read_dataset(tiny_run / "data/prepared/digits")
    maker = synthesize.MAKERS[kind](config, dataset, tiny_run / "models/digits/prior", 0)
    item = maker.items(2)[0]
    maker.load([item])
    maker.run(item, tmp_path / "resume")
    assert config.read <= settings_of_images(synthesis_config, kind).keys()
    assert len(config.read) > 3


def test_a_repeat_differs_from_the_synthesis_itself(tiny_run: Path, tmp_path: Path) -> None:
    params = tiny_params(tmp_path / "params.yaml")
    yaml = YAML()
    raw = yaml.load(params)
    raw["sets"]["digits/random/ipc3"]["repeat"] = 1
    yaml.dump(raw, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_run)
        synthesize.main(
            ["digits/random/ipc3", "--data", "data/prepared/digits", "--pool",
             "models/digits/prior", "--out", str(tmp_path / "set"), "--history",
             str(tmp_path / "h.json"), "--params", str(params)]
        )  # fmt: skip
    again = teddy.load(tmp_path / "set")
    first = teddy.load(tiny_run / "data/distilled/digits/random/ipc3.safetensors")
    assert len(again) == len(first)
    assert not again.images.equal(first.images)


def test_readme_shows_the_committed_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_results(readme, ROOT) == readme, "run `make readme`"


def test_readme_lists_every_module() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"[\w*]+", text[text.index("\nsrc/teddy/  ") :])
    modules = {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}
    missing = {name for name in modules if not any(fnmatch(name, known) for known in listed)}
    assert not missing


def test_committed_summary_is_that_of_the_committed_records() -> None:
    """Every accuracy of the summary recomputed from the students' records."""
    params = config.Params(ROOT / "params.yaml")
    summary = read_json(ROOT / "metrics" / "summary.json")
    for name in (*params.sets, *params.scores):
        record = read_json(ROOT / "metrics" / "runs" / f"{name}.json")
        cell = summary
        for part in name.split("/"):
            cell = cell[part]
        assert record["split"] == "test"
        for labels, runs in record["labels"].items():
            last = [run["top1_last"] for run in runs]
            assert cell[labels]["n"] == len(last) >= 3
            assert cell[labels]["top1_mean"] == round(statistics.fmean(last), 2)
            assert cell[labels]["top1_std"] == round(statistics.stdev(last), 2)


# ------------------------------------------------------------------------------- kill and resume

_SERVER = multiprocessing.get_context("forkserver")


def _run_main(stage: str, folder: str, workers: str, arguments: list[str]) -> None:
    os.chdir(folder)
    os.environ.update(TEDDY_WORKERS=workers, TEDDY_DEVICE="cpu", TEDDY_SAVE_SECONDS="0")
    os.environ["OMP_NUM_THREADS"] = "1"
    MAINS[stage](arguments)


@pytest.mark.parametrize(
    ("stage", "row", "workers"),
    [
        ("train_teacher", "digits/base", "1"),
        ("build_pool", "digits/post", "1"),
        ("synthesize", "digits/prior/ipc3", "2"),
        ("relabel", "digits/prior/ipc3", "1"),
        ("evaluate", "digits/prior/ipc3", "2"),
    ],
)
def test_killed_stage_resumes_to_the_same_bytes(
    tiny_run: Path, tmp_path: Path, stage: str, row: str, workers: str
) -> None:
    """The undisturbed run had one process; the killed one may have two, with the same bytes."""
    _SERVER.set_forkserver_preload(["teddy.stages.evaluate", "teddy.stages.synthesize"])
    shutil.copytree(tiny_run, tmp_path / "again", ignore=shutil.ignore_patterns("plots", "work"))
    folder = tmp_path / "again"
    rows = YAML(typ="safe").load(folder / "params.yaml")
    (arguments,) = (line for line in commands(rows, stage) if line[0] == row)
    written = [Path(path) for path in arguments if "/" in path and path != row]
    expected = outputs(folder)
    written_by = re.findall(r"(--[a-z]+)\s+(\S+)", body(stage)["cmd"])
    options = {option for option, template in written_by if template in outs(stage)}
    for option, path in zip(arguments[1::2], arguments[2::2], strict=True):
        target = folder / path
        if option in options:
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    delays = random.Random(stage)
    kills = 0
    for _ in range(40):
        process = _SERVER.Process(target=_run_main, args=(stage, str(folder), workers, arguments))
        process.start()
        process.join(delays.uniform(0.05, 0.6) if kills < 6 else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
            break
    assert kills > 0, "never killed: the stage is too quick for this test"
    assert written and outputs(folder) == expected


# ---------------------------------------------------------------------------------------- refusals


def refuse(stage: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a stage that must refuse; its one line."""
    with pytest.raises(SystemExit) as stop:
        MAINS[stage](arguments)
    assert stop.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def synthesize_arguments(name: str, params: Path, out: Path) -> list[str]:
    return [
        name, "--data", "data/prepared/digits", "--pool", "models/digits/prior",
        "--out", str(out / "set.safetensors"), "--history", str(out / "history.json"),
        "--params", str(params),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("prepare.source", "digitz", ["prepare", "source", "digits", "digitz"]),
        ("train_teacher.network.arch", "resnet19", ["network.arch", "resnet18", "resnet19"]),
        ("synthesize.iteration", 5, ["unknown key 'iteration'", "iterations"]),
        ("synthesize.draw", 4, ["draw is 4", "3 members"]),
        ("pool.prior.epochs", [3, 7], ["epoch 7", "ends at epoch 6"]),
        ("synthesize.lr", "fast", ["synthesize", "lr", "'fast'"]),
    ],
)
def test_bad_settings_are_refused_by_name(
    tmp_path: Path, key: str, value: Any, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    params = tiny_params(tmp_path / "params.yaml", **{key.replace(".", "__"): value})
    line = refuse(
        "prepare", ["digits", "--out", str(tmp_path / "out"), "--params", str(params)], capsys
    )
    assert all(word in line for word in words), line
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"method": "teddy"}, ["method", "'teddy'"]),
        ({"dataset": "digit"}, ["dataset", "'digit'", "digits"]),
        ({"pool": "digits/priors"}, ["pool", "digits/priors", "did you mean 'digits/prior'"]),
        ({"ipc": 0}, ["ipc must be at least 1", "0"]),
        ({"method": "random", "ipc": 200}, ["200", "for training", "smaller ipc"]),
        ({"steps": 3}, ["unknown key 'steps'"]),
    ],
)
def test_bad_rows_are_refused_by_name(
    tmp_path: Path, row: dict[str, Any], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    params = tiny_params(tmp_path / "params.yaml")
    yaml = YAML()
    raw = yaml.load(params)
    raw["sets"]["digits/prior/ipc3"].update(row)
    yaml.dump(raw, params)
    line = refuse(
        "prepare", ["digits", "--out", str(tmp_path / "out"), "--params", str(params)], capsys
    )
    assert all(word in line for word in [*words, "digits/prior/ipc3"]), line
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_unknown_row_on_the_command_line(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_run)
    line = refuse("prepare", ["digit", "--out", "elsewhere"], capsys)
    assert "'digit'" in line and "did you mean 'digits'" in line


@pytest.mark.parametrize("damage", ["truncated", "foreign", "missing", "swapped"])
def test_damaged_checkpoints_are_refused(
    tiny_run: Path,
    tmp_path: Path,
    damage: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("plots", "work"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TEDDY_WORKERS", "1")
    for member in sorted((folder / "models/digits/prior").glob("member*")):
        if damage == "truncated":
            member.write_bytes(member.read_bytes()[:-100])
        elif damage == "foreign":
            shutil.copy(folder / "data/distilled/digits/prior/ipc3.safetensors", member)
        elif damage == "missing":
            member.unlink()
        else:
            shutil.copy(folder / "models/digits/base/epoch0001.safetensors", member)
    arguments = synthesize_arguments("digits/prior/ipc3", Path("params.yaml"), tmp_path / "out")
    line = refuse("synthesize", arguments, capsys)
    assert "models/digits/prior/member" in line
    assert not (tmp_path / "out" / "set.safetensors").exists()


def test_non_finite_loss_names_stage_item_and_step(
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny_run)
    monkeypatch.setenv("TEDDY_WORKERS", "1")
    monkeypatch.setenv("TEDDY_WORK", str(tmp_path / "work"))
    params = tiny_params(
        tmp_path / "params.yaml",
        synthesize__lr=1e38,
        synthesize__clip=False,
        synthesize__gradient="two_pass",
    )
    line = refuse(
        "synthesize", synthesize_arguments("digits/prior/ipc3", params, tmp_path / "out"), capsys
    )
    assert re.search(r"synthesize: loss is (nan|inf) at iteration \d+ of indices 0-1", line), line
    assert not (tmp_path / "out" / "set.safetensors").exists()


def test_unwritable_output_is_refused_before_any_work(
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny_run)
    monkeypatch.setattr("teddy.stages.synthesize.read_dataset", lambda _: pytest.fail("started"))
    (tmp_path / "file").write_text("in the way")
    line = refuse(
        "synthesize",
        synthesize_arguments("digits/prior/ipc3", Path("params.yaml"), tmp_path / "file"),
        capsys,
    )
    assert str(tmp_path / "file") in line and "cannot write" in line


def test_full_disk_leaves_nothing_half_written(tiny_run: Path, tmp_path: Path) -> None:
    """A file-size limit stands in for a full disk: the write fails midway."""
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "from teddy.stages import prepare; prepare.main(sys.argv[1:])"
    )
    out = tmp_path / "out"
    result = subprocess.run(
        [sys.executable, "-c", limited, "digits", "--out", str(out)],
        cwd=tiny_run, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TEDDY_LOGS": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line]
    assert line.startswith("error: ") and "arrays.safetensors" in line
    assert not any(out.iterdir())


def test_labels_of_another_set_are_refused(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_run)
    name = "digits/prior/ipc3"
    line = refuse(
        "evaluate",
        [name, "--data", "data/prepared/digits", "--set", f"data/distilled/{name}.safetensors",
         "--labels", "data/labels/digits/random/ipc3", "--pool", "models/digits/prior",
         "--out", "elsewhere.json"],
        capsys,
    )  # fmt: skip
    assert "labels are of another set" in line


def test_labels_of_other_settings_are_refused(
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny_run)
    params = tiny_params(tmp_path / "params.yaml", relabel__cutmix=False)
    name = "digits/prior/ipc3"
    line = refuse(
        "evaluate",
        [name, "--data", "data/prepared/digits", "--set", f"data/distilled/{name}.safetensors",
         "--labels", f"data/labels/{name}", "--pool", "models/digits/prior",
         "--out", "elsewhere.json", "--params", str(params)],
        capsys,
    )  # fmt: skip
    assert "labels are of other relabel settings" in line


def test_missing_device_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEDDY_DEVICE", "tpu")
    params = tiny_params(tmp_path / "params.yaml")
    line = refuse("prepare", ["digits", "--out", str(tmp_path), "--params", str(params)], capsys)
    assert "TEDDY_DEVICE" in line and "'tpu'" in line


@pytest.mark.parametrize("workers", ["1", "8"])
def test_larger_images_label_the_same_with_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    """Forked workers must neither hang nor differ once a parent has used several threads."""
    script = (
        "import sys, torch; from pathlib import Path; from teddy import labels; "
        "from teddy.core.artifacts import WorkDir; from teddy.core.files import digest; "
        "from teddy.settings.configs import *; "
        "from teddy.data.images import Images, Normalisation; "
        "from teddy.teachers.networks import build; "
        "torch.set_num_threads(2); torch.randn(512, 512) @ torch.randn(512, 512); "
        "net = NetworkConfig(arch='convnet3', width=64, norm='batch'); "
        "teacher = build(net, (3, 32, 32), 3, 0).eval().requires_grad_(False); "
        "teacher = teacher.to(memory_format=torch.channels_last); "
        "dsa = DsaConfig(operations=('flip',), scale=1, rotate=0, crop=0, cutout=0, brightness=0, "
        "saturation=0, contrast=0); "
        "view = ViewConfig(crop_scale=0.5, hflip=True, roll=(0, 0)); "
        "config = RelabelConfig(epochs=8, augmentation='views', dsa=dsa, views=view, "
        "cutmix=True, ensemble='logits', precision='float32', store=True); "
        "images = torch.arange(6 * 3 * 32 * 32).remainder(251).to(torch.uint8); "
        "images = Images(images.reshape(6, 3, 32, 32), torch.arange(6) % 3); "
        "views = labels.TrainingViews(images, Normalisation((0.5,) * 3, (0.2,) * 3), config, 0); "
        "work = WorkDir('t', 't'); "
        "shards = labels.store_labels(labels.OnlineLabels(views, [teacher]), 3, work); "
        "print([digest(work / shard['file']) for shard in shards])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TEDDY_DEVICE": "cpu"}
    found = [
        subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
            timeout=120, check=True, env={**env, "TEDDY_WORKERS": n, "TEDDY_WORK": n},
        ).stdout
        for n in ("3", workers)
    ]  # fmt: skip
    assert found[0] == found[1] and len(found[0]) > 200


@pytest.mark.parametrize("stage", MAINS)
def test_help_says_what_a_stage_does(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        MAINS[stage](["--help"])
    assert stop.value.code == 0
    assert "--params" in capsys.readouterr().out


# --------------------------------------------------------------------------------- through DVC


@pytest.mark.slow
def test_dvc_repro_runs_once_and_reruns_only_what_changed(tmp_path: Path) -> None:
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "metrics/reference", folder / "metrics/reference")
    tiny_params(folder / "params.yaml")
    update(folder / "dvc.yaml", config.Params(folder / "params.yaml"))
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "src"),
        "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
        "GIT_CONFIG_GLOBAL": os.devnull,
    }

    def run(*command: str) -> str:
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
        return result.stdout

    run("git", "init", "-q")
    run("dvc", "init", "-q")
    first = run("dvc", "repro")
    rows = YAML(typ="safe").load(folder / "params.yaml")
    assert first.count("Running stage") == 1 + sum(len(list(instances(rows, s))) for s in DVC)
    start = time.monotonic()
    assert re.findall(r"Running stage '(\w+)", run("dvc", "repro")) == ["inputs"]
    assert time.monotonic() - start < 30
    summary = json.loads(run("dvc", "metrics", "show", "--json"))
    assert "metrics/summary.json" in json.dumps(summary)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("temperature: 20", "temperature: 10"))
    again = re.findall(r"Running stage '(\w+)", run("dvc", "repro"))
    assert {"evaluate", "score", "table1", "report"} <= set(again)
    assert not {"synthesize", "relabel", "measure_costs", "overview"} & set(again)
    assert config.Params(folder / "params.yaml").evaluate("digits/prior/ipc3").temperature == 10
    with (folder / "src/teddy/evaluation.py").open("a") as file:
        file.write("# changed\n")
    run("dvc", "repro", "-s", "inputs")
    stale = set(re.findall(r"^(\w+)", run("dvc", "status"), re.MULTILINE))
    assert {"evaluate", "score"} <= stale
    assert not {"synthesize", "relabel", "train_teacher"} & stale
