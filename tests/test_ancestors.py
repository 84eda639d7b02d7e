"""Stages end with DVC, which started them; a process here stands for it. Needs Linux."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
STAGE = """
import os, sys, time
from teddy.core.ancestors import end_with_dvc
end_with_dvc("stage")
print(os.getpid(), flush=True)
time.sleep(60)
"""
# Started by a shell that waits for it, as DVC may do and torchrun does.
DVC = """
import os, subprocess, sys
environment = os.environ | ({"DVC_STAGE": "stage"} if sys.argv[1] == "dvc" else {})
subprocess.run(["/bin/sh", "-c", '"$0" "$@"; true', *sys.argv[2:]], env=environment)
"""


def start(who: str, tmp_path: Path) -> tuple["subprocess.Popen[str]", int]:
    """A process, and the number of the stage that it has started."""
    source = str(Path(__file__).parents[1] / "src")
    environment = {n: v for n, v in os.environ.items() if n not in ("DVC_STAGE", "TEDDY_REPRO")}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", DVC, who, sys.executable, "-c", STAGE], text=True,
            env={**environment, "PYTHONPATH": source}, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    assert process.stdout
    return process, int(process.stdout.readline())


@pytest.fixture(params=["dvc", "hand"])
def started(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[str, "subprocess.Popen[str]", int]]:
    process, stage = start(request.param, tmp_path)
    yield request.param, process, stage
    process.kill()
    if Path(f"/proc/{stage}").exists():
        os.kill(stage, signal.SIGKILL)
    process.communicate()


def test_stage_ends_soon_after_dvc_and_goes_on_after_a_terminal(
    started: tuple[str, "subprocess.Popen[str]", int], tmp_path: Path
) -> None:
    who, process, stage = started
    time.sleep(0.1)
    assert Path(f"/proc/{stage}").exists()
    process.kill()
    last = time.monotonic() + (10 if who == "dvc" else 1.5)
    while Path(f"/proc/{stage}").exists() and time.monotonic() < last:
        time.sleep(0.05)
    assert Path(f"/proc/{stage}").exists() == (who == "hand")
    line = "stage: stopped, as what started it has ended; the same command continues from here\n"
    log = (tmp_path / "log").read_text().removesuffix("Killed\n")  # which the shell may add
    assert log == (line if who == "dvc" else "")


def test_stage_does_not_begin_after_the_end_of_what_had_it_started(tmp_path: Path) -> None:
    """Whatever process has taken its orphans, which need not be 1."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"),
                   "DVC_STAGE": "stage", "TEDDY_REPRO": str(gone.pid)}  # fmt: skip
    run = subprocess.run([sys.executable, "-c", STAGE], env=environment, capture_output=True)
    assert run.returncode == -signal.SIGKILL and not run.stdout
