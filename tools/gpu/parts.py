"""The parts of a run on a GPU, in order of worth, each a process of its own that can be cut."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from teddy.core.files import Json, write_json
from teddy.settings.schema import read_yaml

ROOT = Path(__file__).parents[2]
_HERE = Path(__file__).parent
WORKLOADS = {"resnet18-64": 20, "resnet18-224": 8, "pruned-resnet18-224": 8}
"""Of the benchmark of synthesis, with iterations per round."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of all parts."""

    device: str
    out: Path
    """Folder of results."""
    data: Path
    """Store of packed files."""
    rehearse: bool
    """Everything as small as possible."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command of a part."""

    name: str
    command: Sequence[str]
    folder: Path = ROOT
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is worth knowing."""

    share: float
    """Of the whole budget; what a part leaves, the later ones have too."""
    gib: float
    """Of the GPU's memory, without which it is left out."""
    steps: Callable[[Run], list[Step]]
    """Commands, each cut if the budget ends in it."""
    file: str = ""
    """Of the store, without which it is left out."""
    collect: Callable[[Run], None] | None = None
    """Puts results where they come back from."""


# ------------------------------------------------------------------------------------- the parts


def _tests(run: Run) -> list[Step]:
    marker = "not slow" if run.device == "cpu" else "cuda"
    chosen = ["tests/test_objectives.py"] if run.rehearse else ["tests"]
    command = ["-m", "pytest", "-m", marker, "-v", "--tb=short", "-p", "no:cacheprovider", *chosen]
    return [Step("tests", [sys.executable, *command])]


def _speed(run: Run) -> list[Step]:
    steps = []
    small = ["--batch", "10", "--iterations", "1", "--repeats", "1", "--teachers", "1", "2"]
    for name, iterations in WORKLOADS.items():
        workload = "resnet18-32" if run.rehearse else name
        options = small if run.rehearse else ["--iterations", str(iterations), "--repeats", "5"]
        options += ["--compile" if name == "resnet18-64" else "--no-compile"]
        record = run.out / f"speed-{name}.json"
        command = [sys.executable, "-m", "benchmarks", "synthesis", "--workloads", workload,
                   "--out", str(record), *options]  # fmt: skip
        steps.append(Step(f"speed-{name}", command))
        if run.rehearse:
            break
    return steps


def _accuracy(name: str) -> Callable[[Run], list[Step]]:
    def steps(run: Run) -> list[Step]:
        folder = checkout(run, name)
        rows = read_yaml(_HERE / f"{name}.yaml")
        wanted = [*rows["sets"], *rows.get("evaluations", ())]  # in order of worth
        if run.rehearse:
            wanted = [*wanted[:3], *rows.get("evaluations", ())]
        stages = [f"{'evaluate' if row in rows['sets'] else 'reevaluate'}@{row}" for row in wanted]
        return [Step(name, [sys.executable, "-m", "tools.by_hand", *stages], folder)]

    return steps


def _records(name: str) -> Callable[[Run], None]:
    def collect(run: Run) -> None:
        source = _checkout_folder(run, name) / "metrics"
        for kind in ("evaluations", "pools", "teachers"):
            if (source / kind).is_dir():
                shutil.copytree(source / kind, run.out / name / kind, dirs_exist_ok=True)
        for file in ("synthesize-batches", "train_teacher", "evaluate", "synthesize"):
            log = _checkout_folder(run, name) / "logs" / f"{file}.jsonl"
            if log.is_file():
                shutil.copy(log, run.out / name / log.name)

    return collect


def _profile(run: Run) -> list[Step]:
    small = ["--small"] if run.rehearse else []
    command = [sys.executable, "-m", "tools.gpu.profile", "--out", str(run.out), *small]
    return [Step("profile", command)]


PARTS = {
    "tests": Part(0.18, 2, _tests),
    "speed": Part(0.37, 20, _speed),
    "tiny10": Part(0.25, 8, _accuracy("tiny10"), "tiny-imagenet-200.tar", _records("tiny10")),
    "cifar10": Part(0.15, 4, _accuracy("cifar10"), "cifar-10-batches-py.tar", _records("cifar10")),
    "profile": Part(0.05, 20, _profile),
}
"""In order of worth."""


# ----------------------------------------------------------------------- checkouts for accuracies


def _checkout_folder(run: Run, name: str) -> Path:
    return run.data / "checkouts" / f"{name}{'-rehearsal' * run.rehearse}"


def checkout(run: Run, name: str) -> Path:
    """A folder with the repository's parameters and the rows of a part alone."""
    folder = _checkout_folder(run, name)
    for kind in ("params", "examples", "experiments"):
        shutil.copytree(ROOT / kind, folder / kind, dirs_exist_ok=True)
    params, rows = dict(read_yaml(ROOT / "params.yaml")), dict(read_yaml(_HERE / f"{name}.yaml"))
    for section in ("fig1", "fig5", "theory"):
        params.pop(section)
    params["syntheses"] = 1  # a record in minutes
    settings = dict(read_yaml(ROOT / "params" / f"{rows.pop('base')}.yaml"))
    changes, small = rows.pop("changes"), rows.pop("rehearsal")
    for key, value in {**changes, **(small if run.rehearse else {})}.items():
        _assign(settings, key, value)
    _assign(settings, "prepare.root", str(run.data.resolve() / name))
    _write(folder / "params.yaml", params)
    _write(folder / "params" / f"{name}.yaml", settings)
    _write(folder / "experiments" / f"{name}.yaml", rows)
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    files = f"  - experiments/methods.yaml\n  - experiments/{name}.yaml\n"
    text = re.sub(r"(?m)^vars:\n(?:  - .*\n)+", f"vars:\n{files}", text)
    (folder / "dvc.yaml").write_text(text, encoding="utf-8")
    return folder


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")


def _assign(section: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        section = section.setdefault(part, {})
    section[last] = value


# ---------------------------------------------------------------------------------- running them


def run_parts(run: Run, parts: Sequence[str], minutes: float, reasons: Mapping[str, str]) -> Json:
    """Run parts within a budget; what became of each is written after each.

    Args:
        run: where.
        parts: names, in order.
        minutes: of all of them.
        reasons: why some are left out.
    """
    start = time.monotonic()
    results: Json = {}
    end, whole = start, sum(PARTS[name].share for name in parts if name not in reasons)
    for name in parts:
        if name in reasons:
            results[name] = {"outcome": "left out", "why": reasons[name]}
            print(f"{name}: left out: {reasons[name]}", flush=True)
        else:
            end += 60 * minutes * PARTS[name].share / whole
            results[name] = _run_part(run, name, end)
        write_json(run.out / "parts.json", {"minutes": minutes, "parts": results}, in_order=True)
    results["seconds"] = round(time.monotonic() - start, 1)
    return results


def _run_part(run: Run, name: str, end: float) -> Json:
    part, began = PARTS[name], time.monotonic()
    steps: Json = {}
    for step in part.steps(run):
        steps[step.name] = _run_step(run, step, end)
        if part.collect:
            part.collect(run)
    outcomes = {step["outcome"] for step in steps.values()}
    outcome = next(o for o in ("failed", "cut", "done") if o in outcomes)
    seconds = round(time.monotonic() - began, 1)
    print(f"{name}: {outcome} after {seconds:.0f} s", flush=True)
    return {"outcome": outcome, "seconds": seconds, "steps": steps}


def _run_step(run: Run, step: Step, end: float) -> Json:
    """Run a command until the end of its part's time; its output goes to a log."""
    began = time.monotonic()
    if began >= end:
        return {"outcome": "cut", "seconds": 0.0}
    known = filter(None, [os.environ.get("PYTHONPATH")])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), *known]),
        "PYTHONUNBUFFERED": "1",
        "TEDDY_DEVICE": run.device,
        **step.environment,
    }
    with (run.out / f"{step.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            step.command, cwd=step.folder, env=environment, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(end - began)
            outcome = "failed" if status else "done"
        except subprocess.TimeoutExpired:
            outcome = "cut"
        finally:
            _kill(process)
    return {"outcome": outcome, "seconds": round(time.monotonic() - began, 1)}


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a command and everything that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
