"""The command for a GPU: slices, budgets, verdicts, and the whole of it in small on a CPU."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkouts import ROOT
from hypothesis import given
from hypothesis import strategies as st
from raw_fixtures import write_cifar, write_tiny_imagenet

from benchmarks.synthesis import ways
from teddy.core.errors import TeddyError
from teddy.core.files import read_json, write_json
from tools.gpu import __main__ as command
from tools.gpu import slices
from tools.gpu.decide import MECHANISMS, MEMORY, decide
from tools.gpu.parts import PARTS, Part, Run, Step, run_parts

# ------------------------------------------------------------------------------------- transfers


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=4), st.integers(1200, 4000))
def test_slices_are_whole_again_in_any_order(sizes: list[int], most: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices, "_BLOCK", 1000)
        folder = Path(name)
        files = [folder / f"file{number}" for number in range(len(sizes))]
        for number, size in enumerate(sizes):
            files[number].write_bytes(bytes((number + i) % 251 for i in range(size)))
        cut = slices.cut(files, folder / "slices", most)
        for one in cut:
            parts = sum(f.stat().st_size for f in one.iterdir() if f.suffix != ".json")
            assert parts <= most
        for one in reversed(cut):
            whole, missing = slices.join(one, folder / "store")
        assert not cut or not missing
        if cut:
            assert [path.read_bytes() for path in whole] == [f.read_bytes() for f in files]


def test_damaged_slice_is_refused_and_missing_ones_are_named(tmp_path: Path) -> None:
    file = tmp_path / "data.tar"
    file.write_bytes(b"x" * 3_000_000)
    first, second = slices.cut([file], tmp_path / "slices", 2_000_000)
    assert slices.join(second, tmp_path / "store") == ([], ["data.tar"])
    (part,) = first.glob("data*")
    part.write_bytes(part.read_bytes()[:-1] + b"y")
    with pytest.raises(TeddyError, match=r"data\.tar\.part0: is not what was packed"):
        slices.join(first, tmp_path / "store")


# ---------------------------------------------------------------------------------------- budgets


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "out").mkdir()
    return Run("cpu", tmp_path / "out", tmp_path / "store", rehearse=True)


def python(text: str) -> Callable[[Run], list[Step]]:
    return lambda run: [Step("own", [sys.executable, "-c", text])]


def test_part_is_cut_with_all_that_it_started_and_the_next_runs(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; "
    sleeper += f'open(r"{run.out}/pid", "w").write(str(__import__("os").getpid())); '
    sleeper += "time.sleep(60)'])"
    monkeypatch.setitem(PARTS, "long", Part(0.5, 0, python(sleeper)))
    monkeypatch.setitem(PARTS, "short", Part(0.5, 0, python("print(3)")))
    monkeypatch.setitem(PARTS, "bad", Part(0.5, 0, python("raise SystemExit(2)")))
    start = time.monotonic()
    results = run_parts(run, ["long", "short", "bad", "tests"], 0.12, {"tests": "no reason"})
    assert time.monotonic() - start < 20
    assert [results[name]["outcome"] for name in ("long", "short", "bad", "tests")] == [
        "cut", "done", "failed", "left out",
    ]  # fmt: skip
    assert read_json(run.out / "parts.json")["parts"]["tests"]["why"] == "no reason"
    assert (run.out / "own.log").read_text() == ""
    process = Path("/proc") / (run.out / "pid").read_text()
    assert not process.exists() or "State:\tZ" in (process / "status").read_text()


def test_what_a_machine_lacks_is_one_line_and_other_parts_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, reasons = command.examine(run, list(PARTS))
    assert facts["device"] == "cpu"
    assert set(reasons) == {"tiny10", "cifar10"}
    assert reasons["tiny10"].endswith("tiny-imagenet-200.tar is not there; pack it, send it and "
                                      "receive it")  # fmt: skip
    monkeypatch.setattr(command, "_DISK_GIB", 10**9)
    assert "GiB of disk" in command.examine(run, ["speed"])[1]["speed"]
    gpu = Run("cuda", run.out, run.data, rehearse=False)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 2**30, 80 * 2**30))
    monkeypatch.setattr(command, "_DISK_GIB", 0)
    _, reasons = command.examine(gpu, ["tests", "speed"])
    assert reasons == {"speed": "needs 20 GiB of GPU memory, 3.0 are free"}

    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 1).\nMore")

    monkeypatch.setattr(torch.cuda, "init", too_old)
    _, reasons = command.examine(gpu, ["tests"])
    assert reasons["tests"].endswith("driver on your system is too old (found version 1).")
    monkeypatch.setitem(command._MODULES, "no_such_module", "no-such-package")
    _, reasons = command.examine(run, ["tests"])
    assert reasons["tests"] == "this Python lacks no-such-package; pack and receive wheels first"


def test_nothing_that_can_run_is_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--device", "cpu", "--parts", "tiny10", f"--out={run.out}",
                 f"--store={run.data}"]  # fmt: skip
    with pytest.raises(SystemExit):
        command.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no part can run here: ")


# --------------------------------------------------------------------------------------- verdicts


def program(ms: float, kind: str = "engine", teachers: int = 3, **facts: Any) -> dict[str, Any]:
    return {"kind": kind, "teachers": teachers, "batches": 1, "ms": [ms, ms * 2, ms],
            "ms_per_iteration": ms, "ms_per_pass": ms / teachers, "times_plain_speed": 1.0,
            "share_of_floor_speed": 0.7, **facts}  # fmt: skip


def test_mechanism_pays_from_a_twentieth_on(tmp_path: Path) -> None:
    programs = {
        "plain loop, float32": program(70.0, "plain", 1),
        "engine, bfloat16, k = 3": program(42.0),
        "engine, fused, bfloat16, k = 3": program(40.0, peak_bytes=10),
        "engine, fused, CUDA graphs, bfloat16, k = 3": program(39.0),
        "engine, fused, bfloat16, k = 1": program(15.0, teachers=1, peak_bytes=100),
        "engine, fused, two_pass, bfloat16, k = 3": program(50.0, peak_bytes=120),
    }
    found = {"title": "T", "batch": 100, "programs": programs}
    write_json(tmp_path / "speed-resnet18-64.json", {
        "date": "2026-01-01", "workloads": {"resnet18-64": found},
        "jobs": [{"job": "J", "hours": {"engine, x": 1.5, "plain loop": 9.0}}],
    })  # fmt: skip
    write_json(tmp_path / "machine.json", {"hardware": {"gpus": ["G"], "cpu": "C"}})
    write_json(tmp_path / "parts.json", {"parts": {}})
    (tmp_path / "tests.log").write_text("a.py::t[x y] PASSED [ 1%]\na.py::u FAILED [2%]\n")
    verdicts = {v["what"]: v for v in decide(tmp_path, tmp_path / "kept")}
    outcomes = {what: verdict["outcome"] for what, verdict in verdicts.items()}
    assert outcomes["tests on the device"] == "does not work"
    assert "1 failed: a.py::u" in verdicts["tests on the device"]["evidence"]
    where = "T, batch 100"
    assert outcomes[f"fused kernels: {where}, bfloat16, k = 3"] == "pays"
    assert outcomes[f"CUDA graphs: {where}, bfloat16, k = 3"] == "does not pay"
    assert outcomes[f"speed over plain loop, float32: {where}"] == "missed"
    assert outcomes[f"share of the convolutions' speed: {where}"] == "as asked"
    assert outcomes[f"memory of k = 3 by two_pass over k = 1: {where}"] == "missed"
    assert outcomes["J, extrapolated"] == "1.50 h"
    text = (tmp_path / "kept" / "gpu-verdicts.md").read_text(encoding="utf-8")
    assert "on G, C" in text


def test_programs_that_verdicts_need_are_those_that_a_gpu_runs() -> None:
    found = ways((1, 3), fused=True, graphs=True)
    assert set(MEMORY) <= found.keys()
    for pair in MECHANISMS.values():
        assert {f"{way}, bfloat16, k = 3" for way in pair} <= found.keys()


def test_synthetic_images_are_held_against_real_ones_under_the_same_labels(tmp_path: Path) -> None:
    def row(method: str, pool: str, *top1: float) -> dict[str, Any]:
        students = [{"top1_last": value} for value in top1]
        return {"method": method, "pool": pool, "ipc": 10, "labels": {"soft": students}}

    rows = {
        "d/a/random": row("random", "prior", 50, 52),
        "d/a/prior": row("teddy-prior", "prior", 60, 61),
        "d/a/sre2l": row("sre2l", "converged", 60, 61),
        "d/a/late": row("teddy-prior", "late", 60, 61),
        "d/b/random": row("random", "converged", 70, 71),
        "d/a/one": row("teddy-prior", "prior", 99),
    }
    for name, record in rows.items():
        write_json(tmp_path / "tiny10" / "evaluations" / f"{name}.json", record)
    write_json(tmp_path / "machine.json", {"hardware": None})
    write_json(tmp_path / "parts.json", {"parts": {}})
    verdicts = {v["what"].split(" over")[0]: v["outcome"] for v in decide(tmp_path, tmp_path / "k")}
    assert verdicts == {"a/prior": "better", "a/sre2l": "worse", "a/one": "inconclusive"}


# ------------------------------------------------------------------------------------ all of it


@pytest.mark.slow
def test_rehearsal_on_a_cpu_from_slices_to_verdicts(tmp_path: Path) -> None:
    """The same path as on a GPU, with made-up images and everything small."""
    wnids = [f"n{number:08d}" for number in range(11)]
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200", per_class=56, wnids=wnids, size=64)
    write_cifar(tmp_path / "cifar-10-batches-py", per_class=5)

    def call(*arguments: str) -> str:
        made = subprocess.run(
            [sys.executable, "-m", "tools.gpu", *arguments], cwd=ROOT, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
        return made.stdout

    tiny, cifar = tmp_path / "tiny-imagenet-200", tmp_path / "cifar-10-batches-py"
    call("pack", f"--tiny={tiny}", "--mib=1", f"--cifar10={cifar}", f"--out={tmp_path / 'slices'}")
    for folder in sorted((tmp_path / "slices").iterdir()):
        call("receive", str(folder), f"--store={tmp_path / 'store'}")
    out = tmp_path / "results"
    call("run", "--device=cpu", "--rehearse", "--minutes=15", f"--out={out}",
         f"--store={tmp_path / 'store'}")  # fmt: skip
    parts = read_json(out / "parts.json")["parts"]
    logs = {file.name: file.read_text()[-1000:] for file in out.glob("*.log")}
    assert {name: part["outcome"] for name, part in parts.items()} == dict.fromkeys(
        PARTS, "done"
    ), logs
    assert "works: tests on the device" in call("decide", str(out), f"--out={tmp_path / 'kept'}")
    names = {file.name for file in (tmp_path / "kept").iterdir()}
    assert names == {"gpu-verdicts.md", "gpu-verdicts.json", "gpu-speed.json", "gpu-accuracy.json",
                     "gpu-profile.json"}  # fmt: skip
