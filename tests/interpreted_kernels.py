"""Fused kernels run by Triton's interpreter, on CPU tensors; `test_fused.py` starts this file.

Needs ``TRITON_INTERPRET=1`` from before Triton is imported. Values are held to float64.
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_frozen import error, gradient, inputs, network, trained_like
from test_kernels import kept_shapes, plain, values, vector
from torch import Tensor, nn
from torch.nn import functional
from triton import language as tl
from triton.runtime import interpreter

from teddy.settings.configs import NetworkConfig
from teddy.synthesis.engine import fused, kernels
from teddy.synthesis.engine.frozen import Teacher
from teddy.synthesis.engine.kernels import Standard, observe
from teddy.teachers.networks import build
from teddy.teachers.pruning import prune_randomly

CPU = torch.device("cpu")
ROUNDING = {torch.float32: 3e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
HALVES = [torch.bfloat16, torch.float16]

# One value; one row; several columns of tiles, the last one ragged; several tiles, the last one
# ragged; channels that are divisible by 16.
SHAPES = [(1, 1, 1, 1), (1, 103, 1, 1), (3, 129, 3, 5), (9, 7, 23, 15), (2, 96, 4, 7)]

CONSTANTS = {name: getattr(fused, name) for name in ("_PARTS", "_SPANS", "_COMBINED")}

_cut_off = interpreter._convert_float


def _rounded(given: Any, source: Any, target: Any, mode: Any) -> Any:
    """The interpreter cuts bfloat16 off, where a GPU rounds to the nearest."""
    if (source, target) != (tl.float32, tl.bfloat16):
        return _cut_off(given, source, target, mode)
    found = torch.from_numpy(np.array(given, dtype=np.float32)).bfloat16()
    return found.view(torch.int16).numpy().view(np.uint16)


@pytest.fixture(autouse=True)
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are taken on the CPU, by few programs with several tiles each."""
    monkeypatch.setattr(fused, "usable", lambda device: True)
    monkeypatch.setattr(fused, "_PARTS", 4)
    monkeypatch.setattr(fused, "_SPANS", 4)
    monkeypatch.setattr(fused, "_COMBINED", 64)
    monkeypatch.setattr(interpreter, "_convert_float", _rounded)


def unfused(function: Callable[..., Any], *given: Any) -> Any:
    """What a function gives without the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "usable", lambda device: False)
        return function(*given)


def given(channels: int, standard: bool, affine: bool) -> tuple[Any, Any]:
    """Standard and affine map in float32."""
    terms = Standard(*(vector(channels, seed).float() for seed in (3, 4, 5)))
    pair = vector(channels, 1).float() - 1.2, vector(channels, 2).float()
    return terms if standard else None, pair if affine else None


def run(function: Any, x: Tensor, options: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Outputs, and the gradient in x of their sum, with weights that are numbers of ``dtype``."""
    x = x.detach().requires_grad_()
    outputs = function(x, *options)
    weights = [values(*x.shape, seed=9), vector(x.shape[1], 6), vector(x.shape[1], 7)]
    weights = [w.to(dtype).to(out.dtype) for w, out in zip(weights, outputs, strict=True)]
    return *(out.detach() for out in outputs), torch.autograd.grad(outputs, x, weights)[0]


def exactly(x: Tensor, options: Any) -> tuple[Tensor, ...]:
    """The same by PyTorch's functions in float64."""
    standard, affine, *rest = options
    standard = standard and Standard(*(v.double() for v in standard))
    affine = affine and tuple(v.double() for v in affine)
    return run(plain, x.double(), (standard, affine, *rest), x.dtype)


def near(got: Tensor, want: Tensor, bound: float) -> None:
    """Equal to a relative or absolute bound."""
    assert got.shape == want.shape
    assert ((got.double() - want.double()).abs() <= bound * (1 + want.double().abs())).all()


def check_layer(shape: tuple[int, ...], dtype: torch.dtype, options: Any) -> None:
    """Both passes against float64 and, in float32, against the eager ones."""
    x, bound = values(*shape).to(dtype), ROUNDING[dtype]
    got = run(observe, x, options, dtype)
    assert [v.dtype for v in got] == [dtype, torch.float32, torch.float32, dtype]
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    for new, want in zip(got, exactly(x, options), strict=True):
        near(new, want, bound if new.dtype == dtype else 3e-6)
    if dtype == torch.float32:
        for new, old in zip(got, unfused(run, observe, x, options, dtype), strict=True):
            near(new, old, 2e-5)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("activation", ["", "relu", "relu6", "silu"])
@pytest.mark.parametrize(("standard", "affine"), [(True, False), (False, False), (False, True)])
def test_layer_equals_its_definition_and_the_eager_one(
    dtype: torch.dtype, activation: str, standard: bool, affine: bool
) -> None:
    check_layer((3, 129, 3, 5), dtype, (*given(129, standard, affine), activation, 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_layers_of_any_size(shape: tuple[int, ...]) -> None:
    for standard, activation in ((True, ""), (False, "silu")):
        options = *given(shape[1], standard, not standard), activation, 0
        check_layer(shape, torch.float32, options)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_half_precision_is_rounded_once(dtype: torch.dtype, activation: str) -> None:
    """Float32's errors move a value across the middle of two numbers in few cases."""
    x = values(2, 96, 4, 7).to(dtype)
    options = *given(96, False, True), activation, 0
    got, want = run(observe, x, options, dtype), exactly(x, options)
    for new, exact in ((got[0], want[0]), (got[3], want[3])):
        assert (new == exact.to(dtype)).double().mean() > 0.99


@pytest.mark.parametrize(("offset", "bound"), [(6.0, 1e-6), (300.0, 2e-5), (-5000.0, 5e-4)])
def test_statistics_do_not_cancel(offset: float, bound: float) -> None:
    """E[x²] − E[x]² would keep no digit: ε·offset² is up to 1.5, the variance 0.01."""
    x = 0.1 * values(9, 7, 23, 15)
    x = (x - x.mean((0, 2, 3), keepdim=True) + offset).float()
    _, mean, var = observe(x, None, None, "", 0)
    want_var, want = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert ((mean - want).abs() <= 1e-7 * abs(offset)).all()
    torch.testing.assert_close(var.double(), want_var, rtol=bound, atol=0)


def test_gradient_of_the_variance_does_not_cancel() -> None:
    x = (0.1 * values(9, 7, 23, 15) + 3000).float().requires_grad_()
    (grad,) = torch.autograd.grad(observe(x, None, None, "relu", 0)[2].sum(), x)
    wide = x.detach().double()
    want = 2 * (wide - wide.mean((0, 2, 3), keepdim=True)) / (9 * 23 * 15)
    assert error(grad, want) < 1e-3, "the mean's rounding over the spread"


def test_equal_inputs_give_equal_bytes() -> None:
    x = values(9, 7, 23, 15).float()
    options = *given(7, True, False), "relu", 0
    first, second = (run(observe, x, options, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("activation", ["relu", "relu6", "silu"])
def test_values_that_are_not_finite_stay_so(activation: str) -> None:
    x = values(2, 16, 3, 3).float()
    x[0, 2, 1, 1], x[1, 5, 0, 2] = float("nan"), float("inf")
    out, mean, var = observe(x, None, None, activation, 0)
    assert torch.equal(out.isnan(), getattr(functional, activation)(x).isnan())
    assert mean.isfinite().sum() == var.isfinite().sum() == 14
    total, mask = fused.add_relu(x, x, True)
    assert torch.equal(total.isnan(), x.isnan())
    assert mask is not None
    assert mask[0, 2, 1, 1] == mask[1, 5, 0, 2] == 1


@pytest.mark.parametrize("layout", ["expanded", "contiguous"])
def test_gradients_of_any_layout_are_taken(layout: str) -> None:
    x, ramp = values(4, 6, 5, 5).float(), values(4, 6, 5, 5, seed=3).float().contiguous()

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_()
        out, mean, var = observe(leaf, None, None, "relu", 0)
        seen = out.mean((2, 3)) if layout == "expanded" else out.contiguous() * ramp
        (found,) = torch.autograd.grad(seen.square().sum() + mean.sum() + var.sum(), leaf)
        return found

    near(gradient(), unfused(gradient), 1e-6)


@pytest.mark.parametrize("index", range(3))
def test_one_output_alone_has_a_gradient(index: int) -> None:
    x = values(4, 6, 5, 5).float()

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(observe(leaf, None, None, "relu", 0)[index].sum(), leaf)
        return found

    near(gradient(), unfused(gradient), 1e-6)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", SHAPES)
def test_end_of_a_branch_is_bitwise_the_eager_one(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    pair = [values(*shape, seed=seed).to(dtype) for seed in (0, 1)]
    ramp = values(*shape, seed=2).to(dtype)

    def both() -> tuple[Tensor, ...]:
        a, b = (v.clone().requires_grad_() for v in pair)
        out = kernels.add_relu(a, b)
        return out.detach(), *torch.autograd.grad((ramp * out).sum(), (a, b))

    for new, old in zip(both(), unfused(both), strict=True):
        assert torch.equal(new, old)
    with torch.no_grad():
        assert torch.equal(kernels.add_relu(*pair), (pair[0] + pair[1]).relu())


@pytest.mark.parametrize("function", [kernels.masked_relu, lambda x: kernels.add_relu(x, x)])
def test_gradient_and_mask_of_different_layouts(function: Any) -> None:
    x, ramp = values(2, 3, 4, 5).float().contiguous(), values(2, 3, 4, 5, seed=2).float()

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf, ramp)[0]

    assert torch.equal(gradient(), unfused(gradient))


def test_what_is_kept_is_what_the_eager_functions_keep() -> None:
    x = values(4, 3, 8, 8).float().requires_grad_()
    for function in (
        lambda: observe(x, None, None, "relu", 0),
        lambda: observe(x, *given(3, False, True), "silu", 0),
        lambda: kernels.add_relu(x, x),
    ):
        assert kept_shapes(function) == unfused(kept_shapes, function)


def test_what_the_kernels_take() -> None:
    x = values(4, 3, 8, 8).float()
    assert fused.takes(x)
    assert fused.takes(x, torch.ones(3))
    for other in (x.double(), x.contiguous(), x[:0], x[:, 0], x[..., ::2], x.int()):
        assert not fused.takes(other)
    assert not fused.takes(x, torch.ones(3, dtype=torch.float64))
    assert not fused.takes(x, torch.ones(6)[::2])


def test_first_comparison_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CONSTANTS.items():
        monkeypatch.setattr(fused, name, value)
    assert fused.disagreements(CPU) == []


@pytest.mark.parametrize(
    ("kernel", "position", "complaint"),
    [
        ("observe", 1, "relu forward"), ("observe", 4, "mean"), ("combine", 2, "mean"),
        ("combine", 3, "variance"), ("observe_backward", 2, "silu backward"),
        ("add_relu", 2, "sum"), ("add_relu", 3, "mask"), ("masked", 2, "mask"),
    ],
)  # fmt: skip
def test_first_comparison_notices_a_wrong_kernel(
    monkeypatch: pytest.MonkeyPatch, kernel: str, position: int, complaint: str
) -> None:
    """The first value that it writes is off."""
    right = fused._kernel

    class Wrong:
        def __getitem__(self, grid: Any) -> Any:
            def launch(*arguments: Any, **options: Any) -> None:
                right(kernel)[grid](*arguments, **options)
                arguments[position][0].sub_(1)

            return launch

    monkeypatch.setattr(fused, "_kernel", lambda name: Wrong() if name == kernel else right(name))
    found = fused.disagreements(CPU)
    assert any(line.startswith(complaint) for line in found), found


def pruned() -> nn.Module:
    """A ResNet18 with odd numbers of channels."""
    model = build(NetworkConfig(arch="resnet18", width=8, norm="batch"), (3, 16, 16), 10, 0)
    return trained_like(prune_randomly(model, (3, 16, 16), 0.19, seed=0), 16)


@pytest.mark.parametrize("arch", ["resnet18", "pruned"])
def test_whole_teacher_is_as_exact_as_the_eager_one(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_TILE", 2**14)  # the interpreter's time is in calls
    model = pruned() if arch == "pruned" else network(arch, 16, torch.float32)
    x = inputs(16, torch.float32, count=2)
    teacher, exact = Teacher(model, "biased"), Teacher(copy.deepcopy(model).double(), "biased")
    want, want_seen = exact.observe(x.double())
    got, seen = teacher.observe(x)
    assert error(got, want) < 3e-5
    assert error(teacher.logits(x), want) < 3e-5
    for a, b in zip(seen, want_seen, strict=True):
        assert (a.mean - b.mean).norm() < 3e-5 * b.var.sqrt().norm()
        assert error(a.var, b.var) < 3e-5
    reference = gradient(exact.observe, model, x.double())
    ours = error(gradient(teacher.observe, model, x), reference)
    eager = error(unfused(gradient, teacher.observe, model, x), reference)
    assert ours < max(1e-5, 3 * eager, 2e-2 if eager > 1e-5 else 0)


def test_whole_teacher_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not further from float32 than the eager one."""
    monkeypatch.setattr(fused, "_TILE", 2**14)  # the interpreter's time is in calls
    model, x = network("resnet18", 16, torch.float32), inputs(16, torch.float32, count=2)
    teacher = Teacher(model, "biased")

    def observe(images: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return teacher.observe(images)

    reference = gradient(
        Teacher(copy.deepcopy(model).double(), "biased").observe, model, x.double()
    )
    ours = error(gradient(observe, model, x), reference)
    eager = error(unfused(gradient, observe, model, x), reference)
    assert ours < 1.1 * eager
