"""How a stage runs rather than what it computes: device, logs, progress, timings, errors.

Nothing here may change a result beyond floating-point rounding, so nothing here is in
``params.yaml``: the device comes from ``$TEDDY_DEVICE`` (``cpu``, ``cuda``; default: a GPU if there
is one), the number of processor cores to use from ``$TEDDY_WORKERS`` (default: all), that of
threads per batch from ``$TEDDY_THREADS`` (default: 1), and how many batches share a GPU from
``$TEDDY_LANES`` (default: as many as pay). ``$TEDDY_GRAPHS`` and ``$TEDDY_FUSED`` (1 or 0; default:
1) say whether CUDA graphs are used where they pay, and fused kernels where they work. torchrun may
start several processes, on one or several machines that share a file system.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from tqdm import tqdm

from teddy.core import distributed
from teddy.core.console import append_line
from teddy.core.environment import check_environment, save_seconds, switch, whole_number
from teddy.core.environment import device as device_wanted
from teddy.core.errors import TeddyError


def pick_device() -> torch.device:
    """Device named by ``$TEDDY_DEVICE``, else CUDA if available, else the CPU.

    Each process that torchrun started on a machine has a GPU of its own.

    Raises:
        TeddyError: the variable names a device this machine does not have, or there are more
            processes than GPUs.
    """
    name = device_wanted() or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise TeddyError(f"$TEDDY_DEVICE is {name!r}, but PyTorch sees no CUDA device here")
    count = torch.cuda.device_count() if ":" in name else 0
    if ":" in name and int(name.split(":")[1]) >= count:
        raise TeddyError(
            f"$TEDDY_DEVICE is {name!r}, but PyTorch sees {count} CUDA devices here, counted from 0"
        )
    if name.startswith("cuda"):
        # Not on the CPU: its kernels are deterministic, and the call imports the whole compiler.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # A kernel without a deterministic form warns, naming itself, instead of ending the run.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if distributed.world_size() > 1:
            name = _own_gpu(name)
    return torch.device(name)


def _own_gpu(name: str) -> str:
    gpus, processes = torch.cuda.device_count(), distributed.local_world_size()
    if name != "cuda":
        raise TeddyError(f"$TEDDY_DEVICE must be cuda, without a number, for torchrun; got {name}")
    if processes > gpus:
        raise TeddyError(
            f"torchrun started {processes} processes on a machine with {gpus} GPUs; use "
            f"--nproc_per_node={gpus} at most"
        )
    torch.cuda.set_device(distributed.local_rank())
    return f"cuda:{distributed.local_rank()}"


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next allocation, on Linux.

    It would hand large blocks back to the system, which clears and maps them again page by page at
    the next step: a third to half of the time of training on a CPU. Changes no result.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        # Older versions refuse more than 32 MiB.
        mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)


def use_threads(device: torch.device, image_shape: tuple[int, int, int]) -> None:
    """Set PyTorch's threads for a stage that computes in one process.

    Images below 32×32 pixels get one thread: their tensors are so small that waking a second
    thread costs more than it brings (1.6 times slower on two cores with 8×8 images).
    """
    if device.type == "cpu":
        height, width = image_shape[1:]
        torch.set_num_threads(1 if height * width < 32 * 32 else cores())


def cores() -> int:
    """Processor cores this process may use: the machine's, or ``$TEDDY_WORKERS``, divided by the
    number of processes that torchrun started on the machine.
    """
    machine = whole_number("TEDDY_WORKERS", len(os.sched_getaffinity(0)))
    return max(1, machine // distributed.local_world_size())


def lanes_wanted() -> int | None:
    """Items that a process runs at a time on its device: ``$TEDDY_LANES``; None if not set."""
    return whole_number("TEDDY_LANES", 0) or None


def graphs_wanted() -> bool:
    """Whether teachers may be replayed as CUDA graphs: ``$TEDDY_GRAPHS``, 1 (default) or 0."""
    return switch("TEDDY_GRAPHS")


def fused_wanted() -> bool:
    """Whether teachers may use fused kernels on a GPU: ``$TEDDY_FUSED``, 1 (default) or 0."""
    return switch("TEDDY_FUSED")


def save_interval() -> float:
    """Least seconds between two resume points of a run, ``$TEDDY_SAVE_SECONDS`` (default 30).

    What a killed stage loses at most; it changes no result.
    """
    return save_seconds()


_task: Callable[[int], None] | None = None  # inherited by forked workers, which need no pickling
_row = 0  # of the terminal, where this process draws its progress bar


def workers_for(count: int, device: torch.device) -> int:
    """Processes that :func:`for_each` runs ``count`` tasks in, of those started by this one."""
    if device.type != "cpu" or whole_number("TEDDY_THREADS", 1) > 1:
        return 1
    return max(1, min(len(distributed.share(count)), cores()))


def for_each(
    count: int,
    task: Callable[[int], None],
    device: torch.device,
    before: Callable[[], None] | None = None,
    together: Callable[[Sequence[int]], None] | None = None,
) -> None:
    """Call ``task(0) … task(count − 1)``, shared by all processes that torchrun started.

    Tasks must not depend on each other and must leave their results in files, where all are when
    this returns. On a GPU a process runs its tasks in turn. On the CPU it forks a worker per core,
    each with one thread, whatever their number: the bytes depend on neither. With
    ``$TEDDY_THREADS`` above 1 it forks none but runs its tasks in turn, with so many threads each,
    which changes rounding: OpenMP hangs in a forked process that wants threads if its parent has
    ever used them. Start more processes by torchrun then.

    Args:
        count: number of tasks.
        task: what to do for an index.
        device: where tasks compute.
        before: called once before all tasks; what it leaves in memory, forked workers share.
        together: how a process that forks none runs its tasks, given their numbers (default: in
            turn, by ``task``).

    Raises:
        TeddyError: a worker was killed, by a lack of memory as a rule.
    """
    mine = distributed.share(count)
    workers = workers_for(count, device)
    if device.type == "cpu":
        torch.set_num_threads(whole_number("TEDDY_THREADS", 1))
    if before is not None and len(mine) > 0:
        before()
    if workers > 1:
        _fork_workers(mine, task, workers)
    elif together is not None:
        together(mine)
    else:
        for index in mine:
            task(index)
    distributed.barrier()


def _fork_workers(indices: Sequence[int], task: Callable[[int], None], workers: int) -> None:
    global _task
    _task = task
    tqdm.monitor_interval = 0  # its thread would not survive the fork
    fork = multiprocessing.get_context("fork")
    started = fork.Value("i", 0)
    with ProcessPoolExecutor(workers, fork, _start_worker, (started, os.getpid())) as pool:
        futures = [pool.submit(_run_task, index) for index in indices]
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


def _start_worker(started: Any, parent: int) -> None:
    global _row
    distributed.die_with(parent)
    with started.get_lock():
        _row, started.value = started.value, started.value + 1


def _run_task(index: int) -> None:
    if _task is None:
        raise RuntimeError("worker started without a task")
    _task(index)


@functools.cache
def emulates_bfloat16(device_type: str) -> bool:
    """Whether layers in bfloat16 would be emulated: a CPU without its instructions.

    PyTorch then computes convolutions 10 to 600 times slower than in float32.
    """
    return device_type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def autocast(device: torch.device, precision: str, *, emulate: bool = False) -> torch.autocast:
    """Autocast context of a configured precision.

    Args:
        device: where layers compute.
        precision: ``float32`` or ``bfloat16``.
        emulate: stay with it where PyTorch's layers would be emulated, for layers that are not;
            otherwise it becomes what :func:`computed_in` says.
    """
    computed = precision if emulate else computed_in(device, precision)
    return torch.autocast(device.type, torch.bfloat16, enabled=computed == "bfloat16")


def computed_in(device: torch.device, precision: str) -> str:
    """Precision that PyTorch's layers compute in, for records: float32 instead of an emulation.

    That is said once, by the process that asks first.
    """
    if precision == "bfloat16" and emulates_bfloat16(device.type):
        _say_emulated()
        return "float32"
    return precision


@functools.cache
def _say_emulated() -> None:
    log("this processor has no instructions for bfloat16: float32 instead, which is faster here")


def log(message: str) -> None:
    """One line for the user, from the first process only, kept clear of progress bars."""
    if distributed.rank() == 0:
        tqdm.write(message, file=sys.stderr)


def progress(
    total: int | None, description: str, unit: str, done: int = 0, row: int = 0, *,
    shown: bool = True,
) -> "tqdm[Any]":  # fmt: skip
    """Progress bar of the first process, with speed and ETA (None: no total is known); silent where
    nobody watches (no terminal). Several of a process have a row each.
    """
    return tqdm(
        total=total, desc=description, unit=unit, initial=done, leave=False, dynamic_ncols=True,
        disable=None if shown and distributed.rank() == 0 else True, position=_row + row,
        unit_scale=unit == "B",
    )  # fmt: skip


def run_stage(stage: str, main: Callable[[], str], *, parallel: bool = False) -> None:
    """Run a stage's ``main`` (which returns its name and a summary); turn refusals into one line.

    A timing record is appended to ``logs/<stage>.jsonl``, which no stage depends on. If torchrun
    started several processes, none ends before the first has succeeded.

    Args:
        stage: its name.
        main: what it does.
        parallel: call ``main`` in every process, all but the first of which end in
            :func:`teddy.core.distributed.leave_to_first`; otherwise in the first process alone.
    """
    try:
        _run_together(stage, main, parallel)
    except TeddyError as error:
        distributed.report_failure(f"error: {error}")
        raise SystemExit(1) from None
    except distributed.OtherFailed:
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        distributed.report_failure(f"\n{stage}: stopped; the same command continues from here")
        raise SystemExit(130) from None
    except Exception:
        distributed.report_failure(f"{stage}: stopped by an error that is a bug of ours:")
        raise


def _run_together(stage: str, main: Callable[[], str], parallel: bool) -> None:
    start = time.perf_counter()
    check_environment()
    keep_freed_memory()
    # Stages that gain by more ask for them (use_threads). What $OMP_NUM_THREADS or the machine says
    # would change how labels of large networks are rounded.
    torch.set_num_threads(1)
    distributed.join()
    processes = distributed.world_size()
    with contextlib.suppress(distributed.Left):
        pick_device()
        if not parallel:
            distributed.leave_to_first()
        summary = main()
        seconds = time.perf_counter() - start
        log(f"{stage} {summary} ({seconds:.1f} s)")
        _log_timing(stage, summary, seconds, processes)
    if processes > 1:
        distributed.rejoin()


def peak_mib() -> float:
    """Most memory that this process has had: of the GPU where it uses one, else of the machine."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def append_log(name: str, record: dict[str, Any]) -> None:
    """Append a line with date and machine to ``logs/<name>.jsonl``, which no stage depends on."""
    on_gpu = torch.cuda.is_initialized()
    line = {
        **record,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    append_line(name, line)


def _log_timing(stage: str, summary: str, seconds: float, processes: int) -> None:
    record = {
        "stage": stage,
        "summary": summary,
        "seconds": round(seconds, 3),
        "peak_mib": round(peak_mib(), 1),
        "processes": processes,
    }
    append_log(stage, record)
