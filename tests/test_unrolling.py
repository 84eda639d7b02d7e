"""Matching trajectories: the gradient through all steps, and in constant memory.

No GPU, no downloads.
"""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from teddy.settings.configs import NetworkConfig
from teddy.synthesis.unrolling import (
    in_constant_memory,
    shaped,
    trajectory_loss,
    unrolled,
)
from teddy.teachers.experts import flat
from teddy.teachers.networks import build

STEPS = 4


class Problem:
    """A small network in float64, six images in batches of three, and where an expert ended."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        config = NetworkConfig(arch="convnet3", width=4, norm="instance")
        self.network = build(config, (1, 8, 8), 3, 0).double()
        self.named = dict(self.network.named_parameters())
        self.start = flat(list(self.named.values())).detach()
        away = torch.randn(self.start.shape, generator=generator, dtype=torch.float64)
        self.target = self.start + 0.05 * away
        self.images = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)
        self.labels = torch.tensor([0, 1, 2, 0, 1, 2])
        self.lr = torch.tensor(0.1, dtype=torch.float64)

    def loss_of(self, step: int, parameters: Tensor, images: Tensor) -> Tensor:
        own = slice(3 * (step % 2), 3 * (step % 2) + 3)
        logits = functional_call(self.network, shaped(parameters, self.named), (images[own],))
        return cross_entropy(logits, self.labels[own])

    def value(self, images: Tensor, lr: Tensor) -> float:
        found, *_ = unrolled(self.loss_of, images, lr, self.start, self.target, STEPS)
        return found.item()


def test_loss_is_relative_to_the_experts_way() -> None:
    start, target = torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0])
    assert trajectory_loss(start, start, target).item() == 1
    assert trajectory_loss(target, start, target).item() == 0
    assert trajectory_loss(torch.tensor([3.0, 0.0]), start, target).item() == pytest.approx(16 / 25)


def test_loss_is_nothing_where_the_expert_is_the_students_own_way() -> None:
    problem = Problem()
    parameters = problem.start.clone().requires_grad_()
    optimizer = torch.optim.SGD([parameters], lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        problem.loss_of(step, parameters, problem.images).backward()
        optimizer.step()
    problem.target = parameters.detach()
    assert problem.value(problem.images, problem.lr) < 1e-25
    assert problem.value(problem.images, 2 * problem.lr) > 1e-3


def test_gradients_are_those_of_finite_differences() -> None:
    problem, small = Problem(), 1e-6
    _, of_images, of_lr = unrolled(
        problem.loss_of, problem.images, problem.lr, problem.start, problem.target, STEPS
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = torch.randn(problem.images.shape, generator=generator, dtype=torch.float64)
        ahead, back = (
            problem.value(problem.images + sign * small * direction, problem.lr) for sign in (1, -1)
        )
        slope = (of_images * direction).sum().item()
        assert slope == pytest.approx((ahead - back) / (2 * small), rel=1e-4)
    ahead, back = (problem.value(problem.images, problem.lr + s * small) for s in (1, -1))
    assert of_lr.item() == pytest.approx((ahead - back) / (2 * small), rel=1e-5)


def test_constant_memory_gives_the_same_loss_and_gradients() -> None:
    problem = Problem()
    given = (problem.loss_of, problem.images, problem.lr, problem.start, problem.target, STEPS)
    for one, other in zip(unrolled(*given), in_constant_memory(*given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_parameters_taken_as_given_lose_what_goes_through_them() -> None:
    """As if the parameters of every step were cut off from the graph, which TESLA does."""
    problem = Problem()
    given = (problem.loss_of, problem.images, problem.lr, problem.start, problem.target, STEPS)
    loss, of_images, of_lr = in_constant_memory(*given, through_parameters=False)
    images, lr = problem.images.clone().requires_grad_(), problem.lr.clone().requires_grad_()
    total, at = torch.zeros_like(problem.start), problem.start
    for step in range(STEPS):
        at = at.detach().requires_grad_()
        (slope,) = torch.autograd.grad(problem.loss_of(step, at, images), [at], create_graph=True)
        total = total + slope
        at = at - problem.lr * slope
    expected = trajectory_loss(problem.start - lr * total, problem.start, problem.target)
    by_images, by_lr = torch.autograd.grad(expected, [images, lr])
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(of_images, by_images, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(of_lr, by_lr, rtol=1e-10, atol=1e-13)
    exact = unrolled(*given)[1]
    assert not torch.allclose(of_images, exact, rtol=1e-3, atol=0)
