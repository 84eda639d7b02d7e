"""The gradient of Eq. 7 in the images: two modes of the same mathematics, and which one to take.

Dimensions: ``N`` images, ``C H W`` image shape, ``K`` classes, ``M`` drawn teachers.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from teddy.objectives import Moments, ensemble_cross_entropy
from teddy.settings.configs import SynthesizeConfig
from teddy.synthesis.engine.frozen import Teacher
from teddy.synthesis.engine.passes import MakePasses, eager, kept_bytes, memory_of_a_batch

Mode = Literal["two_pass", "joint"]
Targets = Sequence[Sequence[Moments]]

_JOINT_SHARE = 0.5
"""Of the memory that one batch has; the rest is weights, what a layer computes, and the system."""


def eq7_gradient(
    view: Tensor,
    labels: Tensor,
    teachers: Sequence[Teacher],
    targets: Targets,
    config: SynthesizeConfig,
    passes: MakePasses = eager,
) -> Tensor:
    """Gradient of Eq. 7 with respect to the augmented images, left in ``view.grad``.

    Args:
        view: normalised float ``(N, C, H, W)``, a leaf that requires grad.
        labels: int64 ``(N,)``.
        teachers: the M drawn teachers.
        targets: per teacher, the statistics each BatchNorm layer is matched to.
        config: conventions of the loss.
        passes: how teachers are run.

    Returns:
        ``(2,)`` detached: classifier prior, and statistics term before α.
    """
    mode = config.gradient
    chosen = choose_mode(view, teachers, config) if mode == "auto" else mode
    losses = losses_of_teachers(view, labels, teachers, targets, config, chosen, passes)
    return combined(losses, config)


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
    passes: MakePasses = eager,
) -> Tensor:
    """As :func:`eq7_gradient`, in a given mode, with what each teacher contributes.

    The classifier prior couples the teachers only through their logits, so with G_m = ∂CE/∂z_m the
    gradient is exactly the sum over teachers of that of ⟨G_m, z_m⟩ + α·R_m/M. ``joint`` keeps the
    graphs of all teachers at once. ``two_pass`` keeps one teacher's at a time, after a pass without
    a graph that gives G_m; the last teacher keeps the graph of its first pass, so M teachers cost
    2M − 1 forwards, against M jointly.

    Returns:
        ``(1 + 2M,)`` detached: classifier prior, R_BN per teacher, mean |logit| per teacher.
    """
    joint = mode == "joint"
    runs = [
        passes(teacher, target, view, config, slot if joint else 0)
        for slot, (teacher, target) in enumerate(zip(teachers, targets, strict=True))
    ]
    first, kept = ([], runs) if joint else (runs[:-1], runs[-1:])
    known = [run.logits() for run in first]
    seen = [run.observe() for run in kept]
    last, gap = seen[-1]
    logits_MNK = torch.stack(
        [*(logits.to(last.dtype) for logits in known), *(logits for logits, _ in seen)]
    ).requires_grad_()
    prior = ensemble_cross_entropy(logits_MNK, labels, config.ensemble)
    grads = torch.autograd.grad(prior, logits_MNK)[0].unbind()
    weight = torch.full_like(gap, config.alpha_bn * _share(len(teachers), config))
    for run, grad in zip(reversed(kept), reversed(grads[len(first) :]), strict=True):
        run.backward(grad, weight)
    gaps = []
    for run, grad in zip(first, grads[: len(first)], strict=True):
        gaps.append(run.observe()[1])
        run.backward(grad, weight)
    gaps += [gap for _, gap in seen]
    sizes = logits_MNK.detach().abs().mean((1, 2))
    return torch.cat([prior.detach()[None], torch.stack(gaps), sizes])


def _share(teachers: int, config: SynthesizeConfig) -> float:
    return 1 / teachers if config.over_teachers == "mean" else 1.0


# ------------------------------------------------------------------------------------ which mode


def choose_mode(view: Tensor, teachers: Sequence[Teacher], config: SynthesizeConfig) -> Mode:
    """``joint``, which needs fewer forwards, if the graphs of all teachers fit; else ``two_pass``.

    Depends on settings, shapes and the memory that the machine has, never on what is free: the two
    modes round differently, and the same machine must give the same bytes.
    """
    if len(teachers) == 1:
        return "two_pass"  # the two are one
    limit = _JOINT_SHARE * memory_of_a_batch(view.device)
    needed = 0
    for teacher in teachers:
        needed += kept_bytes(teacher, view, config)
        if needed > limit:
            return "two_pass"
    return "joint"


def settled(
    config: SynthesizeConfig, view: Tensor, teachers: Sequence[Teacher]
) -> SynthesizeConfig:
    """The settings with the gradient's mode chosen, which costs a forward pass per teacher."""
    if config.gradient != "auto":
        return config
    return replace(config, gradient=choose_mode(view, teachers, config))
