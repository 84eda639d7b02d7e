"""The processes that torchrun started: who is who, how they wait, and how they train together.

A process alone is the ordinary case, in which nothing here does anything. Several work *together*
from :func:`join` until :func:`leave_to_first`, after which the first one works alone (assembles and
writes outputs) while the others wait for it in :func:`rejoin`.

Waiting goes through torchrun's key-value store and not through a process group: it may last hours,
and the threads of a process group must not be there when :func:`teddy.core.runtime.for_each` forks.
Only training (:func:`team`) opens a group, for as long as it lasts.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from teddy.core.errors import TeddyError

_CONNECT = timedelta(minutes=10)
_COLLECTIVE = timedelta(hours=1)  # a step of training; its processes wait for the first's files
_POLL_SECONDS = 0.1
_TELL_SECONDS = 10
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_store: Store | None = None
_together = False
_number = 0  # of meetings and groups so far; equal in all processes, which all pass the same ones


class Left(Exception):
    """Ends a stage in every process but the first; ``run_stage`` catches it."""


class OtherFailed(Exception):
    """Ends a stage because another process could not go on, which has said why."""


def die_with(parent: int) -> None:
    """Have the system kill this process when ``parent``, the process that started it, is gone.

    A killed command takes everything with it, so that the next run finds the work to itself.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


# ------------------------------------------------------------------------------------ who is who


def rank() -> int:
    """This process among those that work together, counted from 0, the first."""
    return int(os.environ["RANK"]) if _together else 0


def world_size() -> int:
    """Processes that work together now."""
    return int(os.environ["WORLD_SIZE"]) if _together else 1


def local_rank() -> int:
    """As :func:`rank`, among the processes of this machine."""
    return int(os.environ["LOCAL_RANK"]) if _together else 0


def local_world_size() -> int:
    """As :func:`world_size`, on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _together else 1


def share(count: int) -> range:
    """Which of ``count`` independent items are this process's."""
    return range(rank(), count, world_size())


# --------------------------------------------------------------------------- meeting and leaving


def join() -> None:
    """Begin to work together, if torchrun started several processes; at most once a process.

    Raises:
        TeddyError: the store that torchrun keeps cannot be reached.
    """
    global _store, _together
    several = dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
    if _store is not None or not several:
        return
    die_with(os.getppid())
    with _reaching_the_others():
        store, _, _ = next(rendezvous("env://", timeout=_CONNECT))
    _store = PrefixStore(f"teddy/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    _together = True


def barrier() -> None:
    """Wait until all processes are here, however long that takes.

    Raises:
        OtherFailed: another process has reported a failure.
        TeddyError: the others cannot be reached any more.
    """
    if _together:
        key = _next("barrier")
        with _reaching_the_others() as store:
            store.add(key, 1)
            while store.add(key, 0) < world_size():
                _wait(store)


def from_first(text: str) -> str:
    """The first process's ``text``, for which the others wait; errors as :func:`barrier`."""
    if not _together:
        return text
    key = _next("text")
    with _reaching_the_others() as store:
        if rank() == 0:
            store.set(key, text)
        while not store.check([key]):
            _wait(store)
        return str(store.get(key), encoding="utf-8")


def leave_to_first() -> None:
    """What follows is the first process's alone; the others end the stage here.

    Raises:
        Left: this is not the first process.
    """
    global _together
    if rank() > 0:
        raise Left
    _together = False


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Within a stage, work that the first process may do alone; all go on together after it.

    The others leave the block at :func:`leave_to_first` and wait for the first; errors as
    :func:`barrier`.
    """
    several = _together
    with contextlib.suppress(Left):
        yield
    if several:
        rejoin()


def rejoin() -> None:
    """End a stage together: wait for the first process; errors as :func:`barrier`."""
    global _together
    _together = True
    barrier()


def report_failure(line: str) -> None:
    """Print why this process cannot go on, unless another has said so; stop those that wait.

    Processes often refuse for the same reason at once, which wants a single line.
    """
    if _store is None:
        print(line, file=sys.stderr)
        return
    with contextlib.suppress(dist.DistError):
        if _store.add("failed", 1) > 1:
            # The one that prints must not be killed by torchrun because this one ends first.
            last = time.monotonic() + _TELL_SECONDS
            while not _store.check(["told"]) and time.monotonic() < last:
                time.sleep(_POLL_SECONDS)
            return
    print(line, file=sys.stderr, flush=True)
    with contextlib.suppress(dist.DistError):
        _store.set("told", "")


def _next(what: str) -> str:
    global _number
    _number += 1
    return f"{what}/{_number}"


def _wait(store: Store) -> None:
    if store.check(["failed"]):
        raise OtherFailed
    time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _reaching_the_others() -> Iterator[Store]:
    try:
        yield _store  # type: ignore[misc]  # None only in join, which does not use it
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise TeddyError(
            f"process {os.environ['RANK']} cannot reach the store of torchrun at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({reason}); run the same "
            "command again"
        ) from error


# ------------------------------------------------------------------------------ training together


@dataclass(frozen=True, slots=True)
class Team:
    """Processes that train one network on shares of the same batches; one alone is a team too."""

    rank: int = 0
    """This process; the first, 0, writes files."""
    size: int = 1
    """Processes."""

    def share(self, part: Tensor) -> Tensor:
        """This process's entries of ``part``; shares differ by one entry at most."""
        return part.tensor_split(self.size)[self.rank]

    def replicate(self, network: nn.Module) -> nn.Module:
        """The network, with gradients that are means over the team.

        BatchNorm statistics stay each process's own, as in torchvision's recipe. Wrap anew for
        every epoch: the wrapper rearranges its buffers after its first step, which changes the
        order of summation, and a resumed run must round as an undisturbed one.
        """
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        devices = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            network, device_ids=devices, broadcast_buffers=False
        )

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the team, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def take_buffers_of_first(self, network: nn.Module) -> None:
        """Give every process the first one's buffers (BatchNorm's running statistics)."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


ALONE = Team()


@contextlib.contextmanager
def team(device: torch.device) -> Iterator[Team]:
    """All processes that work together as a team on ``device``: NCCL on CUDA, else gloo."""
    if world_size() == 1:
        yield ALONE
        return
    with _reaching_the_others() as store:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore(_next("group"), store),
            rank=rank(),
            world_size=world_size(),
            timeout=_COLLECTIVE,
            device_id=device if device.type == "cuda" else None,
        )
    try:
        yield Team(rank(), world_size())
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise TeddyError(
            f"process {rank()} does not reach another one any more ("
            f"{str(error).splitlines()[0].rpartition('] ')[2]}); run the same command again, which "
            "continues from here"
        ) from error
    dist.destroy_process_group()  # not after an error: others may never come to it
