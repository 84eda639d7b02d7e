"""How much memory a step of a program needs: kept by autograd, and allocated at its peak."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Kept:
    """A tensor that autograd keeps for the backward pass; tells its meter when it goes."""

    __slots__ = ("meter", "tensor")

    def __init__(self, meter: "_Meter", tensor: Tensor) -> None:
        self.meter, self.tensor = meter, tensor
        meter.add(tensor)

    def __del__(self) -> None:
        self.meter.remove(self.tensor)


class _Meter:
    """Bytes of the distinct storages that are kept, now and at most."""

    def __init__(self, known: set[int]) -> None:
        self.known, self.peak, self._now = known, 0, 0
        self._holders: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.known:
            return
        self._holders[key] = self._holders.get(key, 0) + 1
        if self._holders[key] == 1:
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)

    def remove(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.known:
            return
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self._now -= storage.nbytes()


def saved_bytes(step: Callable[[], Any]) -> int:
    """Most bytes that autograd keeps at a time during a step.

    Every storage counts once, whole, and only if it is made in the step: weights and images that
    lie in memory anyway do not count.
    """
    gc.collect()
    known = {
        thing.untyped_storage().data_ptr()
        for thing in gc.get_objects()
        if type(thing) in (Tensor, torch.nn.Parameter) and thing.layout == torch.strided
    }
    meter = _Meter(known)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: _Kept(meter, tensor), lambda kept: kept.tensor
    ):
        step()
    return meter.peak


def peak_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that PyTorch allocates at a time during a step, above those before it.

    On the CPU by PyTorch's allocation records: what libraries allocate for themselves is missing.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiled:
        step()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profiled.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    now = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        now += change
        peak = max(peak, now)
    return peak
