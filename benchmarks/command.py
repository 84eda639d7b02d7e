"""What all benchmarks share: the order of measuring, what a record says, how it is written.

The programs that are compared take turns, after one untimed round, so that what else runs on the
machine slows all of them alike. Medians over rounds are reported, and ratios of two programs are
medians of the ratios within a round.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from teddy.core.distributed import die_with
from teddy.core.files import Json, atomic_path
from teddy.core.hardware import describe, processor
from teddy.core.runtime import cores, keep_freed_memory, log, pick_device
from teddy.core.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEED = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark found."""

    record: Json
    """Everything measured, for the file."""
    tables: tuple[Table, ...]
    """What a reader wants of it."""
    draw: Callable[["Figure"], None] | None = None
    """Draws the figure, if there is one."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A sub-command."""

    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    measure: Callable[[argparse.Namespace], Result]
    repeats: int = 5
    """Rounds, unless asked for otherwise."""


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def environment(load: Sequence[float]) -> Json:
    """Hardware, versions and date, as every record has them.

    Args:
        load: load averages of the machine over 1, 5 and 15 minutes before the benchmark.
    """
    used = {
        "cores_used": cores(),
        "threads": torch.get_num_threads(),
        "load_average_before": [round(value, 2) for value in load],
    }
    return {"date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "hardware": describe() | used}


def machine(device: torch.device) -> str:
    """Where a benchmark ran, for the notes of a table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    how = f"{threads} threads" if threads > 1 else "processor time of one thread"
    return f"{how}, {processor()}"


def take_turns(
    programs: Mapping[str, Callable[[int], float]], repeats: int
) -> dict[str, list[float]]:
    """Measurements of each program: one untimed round, then ``repeats`` rounds of all in turn.

    Args:
        programs: by name; called with the number of the round, 0 is the untimed one; returns its
            measurement.
        repeats: rounds that count.
    """
    for program in programs.values():
        program(0)
    measured: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(1, repeats + 1):
        for name, program in programs.items():
            measured[name].append(program(turn))
    return measured


def median(values: Sequence[float]) -> float:
    """Median over rounds."""
    return statistics.median(values)


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median over rounds of ``over ÷ under``: what slows a whole round cancels."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of ``work``, on a GPU until it has nothing left to do.

    With one thread on a CPU of processor time, so that others on the machine do not count; on a GPU
    by CUDA events, after all its streams; otherwise of wall-clock time.
    """
    synchronise(device)
    if device.type == "cuda":
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        synchronise(device)
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    work()
    return clock() - start


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def load() -> Sequence[float]:
    """Load averages of the machine, to be read before a benchmark adds to them."""
    return os.getloadavg()


def write_figure(path: Path, draw: Callable[["Figure"], None]) -> None:
    """Write a figure of a page's width as PNG, whole or not at all."""
    from matplotlib import style
    from matplotlib.figure import Figure

    from teddy.report.drawing import DPI, WIDTH

    with style.context(["default", {"font.size": 8, "axes.axisbelow": True}]):
        figure = Figure(figsize=(WIDTH, WIDTH / 2), dpi=DPI, layout="constrained")
        draw(figure)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


class Side:
    """A process of its own for the programs of one side of a comparison.

    What a stage sets for its whole process (how the C library allocates, say) must not speed up
    what it is compared with.

    Args:
        ours: set up as a stage does; otherwise as Python starts.
        threads: of PyTorch.
    """

    def __init__(self, *, ours: bool, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, spawn, _start_side, (ours, threads, os.getpid()))

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of a module returns there."""
        return self._process.submit(function, *args).result()

    def close(self) -> None:
        """End the process."""
        self._process.shutdown()


def _start_side(ours: bool, threads: int, parent: int) -> None:
    die_with(parent)
    torch.set_num_threads(threads)
    if ours:
        keep_freed_memory()
        pick_device()


@contextlib.contextmanager
def two_sides(threads: int) -> Iterator[dict[bool, Side]]:
    """Processes of our side (True) and of the other (False)."""
    sides = {ours: Side(ours=ours, threads=threads) for ours in (True, False)}
    try:
        yield sides
    finally:
        for side in sides.values():
            side.close()


# --------------------------------------------------------------------- comparisons on workloads


class Titled(Protocol):
    """What a comparison runs on."""

    @property
    def title(self) -> str:
        """For who watches, and for tables."""
        ...


Workload = TypeVar("Workload", bound=Titled)


def add_workload_options(command: argparse.ArgumentParser, workloads: Mapping[str, Titled]) -> None:
    """Options that :func:`each_workload` reads."""
    command.add_argument(
        "--workloads", nargs="+", choices=workloads, default=list(workloads), metavar="NAME",
        help=f"of {', '.join(workloads)} (default: all)",
    )  # fmt: skip
    command.add_argument(
        "--threads", type=positive, default=1,
        help="on a CPU (default: %(default)s, as in a stage, which runs a process per core)",
    )  # fmt: skip


def pick_device_and_threads(args: argparse.Namespace) -> torch.device:
    """Set up this process as :func:`two_sides` does theirs."""
    torch.set_num_threads(args.threads)
    return pick_device()


def each_workload(
    args: argparse.Namespace,
    workloads: Mapping[str, Workload],
    measure: Callable[[Workload, dict[bool, Side]], Json],
) -> dict[str, Json]:
    """What ``measure`` finds of each workload that was asked for, in the same two processes."""
    measured = {}
    with two_sides(args.threads) as sides:
        for name in args.workloads:
            log(f"  {workloads[name].title}")
            measured[name] = measure(workloads[name], sides)
    return measured


def shared_settings(args: argparse.Namespace, device: torch.device) -> Json:
    """Settings that records of all comparisons have."""
    return {
        "device": device.type, "threads": args.threads, "repeats": args.repeats, "seed": SEED,
    }  # fmt: skip
