"""Spatial pool: mean and maximum over the channels of each pixel of x * g."""

import triton
import triton.language as tl

from .maps import padded_size, past_zeros, zero_at, zeros_around
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
    pool_ptr,  # one sample: padded_size, M maps
    kept_ptr, argmax_ptr,  # one sample: P M in x's dtype, P; kept or None
    tile, C, P, W, plane,
    x_stride_c, x_stride_p,
    K: tl.constexpr, DIMS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, KEEP: tl.constexpr, VEC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, SPATIAL_POOLS: tl.constexpr,
):  # fmt: skip
    """pool[p] = (mean_c, max_c) of x * g; the zeros around the map too.

    For a backward to come, pool is kept, rounded, and the first channel that has the maximum in `argmax`, found as the
    channel pool does. One program owns BLOCK_P pixels and all channels of one sample. SPATIAL_POOLS is "mean", "max" or
    "half" (of the sum of both) for one map, or both.
    """
    MEAN: tl.constexpr = SPATIAL_POOLS != "max"
    MAX: tl.constexpr = SPATIAL_POOLS != "mean"
    TRACK: tl.constexpr = MAX and argmax_ptr is not None
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
        if MEAN:
            total += fold_sum(y, 0, KEEP, CHANNELS_LAST)
        if MAX:
            y = fold_max(y, 0, KEEP, CHANNELS_LAST)
            if TRACK:
                starts = tl.where(y > largest, c0, starts)
            largest = maximum(largest, y)
    if full < C:
        inside_c = c < known_multiple(C - full, VEC if CHANNELS_LAST else 1)
        y = tl.load(x_ptrs, mask=inside_c[:, None] & inside_p[None, :], other=0.0).to(ACC)
        if gate_ptr is not None:
            y = rounded_product(y, tl.load(gate_ptr + full + c, mask=inside_c, other=0.0)[:, None])
        if MEAN:
            total += fold_sum(y, 0, KEEP, CHANNELS_LAST)
        if MAX:
            y = fold_max(tl.where(inside_c[:, None], y, float("-inf")), 0, KEEP, CHANNELS_LAST)
            if TRACK:
                starts = tl.where(y > largest, full, starts)
            largest = maximum(largest, y)
    peak = reduce_max(largest, 0)
    mean = tl.sum(total, 0) / C
    lead = zeros_around(W, K, DIMS)
    place = lead + past_zeros(p, plane, W, K, DIMS)
    if SPATIAL_POOLS == "mean+max":
        # Interleaved, so that one store fills whole sectors.
        pool = tl.join(mean, peak)
        map = tl.arange(0, 2)[None, :]
        tl.store(pool_ptr + (2 * place[:, None] + map), pool, mask=inside_p[:, None])
        if kept_ptr is not None:
            tl.store(kept_ptr + (2 * p[:, None] + map), pool.to(kept_ptr.dtype.element_ty), mask=inside_p[:, None])
    else:
        pool = 0.5 * mean + 0.5 * peak if SPATIAL_POOLS == "half" else mean if MEAN else peak
        tl.store(pool_ptr + place, pool, mask=inside_p)
        if kept_ptr is not None:
            tl.store(kept_ptr + p, pool.to(kept_ptr.dtype.element_ty), mask=inside_p)
    if TRACK:
        start = first_group(largest, peak, starts, 0, KEEP, GROUP, C)
        first = _first_channel(x_ptr, gate_ptr, peak, start, p, inside_p, C, x_stride_c, x_stride_p, GROUP, INDEX, ACC)
        tl.store(argmax_ptr + p, first.to(argmax_ptr.dtype.element_ty), mask=inside_p)
    if tile == 0:
        maps: tl.constexpr = 2 if SPATIAL_POOLS == "mean+max" else 1
        zeros = tl.zeros([BLOCK_P], ACC)
        if DIMS == 3:
            count = maps * (padded_size(P, plane, W, K, DIMS) - P)
            for i0 in range(0, count, BLOCK_P):
                i = i0 + tl.arange(0, BLOCK_P)
                at = maps * zero_at(i // maps, lead, P, plane, W, K) + i % maps
                tl.store(pool_ptr + at, zeros, mask=i < count)
        else:
            for i0 in range(0, maps * lead, BLOCK_P):
                i = i0 + tl.arange(0, BLOCK_P)
                tl.store(pool_ptr + i, zeros, mask=i < maps * lead)
                tl.store(pool_ptr + maps * (P + lead) + i, zeros, mask=i < maps * lead)


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
