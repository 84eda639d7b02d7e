"""Runs a campaign: many damaged inputs of one kind, each within bounds of time and memory.

``TEDDY_CAMPAIGN`` says how many inputs all kinds have together, ``TEDDY_CAMPAIGN_SEED`` which.
Every input has a seed of its own, which is printed where it fails; with
``TEDDY_CAMPAIGN_INPUT=0/labels/7`` that one is tried alone.
"""

import contextlib
import io
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from damage import Damage

from teddy.core.errors import TeddyError

SEED = int(os.environ.get("TEDDY_CAMPAIGN_SEED", "0"))
COUNT = int(os.environ.get("TEDDY_CAMPAIGN", "600"))
ONE = os.environ.get("TEDDY_CAMPAIGN_INPUT", "")
SECONDS = 10.0
"""No input may take longer."""
MEMORY = 3 * 2**30
"""Bytes that no input may ask for beyond what the process has."""
ROWS: list[tuple[str, int, int, int, int, float, int]] = []
"""The table: kind, inputs, refused, accepted, failures, seconds, seed."""

Attempt = Callable[[Damage], str]
"""Hands over damaged input. Returns why it must not have been accepted, "" if it may be."""


class TooSlow(BaseException):
    """An input took longer than :data:`SECONDS`; nothing that is tried may catch it."""


def campaign(kind: str, share: float, attempt: Attempt, names: str | Path) -> None:
    """Try a share of all inputs; every failure is shown.

    Failures are a traceback, also for want of memory, a hang, an input that is accepted though it
    must not be, and a refusal that is not one line or does not have ``names`` in it.
    """
    numbers = range(round(share * COUNT))
    if ONE:
        numbers = range(int(ONE.rpartition("/")[2]), int(ONE.rpartition("/")[2]) + 1)
        if ONE.split("/")[1] != kind:
            pytest.skip(f"{ONE} is asked for")
    refused, accepted, failures, start = 0, 0, list[str](), time.monotonic()
    for number in numbers:
        seed = f"{ONE.partition('/')[0] if ONE else SEED}/{kind}/{number}"
        try:
            with _limited(), contextlib.redirect_stderr(io.StringIO()):
                wrong = attempt(Damage(seed))
            accepted += 1
            if wrong:
                failures.append(f"{seed}: accepted: {wrong}")
        except TeddyError as error:
            refused += 1
            message = str(error)
            if "\n" in message or str(names) not in message or len(message) > 1000:
                failures.append(f"{seed}: not one line that names {names}: {message!r}")
        except (Exception, TooSlow):
            failures.append(f"{seed}: {traceback.format_exc(limit=-4)}")
    seconds = time.monotonic() - start
    ROWS.append((kind, len(numbers), refused, accepted, len(failures), seconds, SEED))
    if failures:
        first = "each alone by TEDDY_CAMPAIGN_INPUT="
        lines = [f"{len(failures)} of {len(numbers)} failed, {first}", *failures]
        pytest.fail("\n".join(lines), pytrace=False)


def accepted(read: Callable[[], str]) -> str:
    """Read what is right, whose refusal is a failure."""
    try:
        return read()
    except TeddyError as error:
        raise AssertionError(f"refused, though it is right: {error}") from None


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """End a block that takes too long or asks for too much memory."""

    def stop(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def table() -> str:
    """What was tried, as lines."""
    head = ("kind", "inputs", "refused", "accepted", "failures", "seconds", "seed")
    sums = [sum(float(row[column]) for row in ROWS) for column in range(1, 6)]
    rows = [*ROWS, ("all", *map(int, sums[:4]), sums[4], SEED)]
    cells = [head, *((*row[:5], f"{row[5]:.1f}", row[6]) for row in rows)]
    return "\n".join(
        "  ".join(f"{cell:<18}" if place == 0 else f"{cell:>8}" for place, cell in enumerate(line))
        for line in cells
    )
