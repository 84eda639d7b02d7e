"""Jobs that share a GPU: each has a stream of its own, and they take turns, an iteration each.

A batch of small images does not fill a large GPU; the kernels of several, on streams of their own,
run side by side. Each job computes what it would compute alone, so that results do not depend on
how many run at a time, and their number may be found by measuring.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from teddy.core.errors import TeddyError
from teddy.core.memory import OutOfMemory, memory_watch
from teddy.core.runtime import lanes_wanted, log

_MOST = 4
"""Jobs at a time that are tried."""
_SETTLE, _WINDOW = 50, 100
"""Iterations of every job in which a new one sets itself up, and that are measured then."""
_GAIN = 1.05
"""By which one more job must raise the iterations per second of all, to stay."""


@dataclass(slots=True)
class Lane:
    """Where a job runs."""

    number: int = 0
    """Which of those that run at a time, counted from 0."""
    beside: int = 0
    """How many others run now."""
    stream: "torch.cuda.Stream | None" = None

    def entered(self) -> contextlib.AbstractContextManager[object]:
        """Context in which the GPU's work goes to this lane."""
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


class Job(Protocol):
    """Does its work in steps."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def size(self) -> str:
        """Settings of how many images it takes at a time, for messages."""
        ...

    @property
    def can_go_on(self) -> bool:
        """Whether exhausted memory left nothing half-done."""
        ...

    def steps(self, lane: Lane) -> Iterator[None]:
        """Begin, or go on after exhausted memory; yields after every step."""
        ...

    def free(self, lanes: Callable[[int], bool]) -> bool:
        """Give back memory that is held for later in lanes of such numbers; whether any was."""
        ...

    def smaller(self) -> str:
        """Go on with less memory; how, or "" if it cannot."""
        ...


class Search:
    """Finds how many jobs at a time finish the most iterations per second.

    One more is tried as long as that pays. Beginnings of jobs are part of what is measured, as they
    are part of the work.

    Args:
        wait: returns when the device has done all it was given.
        clock: seconds.
    """

    def __init__(
        self, wait: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = 1
        """Jobs to run at a time."""
        self.rates: dict[int, float] = {}
        """Iterations per second that were measured, by number of jobs."""
        self._wait, self._clock = wait, clock
        self._found, self._rounds, self._done, self._began = False, 0, 0, 0.0

    def fewer(self, running: int) -> None:
        """So many do not fit into memory."""
        self.limit = max(1, running - 1)
        self._end(f"memory is exhausted by {running}")

    def look(self, running: int, done: int, waiting: int) -> None:
        """Called after every round, in which each running job had its turn.

        Args:
            running: jobs.
            done: iterations of the round.
            waiting: jobs that have not begun.
        """
        if self._found or running < self.limit:
            return
        self._rounds += 1
        self._done += done
        if self._rounds == _SETTLE:
            self._wait()
            self._done, self._began = 0, self._clock()
        elif self._rounds == _SETTLE + _WINDOW:
            self._wait()
            self.rates[running] = self._done / (self._clock() - self._began)
            self._rounds = 0
            self._judge(waiting)

    def _judge(self, waiting: int) -> None:
        if self.rates[self.limit] < _GAIN * self.rates.get(self.limit - 1, 0.0):
            self.limit -= 1
            self._end("one more brings less than 5 %")
        elif self.limit == _MOST:
            self._end("the most that are tried")
        elif waiting:
            self.limit += 1

    def _end(self, reason: str) -> None:
        self._found, plural = True, "es" if self.limit > 1 else ""
        found = ", ".join(f"{rate:.1f} with {n}" for n, rate in self.rates.items())
        found = f": {found} iterations/s" if found else ""
        log(f"{self.limit} batch{plural} at a time on this device ({reason}{found})")


class Lanes:
    """Runs jobs on a device, as many at a time as ``$TEDDY_LANES`` says or pay on a GPU.

    Exhausted memory is answered by dropping what idle lanes hold, then by running fewer jobs, which
    changes no byte, and only for a job alone by its smaller way.

    Args:
        device: where they compute.
        limit: how many at a time, instead.
    """

    def __init__(self, device: torch.device, limit: int | None = None) -> None:
        self._device = device
        self._fixed = limit or lanes_wanted() or (None if device.type == "cuda" else 1)
        self._search = Search(self._wait)
        self._streams: dict[int, torch.cuda.Stream] = {}

    @property
    def limit(self) -> int:
        """Jobs that run at a time now."""
        return self._fixed or self._search.limit

    def run(self, jobs: Iterable[Job]) -> None:
        """Run all jobs to their end, beginning in their order.

        Raises:
            TeddyError: memory is exhausted by a job alone.
        """
        waiting, running = deque(jobs), list[_Running]()
        while waiting or running:
            while waiting and len(running) < self.limit:
                running.append(self._begin(waiting.popleft(), running))
            active, done = running[: self.limit], 0
            for one in active:
                one.lane.beside = len(active) - 1
            for one in active:
                failure = ""
                try:
                    if one.step():
                        done += 1
                    else:
                        running.remove(one)
                except OutOfMemory as error:
                    failure = f"({error})"
                # Outside the handler, which holds on to the tensors of what failed.
                if failure and not self._make_room(one, running, len(active), failure):
                    break
            if self._fixed is None:
                self._search.look(len(active), done, len(waiting))

    def _make_room(
        self, one: "_Running", running: "list[_Running]", active: int, reason: str
    ) -> bool:
        """Answer exhausted memory; whether as many jobs as before go on."""
        job, taken = one.job, {other.lane.number for other in running}
        one.again()
        if not job.can_go_on:
            raise TeddyError(f"synthesize: memory ran out within an update of {job.name} {reason}")
        if job.free(lambda number: number not in taken):
            return True
        job.free(lambda number: True)
        if active > 1:
            running.remove(one)
            running.append(one)  # the last to go on
            if self._fixed is not None:
                self._fixed = max(1, active - 1)
            self._search.fewer(active)
            return False
        if how := job.smaller():
            log(f"synthesize: no memory left for {job.name}, which goes on {how}")
            return True
        raise TeddyError(
            f"synthesize: no memory left for {job.name} {reason}; take fewer images at a time by "
            f"{job.size}"
        )

    def _begin(self, job: Job, running: "list[_Running]") -> "_Running":
        taken = {one.lane.number for one in running}
        number = next(n for n in range(len(running) + 1) if n not in taken)
        lane = Lane(number)
        if self._device.type == "cuda" and self._fixed != 1:
            with torch.cuda.device(self._device):
                if number not in self._streams:
                    self._streams[number] = torch.cuda.Stream()
                lane.stream = self._streams[number]
                lane.stream.wait_stream(torch.cuda.current_stream())  # what all share is there
        return _Running(job, lane)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class _Running:
    """A job in its lane."""

    def __init__(self, job: Job, lane: Lane) -> None:
        self.job, self.lane = job, lane
        self._steps: Iterator[None] = iter(())
        self.again()

    def again(self) -> None:
        """Begin, or go on where the job is."""
        self._steps = self.job.steps(self.lane)

    def step(self) -> bool:
        """Do a step; False if there was none left.

        Raises:
            OutOfMemory: memory was exhausted within it.
        """
        with self.lane.entered(), memory_watch():
            return next(self._steps, self) is not self
