"""What Eq. 7 asks of one teacher for one view, run by PyTorch call by call.

:mod:`teddy.synthesis.engine.cuda_graphs` replays the same passes.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from teddy.core.runtime import autocast
from teddy.objectives import Moments, statistics_loss
from teddy.settings.configs import SynthesizeConfig
from teddy.synthesis.engine.frozen import Teacher


class Passes(Protocol):
    """What Eq. 7 asks of one teacher for one view."""

    def logits(self) -> Tensor:
        """Logits ``(N, K)``, without a graph."""
        ...

    def observe(self) -> tuple[Tensor, Tensor]:
        """Logits, float32 or wider, and R_BN, both detached; keeps what :meth:`backward` needs."""
        ...

    def backward(self, grad: Tensor, weight: Tensor) -> None:
        """Add the gradient of ⟨grad, logits⟩ + weight·R_BN to ``view.grad``; once per observation.

        Args:
            grad: like the logits.
            weight: scalar, like R_BN.
        """
        ...


MakePasses = Callable[[Teacher, Sequence[Moments], Tensor, SynthesizeConfig, int], Passes]
"""Passes of a teacher, given what its layers are matched to, the view, the conventions, and a slot:
a number that no two teachers share whose graphs are kept at once."""


class Eager:
    """Passes that PyTorch runs call by call.

    Args:
        teacher: the teacher.
        target: what its layers are matched to.
        view: a leaf that requires grad.
        config: conventions of the loss.
    """

    def __init__(
        self, teacher: Teacher, target: Sequence[Moments], view: Tensor, config: SynthesizeConfig
    ) -> None:
        self._teacher, self._target, self._view, self._config = teacher, target, view, config
        self._kept: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def logits(self) -> Tensor:
        """See :class:`Passes`."""
        logits: Tensor = _forward(self._teacher.logits, self._view, self._config)
        return logits

    def observe(self) -> tuple[Tensor, Tensor]:
        """See :class:`Passes`."""
        config = self._config
        logits, seen = _forward(self._teacher.observe, self._view, config)
        gap = statistics_loss(seen, self._target, config.first_bn_weight, config.norm)
        self._kept = logits if logits.dtype == torch.float64 else logits.float(), gap
        return self._kept[0].detach(), gap.detach()

    def backward(self, grad: Tensor, weight: Tensor) -> None:
        """See :class:`Passes`."""
        assert self._kept is not None, "observe first"
        kept, self._kept = self._kept, None
        torch.autograd.backward(kept, (grad, weight))


def eager(
    teacher: Teacher, target: Sequence[Moments], view: Tensor, config: SynthesizeConfig, slot: int
) -> Passes:
    """A :data:`MakePasses`, to which slots mean nothing."""
    return Eager(teacher, target, view, config)


def _forward(forward: Callable[[Tensor], Any], view: Tensor, config: SynthesizeConfig) -> Any:
    with autocast(view.device, config.precision, emulate=True):
        return forward(view)


def kept_bytes(teacher: Teacher, view: Tensor, config: SynthesizeConfig) -> int:
    """Bytes that autograd keeps of one teacher's forward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in teacher.observer.parameters()}
    storages: dict[int, int] = {}

    def look(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        output = _forward(teacher.observe, view.detach().requires_grad_(), config)
    del output  # kept its graph alive, so that no address was used twice
    return sum(size for address, size in storages.items() if address not in weights)


def memory_of_a_batch(device: torch.device) -> int:
    """Bytes: a GPU's memory, or the machine's divided by its cores, each of which may have one."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return total // (os.cpu_count() or 1)
