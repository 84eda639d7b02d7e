"""A stage ends when DVC, which started it, is gone: nothing goes on writing without it.

Between DVC and a stage may be a shell and torchrun, which both outlive a killed DVC; above DVC may
be :mod:`tools.repro`. Nothing here is imported that takes time, so that it looks at once.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

_LOOK_SECONDS = 0.5
_STARTED = (b"DVC_STAGE=", b"TEDDY_REPRO=")
"""In the environment of what DVC, or :mod:`tools.repro`, has started."""

Line = list[tuple[int, int]]
"""Processes and their parents, each the parent of the one before it."""


def end_with_dvc(stage: str) -> None:
    """Have this process end soon after DVC does that started it, or :mod:`tools.repro`.

    A stage that was started by hand goes on whatever happens to its terminal.
    """
    if sys.platform == "linux" and "DVC_STAGE" in os.environ:
        line = _line()
        last, first = line[-1]
        repro = os.environ.get("TEDDY_REPRO")
        if repro:  # whoever takes its orphans, if it is gone already
            gone = repro not in (str(parent) for _, parent in line)
        else:  # DVC may be gone already, or be 1 itself, in a container
            gone = first == 1 and os.getpgid(last) != os.getpgid(1)
        if gone:
            _end(stage)
        threading.Thread(target=_watch, args=(stage, line), daemon=True).start()


def _line() -> Line:
    """From this process up to what was started by hand."""
    line, process = Line(), os.getpid()
    while True:
        line.append((process, _parent(process)))
        process = line[-1][1]
        try:
            environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:  # another user's, as a batch system's is
            return line
        if not any(variable.startswith(_STARTED) for variable in environment):
            return line


def _parent(process: int) -> int:
    """Parent of a process, 0 if it is gone."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[1])


def _watch(stage: str, line: Line) -> None:
    while all(_parent(process) == parent for process, parent in line):
        time.sleep(_LOOK_SECONDS)
    _end(stage)


def _end(stage: str) -> None:
    text = f"{stage}: stopped, as what started it has ended; the same command continues from here\n"
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
    os.kill(os.getpid(), signal.SIGKILL)
