"""The gradient of Eq. 7 in the images: two modes of the same mathematics, and which one to take.

Dimensions: ``N`` images, ``C H W`` image shape, ``K`` classes, ``M`` drawn teachers.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from teddy.config import SynthesizeConfig
from teddy.frozen import Teacher
from teddy.objectives import Moments, ensemble_cross_entropy, statistics_loss
from teddy.runtime import autocast

Mode = Literal["two_pass", "joint"]
Targets = Sequence[Sequence[Moments]]

_JOINT_SHARE = 0.5
"""Of the memory that one item has; the rest is weights, what a layer computes, and the system."""


def eq7_gradient(
    view: Tensor,
    labels: Tensor,
    teachers: Sequence[Teacher],
    targets: Targets,
    config: SynthesizeConfig,
) -> Tensor:
    """Gradient of Eq. 7 with respect to the augmented images, left in ``view.grad``.

    Args:
        view: normalised float ``(N, C, H, W)``, a leaf that requires grad.
        labels: int64 ``(N,)``.
        teachers: the M drawn teachers.
        targets: per teacher, the statistics each BatchNorm layer is matched to.
        config: conventions of the loss.

    Returns:
        ``(2,)`` detached: classifier prior, and statistics term before α.
    """
    mode = config.gradient
    chosen = choose_mode(view, teachers, config) if mode == "auto" else mode
    return combined(losses_of_teachers(view, labels, teachers, targets, config, chosen), config)


def combined(losses: Tensor, config: SynthesizeConfig) -> Tensor:
    """Prior and statistics term, ``(…, 2)``, of what :func:`losses_of_teachers` returns."""
    count = (losses.shape[-1] - 1) // 2
    statistics = losses[..., 1 : 1 + count].sum(-1) * _share(count, config)
    return torch.stack([losses[..., 0], statistics], dim=-1)


def losses_of_teachers(
    view: Tensor,
    labels: Tensor,
    teachers: Sequence[Teacher],
    targets: Targets,
    config: SynthesizeConfig,
    mode: Mode,
) -> Tensor:
    """As :func:`eq7_gradient`, in a given mode, with what each teacher contributes.

    ``joint`` keeps the graphs of all teachers at once. ``two_pass`` is exact too and keeps one
    teacher's graph at a time. The classifier prior couples the teachers only through their logits,
    so with G_m = ∂CE/∂z_m known from a pass without a graph, the gradient is the sum over teachers
    of that of ⟨G_m, z_m⟩ + α·R_m/M. The last teacher keeps the graph of its first pass, so M
    teachers cost 2M − 1 forwards, against M jointly.

    Returns:
        ``(1 + 2M,)`` detached: classifier prior, R_BN per teacher, mean |logit| per teacher.
    """
    weight = config.alpha_bn * _share(len(teachers), config)
    if mode == "joint":
        return _joint(view, labels, teachers, targets, config, weight)
    with torch.no_grad():
        known = [_forward(teacher.logits, view, config) for teacher in teachers[:-1]]
    last, gap = _observed(teachers[-1], targets[-1], view, config)
    logits_MNK = torch.stack([*(z.to(last.dtype) for z in known), last.detach()]).requires_grad_()
    prior = ensemble_cross_entropy(logits_MNK, labels, config.ensemble)
    (grad_MNK,) = torch.autograd.grad(prior, logits_MNK)
    _backward(last, gap, grad_MNK[-1], weight)
    last_gap, gaps = gap.detach(), []
    del last, gap
    for index, teacher in enumerate(teachers[:-1]):
        logits, gap = _observed(teacher, targets[index], view, config)
        _backward(logits, gap, grad_MNK[index], weight)
        gaps.append(gap.detach())
        del logits, gap
    return _summary(prior, [*gaps, last_gap], logits_MNK)


def _share(teachers: int, config: SynthesizeConfig) -> float:
    return 1 / teachers if config.over_teachers == "mean" else 1.0


def _joint(
    view: Tensor,
    labels: Tensor,
    teachers: Sequence[Teacher],
    targets: Targets,
    config: SynthesizeConfig,
    weight: float,
) -> Tensor:
    observed = [_observed(t, s, view, config) for t, s in zip(teachers, targets, strict=True)]
    logits_MNK = torch.stack([logits for logits, _ in observed])
    prior = ensemble_cross_entropy(logits_MNK, labels, config.ensemble)
    gaps = [gap for _, gap in observed]
    (prior + weight * torch.stack(gaps).sum()).backward()
    return _summary(prior, gaps, logits_MNK)


def _summary(prior: Tensor, gaps: Sequence[Tensor], logits_MNK: Tensor) -> Tensor:
    sizes = logits_MNK.detach().abs().mean((1, 2))
    return torch.cat([prior.detach()[None], torch.stack(list(gaps)).detach(), sizes])


def _backward(logits: Tensor, gap: Tensor, grad: Tensor, weight: float) -> None:
    torch.autograd.backward([logits, gap], [grad, torch.full_like(gap, weight)])


def _observed(
    teacher: Teacher, target: Sequence[Moments], view: Tensor, config: SynthesizeConfig
) -> tuple[Tensor, Tensor]:
    """Logits and R_BN of one teacher."""
    logits, seen = _forward(teacher.observe, view, config)
    gap = statistics_loss(seen, target, config.first_bn_weight, config.norm)
    return logits if logits.dtype == torch.float64 else logits.float(), gap


def _forward(forward: Callable[[Tensor], Any], view: Tensor, config: SynthesizeConfig) -> Any:
    with autocast(view.device, config.precision):
        return forward(view)


# ------------------------------------------------------------------------------------ which mode


def choose_mode(view: Tensor, teachers: Sequence[Teacher], config: SynthesizeConfig) -> Mode:
    """``joint``, which needs fewer forwards, if the graphs of all teachers fit; else ``two_pass``.

    Depends on settings, shapes and the memory that the machine has, never on what is free: the two
    modes round differently, and the same machine must give the same bytes.
    """
    if len(teachers) == 1:
        return "two_pass"  # the two are one
    limit = _JOINT_SHARE * memory_of_an_item(view.device)
    needed = 0
    for teacher in teachers:
        needed += kept_bytes(teacher, view, config)
        if needed > limit:
            return "two_pass"
    return "joint"


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


def memory_of_an_item(device: torch.device) -> int:
    """Bytes: a GPU's memory, or the machine's divided by its cores, each of which may have one."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return total // (os.cpu_count() or 1)


class OutOfMemory(Exception):
    """The device has no memory left for what was tried."""


@contextlib.contextmanager
def memory_watch() -> Iterator[None]:
    """Turn the ways in which PyTorch says that memory is exhausted into :class:`OutOfMemory`.

    Leave the block before trying anything else: the original error holds on to its tensors.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error).splitlines()[0] if str(error) else "") from None
    except RuntimeError as error:
        text = str(error)
        if "can't allocate memory" in text or "not enough memory" in text:
            raise OutOfMemory(text.splitlines()[0]) from None
        raise
