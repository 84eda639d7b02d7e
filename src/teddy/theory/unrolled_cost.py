"""Figure 1: what one update of a synthetic set costs, unrolled and by Teddy.

Bytes and operations are counted, not timed: they are the same in every run. Seconds and the peak
memory of the device are measured beside them and kept apart.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from teddy.core.files import Json
from teddy.core.seeding import derive, rng
from teddy.data.datasets import ImageDataset
from teddy.settings.configs import SynthesizeConfig
from teddy.settings.theory import Fig1Config
from teddy.synthesis.engine.frozen import Teacher
from teddy.synthesis.gradient import eq7_gradient, settled
from teddy.teachers.networks import build
from teddy.theory.problem import Student, real_batch
from teddy.theory.unrolled import Batch, InnerLoop, exact, first_order

Update = Callable[[], Any]


class SavedBytes:
    """Counts the memory that autograd keeps for backward passes within a ``with`` block.

    Every storage counts once, however many saved tensors share it, for as long as a graph holds
    it. Weights and inputs that a graph saves are in the number; gradients and what an operation
    needs only while it runs are not.
    """

    def __init__(self) -> None:
        self.now = 0
        """Bytes held at this moment."""
        self.peak = 0
        """Most bytes held at one moment."""
        self._holders: dict[int, int] = {}
        self._hooks = saved_tensors_hooks(lambda tensor: _Held(tensor, self), _Held.release)

    def __enter__(self) -> "SavedBytes":
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def hold(self, storage: int, size: int) -> None:
        """A graph saves a tensor that lies in a storage."""
        held = self._holders.get(storage, 0)
        self._holders[storage] = held + 1
        if held == 0:
            self.now += size
            self.peak = max(self.peak, self.now)

    def drop(self, storage: int, size: int) -> None:
        """A graph that saved it is gone."""
        self._holders[storage] -= 1
        if self._holders[storage] == 0:
            del self._holders[storage]  # the address may be given to another storage
            self.now -= size


class _Held:
    """What a graph gets in place of a tensor it saves; tells the counter when the graph goes."""

    def __init__(self, tensor: Tensor, counter: SavedBytes) -> None:
        storage = tensor.untyped_storage()
        self.tensor, self.counter = tensor, counter
        self.place, self.size = storage.data_ptr(), storage.nbytes()
        counter.hold(self.place, self.size)

    def release(self) -> Tensor:
        return self.tensor

    def __del__(self) -> None:
        self.counter.drop(self.place, self.size)


class Operations(TorchDispatchMode):
    """Counts floating-point operations of convolutions and matrix products, two per product.

    With the formulas of PyTorch's own ``FlopCounterMode``, whose hooks on modules refuse gradients
    of gradients.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Json | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


@dataclass(frozen=True, slots=True)
class Method:
    """A way to update the set once."""

    name: str
    """``unrolled``, ``first_order`` or ``teddy``."""
    inner_steps: int | None
    """T; None for Teddy, which has no inner loop."""
    draw: int | None
    """Teachers, k; None for the others."""
    update: Update
    """Compute the gradient of all images of the set."""

    @property
    def identity(self) -> Json:
        """Keys of its rows."""
        return {"method": self.name, "inner_steps": self.inner_steps, "draw": self.draw}


def methods(
    config: Fig1Config,
    synthesis: SynthesizeConfig,
    data: ImageDataset,
    seed: int,
    device: torch.device,
) -> list[Method]:
    """All updates that are compared, of one set of noise and one batch of real images.

    Networks are fresh: the cost of an update does not depend on what they have learned.
    """
    labels = torch.arange(data.num_classes).repeat(config.ipc).to(device)
    noise = torch.randn((len(labels), *data.image_shape), generator=rng(seed, "fig1 noise"))
    synthetic = noise.to(device), labels
    per_class = -(-config.real_images // data.num_classes)
    real = real_batch(data, per_class, seed, device, config.real_images)
    network = build(config.student, data.image_shape, data.num_classes, derive(seed, "student"))
    student = Student(network.to(device))
    theta_0 = student.weights()
    found = []
    for name, objective in (("unrolled", exact), ("first_order", first_order)):
        for steps in config.inner_steps:
            inner = InnerLoop(student.loss, config.inner_lr, steps)
            update: Update = partial(objective, inner, theta_0, synthetic, real)
            found.append(Method(name, steps, None, update))
    for draw in config.draws:
        teachers = [_teacher(config, synthesis, data, seed, m, device) for m in range(draw)]
        # The first batch is as large as any.
        once = settled(synthesis, synthetic[0][: config.batch_size], teachers)
        update = partial(_teddy_update, synthetic, teachers, once, config.batch_size)
        found.append(Method("teddy", None, draw, update))
    return found


def _teacher(
    config: Fig1Config,
    synthesis: SynthesizeConfig,
    data: ImageDataset,
    seed: int,
    member: int,
    device: torch.device,
) -> Teacher:
    key = derive(seed, "teacher", member)
    network = build(config.teacher, data.image_shape, data.num_classes, key)
    return Teacher(network.eval().requires_grad_(False).to(device), synthesis.variance)


def _teddy_update(
    synthetic: Batch, teachers: list[Teacher], synthesis: SynthesizeConfig, batch_size: int
) -> None:
    """Eq. 7 on all images, batch after batch."""
    targets = [teacher.running for teacher in teachers]
    for images, labels in zip(*(part.split(batch_size) for part in synthetic), strict=True):
        leaf = images.detach().requires_grad_()
        eq7_gradient(leaf, labels, teachers, targets, synthesis)


def count(method: Method) -> Json:
    """Bytes that autograd keeps at most, and floating-point operations, of one update."""
    with SavedBytes() as saved:
        method.update()
    with Operations() as operations:
        method.update()
    return {**method.identity, "saved_bytes": saved.peak, "operations": operations.total}


def clock(method: Method, repeats: int, device: torch.device) -> Json:
    """Median seconds of an update and the device's peak memory; never the same twice.

    ``peak_mib`` is what PyTorch allocated on a GPU at most during an update, None on the CPU.
    """
    method.update()
    seconds = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        method.update()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    peak = None
    if device.type == "cuda":
        peak = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    middle = round(statistics.median(seconds), 6)
    return {**method.identity, "seconds": middle, "peak_mib": peak}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
