"""Processes that are killed at random times, which loses nothing and changes no byte.

A small pipeline is killed again and again until it ends by itself: a stage, a process of torchrun,
torchrun, DVC, or :mod:`tools.repro`, which starts DVC, and its server. ``TEDDY_CAMPAIGN=100`` kills
so often with and without torchrun, not once and thrice, all along the pipeline and not in training
alone, and ``TEDDY_CAMPAIGN_SEED`` at other times; both are printed with what happened.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from checkouts import DIGITS, ROOT, outputs
from dvc.schema import COMPILED_LOCKFILE_SCHEMA  # type: ignore[import-untyped]
from test_through_dvc import Clone
from voluptuous import Invalid

from teddy.core.errors import TeddyError
from teddy.settings.schema import read_yaml

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
SEED = int(os.environ.get("TEDDY_CAMPAIGN_SEED", "0"))
LARGE = "TEDDY_CAMPAIGN" in os.environ
KILLS = {n: int(os.environ.get("TEDDY_CAMPAIGN", kills)) for n, kills in ((1, 3), (2, 1))}
GONE_SECONDS = 5
"""No stage may outlive by more what has started it."""
LAST_SECONDS = 300
"""No command may take longer."""
TARGET = "relabel" if LARGE else "train_teacher"
RUNNER = ("python", "-m", "tools.repro", "-j", "2", TARGET)
DVC = ("dvc", "repro", TARGET)
KINDS: dict[int, dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]]] = {
    1: {
        "repro": (RUNNER, "tools.repro", ("KILL", "TERM", "INT")),
        "server or what it forked": (RUNNER, "tools.server", ("KILL", "TERM")),
        "dvc": (DVC, "bin/dvc", ("KILL", "TERM")),
        "stage": (DVC, "-m teddy", ("KILL", "TERM", "INT")),
    },
    2: {
        "dvc": (DVC, "bin/dvc", ("KILL", "TERM")),
        "process": (DVC, "-m teddy", ("KILL", "TERM", "INT")),
        "torchrun": (DVC, "torchrun", ("KILL", "TERM", "INT")),
    },
}  # fmt: skip
"""Whom signals meet, by number of processes of a stage: what is run, and words of their command
lines."""
STAGES = ("-m teddy", "tools.server")
"""Words of their command lines."""
_ROWS = """
on: {digits: true}
prepared: {digits: {dataset: digits}}
bases: {digits/base: {data: digits, epochs: 12}}
pools: {digits/prior: {data: digits, base: digits/base, curve: digits/base, kind: prior}}
sets:
  digits/main/ipc3/prior: &set {data: digits, pool: digits/prior, method: teddy-prior, ipc: 3}
  digits/main/ipc1/prior: {<<: *set, ipc: 1}
evaluations: {}
experts: {}
step_teachers: {}
learners: {}
targets: {table1: {digits: {}}}
"""


# ------------------------------------------------------------------------------------- a pipeline


class Pipeline:
    """A clone in which one command at a time is started, and killed."""

    def __init__(self, folder: Path, site: Path) -> None:
        self.clone = Clone(folder, site)
        self.folder = folder
        (folder / DIGITS).write_text(_ROWS.lstrip(), encoding="utf-8")
        self.clone.environment |= {
            "PYTHONPATH": f"{folder / 'src'}:{ROOT}", "TEDDY_DEVICE": "cpu", "TEDDY_WORKERS": "2",
            "TEDDY_SAVE_SECONDS": "0", "OMP_NUM_THREADS": "1", "SHELL": "/bin/bash",
        }  # fmt: skip
        self.clone.run("dvc", "repro", "prepare")

    def copy(self, name: str) -> "Pipeline":
        """Another clone in this state."""
        folder, other = self.folder.with_name(name), object.__new__(Pipeline)
        shutil.copytree(self.folder, folder, symlinks=True)
        other.clone, other.folder = object.__new__(Clone), folder
        other.clone.folder = folder
        other.clone.environment = self.clone.environment | {
            "PYTHONPATH": f"{folder / 'src'}:{ROOT}", "DVC_SITE_CACHE_DIR": f"{folder}-site",
        }  # fmt: skip
        return other

    def start(self, command: tuple[str, ...], processes: int = 1) -> "subprocess.Popen[bytes]":
        launch = {} if command == RUNNER else {"TEDDY_LAUNCH": "python"}  # or no server
        if processes > 1:
            launch["TEDDY_LAUNCH"] = "torchrun --standalone --nproc-per-node 2"
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
                env=self.clone.environment | launch,
            )  # fmt: skip

    def end(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait for a command that nobody kills."""
        log = self.folder.parent / f"{self.folder.name}.log"
        assert process.wait(LAST_SECONDS) == 0, log.read_text(errors="replace")[-3000:]

    def running(self, *words: str) -> dict[int, str]:
        """Processes in this clone with some words in their command line, and when they began."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                began = (folder / "stat").read_text().rpartition(")")[2].split()[19]
                inside = (folder / "cwd").readlink() == self.folder
            except OSError:
                continue
            launcher = "torchrun" in line and words != ("torchrun",)  # has a stage's words too
            if inside and any(word in line for word in words) and not launcher:
                found[int(folder.name)] = began
        return found

    def made(self) -> dict[str, Any]:
        """Checksums of all that stages wrote, and what DVC knows of it."""
        return {**outputs(self.folder), **read_yaml(self.folder / "dvc.lock")["stages"]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Whose dataset is prepared."""
    folder = tmp_path_factory.mktemp("kills")
    return Pipeline(folder / "prepared", folder / "prepared-site")


# ------------------------------------------------------------------------------------------ kills


def victim(
    pipeline: Pipeline, process: "subprocess.Popen[bytes]", chance: random.Random, words: str
) -> int:
    """Choose one of the processes that run: in training, or in large campaigns at any time.

    Returns:
        Its number, 0 if the command ended before.
    """
    begin, wait = time.monotonic(), chance.uniform(0, 40)
    anywhere = LARGE and chance.random() < 0.5
    while process.poll() is None and not (
        time.monotonic() - begin > wait
        if anywhere
        else list((pipeline.folder / "work").glob("*/*/resume*")) and pipeline.running(*STAGES)
    ):
        time.sleep(0.05)
    time.sleep(chance.uniform(0, 0.5))
    victims = sorted(pipeline.running(words))
    if process.poll() is not None or not victims:
        return 0
    return process.pid if process.pid in victims else chance.choice(victims)


def outlived(pipeline: Pipeline, before: dict[int, str]) -> int:
    """Stages that go on for long after what started them was killed."""
    last = time.monotonic() + GONE_SECONDS
    while left := set(before.items()) & set(pipeline.running(*STAGES).items()):
        if time.monotonic() > last:
            return len(left)
        time.sleep(0.05)
    return 0


@pytest.mark.parametrize("processes", KINDS)
def test_killed_pipeline_goes_on_to_the_same_bytes(prepared: Pipeline, processes: int) -> None:
    chance, begin = random.Random(f"{SEED}/{processes}"), time.monotonic()
    pipeline = prepared.copy(f"undisturbed{processes}")
    pipeline.end(pipeline.start(DVC, processes))
    expected = pipeline.made()
    seen, orphans, cut, runs, different = Counter[str](), 0, 0, 0, set[str]()
    while seen.total() < KILLS[processes]:
        runs += 1
        pipeline = prepared.copy(f"killed{processes}-{runs}")
        while True:
            kind = list(KINDS[processes])[seen.total() % len(KINDS[processes])]
            command, words, signals = KINDS[processes][kind]
            whole = (pipeline.folder / "dvc.lock").read_bytes()
            process = pipeline.start(command, processes)
            pid = victim(pipeline, process, chance, words) if seen.total() < KILLS[processes] else 0
            if not pid:
                break
            name = chance.choice(signals)
            os.kill(pid, getattr(signal, f"SIG{name}"))
            seen[f"{kind} {name}"] += 1
            if words == "tools.server":  # the run goes on without it, or fails
                process.wait(LAST_SECONDS)
            orphans += outlived(pipeline, pipeline.running(*STAGES))
            process.wait(LAST_SECONDS)
            try:
                COMPILED_LOCKFILE_SCHEMA(read_yaml(pipeline.folder / "dvc.lock"))
            except (TeddyError, Invalid):  # DVC was killed while it wrote; Git has another then
                cut += 1
                (pipeline.folder / "dvc.lock").write_bytes(whole)
        pipeline.end(process)
        made = pipeline.made()
        different |= {n for n in made.keys() | expected.keys() if made.get(n) != expected.get(n)}
        seconds = time.monotonic() - begin
        print(f"{processes} processes: seed {SEED}, {seen.total()} kills {dict(seen)} of {runs} "
              f"pipelines, {orphans} orphans, {cut} times dvc.lock cut off, {len(different)} of "
              f"{len(expected)} outputs different, {seconds:.0f} s", flush=True)  # fmt: skip
    assert not different
    assert not orphans
