"""SGD and Adam on PyTorch's functional, fused update rules.

The classes of ``torch.optim`` import PyTorch's whole compiler at their first step, which costs
every stage about three seconds, and they hide the state that a killed run must restore. Here the
update is PyTorch's own and the state is a list of tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a weight decay."""

    parameters: list[Tensor]
    weight_decay: float


class Sgd:
    """Stochastic gradient descent with momentum and coupled weight decay.

    Args:
        groups: parameters, each a leaf that requires grad.
        momentum: of the velocity; PyTorch's convention, no dampening.
    """

    def __init__(self, groups: Sequence[Group], momentum: float) -> None:
        self.groups, self.momentum = list(groups), momentum
        self._velocities = [[torch.zeros_like(p) for p in g.parameters] for g in self.groups]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update all parameters with their gradients, then drop the gradients."""
        for group, velocities in zip(self.groups, self._velocities, strict=True):
            if group.parameters:
                buffers: list[Tensor | None] = list(velocities)
                sgd(
                    group.parameters,
                    _gradients(group),
                    buffers,
                    fused=True,
                    weight_decay=group.weight_decay,
                    momentum=self.momentum,
                    lr=lr,
                    dampening=0.0,
                    nesterov=False,
                    maximize=False,
                )

    def state(self) -> list[Tensor]:
        """Tensors that continue the run when copied into a fresh optimiser's."""
        return [velocity for velocities in self._velocities for velocity in velocities]


class Adam:
    """Adam with coupled weight decay, or AdamW with decoupled.

    Args:
        groups: parameters, each a leaf that requires grad.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        decoupled: AdamW.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        betas: tuple[float, float],
        eps: float = 1e-8,
        *,
        decoupled: bool,
    ) -> None:
        self.groups, self.betas, self.eps, self.decoupled = list(groups), betas, eps, decoupled
        self._first = [[torch.zeros_like(p) for p in g.parameters] for g in self.groups]
        self._second = [[torch.zeros_like(p) for p in g.parameters] for g in self.groups]
        self._steps = [
            [torch.zeros((), dtype=torch.float32, device=p.device) for p in g.parameters]
            for g in self.groups
        ]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update all parameters with their gradients, then drop the gradients."""
        for group, first, second, steps in zip(
            self.groups, self._first, self._second, self._steps, strict=True
        ):
            if group.parameters:
                adam(
                    group.parameters,
                    _gradients(group),
                    first,
                    second,
                    [],
                    steps,
                    fused=True,
                    decoupled_weight_decay=self.decoupled,
                    amsgrad=False,
                    beta1=self.betas[0],
                    beta2=self.betas[1],
                    lr=lr,
                    weight_decay=group.weight_decay,
                    eps=self.eps,
                    maximize=False,
                )

    def state(self) -> list[Tensor]:
        """Tensors that continue the run when copied into a fresh optimiser's."""
        return [t for part in (self._first, self._second, self._steps) for g in part for t in g]


Optimizer = Sgd | Adam


def restore(optimizer: Optimizer, state: Sequence[Tensor]) -> None:
    """Continue from the :meth:`state` of an optimiser of the same parameters.

    Copies in place, so that the tensors keep lying in memory as the parameters do: fused kernels
    walk both side by side.
    """
    with torch.no_grad():
        for mine, saved in zip(optimizer.state(), state, strict=True):
            mine.copy_(saved)


def _gradients(group: Group) -> list[Tensor]:
    gradients = []
    for parameter in group.parameters:
        if parameter.grad is None:
            raise RuntimeError("a parameter has no gradient; call backward before step")
        gradients.append(parameter.grad)
        parameter.grad = None
    return gradients
