"""What lies between a frozen network's convolutions on CUDA, each in one pass (Triton).

:mod:`~teddy.synthesis.engine.kernels` has the mathematics and decides; here are launches of
:mod:`~teddy.synthesis.engine.fused_kernels`, and whether they can be trusted on a device. Triton is
imported when a device first asks.

Bytes of memory traffic per value in bfloat16, PyTorch's kernels → one pass; counted from the code,
not measured, without per-channel vectors (in float32, in brackets):

- folded layer with ReLU, forward: statistics 2, ReLU 4 → 4 (12 → 8);
- its backward: ReLU's 6, line in float32 6, sum 10, rounding 6 → 6 (12 + 12 + 8 → 12);
- folded layer without activation, forward: 2 → 2 (4 → 4); backward: 6 + 10 + 6 → 6 (20 → 12);
- layer with an affine map and SiLU or ReLU, forward: 2 + 4 + 4 → 4 (20 → 8); backward: map again 4,
  activation's 6, factor 4, line and sum and rounding 22 → 6 (8 + 12 + 8 + 20 → 12);
- end of a residual branch, forward: sum 6, ReLU 4, mask 3 and its backward 5 → 7 and 5
  (12 + 8 + 5 → 13, 9 → 9); without gradients 10 → 6 (20 → 12).

The kernels over channels also take the place of some ten on ``(C,)`` tensors per layer.

Dimensions: ``N`` images, ``C`` channels, ``H W`` pixels; rows = N·H·W.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from teddy.core.memory import OutOfMemory, memory_watch
from teddy.core.runtime import fused_wanted, log

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Fixed, since how rows are cut decides how statistics round. A tile has 8 values for each of 256
# threads: 16 bytes of them in half precision, and registers for four programs per multiprocessor.
_TILE = 2048
_OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}  # the latter's default changes in Triton 3.10
_WIDEST = 64  # channels of a tile: a line of memory in half precision
_PARTS = 512  # programs that keep statistics: about as many as an H100 runs at once
_COMBINED = 8  # channels whose parts a program combines: a sector of memory
_SPANS = 4096  # programs that keep nothing


def takes(x: Tensor, *vectors: Tensor) -> bool:
    """Whether the kernels take a tensor: on a device that is usable, dense in channels-last order.

    Args:
        x: any.
        vectors: of x's channels, which must be in float32.
    """
    return (
        usable(x.device)
        and x.dtype in _DTYPES
        and x.dim() == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and all(v.dtype == torch.float32 and v.is_contiguous() for v in vectors)
    )


def usable(device: torch.device) -> bool:
    """Whether the kernels run on a device and compute there what they should.

    The first call compiles, compares and waits for the device, so it must not fall into the
    recording of a CUDA graph; the passes that warm one up are early enough. A failure is logged.

    Raises:
        OutOfMemory: there is none for the comparison now.
    """
    if device.type != "cuda" or not fused_wanted():
        return False
    return _agrees(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _agrees(index: int) -> bool:
    device = torch.device("cuda", index)
    log(f"compiling fused kernels for {device}, which Triton keeps (TEDDY_FUSED=0 for without)")
    try:
        with memory_watch():
            wrong = disagreements(device)
    except OutOfMemory:  # says nothing about them
        raise
    except Exception as error:  # of a compiler, whose errors have no common ancestor
        wrong = [f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"]
    if wrong:
        log(f"teachers run without fused kernels on {device} ({'; '.join(wrong)})")
    return not wrong


# -------------------------------------------------------------------------------------- launches


def observe(
    x: Tensor,
    standard: tuple[Tensor, Tensor, Tensor] | None,
    affine: tuple[Tensor, Tensor] | None,
    activation: str,
    degrees: int,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """The forward pass of :func:`teddy.synthesis.engine.kernels.observe`.

    Args:
        x: ``(N, C, H, W)`` that is taken.
        standard: shift, scale and mean, see ``kernels.Standard``; or None.
        affine: factor and summand, or None.
        activation: key of ``kernels.ACTIVATIONS``, or ``""``.
        degrees: what the variance divides by.

    Returns:
        Output, None if it is x; mean of x; mean and variance of the BatchNorm's input.
    """
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    grid, tiles, shape = _cut(rows, channels, _PARTS)
    with torch.cuda.device_of(x):
        out = _like(x) if activation or affine is not None else None
        partials = x.new_empty((2, grid[1], channels), dtype=torch.float32)
        mean, shown_mean, shown_var = (x.new_empty(channels, dtype=torch.float32) for _ in range(3))
        factor, summand = affine or (None, None)
        _kernel("observe")[grid](
            x, out, factor, summand, partials, rows, tiles,
            **shape, ACTIVATION=activation, **_OPTIONS,
        )  # fmt: skip
        _kernel("combine")[(_ceil(channels, _COMBINED),)](
            partials, mean, shown_mean, shown_var, *(standard or (None, None, None)),
            rows, tiles * shape["ROWS"], grid[1], channels, degrees,
            PARTS=_PARTS, CHANNELS=_COMBINED, **_OPTIONS,
        )  # fmt: skip
    return out, mean, shown_mean, shown_var


def observe_backward(
    x: Tensor,
    mean: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    scale: Tensor | None,
    affine: tuple[Tensor, Tensor] | None,
    activation: str,
    degrees: int,
) -> Tensor:
    """The backward pass of :func:`teddy.synthesis.engine.kernels.observe`: the gradient in x.

    Args:
        x: what :func:`observe` was given.
        mean: of x.
        grads: of the output, the BatchNorm's mean and its variance.
        scale: of the standard, or None.
        affine: factor and summand, or None.
        activation: key of ``kernels.ACTIVATIONS``, or ``""``.
        degrees: what the variance divides by.
    """
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    grid, tiles, shape = _cut(rows, channels, _SPANS)
    with torch.cuda.device_of(x):
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        result = _like(grad)
        factor, summand = affine or (None, None)
        _kernel("observe_backward")[grid](
            x, grad, result, factor, summand, mean,
            grads[1].contiguous(), grads[2].contiguous(), scale, 1 / rows, 2 / degrees,
            rows, tiles, **shape, ACTIVATION=activation, **_OPTIONS,
        )  # fmt: skip
    return result


def add_relu(a: Tensor, b: Tensor, masked: bool) -> tuple[Tensor, Tensor | None]:
    """relu(a + b), and an int8 mask of where it is not 0, if wanted.

    Args:
        a: ``(N, C, H, W)`` that is taken.
        b: another of the same shape and dtype.
        masked: whether the mask is wanted.
    """
    with torch.cuda.device_of(a):
        out, mask = _like(a), _like(a, torch.int8) if masked else None
        _launch_flat("add_relu", a.numel(), a, b, out, mask)
    return out, mask


def multiply(grad: Tensor, mask: Tensor) -> Tensor:
    """``grad·mask`` of a gradient that is taken and an int8 mask of the same layout."""
    with torch.cuda.device_of(grad):
        result = _like(grad)
        _launch_flat("masked", grad.numel(), grad, mask, result)
    return result


def _kernel(name: str) -> Any:
    # Triton takes a second to import, and need not be there.
    from teddy.synthesis.engine import fused_kernels

    return getattr(fused_kernels, name)


def _launch_flat(name: str, size: int, *tensors: Tensor | None) -> None:
    align = math.gcd(size, 16)
    _kernel(name)[(_ceil(size, _TILE),)](
        *tensors, size // align, ALIGN=align, SIZE=_TILE, **_OPTIONS
    )


def _cut(rows: int, channels: int, programs: int) -> tuple[tuple[int, int], int, dict[str, int]]:
    """How programs share a tensor: the grid, tiles per program, and a tile's shape.

    Args:
        rows: of the tensor.
        channels: of the tensor.
        programs: at most so many, unless the tensor has more columns of tiles.
    """
    wide = _WIDEST
    if channels < wide:
        wide = 1 << (channels - 1).bit_length()
    elif 0 < channels % wide <= wide // 2:
        wide //= 2  # leaves fewer lanes idle
    columns, all_tiles = _ceil(channels, wide), _ceil(rows, _TILE // wide)
    tiles = _ceil(all_tiles, max(1, programs // columns))
    align = math.gcd(channels, 16)
    shape = {
        "groups": channels // align, "ALIGN": align, "ROWS": _TILE // wide, "CHANNELS": wide,
    }  # fmt: skip
    return (columns, _ceil(all_tiles, tiles)), tiles, shape


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------- are they right


def disagreements(device: torch.device) -> list[str]:
    """What every kernel gets wrong on a device, by a small comparison with float64."""
    wrong = []
    for dtype in (torch.float32, torch.bfloat16):
        x = _waves(0.7, device).to(dtype)
        standard = _vector(1, device), _vector(2, device), _vector(3, device)
        cases = [("relu", None, standard), ("silu", (_vector(4, device), standard[0]), None)]
        for activation, affine, terms in cases:
            wrong += _compare(x, terms, affine, activation)
        other = _waves(0.3, device).to(dtype)
        out, mask = add_relu(x, other, True)
        assert mask is not None
        want = (x.double() + other.double()).relu()
        wrong += _far("sum", out, want)
        wrong += _far("mask", multiply(other, mask), other.double() * (want > 0))
    return wrong


def _waves(step: float, device: torch.device) -> Tensor:
    """Some values in float64, without a random generator; most networks have 64 channels."""
    shape = (3, 64, 5, 7)
    values = torch.arange(math.prod(shape), device=device, dtype=torch.float64)
    values = values.mul(step).sin().view(shape)
    return values.contiguous(memory_format=torch.channels_last)


def _vector(seed: int, device: torch.device) -> Tensor:
    return torch.arange(64, device=device, dtype=torch.float32).add(seed).cos().add(1.5)


def _compare(
    x: Tensor,
    standard: tuple[Tensor, Tensor, Tensor] | None,
    affine: tuple[Tensor, Tensor] | None,
    activation: str,
) -> list[str]:
    """Both passes of one layer against the formulas in float64."""
    wide, rows = x.double(), x.numel() // x.shape[1]
    out, mean, *shown = observe(x, standard, affine, activation, rows)
    grads = _waves(0.9, x.device).to(x.dtype), _vector(5, x.device), _vector(6, x.device)
    scale = None if standard is None else standard[1]
    got = observe_backward(x, mean, grads, scale, affine, activation, rows)

    var, center = torch.var_mean(wide, (0, 2, 3), correction=0)
    factor, summand = (1.0, 0.0) if affine is None else (v[:, None, None].double() for v in affine)
    inner = wide * factor + summand
    gate = inner.sigmoid() if activation == "silu" else (inner > 0).double()
    slope = gate * (1 + inner * (1 - gate)) if activation == "silu" else gate
    if standard is None:
        terms, scaled = (center, var), torch.ones_like(center)
    else:
        shift, scaled, stored = (v.double() for v in standard)
        terms = (center - shift) * scaled + stored, var * scaled.square()
    line = grads[2] * scaled.square() * 2 * (wide - center[:, None, None]).movedim(1, -1)
    line = ((line + grads[1] * scaled) / rows).movedim(-1, 1)
    assert out is not None
    return [
        *_far(f"{activation} forward", out, gate * inner),
        *_far("mean", shown[0], terms[0]),
        *_far("variance", shown[1], terms[1]),
        *_far(f"{activation} backward", got, grads[0].double() * slope * factor + line),
    ]


def _far(what: str, got: Tensor, want: Tensor) -> list[str]:
    """The name, if any value is further off than rounding; NaN is."""
    bound = 1e-5 if got.dtype == torch.float32 else 2**-8
    near = (got.double() - want).abs() <= bound * (want.abs() + 1)
    return [] if bool(near.all()) else [f"{what} in {got.dtype} is wrong"]
