"""Triton kernels of :mod:`teddy.synthesis.engine.fused`; imports Triton, so not for a CPU.

All compute in float32 and round once, when they store. Tensors are ``rows × channels``, channels
dense; offsets into them are 64-bit. No kernel adds to memory that another program writes, so that
equal inputs give equal bytes.

``ALIGN`` divides the number it is named with (``channels = groups·ALIGN``). It tells the compiler
how wide an access may be, and makes a kernel per power of two rather than per number of channels.
"""

import triton
from triton import language as tl


@triton.jit
def _activated(inner, ACTIVATION: tl.constexpr):
    """A NaN passes every comparison as false, and stays one."""
    if ACTIVATION == "relu":
        inner = tl.where(inner <= 0, 0.0, inner)
    elif ACTIVATION == "relu6":
        inner = tl.where(inner <= 0, 0.0, tl.where(inner >= 6, 6.0, inner))
    elif ACTIVATION == "silu":
        inner = inner / (1.0 + tl.exp(-inner))
    return inner


@triton.jit
def _through(grad, inner, ACTIVATION: tl.constexpr):
    """A gradient times the activation's derivative."""
    if ACTIVATION == "relu":
        grad = tl.where(inner <= 0, 0.0, grad)
    elif ACTIVATION == "relu6":
        grad = tl.where((inner <= 0) | (inner >= 6), 0.0, grad)
    elif ACTIVATION == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-inner))
        grad = grad * sigmoid * (1.0 + inner * (1.0 - sigmoid))
    return grad


@triton.jit
def _combined(means, squares, count, total):
    """Mean and M2 per column from those of the rows' parts, by Chan's formula.

    Shares do not add up to 1 exactly; the second sum, of small numbers, takes that back.
    """
    share = (count / total)[:, None]
    mean = tl.sum(means * share, 0)
    mean += tl.sum((means - mean[None, :]) * share, 0)
    gap = means - mean[None, :]
    return mean, tl.sum(squares + count[:, None] * gap * gap, 0)


@triton.jit(do_not_specialize=["rows", "tiles", "groups"])
def observe(
    x, out, factor, summand, partials, rows, tiles, groups,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Write the activated map of x, and mean and M2 = Σ(x − mean)² of ``tiles·ROWS`` rows.

    Every lane of a tile keeps statistics of its own by Welford's recurrence, combined at the end;
    no difference of large sums occurs. ``factor`` and ``out`` may be None.
    """
    channels = groups * ALIGN
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    lane = tl.arange(0, ROWS)
    first = tl.program_id(1).to(tl.int64) * tiles * ROWS
    if factor is not None:
        a = tl.load(factor + c, mask=inside, other=0.0)[None, :]
        b = tl.load(summand + c, mask=inside, other=0.0)[None, :]
    mean = tl.zeros([ROWS, CHANNELS], tl.float32)
    squares = tl.zeros([ROWS, CHANNELS], tl.float32)
    for step in range(tiles):
        row = first + step * ROWS + lane
        keep = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * channels + c[None, :]
        value = tl.load(x + at, mask=keep, other=0.0).to(tl.float32)
        delta = tl.where(keep, value - mean, 0.0)
        mean += delta * (1.0 / (step + 1))
        squares += delta * (value - mean)
        if out is not None:
            inner = value
            if factor is not None:
                inner = value * a + b
            result = _activated(inner, ACTIVATION)
            tl.store(out + at, result.to(out.dtype.element_ty), mask=keep)
    mine = tl.minimum(rows - first, tiles * ROWS)
    count = ((mine - lane + ROWS - 1) // ROWS).to(tl.float32)
    center, total = _combined(mean, squares, count, mine.to(tl.float32))
    place = partials + tl.program_id(1) * channels + c
    tl.store(place, center, mask=inside)
    tl.store(place + tl.num_programs(1) * channels, total, mask=inside)


@triton.jit(do_not_specialize=["rows", "span", "parts", "channels", "degrees"])
def combine(
    partials, mean, shown_mean, shown_var, shift, scale, stored,
    rows, span, parts, channels, degrees,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Statistics of all rows from those of ``span`` rows each.

    ``shown_mean`` and ``shown_var`` are in the terms of ``kernels.Standard``, whose fields
    ``shift``, ``scale`` and ``stored`` are; all three may be None.
    """
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    part = tl.arange(0, PARTS)
    keep = (part < parts)[:, None] & inside[None, :]
    at = part[:, None] * channels + c[None, :]
    means = tl.load(partials + at, mask=keep, other=0.0)
    squares = tl.load(partials + parts * channels + at, mask=keep, other=0.0)
    left = rows - part.to(tl.int64) * span
    count = tl.where(part < parts, tl.minimum(left, span), 0).to(tl.float32)
    center, total = _combined(means, squares, count, rows.to(tl.float32))
    var = total / degrees.to(tl.float32)
    tl.store(mean + c, center, mask=inside)
    if scale is not None:
        s = tl.load(scale + c, mask=inside, other=0.0)
        center = (center - tl.load(shift + c, mask=inside, other=0.0)) * s
        center += tl.load(stored + c, mask=inside, other=0.0)
        var = var * (s * s)
    tl.store(shown_mean + c, center, mask=inside)
    tl.store(shown_var + c, var, mask=inside)


@triton.jit(do_not_specialize=["rows", "tiles", "groups"])
def observe_backward(
    x, grad, result, factor, summand, mean, grad_mean,
    grad_var, scale, per_row, per_degree, rows, tiles, groups,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Write act′·factor·grad + rise + slope·(x − mean), with the line's coefficients per channel.

    ``per_row`` is 1/n and ``per_degree`` 2/(n − correction). ``factor`` and ``scale`` may be None.
    """
    channels = groups * ALIGN
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    first = tl.program_id(1).to(tl.int64) * tiles * ROWS + tl.arange(0, ROWS)
    center = tl.load(mean + c, mask=inside, other=0.0)
    rise = tl.load(grad_mean + c, mask=inside, other=0.0) * per_row
    slope = tl.load(grad_var + c, mask=inside, other=0.0) * per_degree
    if scale is not None:
        s = tl.load(scale + c, mask=inside, other=0.0)
        rise = rise * s
        slope = slope * (s * s)
    if factor is not None:
        a = tl.load(factor + c, mask=inside, other=0.0)[None, :]
        b = tl.load(summand + c, mask=inside, other=0.0)[None, :]
    for step in range(tiles):
        row = first + step * ROWS
        keep = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * channels + c[None, :]
        value = tl.load(x + at, mask=keep, other=0.0).to(tl.float32)
        g = tl.load(grad + at, mask=keep, other=0.0).to(tl.float32)
        if factor is not None:
            g = _through(g, value * a + b, ACTIVATION) * a
        else:
            g = _through(g, value, ACTIVATION)
        g += slope[None, :] * (value - center[None, :]) + rise[None, :]
        tl.store(result + at, g.to(result.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=["groups"])
def add_relu(a, b, out, mask, groups, ALIGN: tl.constexpr, SIZE: tl.constexpr):
    """Write relu(a + b), and a byte per value that says where it is not 0, or None for no mask."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    keep = at < groups.to(tl.int64) * ALIGN
    total = tl.load(a + at, mask=keep, other=0.0).to(tl.float32)
    total += tl.load(b + at, mask=keep, other=0.0).to(tl.float32)
    result = _activated(total, "relu").to(out.dtype.element_ty)
    tl.store(out + at, result, mask=keep)
    if mask is not None:
        tl.store(mask + at, tl.where(total <= 0, 0, 1).to(tl.int8), mask=keep)


@triton.jit(do_not_specialize=["groups"])
def masked(grad, mask, result, groups, ALIGN: tl.constexpr, SIZE: tl.constexpr):
    """Write the product of a gradient and a mask of 0 and 1."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    keep = at < groups.to(tl.int64) * ALIGN
    g = tl.load(grad + at, mask=keep, other=0.0).to(tl.float32)
    g *= tl.load(mask + at, mask=keep, other=0).to(tl.float32)
    tl.store(result + at, g.to(result.dtype.element_ty), mask=keep)
