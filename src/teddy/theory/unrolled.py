"""The bi-level problem of Eq. 1 on a network: its exact gradient, and what the paper puts instead.

Every objective is a function of the inner loop, the weights theta_0 it starts from, the synthetic
and the real set; it returns its value and its gradient with respect to the synthetic images.
:mod:`teddy.theory.equations` has the same equations for any loss, in a form that is slower and
plainer; tests compare the two.

A batch is normalised float images ``(n, C, H, W)`` with int64 labels ``(n,)``. Dimensions: ``n``
images, ``C`` channels, ``H W`` pixels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from teddy.core.errors import TeddyError
from teddy.core.seeding import derive
from teddy.objectives import Moments, moments, statistics_loss

Weights = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


class Objective(NamedTuple):
    """Value of an objective, and its gradient in the synthetic images."""

    value: Tensor
    """Scalar, detached."""
    gradient: Tensor
    """``(n, C, H, W)``."""


@dataclass(frozen=True, slots=True)
class InnerLoop:
    """Plain gradient descent of a network's mean cross-entropy on the synthetic set (Eqs. 1, 9)."""

    network: nn.Module
    """Architecture; its weights are handed in."""
    lr: float
    """eta."""
    num_steps: int
    """T."""

    def logits(self, theta: Weights, images: Tensor) -> Tensor:
        """Outputs ``(n, K)`` of the network with weights ``theta``."""
        outputs: Tensor = functional_call(self.network, theta, (images,))
        return outputs

    def loss(self, theta: Weights, batch: Batch) -> Tensor:
        """l(D; theta), the mean cross-entropy; a scalar."""
        images, labels = batch
        return cross_entropy(self.logits(theta, images), labels)

    def gradient(self, theta: Weights, batch: Batch, *, create_graph: bool = False) -> Weights:
        """g_D(theta); differentiable in ``theta`` and the batch with ``create_graph``."""
        found = torch.autograd.grad(
            self.loss(theta, batch), list(theta.values()), create_graph=create_graph
        )
        return dict(zip(theta, found, strict=True))

    def step(self, theta: Weights, gradient: Weights) -> Weights:
        """Weights theta - eta g, constants of the graph if both arguments are."""
        return {name: value - self.lr * gradient[name] for name, value in theta.items()}

    def trajectory(self, theta_0: Weights, synthetic: Batch) -> Iterator[tuple[Weights, Weights]]:
        """Yield (theta_t, g_S(theta_t)) for t < T without a graph, then (theta_T, {})."""
        theta = constants(theta_0)
        for _ in range(self.num_steps):
            gradient = self.gradient(theta, synthetic)
            yield theta, gradient
            theta = constants(self.step(theta, gradient))
        yield theta, {}


def constants(theta: Weights) -> Weights:
    """The same numbers as leaves of a new graph."""
    return {name: value.detach().requires_grad_() for name, value in theta.items()}


def initial_weights(network: nn.Module, dtype: torch.dtype = torch.float32) -> Weights:
    """Weights of a network as theta_0."""
    return constants({name: value.to(dtype) for name, value in network.named_parameters()})


def inner_product(a: Weights, b: Weights) -> Tensor:
    """<a, b> over all weights."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def plain_convnet(
    image_shape: tuple[int, int, int], num_classes: int, width: int, depth: int, seed: int
) -> nn.Module:
    """DM's ConvNet without normalisation, of any depth: convolution, ReLU, pooling; linear head.

    Raises:
        TeddyError: the image is too small to be halved ``depth`` times.
    """
    channels, height, rest = image_shape
    if min(height, rest) >> depth < 1:
        raise TeddyError(
            f"a network of depth {depth} halves the image so often: expected at least "
            f"{2**depth}×{2**depth} pixels, got {height}×{rest}"
        )
    blocks: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initialise"))
        for _ in range(depth):
            blocks += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
            channels, height, rest = width, height // 2, rest // 2
        head = nn.Linear(channels * height * rest, num_classes)
    return nn.Sequential(*blocks, nn.Flatten(), head)


# --- Objectives ----------------------------------------------------------------------------------


def exact(inner: InnerLoop, theta_0: Weights, synthetic: Batch, real: Batch) -> Objective:
    """Eq. 1: l(T; theta_T), differentiated through all T steps; keeps the graph of all of them."""
    images = synthetic[0].detach().requires_grad_()
    theta = constants(theta_0)
    for _ in range(inner.num_steps):
        gradient = inner.gradient(theta, (images, synthetic[1]), create_graph=True)
        theta = inner.step(theta, gradient)
    value = inner.loss(theta, real)
    (slope,) = torch.autograd.grad(value, images)
    return Objective(value.detach(), slope)


def first_order(inner: InnerLoop, theta_0: Weights, synthetic: Batch, real: Batch) -> Objective:
    """Eq. 11: l(T; theta_0) - eta sum_t <g_T(theta_t), g_S(theta_t)>, each theta_t a constant.

    Keeps the graph of one step at a time. The constant l(T; theta_0) makes the value comparable
    with that of :func:`exact`; the term lambda l(S; theta_T) is left out of both.
    """

    def term(theta: Weights, batch: Batch) -> tuple[Tensor, Weights]:
        g_t = inner.gradient(theta, real)
        g_s = inner.gradient(theta, batch, create_graph=True)
        return -inner.lr * inner_product(g_t, g_s), g_s

    terms = _along_trajectory(inner, theta_0, synthetic, term)
    with torch.no_grad():
        start = inner.loss(theta_0, real)
    return Objective(start + terms.value, terms.gradient)


def gradient_matching(
    inner: InnerLoop, theta_0: Weights, synthetic: Batch, real: Batch
) -> Objective:
    """Eq. 13: sum_t ||g_T(theta_t) - g_S(theta_t)||^2, each theta_t a constant."""

    def term(theta: Weights, batch: Batch) -> tuple[Tensor, Weights]:
        g_t = inner.gradient(theta, real)
        g_s = inner.gradient(theta, batch, create_graph=True)
        gap = {name: g_t[name] - g_s[name] for name in g_t}
        return inner_product(gap, gap), g_s

    return _along_trajectory(inner, theta_0, synthetic, term)


def statistics_matching(
    inner: InnerLoop,
    theta_0: Weights,
    synthetic: Batch,
    real: Batch,
    *,
    classifier_weight: float,
) -> Objective:
    """Eq. 19: statistics of S and T matched at every theta_t, plus lambda l(S; theta_T).

    The statistics are those of each convolution's output, the input of the BatchNorm layer that
    would follow it. ``classifier_weight`` is lambda; the first layer weighs as much as the others.
    """

    def term(theta: Weights, batch: Batch) -> tuple[Tensor, Weights]:
        with torch.no_grad():
            target = channel_statistics(inner, theta, real[0])
        found = channel_statistics(inner, theta, batch[0])
        return statistics_loss(found, target, 1.0), inner.gradient(theta, synthetic)

    matched = _along_trajectory(inner, theta_0, synthetic, term)
    images = synthetic[0].detach().requires_grad_()
    *_, (theta_end, _) = inner.trajectory(theta_0, synthetic)
    prior = classifier_weight * inner.loss(theta_end, (images, synthetic[1]))
    (slope,) = torch.autograd.grad(prior, images)
    return Objective(matched.value + prior.detach(), matched.gradient + slope)


def _along_trajectory(
    inner: InnerLoop,
    theta_0: Weights,
    synthetic: Batch,
    term: Callable[[Weights, Batch], tuple[Tensor, Weights]],
) -> Objective:
    """Sum of a term over theta_0, ..., theta_(T-1); ``term`` returns its value and g_S(theta_t)."""
    images = synthetic[0].detach().requires_grad_()
    theta = constants(theta_0)
    value, slope = images.new_zeros(()), torch.zeros_like(images)
    for _ in range(inner.num_steps):
        part, g_s = term(theta, (images, synthetic[1]))
        slope += torch.autograd.grad(part, images)[0]
        value += part.detach()
        theta = constants(inner.step(theta, g_s))
        del part, g_s  # their graph, before the next step builds its own
    return Objective(value, slope)


def channel_statistics(inner: InnerLoop, theta: Weights, images: Tensor) -> list[Moments]:
    """Mean and biased variance of every convolution's output channels, in module order."""
    found: list[Moments] = []

    def look(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        found.append(moments(output))
        return output.clone()  # what follows may write into it

    layers = [m for m in inner.network.modules() if isinstance(m, nn.Conv2d)]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    try:
        inner.logits(theta, images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


# --- What a synthetic set is worth ---------------------------------------------------------------


class Worth(NamedTuple):
    """A synthetic set measured by training on it from one theta_0."""

    exact_loss: float
    """l(T; theta_T) (Eq. 1)."""
    first_order_loss: float
    """l(T; theta_0) - eta sum_t <g_T(theta_t), g_S(theta_t)> (Eq. 10)."""
    theta: Weights
    """theta_T."""


def worth(inner: InnerLoop, theta_0: Weights, synthetic: Batch, real: Batch) -> Worth:
    """Train on the synthetic set and compare the real loss with its expansion; builds no graph."""
    with torch.no_grad():
        expansion = inner.loss(theta_0, real).item()
    theta = theta_0
    for theta, g_s in inner.trajectory(theta_0, synthetic):
        if g_s:
            expansion -= inner.lr * inner_product(inner.gradient(theta, real), g_s).item()
    with torch.no_grad():
        return Worth(inner.loss(theta, real).item(), expansion, theta)
