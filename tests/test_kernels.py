"""Functions of frozen networks: values and gradients against PyTorch's, and what they keep. CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from teddy.synthesis.engine import kernels
from teddy.synthesis.engine.kernels import Standard, observe


def values(*shape: int, seed: int = 0) -> Tensor:
    """Float64, channels last, different offsets per channel."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x + 2 * torch.randn(shape[1], 1, 1, generator=generator, dtype=torch.float64)
    return x.to(memory_format=torch.channels_last)


def vector(size: int, seed: int) -> Tensor:
    """Float64, away from 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, generator=generator, dtype=torch.float64) + 0.5


AFFINE = [None, (vector(3, 1) - 1.2, vector(3, 2))]
STANDARD = [None, Standard(vector(3, 3), vector(3, 4) - 1.1, vector(3, 5))]


def plain(x: Tensor, standard: Any, affine: Any, activation: str, correction: int) -> Any:
    """What `observe` says it is, by PyTorch's functions."""
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=correction)
    if standard is not None:
        mean = (mean - standard.shift) * standard.scale + standard.mean
        var = var * standard.scale**2
    if affine is not None:
        x = x * affine[0][:, None, None] + affine[1][:, None, None]
    return (getattr(functional, activation)(x) if activation else x), mean, var


@pytest.mark.parametrize("activation", ["", "relu", "relu6", "silu"])
@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("standard", STANDARD)
@pytest.mark.parametrize("correction", [0, 1])
def test_observe_equals_its_definition_in_value_and_gradient(
    activation: str, affine: Any, standard: Any, correction: int
) -> None:
    x = values(5, 3, 4, 6).requires_grad_()
    arguments = standard, affine, activation, correction
    got, want = observe(x, *arguments), plain(x, *arguments)
    weights = [torch.randn_like(w) for w in want]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(outputs, x, weights)[0] for outputs in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_observe_passes_gradcheck(affine: Any, activation: str) -> None:
    x = values(3, 3, 2, 2, seed=8).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: observe(t, STANDARD[1], affine, activation, 1), (x,))


@pytest.mark.parametrize("shape", [(40, 8, 64, 64), (3, 8, 64, 64), (7, 8, 1, 1), (2, 8, 128, 70)])
def test_statistics_in_float32_are_as_exact_as_a_float64_pass_over_the_same_numbers(
    shape: tuple[int, ...],
) -> None:
    x = values(*shape).float()
    mean, var = kernels.mean_and_variance(x)
    want_var, want_mean = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
    assert mean.dtype == var.dtype == torch.float32
    torch.testing.assert_close(mean.double(), want_mean, rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(var.double(), want_var, rtol=3e-6, atol=0)


def test_gradient_in_bfloat16_is_rounded_once() -> None:
    x = (values(8, 3, 8, 8) + 20).bfloat16().requires_grad_()
    out, mean, var = observe(x, None, None, "relu", 0)
    assert out.dtype == torch.bfloat16
    assert mean.dtype == var.dtype == torch.float32
    (grad,) = torch.autograd.grad(out.float().sum() + 100 * mean.sum() + 100 * var.sum(), x)
    wide = x.detach().double().requires_grad_()
    out, mean, var = plain(wide, None, None, "relu", 0)
    (want,) = torch.autograd.grad(out.sum() + 100 * mean.sum() + 100 * var.sum(), wide)
    assert ((grad.double() - want).abs() <= want.abs() * 2**-8 + 1e-3).all()


POOLINGS = [
    (kernels.avg_pool, "avg_pool2d", ([2, 2], [2, 2], [0, 0], False, True, None)),
    (kernels.avg_pool, "avg_pool2d", ([3, 3], [2, 2], [1, 1], True, False, None)),
    (kernels.max_pool, "max_pool2d", ([3, 3], [2, 2], [1, 1], [1, 1], False)),
]


@pytest.mark.parametrize(("ours", "name", "options"), POOLINGS)
def test_pooling_equals_pytorchs(ours: Any, name: str, options: Any) -> None:
    x = values(2, 3, 7, 9).requires_grad_()
    got, want = ours(x, *options), getattr(functional, name)(x, *options)
    weight = torch.randn_like(want)
    assert torch.equal(got, want)
    grads = [torch.autograd.grad((weight * out).sum(), x)[0] for out in (got, want)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_convolution_equals_pytorchs(groups: int, bias: bool) -> None:
    x = values(2, 4, 7, 9).requires_grad_()
    weight, shift = values(6, 4 // groups, 3, 3, seed=1), vector(6, 2) if bias else None
    got = kernels.convolution(x, weight, shift, (2, 1), (1, 0), (1, 2), groups)
    want = functional.conv2d(x, weight, shift, (2, 1), (1, 0), (1, 2), groups)
    assert torch.equal(got, want)
    ramp = torch.randn_like(want)
    grads = [torch.autograd.grad((ramp * out).sum(), x)[0] for out in (got, want)]
    torch.testing.assert_close(*grads)


def test_convolution_follows_autocast() -> None:
    x = values(2, 4, 5, 5).float().requires_grad_()
    weight = values(3, 4, 3, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = kernels.convolution(x, weight, None, (1, 1), (0, 0), (1, 1), 1)
    assert out.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.dtype == torch.float32


def test_convolution_in_bfloat16_is_the_exact_one_rounded_once() -> None:
    """Forward and backward, against float64; PyTorch's emulated backward rounds in between."""
    x = values(2, 16, 9, 9).bfloat16().requires_grad_()
    weight, shift = values(8, 16, 3, 3, seed=1).float(), vector(8, 2).float()
    out = kernels.convolution(x, weight, shift, (1, 1), (1, 1), (1, 1), 1)
    ramp = torch.randn_like(out)
    (grad,) = torch.autograd.grad((ramp * out).sum(), x)
    low, low_shift = weight.bfloat16().double(), shift.bfloat16().double()
    exact_x = x.detach().double().requires_grad_()
    exact = functional.conv2d(exact_x, low, low_shift, padding=1)
    (exact_grad,) = torch.autograd.grad((ramp.double() * exact).sum(), exact_x)
    for ours_, theirs in ((out, exact), (grad, exact_grad)):
        assert ours_.dtype == torch.bfloat16
        assert (ours_ == theirs.bfloat16()).float().mean() > 0.98
        torch.testing.assert_close(ours_.double(), theirs, rtol=2**-8, atol=2**-8)


def test_emulation_computes_in_float32_what_it_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "emulates_bfloat16", lambda device_type: device_type == "cpu")
    x, weight = values(2, 4, 5, 5).bfloat16(), values(3, 4, 3, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = kernels.convolution(x, weight, None, (1, 1), (0, 0), (1, 1), 1)
    assert torch.equal(out, functional.conv2d(x.float(), weight.float()).bfloat16())


def kept_shapes(function: Any) -> list[tuple[torch.dtype, int]]:
    """Type and number of values of every tensor that autograd keeps."""
    kept: list[tuple[torch.dtype, int]] = []

    def look(tensor: Tensor) -> Tensor:
        kept.append((tensor.dtype, tensor.numel()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        function()
    return kept


def test_what_functions_keep() -> None:
    x = values(4, 3, 8, 8).float().requires_grad_()
    pixels, f32 = x.numel(), torch.float32
    for affine in (None, (torch.ones(3), torch.zeros(3))):
        kept = kept_shapes(lambda affine=affine: observe(x, None, affine, "relu", 0))
        assert kept == [(f32, pixels), (f32, 3)], "the input, and its means"
    assert kept_shapes(lambda: kernels.masked_relu(x)) == [(torch.int8, pixels)]
    assert kept_shapes(lambda: kernels.add_relu(x, x + 1)) == [(torch.int8, pixels)]
    assert kept_shapes(lambda: kernels.avg_pool(x, *POOLINGS[0][2])) == []
    assert kept_shapes(lambda: kernels.max_pool(x, *POOLINGS[2][2])) == [(torch.int64, pixels // 4)]
    weight = torch.randn(5, 3, 3, 3)
    conv = kept_shapes(lambda: kernels.convolution(x, weight, None, (1, 1), (1, 1), (1, 1), 1))
    assert conv == []


def test_masked_relu_equals_relu() -> None:
    x = values(2, 3, 4, 4).requires_grad_()
    weight = torch.randn_like(x)
    got, want = kernels.masked_relu(x), functional.relu(x)
    assert torch.equal(got, want)
    grads = [torch.autograd.grad((weight * out).sum(), x)[0] for out in (got, want)]
    assert torch.equal(*grads)


@pytest.mark.parametrize("other", ["alike", "broadcast", "of another type", "without a gradient"])
def test_add_relu_is_bitwise_a_sum_and_a_relu(other: str) -> None:
    a, b = values(2, 3, 4, 4).requires_grad_(), values(2, 3, 4, 4, seed=1).requires_grad_()
    if other == "broadcast":
        b = values(1, 3, 1, 1, seed=1).requires_grad_()
    elif other == "of another type":
        b = b.detach().float().requires_grad_()
    elif other == "without a gradient":
        b = b.detach()
    leaves = [leaf for leaf in (a, b) if leaf.requires_grad]
    weight = torch.randn_like(a)
    found = []
    for out in (kernels.add_relu(a, b), functional.relu(a + b)):
        found.append([out, *torch.autograd.grad((weight * out).sum(), leaves)])
    assert all(torch.equal(got, want) for got, want in zip(*found, strict=True))
    with torch.no_grad():
        assert torch.equal(kernels.add_relu(a, b), found[0][0])
