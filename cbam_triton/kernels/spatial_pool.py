"""Spatial pool: mean and maximum over the channels of each pixel of x * g."""

import triton
import triton.language as tl

from .tiles import (
    first_group,
    fold_max,
    fold_order,
    fold_sum,
    known_multiple,
    maximum,
    reduce_max,
    rounded_product,
)


@triton.jit
def spatial_pool_tile(
    x_ptr,  # one sample: C P
    gate_ptr,  # one sample: C, or None for a gate of ones
    pool_ptr,  # one sample: H + 2 RADIUS, W, 2
    kept_ptr, argmax_ptr,  # one sample: P 2 in x's dtype, P; both or neither
    tile, C, P, W,
    x_stride_c, x_stride_p,
    RADIUS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, KEEP: tl.constexpr, VEC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """pool[p] = (mean_c, max_c) of x * g; the rows of zeros above and below the map too.

    For a backward to come, pool is kept, rounded, and the first channel that has the maximum in `argmax`, found as the
    channel pool does. One program owns BLOCK_P pixels and all channels of one sample.
    """
    TRACK: tl.constexpr = argmax_ptr is not None
    GROUP: tl.constexpr = BLOCK_C // KEEP
    c = fold_order(BLOCK_C, KEEP, CHANNELS_LAST) if TRACK else tl.arange(0, BLOCK_C)
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    inside_p = p < P
    x_ptrs = x_ptr + (c.to(INDEX)[:, None] * x_stride_c + p.to(INDEX)[None, :] * x_stride_p)
    total = tl.zeros([KEEP, BLOCK_P], ACC)
    largest = tl.full([KEEP, BLOCK_P], float("-inf"), ACC)
    starts = tl.zeros([KEEP, BLOCK_P], tl.int32) if TRACK else None
    full = C - C % BLOCK_C
    for c0 in range(0, full, BLOCK_C):
        y = tl.load(x_ptrs, mask=inside_p[None, :]).to(ACC)
        x_ptrs += BLOCK_C * x_stride_c
        if gate_ptr is not None:
            y = rounded_product(y, tl.load(gate_ptr + c0 + c)[:, None])
        total += fold_sum(y, 0, KEEP, CHANNELS_LAST)
        y = fold_max(y, 0, KEEP, CHANNELS_LAST)
        if TRACK:
            starts = tl.where(y > largest, c0, starts)
        largest = maximum(largest, y)
    if full < C:
        inside_c = c < known_multiple(C - full, VEC if CHANNELS_LAST else 1)
        y = tl.load(x_ptrs, mask=inside_c[:, None] & inside_p[None, :], other=0.0).to(ACC)
        if gate_ptr is not None:
            y = rounded_product(y, tl.load(gate_ptr + full + c, mask=inside_c, other=0.0)[:, None])
        total += fold_sum(y, 0, KEEP, CHANNELS_LAST)
        y = fold_max(tl.where(inside_c[:, None], y, float("-inf")), 0, KEEP, CHANNELS_LAST)
        if TRACK:
            starts = tl.where(y > largest, full, starts)
        largest = maximum(largest, y)
    peak = reduce_max(largest, 0)
    # Interleaved, so that one store fills whole sectors.
    pool = tl.join(tl.sum(total, 0) / C, peak)
    offsets = 2 * p[:, None] + tl.arange(0, 2)[None, :]
    tl.store(pool_ptr + 2 * RADIUS * W + offsets, pool, mask=inside_p[:, None])
    if TRACK:
        tl.store(kept_ptr + offsets, pool.to(kept_ptr.dtype.element_ty), mask=inside_p[:, None])
        start = first_group(largest, peak, starts, 0, KEEP, GROUP, C)
        first = _first_channel(x_ptr, gate_ptr, peak, start, p, inside_p, C, x_stride_c, x_stride_p, GROUP, INDEX, ACC)
        tl.store(argmax_ptr + p, first.to(argmax_ptr.dtype.element_ty), mask=inside_p)
    if tile == 0:
        border = 2 * RADIUS * W
        for i0 in range(0, border, BLOCK_P):
            i = i0 + tl.arange(0, BLOCK_P)
            zeros = tl.zeros([BLOCK_P], ACC)
            tl.store(pool_ptr + i, zeros, mask=i < border)
            tl.store(pool_ptr + 2 * P + border + i, zeros, mask=i < border)


@triton.jit
def _first_channel(
    x_ptr, gate_ptr, peak, start, p, inside_p, C, x_stride_c, x_stride_p,
    GROUP: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The first of GROUP channels from `start` at which x * g is `peak`; any channel where that is NaN."""
    c = tl.where(start < C, start, 0)[None, :] + tl.arange(0, GROUP)[:, None]
    inside = inside_p[None, :] & (c < C)
    x_ptrs = x_ptr + (c.to(INDEX) * x_stride_c + p.to(INDEX)[None, :] * x_stride_p)
    y = tl.load(x_ptrs, mask=inside, other=float("-inf")).to(ACC)
    if gate_ptr is not None:
        y = rounded_product(y, tl.load(gate_ptr + c, mask=inside, other=1.0))
    return tl.min(tl.where((y == peak[None, :]) & inside, c, C - 1), 0)
