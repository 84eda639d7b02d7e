"""The gradient of a trajectory's end in the images that the student has learnt from.

Through all steps at once, as MTT takes it, or with the graph of one step at a time, as TESLA does;
:mod:`teddy.synthesis.trajectory_matching` has the methods.

Dimensions: ``P`` parameters of a network as one vector, ``N`` steps of the student.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

StepLoss = Callable[[int, Tensor, Tensor], Tensor]
"""Loss of a step, of its number, the parameters ``(P,)``, and the images."""


def trajectory_loss(end: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """Squared distance of the student's end from the expert's, over that of the expert's way.

    Args:
        end: parameters of the student, ``(P,)``.
        start: where both began, ``(P,)``.
        target: where the expert ended, ``(P,)``.

    Returns:
        Scalar ≥ 0, 0 where the student ends where the expert did.
    """
    return (end - target).square().sum() / (start - target).square().sum()


def unrolled(
    loss_of: StepLoss, images: Tensor, lr: Tensor, start: Tensor, target: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The trajectory loss and its gradients, as MTT takes them: through all steps at once.

    Args:
        loss_of: loss of a step.
        images: that are distilled, any shape.
        lr: learning rate of the student, scalar.
        start: parameters ``(P,)``.
        target: parameters ``(P,)``.
        steps: N.

    Returns:
        The loss, and its gradients in images and learning rate.
    """
    images, lr = images.detach().requires_grad_(), lr.detach().requires_grad_()
    parameters = start.detach().requires_grad_()
    for step in range(steps):
        (slope,) = torch.autograd.grad(
            loss_of(step, parameters, images), [parameters], create_graph=True
        )
        parameters = parameters - lr * slope
    loss = trajectory_loss(parameters, start, target)
    of_images, of_lr = torch.autograd.grad(loss, [images, lr])
    return loss.detach(), of_images, of_lr


def in_constant_memory(
    loss_of: StepLoss,
    images: Tensor,
    lr: Tensor,
    start: Tensor,
    target: Tensor,
    steps: int,
    *,
    through_parameters: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`unrolled`, with the graph of one step at a time.

    Forward, only the parameters of every step are kept. Backward, each step is taken again: with
    the adjoint λ of its end, the gradient in images is −α ∂(λ·∇ℓ)/∂x, and the adjoint of its start
    λ − α ∂(λ·∇ℓ)/∂θ.

    Args:
        loss_of: loss of a step.
        images: that are distilled, any shape.
        lr: learning rate of the student, α, scalar.
        start: parameters ``(P,)``.
        target: parameters ``(P,)``.
        steps: N.
        through_parameters: False leaves the second term of the adjoint out, as TESLA does, which
            takes the parameters of a step as given; that is half of the work.

    Returns:
        The loss, and its gradients in images and learning rate.
    """
    images, way = images.detach(), [start.detach()]
    for step in range(steps):
        parameters = way[-1].requires_grad_()
        (slope,) = torch.autograd.grad(loss_of(step, parameters, images), [parameters])
        way.append((parameters - lr * slope).detach())
    images.requires_grad_()
    end = way[-1].requires_grad_()
    loss = trajectory_loss(end, start, target)
    (adjoint,) = torch.autograd.grad(loss, [end])
    of_images, of_lr = torch.zeros_like(images), torch.zeros_like(lr)
    for step in reversed(range(steps)):
        parameters = way[step].requires_grad_()
        (slope,) = torch.autograd.grad(
            loss_of(step, parameters, images), [parameters], create_graph=True
        )
        of_lr = of_lr - (adjoint * slope.detach()).sum()
        product = (adjoint * slope).sum()
        inputs = [images, parameters] if through_parameters and step else [images]
        found = torch.autograd.grad(product, inputs)
        of_images = of_images - lr * found[0]
        if len(found) > 1:
            adjoint = adjoint - lr * found[1]
    return loss.detach(), of_images, of_lr


def shaped(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vector as named parameters, for :func:`torch.func.functional_call`."""
    parts = vector.split([parameter.numel() for parameter in like.values()])
    named = zip(like.items(), parts, strict=True)
    return {name: part.view(parameter.shape) for (name, parameter), part in named}
