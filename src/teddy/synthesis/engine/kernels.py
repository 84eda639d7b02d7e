"""What a frozen network computes between its convolutions, with backward passes that keep little.

PyTorch's own pieces keep a tensor each for the statistics, the affine map and the activation. Here
one tensor, the input, serves all of them. Kept and recomputed tensors are stated per function. On
a GPU :mod:`teddy.synthesis.engine.fused` computes each in one pass, where it can.

Dimensions: ``N`` images, ``C`` channels, ``H W`` pixels; ``n = N·H·W``.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from teddy.core.runtime import emulates_bfloat16
from teddy.synthesis.engine import fused

# One call sums its rows one after the other in float32, which loses a digit at 10⁴ rows (8·10⁻⁶
# relative, measured); the parts' results are combined exactly enough (10⁻⁶).
_ROWS = 4096
_EPS = 2.0**-24


class Activation(NamedTuple):
    """An elementwise function and its derivative."""

    apply: Callable[..., Tensor]
    """Of the input and, by name, ``inplace``."""
    backward: Callable[[Tensor, Tensor], Tensor]
    """Derivative at the *input* (second) times a gradient (first)."""


def _relu_backward(grad: Tensor, x: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.threshold_backward(grad, x, 0)
    return result


def _relu6_backward(grad: Tensor, x: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.hardtanh_backward(grad, x, 0.0, 6.0)
    return result


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.silu_backward(grad, x)
    return result


ACTIVATIONS = {
    "relu": Activation(functional.relu, _relu_backward),
    "relu6": Activation(functional.relu6, _relu6_backward),
    "silu": Activation(functional.silu, _silu_backward),
}


# ------------------------------------------------------------------------------------ statistics


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, in one pass and float32 or wider; no gradient.

    BatchNorm's own reduction: ``torch.var_mean`` is not vectorised on the CPU (15 against 0.9 ms
    for 25×64×32×32 values, channels last, one thread).

    Args:
        x: ``(N, C, H, W)``, best channels last.

    Returns:
        Two tensors ``(C,)``.
    """
    pixels = x.shape[2] * x.shape[3]
    part = max(1, _ROWS // pixels)
    if x.is_cuda or len(x) <= part:
        return _reduce(x)
    parts = x.split(part)
    found = [_reduce(p) for p in parts]
    means, variances = (torch.stack(values) for values in zip(*found, strict=True))
    share = torch.tensor([len(p) / len(x) for p in parts], dtype=means.dtype)
    mean = share @ means
    return mean, share @ (variances + (means - mean).square())


def _reduce(x: Tensor) -> tuple[Tensor, Tensor]:
    buffer = None
    if x.dtype == torch.bfloat16 and not x.is_cuda:  # whose results are in the buffers' type
        buffer = x.new_zeros(x.shape[1], dtype=torch.float32)
    mean, var = torch.ops.aten.batch_norm_update_stats(x, buffer, buffer, 0.0)
    return mean, var


class Standard(NamedTuple):
    """How statistics of the observed tensor y translate into those of a BatchNorm's input z.

    ``mean_z = (mean_y − shift)·scale + running_mean`` and ``var_z = var_y·scale²``: with the
    affine map folded into the convolution, y = γ/√(RV + ε)·(z − RM) + β, so shift = β and
    scale = √(RV + ε)/γ. Not folded, y = z. Each ``(C,)``.
    """

    shift: Tensor
    scale: Tensor
    mean: Tensor


class _Observe(torch.autograd.Function):
    """See :func:`observe`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        standard: Standard | None,
        affine: tuple[Tensor, Tensor] | None,
        activation: str,
        correction: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = x.numel() // x.shape[1]
        ctx.activation, ctx.standard, ctx.affine = activation, standard, affine
        ctx.count, ctx.degrees = count, max(1, count - correction)
        ctx.fused = fused.takes(x, *(standard or ()), *(affine or ()))
        if ctx.fused:
            made, mean, *shown = fused.observe(x, standard, affine, activation, ctx.degrees)
            ctx.save_for_backward(x, mean)
            return (x.view_as(x) if made is None else made), shown[0], shown[1]
        mean, var = mean_and_variance(x)
        ctx.save_for_backward(x, mean)
        if affine is not None:
            out = _transform(x, *affine)
        else:
            out = x.view_as(x)
        if activation:
            out = ACTIVATIONS[activation].apply(out, inplace=affine is not None)
        if correction:
            var = var * (count / ctx.degrees)
        if standard is None:
            return out, mean.clone(), var
        return (
            out,
            (mean - standard.shift) * standard.scale + standard.mean,
            var * standard.scale.square(),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> Any:
        x, mean = ctx.saved_tensors
        if ctx.fused:
            grads = grad, grad_mean, grad_var
            scale = None if ctx.standard is None else ctx.standard.scale
            result = fused.observe_backward(
                x, mean, grads, scale, ctx.affine, ctx.activation, ctx.degrees
            )
            return result, *[None] * 4
        if ctx.standard is not None:
            scale = ctx.standard.scale
            grad_mean, grad_var = grad_mean * scale, grad_var * scale.square()
        slope = grad_var * (2 / ctx.degrees)
        offset = grad_mean / ctx.count - slope * mean
        if ctx.activation:
            inner = x if ctx.affine is None else _transform(x, *ctx.affine)
            grad = ACTIVATIONS[ctx.activation].backward(grad, inner)
        if ctx.affine is not None:
            grad = grad * _channels(ctx.affine[0]).to(grad.dtype)
        owned = ctx.activation != "" or ctx.affine is not None
        return _add_line(grad, x, _channels(slope), _channels(offset), owned), *[None] * 4


def observe(
    x: Tensor,
    standard: Standard | None,
    affine: tuple[Tensor, Tensor] | None,
    activation: str,
    correction: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Activation of an affine map of ``x``, and the statistics of a BatchNorm's input.

    Keeps ``x`` alone. Its gradient is one expression of ``x`` and the gradient g of the output:
    act′·g + offset_c + slope_c·x.

    Args:
        x: ``(N, C, H, W)``.
        standard: see there; None if ``x`` is the BatchNorm's input itself.
        affine: factor and summand, each ``(C,)``, of a map that is not folded; None for identity.
        activation: key of ``ACTIVATIONS``, or ``""``.
        correction: the variance divides by n − correction.

    Returns:
        Output ``(N, C, H, W)``, mean and variance ``(C,)``.
    """
    result: tuple[Tensor, Tensor, Tensor] = _Observe.apply(
        x, standard, affine, activation, correction
    )
    return result


def _transform(x: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
    """``x·factor + summand`` per channel, in one pass and x's dtype.

    Not every PyTorch takes an ε of 0; with this one, variance + ε is 1 to the last bit.
    """
    zero, variance = torch.zeros_like(factor), torch.full_like(factor, 1 - _EPS)
    return functional.batch_norm(x, zero, variance, factor, summand, training=False, eps=_EPS)


def _channels(values: Tensor) -> Tensor:
    return values[:, None, None]


def _add_line(grad: Tensor, x: Tensor, slope: Tensor, offset: Tensor, owned: bool) -> Tensor:
    """``grad + slope·x + offset``, in place where the gradient is ours.

    Slope times x and the offset nearly cancel, so half precision waits for the sum.
    """
    if grad.dtype in (torch.bfloat16, torch.float16):
        return torch.addcmul(offset, x, slope).add_(grad).to(grad.dtype)
    if owned:
        return grad.addcmul_(x, slope).add_(offset)
    return torch.addcmul(grad, x, slope).add_(offset)


# ------------------------------------------------------------------------------ what keeps less


def _computable(x: Tensor) -> Tensor:
    """What stands for ``x`` in a convolution: itself, or float32 where bfloat16 is emulated.

    Products of bfloat16 numbers are exact in float32, in which hardware adds them too; with the
    result rounded back, only the order of summation differs.
    """
    if x.dtype == torch.bfloat16 and emulates_bfloat16(x.device.type):
        return x.float()
    return x


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]
    ) -> Tensor:
        ctx.weight, ctx.options, ctx.shape = weight, options, x.shape
        stride, padding, dilation, groups = options
        low = _computable(weight.to(x.dtype))
        low_bias = None if bias is None else _computable(bias.to(x.dtype))
        with torch.autocast(x.device.type, enabled=False):
            out = functional.conv2d(
                _computable(x), low, low_bias, stride, padding, dilation, groups
            )
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        stride, padding, dilation, groups = ctx.options
        wide = _computable(grad)
        result = torch.ops.aten.convolution_backward(
            wide, _blank(wide, ctx.shape), _computable(ctx.weight.to(grad.dtype)), None,
            stride, padding, dilation, False, [0, 0], groups, [True, False, False],
        )  # fmt: skip
        return result[0].to(grad.dtype), None, None, None


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolution with frozen weights that keeps nothing, where PyTorch's keeps its input.

    Follows autocast; a CPU that lacks bfloat16 computes in float32 what it rounds to it.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype == torch.float32:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    options = list(stride), list(padding), list(dilation), groups
    out: Tensor = _Convolution.apply(x, weight, bias, options)
    return out


def _mask(out: Tensor) -> Tensor:
    """Where a ReLU's output is not 0."""
    return out.to(torch.bool).view(torch.int8)


def _masked(grad: Tensor, mask: Tensor) -> Tensor:
    if fused.takes(grad) and mask.is_contiguous(memory_format=torch.channels_last):
        return fused.multiply(grad, mask)
    return grad * mask  # vectorised, where bool and masked_fill are not


class _MaskedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.relu(x)
        ctx.save_for_backward(_mask(out))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _masked(grad, *ctx.saved_tensors)


def masked_relu(x: Tensor) -> Tensor:
    """ReLU that keeps a byte per value, where PyTorch's keeps its output."""
    out: Tensor = _MaskedRelu.apply(x)
    return out


class _AddRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        if fused.takes(a) and fused.takes(b):
            out, mask = fused.add_relu(a, b, wanted)
        else:
            out = torch.add(a, b).relu_()
            mask = _mask(out) if wanted else None
        if mask is not None:
            ctx.save_for_backward(mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        both = _masked(grad, *ctx.saved_tensors)
        return both, both


def add_relu(a: Tensor, b: Tensor) -> Tensor:
    """ReLU of a sum, where a residual branch ends; keeps a byte per value.

    Args:
        a: any shape.
        b: of a's shape and dtype, else the sum is computed by itself.
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return masked_relu(a + b)
    out: Tensor = _AddRelu.apply(a, b)
    return out


class _AvgPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, options: tuple[Any, ...]) -> Tensor:
        ctx.options, ctx.shape = options, x.shape
        out: Tensor = torch.ops.aten.avg_pool2d(x, *options)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        shape_only = _blank(grad, ctx.shape)
        return torch.ops.aten.avg_pool2d_backward(grad, shape_only, *ctx.options), None


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, options: tuple[Any, ...]) -> Tensor:
        out: Tensor
        out, indices = torch.ops.aten.max_pool2d_with_indices(x, *options)
        ctx.options, ctx.shape = options, x.shape
        ctx.save_for_backward(indices)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        return backward(grad, _blank(grad, ctx.shape), *ctx.options, indices), None


def _blank(grad: Tensor, shape: torch.Size) -> Tensor:
    """Stands for an input of which a derivative needs only the shape; its memory is not touched."""
    return torch.empty(
        shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
    )


def avg_pool(x: Tensor, *options: Any) -> Tensor:
    """``aten.avg_pool2d`` that keeps nothing, where PyTorch's keeps its input."""
    out: Tensor = _AvgPool.apply(x, options)
    return out


def max_pool(x: Tensor, *options: Any) -> Tensor:
    """``aten.max_pool2d_with_indices`` that keeps the indices, not its input; the maxima."""
    out: Tensor = _MaxPool.apply(x, options)
    return out
