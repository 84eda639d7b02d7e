"""The pipeline as users meet it: stages through their entrypoints, kill and resume, refusals.

Needs no GPU and no data beyond scikit-learn's digits.
"""

import multiprocessing
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkouts import (
    COMPUTING,
    DIGITS,
    DVC,
    PRIOR,
    ROOT,
    command,
    commands,
    edit_rows,
    instances,
    option,
    outputs,
    outs,
    tiny_checkout,
)

import teddy
from teddy.core.files import read_json, write_json
from teddy.data.datasets import read_dataset
from teddy.data.distilled import DistilledSet, save_distilled
from teddy.data.images import Normalisation
from teddy.settings.algorithms import ALGORITHMS
from teddy.settings.declared import Declared
from teddy.stages.commands import COMMANDS, main
from teddy.stages.resolve import write_inputs
from teddy.students.continual import class_steps, seen_classes
from teddy.synthesis.methods import method_class
from teddy.teachers.networks import classifier, load_network
from teddy.teachers.pools import Pool
from tools.by_hand import variables

SHOWING = [stage for stage in DVC if stage not in COMPUTING]
DM, RANDOM, POST = "digits/table5/dm", "digits/main/ipc3/random", "digits/post"


# ----------------------------------------------------------------------------- a tiny pipeline run


def run_all(folder: Path, stages: Sequence[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TEDDY_WORKERS", "1")
        patch.setenv("TEDDY_DEVICE", "cpu")
        for stage in stages:
            for arguments in commands(folder, stage):
                main(arguments)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage of the chain has run."""
    folder = tiny_checkout(tmp_path_factory.mktemp("tiny"))
    run_all(folder, COMPUTING)
    return folder


@pytest.fixture(scope="module")
def whole_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with all tables and figures."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(tiny_run, folder)
    shutil.copytree(ROOT / "metrics" / "reference", folder / "metrics" / "reference")
    run_all(folder, SHOWING)
    return folder


@pytest.fixture
def in_tiny_run(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Being in that folder."""
    monkeypatch.chdir(tiny_run)
    monkeypatch.setenv("TEDDY_WORKERS", "1")
    monkeypatch.setenv("TEDDY_DEVICE", "cpu")
    return tiny_run


def settings_of(stage: str, row: str, root: Path) -> Path:
    """Settings file of a stage and row in a checkout."""
    return root / "inputs" / stage / f"{row}.json"


def test_stages_of_the_chain_make_every_declared_output(tiny_run: Path) -> None:
    known = variables(tiny_run)
    for stage in COMPUTING:
        for fields in instances(known, stage):
            for out in outs(stage):
                for pattern, value in fields.items():
                    out = out.replace(pattern, value)
                assert (tiny_run / out).exists(), out
    assert not list((tiny_run / "work").rglob("*.safetensors")), "work of finished stages is kept"


def test_accuracies_are_in_the_summary(whole_run: Path) -> None:
    summary = read_json(whole_run / "metrics" / "summary.json")
    for method in ("random", "sre2l", "post", "prior"):
        for labels in ("hard", "soft"):
            cell = summary["digits"]["main"]["ipc3"][method][labels]
            assert cell["n"] == (4 if method == "prior" else 2)
            assert 0 <= cell["top1_mean"] <= 100
    assert list((whole_run / "metrics/tables/digits/table1").iterdir())
    assert (whole_run / "plots/report.html").is_file()


def test_records_have_the_recipe_and_the_settings_of_students(tiny_run: Path) -> None:
    for folder, name, recipe in (
        ("evaluations", DM, "dm"), ("evaluations", PRIOR, ""), ("learners", "digits/fig3e/all", ""),
    ):  # fmt: skip
        of_record = read_json(tiny_run / f"metrics/{folder}/{name}.json")["recipe"]
        stage = "evaluate" if folder == "evaluations" else "continual"
        settings = read_json(tiny_run / f"inputs/{stage}/{name}.json")
        assert of_record["name"] == recipe
        del settings["relabel"]["store"]  # on which no student depends
        assert of_record["relabel"] == settings["relabel"]
        assert of_record["evaluate"] == settings["config" if stage == "evaluate" else "evaluate"]
    of_dm = read_json(tiny_run / f"metrics/evaluations/{DM}.json")["recipe"]
    assert (of_dm["relabel"]["augmentation"], of_dm["relabel"]["epochs"]) == ("dsa", 8)
    assert of_dm["evaluate"]["optimizer"]["name"] == "sgd"


def test_tables_say_which_recipe_their_students_share(whole_run: Path) -> None:
    folder = whole_run / "metrics/tables/digits"
    table1, table5 = (
        " ".join((folder / target / "table.md").read_text().split())
        for target in ("table1", "table5")
    )
    assert "Recipes of the rows differ: none, dm." in table5
    assert "ecipe" not in table1


def test_learners_test_every_order_and_step_on_seen_classes_alone(tiny_run: Path) -> None:
    for name, kinds in (("all", 1), ("strict", 1), ("dm-strict", 2)):
        record = read_json(tiny_run / f"metrics/learners/digits/fig3e/{name}.json")
        assert record["learner"] == f"digits/fig3e/{name}"
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
    folders = sorted(p.name for p in (tiny_run / "models/digits/by-step").iterdir())
    assert folders == [f"order{i}-step{j}" for i in range(2) for j in range(2)] + ["record.json"]
    kept = sorted(p.name for p in (tiny_run / "models/digits/by-step/order1-step0").iterdir())
    assert kept == [f"epoch{epoch:04d}.safetensors" for epoch in (3, 4, 6)], "what learners need"


def test_teachers_of_a_step_know_its_classes_alone(tiny_run: Path) -> None:
    record = read_json(tiny_run / "models/digits/by-step/record.json")
    assert len(record["steps"]) == 2 * 2, "orders × steps"
    for step in record["steps"]:
        assert step["classes"] == list(class_steps(10, 2, step["order"])[step["step"]])
        path = tiny_run / f"models/digits/by-step/order{step['order']}-step{step['step']}"
        network, facts = load_network(path / "epoch0006.safetensors")
        assert facts["num_classes"] == classifier(network).out_features == 10
        assert facts["val_top1"] > 100 / 5, "better than chance on the step's own classes"


def test_distilled_sets_load_in_one_line(tiny_run: Path) -> None:
    dataset = teddy.load(tiny_run / f"data/distilled/{PRIOR}/0.safetensors")
    image, label = dataset[11]
    assert (len(dataset), dataset.ipc, label) == (30, 3, 1)
    assert image.shape == (1, 8, 8)
    assert dataset.provenance["method"] == "teddy-prior"


def test_post_pool_is_pruned_and_described(tiny_run: Path) -> None:
    members = read_json(tiny_run / f"metrics/pools/{POST}.json")["members"]
    base = read_json(tiny_run / "metrics/pools/digits/converged.json")["members"][0]
    assert len({member["seed"] for member in members}) == 3
    for member in members:
        assert member["parameters"] < base["parameters"]
        assert member["macs"] < base["macs"]
        assert member["finetune_epochs"] <= 1


def test_records_say_what_they_are_of(tiny_run: Path) -> None:
    again = read_json(tiny_run / "metrics/evaluations/digits/fig3b/members1.json")
    own = read_json(tiny_run / f"metrics/evaluations/{PRIOR}.json")
    assert (again["evaluation"], again["set"]) == ("digits/fig3b/members1", PRIOR)
    assert (own["evaluation"], own["set"]) == (PRIOR, PRIOR)
    assert (again["members"], own["members"]) == (1, 3)
    assert (list(again["labels"]), list(own["labels"])) == (
        ["soft"], ["fixed", "hard", "soft"],
    )  # fmt: skip


def test_a_second_run_gives_the_same_bytes(tiny_run: Path, tmp_path: Path) -> None:
    tiny_checkout(tmp_path)
    run_all(tmp_path, COMPUTING)
    assert outputs(tmp_path) == outputs(tiny_run)


def test_tables_and_figures_have_the_same_bytes_again(whole_run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(whole_run, again, ignore=shutil.ignore_patterns("tables", "plots", "work"))
    run_all(again, SHOWING)
    assert outputs(again) == outputs(whole_run)


def test_online_labels_train_the_same_students(in_tiny_run: Path, tmp_path: Path) -> None:
    other = tiny_checkout(tmp_path / "other", relabel__store=False)
    labels, record = tmp_path / "labels", tmp_path / "record.json"
    of = settings_of("relabel", PRIOR, other)
    main(command(in_tiny_run, "relabel", PRIOR, settings=of, out=labels))
    of = settings_of("evaluate", PRIOR, other)
    arguments = command(in_tiny_run, "evaluate", PRIOR, settings=of, labels=labels, out=record)
    main(arguments)
    assert not list(labels.glob("*.safetensors"))
    assert read_json(record) == read_json(Path(f"metrics/evaluations/{PRIOR}.json"))


def test_students_with_hard_labels_alone_load_no_teachers(
    in_tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def member(*_: object) -> None:
        raise AssertionError("a member of the pool was loaded")

    monkeypatch.setattr(Pool, "member", member)
    record = tmp_path / "record.json"
    main(command(in_tiny_run, "evaluate", DM, out=record))
    assert read_json(record) == read_json(Path(f"metrics/evaluations/{DM}.json"))


def test_more_images_per_class_only_add_to_a_set(in_tiny_run: Path, tmp_path: Path) -> None:
    """The first ones stay byte for byte."""
    other, name = tiny_checkout(tmp_path / "other"), "digits/main/ipc7/prior"
    row = {"data": "digits", "pool": "digits/prior", "method": "teddy-prior", "ipc": 7}
    edit_rows(other, {f"sets:{name}": row})
    write_inputs(other, other / "inputs")
    of, out, history = settings_of("synthesize", name, other), tmp_path / "set", tmp_path / "h.json"
    main(command(in_tiny_run, "synthesize", PRIOR, settings=of, out=out, history=history))
    few = teddy.load(in_tiny_run / f"data/distilled/{PRIOR}/0.safetensors")
    many = teddy.load(out / "0.safetensors")
    assert many.ipc == 7
    assert many.images[: len(few)].equal(few.images)


def test_syntheses_differ_in_images_labels_and_students(tiny_run: Path) -> None:
    first, other = (teddy.load(tiny_run / f"data/distilled/{PRIOR}/{n}.safetensors") for n in "01")
    assert first.labels.equal(other.labels) and not first.images.equal(other.images)
    assert (first.provenance["synthesis"], other.provenance["synthesis"]) == (0, 1)
    folder = tiny_run / "data/labels" / PRIOR
    assert {path.name for path in folder.iterdir()} == {"0", "1"}
    manifests = [read_json(folder / n / "manifest.json") for n in "01"]
    assert manifests[0]["seed"] != manifests[1]["seed"]
    record = read_json(tiny_run / f"metrics/evaluations/{PRIOR}.json")
    for students in record["labels"].values():
        assert [student["synthesis"] for student in students] == [0, 0, 1, 1]
        assert len({student["top1_last"] for student in students}) > 1
    batches = read_json(tiny_run / f"metrics/synthesis/{PRIOR}.json")["batches"]
    assert {batch["synthesis"] for batch in batches} == {0, 1}
    assert len({str(batch["curve"]) for batch in batches}) == len(batches)


def test_the_first_synthesis_does_not_depend_on_their_number(
    in_tiny_run: Path, tmp_path: Path
) -> None:
    other = tiny_checkout(tmp_path / "other")
    edit_rows(other, {f"sets:{RANDOM}:syntheses": 2})
    write_inputs(other, other / "inputs")
    of, out, history = settings_of("synthesize", RANDOM, other), tmp_path / "s", tmp_path / "h.json"
    main(command(in_tiny_run, "synthesize", RANDOM, settings=of, out=out, history=history))
    own = in_tiny_run / f"data/distilled/{RANDOM}/0.safetensors"
    assert (out / "0.safetensors").read_bytes() == own.read_bytes()
    assert (out / "1.safetensors").is_file()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_is_known_of_an_algorithm_is_so(name: str) -> None:
    """Rows are checked without loading PyTorch, so that it stands in two places."""
    known, cls = ALGORITHMS[name], method_class(name)
    assert cls.Config is known.config
    assert (cls.by_pool, cls.real) == (known.by_pool, known.real)


def test_settings_that_a_row_does_not_use_are_not_in_its_file(tiny_run: Path) -> None:
    """So that a change of them runs nothing again."""
    pools = {
        kind: read_json(settings_of("build_pool", f"digits/{kind}", tiny_run))["config"]
        for kind in ("converged", "prior", "post")
    }
    assert pools["converged"] == {"prior": None, "post": None}
    assert pools["prior"]["post"] is None and pools["prior"]["prior"]["step"] == 1.5
    assert pools["post"]["post"]["size"] == 3
    hard = read_json(settings_of("evaluate", DM, tiny_run))["config"]
    assert (hard["temperature"], hard["divergence"]) == (1.0, False)
    assert read_json(settings_of("synthesize", RANDOM, tiny_run))["config"] == {}
    assert "real_batch" not in read_json(settings_of("synthesize", PRIOR, tiny_run))["config"]


# ------------------------------------------------------------------------------- what is committed


def test_committed_summary_is_that_of_the_committed_records() -> None:
    """Every accuracy of the summary recomputed from the students' records."""
    declared = Declared(ROOT)
    summary = read_json(ROOT / "metrics" / "summary.json")
    for name in (*declared.sets, *declared.evaluations):
        record = read_json(ROOT / "metrics" / "evaluations" / f"{name}.json")
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


def _run_main(folder: str, workers: str, arguments: list[str]) -> None:
    os.chdir(folder)
    os.environ.update(TEDDY_WORKERS=workers, TEDDY_DEVICE="cpu", TEDDY_SAVE_SECONDS="0")
    os.environ["OMP_NUM_THREADS"] = "1"
    main(arguments)


@pytest.mark.parametrize(
    ("stage", "row", "workers"),
    [
        ("train_teacher", "digits/base", "1"),
        ("build_pool", POST, "1"),
        ("synthesize", PRIOR, "2"),
        ("relabel", PRIOR, "1"),
        ("evaluate", PRIOR, "2"),
    ],
)
def test_killed_stage_resumes_to_the_same_bytes(
    tiny_run: Path, tmp_path: Path, stage: str, row: str, workers: str
) -> None:
    """The undisturbed run had one process; the killed one may have two, with the same bytes."""
    _SERVER.set_forkserver_preload(["teddy.stages.evaluate", "teddy.stages.synthesize"])
    folder = tmp_path / "again"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("plots", "work"))
    arguments, expected = command(folder, stage, row), outputs(folder)
    for out in outs(stage):
        made = folder / arguments[arguments.index(option(stage, out)) + 1]
        shutil.rmtree(made) if made.is_dir() else made.unlink()
    assert outputs(folder) != expected
    delays = random.Random(stage)
    kills = 0
    for _ in range(40):
        process = _SERVER.Process(target=_run_main, args=(str(folder), workers, arguments))
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
    assert outputs(folder) == expected


def test_interrupt_before_a_stage_begins_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("teddy.stages.commands.run_command", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["resolve", "--out", str(tmp_path)])
    assert stop.value.code == 130
    line = "\nresolve: stopped; the same command continues from here\n"
    assert capsys.readouterr().err == line


# ---------------------------------------------------------------------------------------- refusals


def refuse(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a stage that must refuse; its one line."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def refused_inputs(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that settings of a checkout are refused with; what was written before stays."""
    before = settings_of("prepare", "digits", root).read_bytes()
    line = refuse(["resolve", "--root", str(root), "--out", str(root / "inputs")], capsys)
    assert settings_of("prepare", "digits", root).read_bytes() == before
    assert not list(root.glob(".inputs*"))
    return line


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train_teacher.network.arch", "resnet19", ["arch", "resnet18", "resnet19"]),
        ("synthesize.iteration", 5, ["unknown key 'iteration'", "iterations"]),
        ("synthesize.lr", "fast", ["synthesize", "lr", "'fast'"]),
    ],
)
def test_bad_settings_are_refused_by_name(
    tmp_path: Path, key: str, value: Any, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny_checkout(tmp_path)
    place = f"datasets:digits:{key.replace('.', ':')}"
    edit_rows(root, {place: value}, "params.yaml")
    line = refused_inputs(root, capsys)
    assert all(word in line for word in [*words, ".yaml"]), line


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"method": "teddy"}, ["'teddy'", "methods"]),
        ({"data": "digit"}, ["'digit'", "did you mean 'digits'"]),
        ({"pool": "digits/priors"}, ["pool", "digits/priors", "did you mean 'digits/prior'"]),
        ({"ipc": 0}, ["ipc must be at least 1", "0"]),
        ({"steps": 3}, ["unknown key 'steps'"]),
    ],
)
def test_bad_rows_are_refused_by_name(
    tmp_path: Path, row: dict[str, Any], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny_checkout(tmp_path)
    edit_rows(root, {f"sets:{PRIOR}:{key}": value for key, value in row.items()})
    line = refused_inputs(root, capsys)
    assert all(word in line for word in [*words, PRIOR, DIGITS]), line


def test_settings_that_only_the_data_can_tell_wrong_name_their_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny_checkout(tmp_path, prepare__num_classes=9)
    arguments = command(
        root, "prepare", "digits", settings=settings_of("prepare", "digits", root),
        out=tmp_path / "out",
    )  # fmt: skip
    line = refuse(arguments, capsys)
    assert all(word in line for word in ("params.yaml: datasets.digits", "9", "10")), line
    assert not list((tmp_path / "out").glob("*"))


def test_more_images_than_a_class_has_are_refused_by_the_row_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage prepare warns, since other rows may need no real images."""
    root = tiny_checkout(tmp_path)
    monkeypatch.chdir(root)
    monkeypatch.setenv("TEDDY_DEVICE", "cpu")
    edit_rows(root, {f"sets:{RANDOM}:ipc": 200})
    write_inputs(root, root / "inputs")
    of = settings_of("prepare", "digits", root)
    main(command(root, "prepare", "digits", settings=of, out=tmp_path / "out"))
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: ")]
    assert all(word in line for word in ("200", "for training", "smaller ipc", RANDOM)), line
    of = settings_of("synthesize", RANDOM, root)
    arguments = command(root, "synthesize", RANDOM, settings=of, data=tmp_path / "out")
    line = refuse(arguments, capsys)
    assert "expected 200 real images of each class for training, but class '8' has 104" in line
    edit_rows(root, {"prepared:digits:small_classes": "repeat"})
    write_inputs(root, root / "inputs")
    main(arguments)
    made = teddy.load(root / f"data/distilled/{RANDOM}/0.safetensors")
    assert made.ipc == 200 and made.provenance["small_classes"] == "repeat"
    repeated = made
    edit_rows(root, {"prepared:digits:small_classes": "fewer"})
    write_inputs(root, root / "inputs")
    main(arguments)
    made = teddy.load(root / f"data/distilled/{RANDOM}/0.safetensors")
    real = read_dataset(tmp_path / "out").train.labels.bincount().tolist()
    assert made.labels.bincount().tolist() == real and made.ipc == max(real) < 200
    first = [(repeated.labels == c).nonzero()[: real[c], 0] for c in range(10)]
    assert torch.equal(made.images, repeated.images[torch.cat(first).sort().values])


def test_settings_of_another_stage_or_none_are_refused(
    in_tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in COMPUTING:
        arguments = next(iter(commands(in_tiny_run, stage)))
        for written in outs(stage):
            arguments[arguments.index(option(stage, written)) + 1] = str(tmp_path / "out")
        arguments[2] = "inputs/overview.json"
        line = refuse(arguments, capsys)
        assert "inputs/overview.json (of another stage? run: dvc repro resolve)" in line, line
        arguments[2] = "inputs/absent.json"
        line = refuse(arguments, capsys)
        assert "inputs/absent.json: cannot read: No such file" in line, line
    write_json(tmp_path / "s.json", read_json(settings_of("prepare", "digits", in_tiny_run)))
    (tmp_path / "s.json").write_text("[1]")
    arguments = command(
        in_tiny_run, "prepare", "digits", settings=tmp_path / "s.json", out=tmp_path / "out"
    )
    assert "s.json: expected a JSON object" in refuse(arguments, capsys)


def test_names_of_experiment_files_are_no_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC adds an option for each file that is switched on, whatever it begins with."""
    root = tiny_checkout(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    main(["resolve", "--root", str(root), "--out", "made", "--methods", "--o", "--roo", "--h"])
    assert settings_of("prepare", "digits", root).is_file()
    made = {file.relative_to("made") for file in Path("made").rglob("*.json")}
    assert made == {file.relative_to(root / "inputs") for file in root.glob("inputs/**/*.json")}


def test_unwritable_inputs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny_checkout(tmp_path)
    line = refuse(["resolve", "--root", str(root), "--out", str(root / "params.yaml/x")], capsys)
    assert "cannot write here" in line

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        assert "No space left" in refuse(
            ["resolve", "--root", str(root), "--out", str(root / "inputs")], capsys
        )
    assert not list(root.glob(".inputs*"))


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
            shutil.copy(folder / f"data/distilled/{PRIOR}/0.safetensors", member)
        elif damage == "missing":
            member.unlink()
        else:
            shutil.copy(folder / "models/digits/base/epoch0001.safetensors", member)
    out, history = tmp_path / "set", tmp_path / "history.json"
    arguments = command(folder, "synthesize", PRIOR, out=out, history=history)
    assert "models/digits/prior/member" in refuse(arguments, capsys)
    assert not list(out.glob("*"))


def test_non_finite_loss_names_stage_batch_and_step(
    in_tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEDDY_WORK", str(tmp_path / "work"))
    other = tiny_checkout(
        tmp_path / "other", synthesize__lr=1e38, synthesize__clip=False,
        synthesize__gradient="two_pass",
    )  # fmt: skip
    of, out = settings_of("synthesize", PRIOR, other), tmp_path / "set"
    arguments = command(
        in_tiny_run, "synthesize", PRIOR, settings=of, out=out, history=tmp_path / "h.json"
    )
    line = refuse(arguments, capsys)
    assert re.search(r"synthesize: loss is (nan|inf) at iteration \d+ of indices 0-1", line), line
    assert not list(out.glob("*"))


def test_unwritable_output_is_refused_before_any_work(
    in_tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("teddy.stages.synthesize.read_dataset", lambda _: pytest.fail("started"))
    (tmp_path / "file").write_text("in the way")
    arguments = command(in_tiny_run, "synthesize", PRIOR, out=tmp_path / "file" / "set")
    line = refuse(arguments, capsys)
    assert str(tmp_path / "file") in line and "cannot write" in line


@pytest.mark.parametrize("stage", [*COMPUTING, "table1", "fig1", "theory", "overview", "report"])
def test_every_output_is_looked_at_before_any_work(
    tiny_run: Path,
    tmp_path: Path,
    stage: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder where a file is to be, a file where a folder is, or a path that is another's."""
    monkeypatch.chdir(tiny_run)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    arguments = next(iter(commands(tiny_run, stage)))
    own = COMMANDS[arguments[0]]
    written = {**own.writes, **own.may_write}
    given = [name for name in written if f"--{name}" in arguments]
    for name in given:
        arguments[arguments.index(f"--{name}") + 1] = str(tmp_path / f"new-{name}")
    for name in given:
        folder = written[name].startswith("folder")
        wrong = tmp_path / ("file" if folder else "folder")
        at = arguments.index(f"--{name}") + 1
        line = refuse([*arguments[:at], str(wrong), *arguments[at + 1 :]], capsys)
        assert line.startswith(f"error: {wrong}") and "cannot write here" in line, line
        other = next((one for one in (*own.reads, *written) if one != name), None)
        if f"--{other}" in arguments:
            same = arguments[arguments.index(f"--{other}") + 1]
            line = refuse([*arguments[:at], same, *arguments[at + 1 :]], capsys)
            assert "are the same path" in line and f"--{other}" in line, line
    assert not list((tmp_path / "folder").iterdir())


def test_full_disk_leaves_nothing_half_written(tiny_run: Path, tmp_path: Path) -> None:
    """A file-size limit stands in for a full disk: the write fails midway."""
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "from teddy.stages.commands import main; main(sys.argv[1:])"
    )
    out = tmp_path / "out"
    result = subprocess.run(
        [sys.executable, "-c", limited, *command(tiny_run, "prepare", "digits", out=out)],
        cwd=tiny_run, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TEDDY_LOGS": str(tmp_path)},
    )  # fmt: skip
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line]
    assert line.startswith("error: ") and "arrays.safetensors" in line
    assert not any(out.iterdir())


def test_labels_of_another_set_are_refused(
    in_tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(
        in_tiny_run, "evaluate", PRIOR, labels=f"data/labels/{RANDOM}", out="elsewhere.json"
    )
    assert "labels are of another set" in refuse(arguments, capsys)


@pytest.mark.parametrize(
    ("damage", "words"),
    [("missing", "found nothing there"), ("renamed", "found nothing there"),
     ("few", "labels of 1 epochs, expected 8"), ("text", "shards must be a list; got 'x'"),
     ("none", "shards must be a list; got None")],
)  # fmt: skip
def test_damaged_labels_are_refused_before_any_student_is_trained(
    in_tiny_run: Path,
    tmp_path: Path,
    damage: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("teddy.stages.evaluate.train_student", lambda *_: pytest.fail("trained"))
    labels = tmp_path / "labels"
    shutil.copytree(in_tiny_run / "data/labels" / PRIOR, labels)
    manifest, last = read_json(labels / "1/manifest.json"), sorted(labels.glob("1/epochs*"))[-1]
    shards = manifest["shards"]
    if damage == "missing":
        last.unlink()
    elif damage == "renamed":
        last.rename(labels / "1/other.safetensors")
    else:
        shards = {"few": shards[:1], "text": "x", "none": None}[damage]
    write_json(labels / "1/manifest.json", manifest | {"shards": shards})
    arguments = command(in_tiny_run, "evaluate", PRIOR, labels=labels, out=tmp_path / "out.json")
    line = refuse(arguments, capsys)
    assert line.startswith(f"error: {labels / '1'}") and words in line, line


def test_sets_of_another_kind_of_images_are_refused_before_any_work(
    in_tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, out = tmp_path / "set/0.safetensors", tmp_path / "out"
    own = teddy.load(in_tiny_run / f"data/distilled/{PRIOR}/0.safetensors")
    colour = Normalisation(own.normalisation.mean * 3, own.normalisation.std * 3)
    images = own.images.expand(-1, 3, -1, -1)
    for path in (wrong, wrong.with_name("1.safetensors")):
        made = DistilledSet(images, own.labels, own.class_names, colour, own.provenance)
        save_distilled(path, made)
    line = refuse(command(in_tiny_run, "relabel", PRIOR, set=wrong.parent, out=out), capsys)
    assert "digits/prior/member00.safetensors: is a teacher of image_shape [1, 8, 8], but" in line
    for stage, row in (("evaluate", PRIOR), ("continual", "digits/fig3e/all")):
        record = tmp_path / f"{stage}.json"
        line = refuse(command(in_tiny_run, stage, row, set=wrong.parent, out=record), capsys)
        assert f"{wrong}: has images of (3, 8, 8), but the prepared dataset has (1, 8, 8)" in line
    assert not list(out.iterdir())


def test_damaged_records_of_a_base_run_are_refused(
    in_tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = tmp_path / "base", {"out": tmp_path / "out", "facts": tmp_path / "facts.json"}
    shutil.copytree(in_tiny_run / "models/digits/base", base)
    write_json(tmp_path / "curve.json", {"epochs": [{"val": 1}]})
    line = refuse(
        command(in_tiny_run, "build_pool", POST, curve=tmp_path / "curve.json", **out), capsys
    )
    assert "curve.json: epochs must be a list, each with val_top1" in line
    write_json(base / "record.json", {"base": "x"})
    line = refuse(command(in_tiny_run, "build_pool", POST, base=base, **out), capsys)
    assert "record.json: views must be keys; got None" in line


def test_labels_of_other_settings_are_refused(
    in_tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = settings_of("evaluate", PRIOR, tiny_checkout(tmp_path, relabel__cutmix=False))
    arguments = command(in_tiny_run, "evaluate", PRIOR, settings=of, out="elsewhere.json")
    assert "labels are of other relabel settings" in refuse(arguments, capsys)


def test_missing_device_is_one_line(
    in_tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEDDY_DEVICE", "tpu")
    line = refuse(command(in_tiny_run, "prepare", "digits", out=tmp_path), capsys)
    assert "TEDDY_DEVICE" in line and "'tpu'" in line


@pytest.mark.parametrize("workers", ["1", "8"])
def test_larger_images_label_the_same_with_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    """Forked workers must neither hang nor differ once a parent has used several threads."""
    script = (
        "import sys, torch; from pathlib import Path; from teddy.students import labels; "
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
        "cutmix=True, ensemble='logits', precision='float32', store=True, "
        "label_epochs=0, label_bits=16, label_top_k=0); "
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


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_stage_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert ("--settings" if name != "resolve" else "--root") in capsys.readouterr().out
