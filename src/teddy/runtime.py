"""How a stage runs rather than what it computes: device, logs, progress, timings, errors.

Nothing here may change a result beyond floating-point rounding, so nothing here is in
``params.yaml``: the device comes from ``$TEDDY_DEVICE`` (``cpu``, ``cuda``; default: a GPU if there
is one) and the number of processor cores to use from ``$TEDDY_WORKERS`` (default: all).
"""

import contextlib
import ctypes
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from teddy.errors import TeddyError


def pick_device() -> torch.device:
    """Device named by ``$TEDDY_DEVICE``, else CUDA if available, else the CPU.

    Raises:
        TeddyError: the variable names a device this machine does not have.
    """
    name = os.environ.get("TEDDY_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise TeddyError(f"$TEDDY_DEVICE must be cpu or cuda, got {name!r}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise TeddyError(f"$TEDDY_DEVICE is {name!r}, but PyTorch sees no CUDA device here")
    if name.startswith("cuda"):
        # Not on the CPU: its kernels are deterministic, and the call imports the whole compiler.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # A kernel without a deterministic form warns, naming itself, instead of ending the run.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device(name)


def use_threads(device: torch.device, image_shape: tuple[int, int, int]) -> None:
    """Set PyTorch's threads for a stage that computes in one process.

    Images below 32×32 pixels get one thread: their tensors are so small that waking a second
    thread costs more than it brings (1.6 times slower on two cores with 8×8 images).
    """
    if device.type == "cpu":
        height, width = image_shape[1:]
        torch.set_num_threads(1 if height * width < 32 * 32 else cores())


def cores() -> int:
    """Processor cores this process may use, or ``$TEDDY_WORKERS``."""
    wanted = os.environ.get("TEDDY_WORKERS")
    if wanted is None:
        return len(os.sched_getaffinity(0))
    if not wanted.isdigit() or int(wanted) < 1:
        raise TeddyError(f"$TEDDY_WORKERS must be a whole number of at least 1, got {wanted!r}")
    return int(wanted)


def save_interval() -> float:
    """Least seconds between two resume points of a run, ``$TEDDY_SAVE_SECONDS`` (default 30).

    What a killed stage loses at most; it changes no result.
    """
    text = os.environ.get("TEDDY_SAVE_SECONDS", "30")
    try:
        return float(text)
    except ValueError:
        raise TeddyError(f"$TEDDY_SAVE_SECONDS must be a number, got {text!r}") from None


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_task: Callable[[int], None] | None = None  # inherited by forked workers, which need no pickling
_row = 0  # of the terminal, where this process draws its progress bar


def for_each(count: int, task: Callable[[int], None], device: torch.device) -> None:
    """Call ``task(0) … task(count − 1)``, on the CPU with one process per core.

    Tasks must not depend on each other and must leave their results in files. On the CPU each has
    one thread, whatever the number of processes: its bytes depend on neither, and OpenMP cannot
    start threads in a forked process. On a GPU they run in turn.

    Args:
        count: number of tasks.
        task: what to do for an index.
        device: where tasks compute.

    Raises:
        TeddyError: a worker was killed, by a lack of memory as a rule.
    """
    global _task
    workers = min(count, cores()) if device.type == "cpu" else 1
    if device.type == "cpu":
        torch.set_num_threads(1)
    if workers <= 1:
        for index in range(count):
            task(index)
        return
    _task = task
    tqdm.monitor_interval = 0  # its thread would not survive the fork
    fork = multiprocessing.get_context("fork")
    ranks = fork.Value("i", 0)
    with ProcessPoolExecutor(workers, fork, _start_worker, (ranks,)) as pool:
        futures = [pool.submit(_run_task, index) for index in range(count)]
        try:
            for future in as_completed(futures):
                future.result()
        except BrokenProcessPool:
            raise TeddyError(
                f"one of {workers} worker processes was killed, probably for lack of memory; set "
                "$TEDDY_WORKERS to fewer and run the same command again"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            _task = None


def _start_worker(ranks: Any) -> None:
    global _row
    if sys.platform == "linux":
        # A killed stage takes its workers with it; the next run must find the work to itself.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with ranks.get_lock():
        _row, ranks.value = ranks.value, ranks.value + 1


def _run_task(index: int) -> None:
    if _task is None:
        raise RuntimeError("worker started without a task")
    _task(index)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast context of a configured precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def log(message: str) -> None:
    """One line for the user, kept clear of progress bars."""
    tqdm.write(message, file=sys.stderr)


def progress(total: int, description: str, unit: str, done: int = 0) -> "tqdm[Any]":
    """Progress bar with speed and ETA; silent where nobody watches (no terminal)."""
    return tqdm(
        total=total, desc=description, unit=unit, initial=done, disable=None, leave=False,
        dynamic_ncols=True, position=_row,
    )  # fmt: skip


def run_stage(stage: str, main: Callable[[], str]) -> None:
    """Run a stage's ``main`` (which returns its name and a summary); turn refusals into one line.

    A timing record is appended to ``logs/<stage>.jsonl``, which no stage depends on.
    """
    start = time.perf_counter()
    try:
        pick_device()
        summary = main()
    except TeddyError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"\n{stage}: stopped; the same command continues from here", file=sys.stderr)
        raise SystemExit(130) from None
    seconds = time.perf_counter() - start
    log(f"{stage} {summary} ({seconds:.1f} s)")
    _log_timing(stage, summary, seconds)


def _log_timing(stage: str, summary: str, seconds: float) -> None:
    on_gpu = torch.cuda.is_initialized()
    peak = (
        torch.cuda.max_memory_allocated() / 2**20
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    )
    record = {
        "stage": stage,
        "summary": summary,
        "seconds": round(seconds, 3),
        "peak_mib": round(peak, 1),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    folder = Path(os.environ.get("TEDDY_LOGS", "logs"))
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{stage}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
