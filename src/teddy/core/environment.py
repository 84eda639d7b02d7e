"""Environment variables that say how a command runs, each of which is looked at when it starts.

:mod:`teddy.core.runtime` says what they are for. Apart from it because importing PyTorch takes
seconds, which the commands that compute nothing need not spend.
"""

import importlib.util
import math
import os
import re
from pathlib import Path

from teddy.core.errors import TeddyError

_MOST = 1024
"""Of workers, threads and lanes: more than any machine has cores, and OpenMP fails to start far
more threads in ways that no program survives."""
_PROCESSES = {
    "RANK": 10**9, "WORLD_SIZE": 10**9, "LOCAL_RANK": 10**9, "LOCAL_WORLD_SIZE": 10**9,
    "MASTER_PORT": 65535,
}  # fmt: skip
"""Whole numbers that torchrun sets in each of its processes, and what they may be at most."""


def check_environment() -> None:
    """Refuse a variable that is not what it must be, before hours are spent.

    Raises:
        TeddyError: naming the first.
    """
    device()
    for variable in ("TEDDY_WORKERS", "TEDDY_THREADS", "TEDDY_LANES"):
        whole_number(variable, 1)
    for variable in ("TEDDY_GRAPHS", "TEDDY_FUSED"):
        switch(variable)
    save_seconds()
    _check_live()
    _check_processes()


def device() -> str:
    """``$TEDDY_DEVICE``: ``cpu``, ``cuda`` or ``cuda:<number>``; "" if it is not set."""
    wanted = os.environ.get("TEDDY_DEVICE", "")
    if wanted and not re.fullmatch("cpu|cuda(:[0-9]{1,4})?", wanted):
        raise TeddyError(f"$TEDDY_DEVICE must be cpu, cuda or cuda:<number>, got {_shown(wanted)}")
    return wanted


def whole_number(variable: str, default: int) -> int:
    """A variable that is a number of workers, threads or lanes."""
    wanted = os.environ.get(variable)
    if wanted is None:
        return default
    if not re.fullmatch("[0-9]{1,9}", wanted) or not 1 <= int(wanted) <= _MOST:
        raise TeddyError(
            f"${variable} must be a whole number of at least 1 and at most {_MOST}, got "
            f"{_shown(wanted)}"
        )
    return int(wanted)


def switch(variable: str) -> bool:
    """A variable that is 1, as if it were not set, or 0."""
    wanted = os.environ.get(variable, "1")
    if wanted not in ("0", "1"):
        raise TeddyError(f"${variable} must be 0 or 1, got {_shown(wanted)}")
    return wanted == "1"


def save_seconds() -> float:
    """``$TEDDY_SAVE_SECONDS``, 30 if it is not set."""
    wanted = os.environ.get("TEDDY_SAVE_SECONDS", "30")
    try:
        seconds = float(wanted)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise TeddyError(
            f"$TEDDY_SAVE_SECONDS must be a finite number of at least 0, got {_shown(wanted)}"
        )
    return seconds


def live_folder() -> str:
    """``$TEDDY_LIVE``, where TensorBoard's files go; "" if it is not set."""
    return os.environ.get("TEDDY_LIVE", "")


def _check_live() -> None:
    if not live_folder():
        return
    found = importlib.util.find_spec("tensorboard")
    if found is None or found.origin is None:  # a folder of that name is no package
        raise TeddyError(
            "$TEDDY_LIVE must be unset without TensorBoard, which is not installed: "
            "pip install '.[live]'"
        )
    try:
        Path(live_folder()).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TeddyError(
            f"$TEDDY_LIVE must be a folder to write to, got {_shown(live_folder())}: "
            f"{error.strerror}"
        ) from error


def _check_processes() -> None:
    """Refuse what torchrun sets unless it fits together; somebody has set a part of it then."""
    numbers = {}
    for variable, most in _PROCESSES.items():
        wanted = os.environ.get(variable)
        if wanted is not None:
            if not re.fullmatch("[0-9]{1,9}", wanted) or int(wanted) > most:
                raise TeddyError(
                    f"${variable} must be a whole number as torchrun sets it, got {_shown(wanted)}"
                )
            numbers[variable] = int(wanted)
    others: tuple[str, ...] = ("RANK", "WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        others = (*_PROCESSES, "MASTER_ADDR")
    elif not numbers.keys() - {"MASTER_PORT"}:  # a script may name the first machine for torchrun
        return
    missing = [f"${variable}" for variable in others if not os.environ.get(variable)]
    if missing:
        given = ", ".join(f"${variable}" for variable in numbers) or "$TORCHELASTIC_RUN_ID"
        raise TeddyError(
            f"{', '.join(missing)} must be set too where {given} is, as torchrun does; start "
            "processes by torchrun, or unset these to run alone"
        )
    for place, count in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if count in numbers and numbers.get(place, 0) >= numbers[count]:
            raise TeddyError(
                f"${place} must be below ${count}, which is {numbers[count]}, got {numbers[place]}"
            )
    if numbers.get("LOCAL_WORLD_SIZE", 1) > numbers["WORLD_SIZE"]:
        raise TeddyError(
            f"$LOCAL_WORLD_SIZE must be at most $WORLD_SIZE, which is {numbers['WORLD_SIZE']}, got "
            f"{numbers['LOCAL_WORLD_SIZE']}"
        )


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 50 else f"{text[:47]!r}..."
