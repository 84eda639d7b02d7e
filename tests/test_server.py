"""Processes that are forked by a server instead of started: what they are, and when they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkouts import ROOT

from tools.launch import LENGTH, SOCKET, Process

PROBE = """
import json, os, sys, time
mine = {
    "argv": sys.argv[1:], "name": __name__, "folder": os.getcwd(), "process": os.getpid(),
    "imported": "queue" in sys.modules, "variable": os.environ.get("PROBE"),
    "inherited": os.environ.get("SERVER"),
}
print(json.dumps(mine), flush=True)
if sys.argv[1:] == ["wait"]:
    time.sleep(60)
sys.exit(3)
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="of Linux")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "probe.py").write_text(PROBE)
    environment = {**os.environ, "SERVER": "1", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    path = tmp_path / "s"
    with subprocess.Popen(
        [sys.executable, "-m", "tools.server", str(path), "queue", "not.installed"],
        stdin=subprocess.PIPE, env=environment,
    ) as process:  # fmt: skip
        until(path.exists)
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) is not None


def until(true: Any) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def start(folder: Path, *argv: str, stays: bool = False) -> tuple[Process, dict[str, Any]]:
    read, write = os.pipe()
    environment = {"PROBE": "ä", SOCKET: str(folder / "s")}
    with os.fdopen(read) as lines:
        process = Process("probe", argv, environment, (0, write, 2), stays=stays)
        os.close(write)
        return process, json.loads(lines.readline())


def test_a_process_is_what_who_asks_is(
    server: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    process, found = start(tmp_path, "a b", "")
    assert process.wait() == 3
    assert found.pop("process") not in (os.getpid(), server.pid)
    assert found == {
        "argv": ["a b", ""], "name": "__main__", "folder": str(tmp_path), "imported": True,
        "variable": "ä", "inherited": None,
    }  # fmt: skip


def test_processes_run_side_by_side_and_end_as_they_do(
    server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    waiting, found = start(tmp_path, "wait")
    assert start(tmp_path)[0].wait() == 3, "while the other one is running"
    os.kill(found["process"], signal.SIGTERM)
    assert waiting.wait() == 128 + signal.SIGTERM


def test_a_process_is_killed_when_who_asked_is_gone_unless_it_is_to_stay(
    server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    process, found = start(tmp_path, "wait")
    staying, kept = start(tmp_path, "wait", stays=True)
    process.close()
    staying.close()
    until(lambda: not alive(found["process"]))
    assert start(tmp_path)[0].wait() == 3, "the server goes on"
    assert alive(kept["process"])
    os.kill(kept["process"], signal.SIGKILL)


@pytest.mark.parametrize("how", ["killed", "left"])
def test_processes_end_with_the_server(
    how: str, server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    process, found = start(tmp_path, "wait")
    if how == "killed":
        server.kill()
    else:
        assert server.stdin is not None
        server.stdin.close()
    assert process.wait() is None
    until(lambda: not alive(found["process"]))


def test_who_is_gone_before_all_is_asked_leaves_nothing_behind(
    server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    def descriptors() -> int:
        return sum(1 for _ in Path(f"/proc/{server.pid}/fd").iterdir())

    assert start(tmp_path)[0].wait() == 3
    before = descriptors()
    for text in (b"", b"{"):  # nothing, and a piece of a request
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(tmp_path / "s"))
            socket.send_fds(connection, [(9).to_bytes(LENGTH)], (0, 1, 2))
            connection.sendall(text)
    assert start(tmp_path)[0].wait() == 3
    until(lambda: descriptors() <= before)


def test_socket_and_folder_are_gone_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "own" / "s"
    path.parent.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "tools.server", str(path)], stdin=subprocess.PIPE, cwd=ROOT
    ):
        until(path.exists)
    assert not path.parent.exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_command_starts_it_by_the_server_or_by_itself(
    there: bool, server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    environment = {
        **os.environ, "PYTHONPATH": str(tmp_path), "PROBE": "b",
        SOCKET: str(tmp_path / ("s" if there else "none")),
    }  # fmt: skip
    made = subprocess.run(
        [sys.executable, "-S", ROOT / "tools" / "launch.py", "-m", "probe", "x"],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (made.returncode, made.stderr) == (3, "")
    found = json.loads(made.stdout)
    assert (found["argv"], found["variable"], found["imported"]) == (["x"], "b", there)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_command_does_not_start_again_when_who_started_all_is_gone_too(
    server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    command = [sys.executable, "-S", str(ROOT / "tools" / "launch.py"), "-m", "probe", "wait"]
    text = f"""
import os, subprocess
mine = {{"TEDDY_REPRO": str(os.getpid()), "DVC_STAGE": "probe"}}
subprocess.run({command}, env={{**os.environ, **mine}})
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), SOCKET: str(tmp_path / "s")}
    with subprocess.Popen(
        [sys.executable, "-c", text], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as starter:  # fmt: skip
        assert starter.stdout is not None
        assert json.loads(starter.stdout.readline())["argv"] == ["wait"]
        starter.kill()
        server.kill()
        out, err = starter.communicate(timeout=30)
    assert (out, err) == ("", "wait: stopped, as what started it has ended; the same command "
                              "continues from here\n")  # fmt: skip
