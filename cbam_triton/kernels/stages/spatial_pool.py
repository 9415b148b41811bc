"""Spatial pool: mean and maximum over the channels of each pixel of x g."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .addressing import known_multiple, pointers
from .padded_map import past_zeros, zero_at
from .reductions import first_group, fold_max, fold_order, fold_sum, maximum, reduce_max, rounded_product
from .rounding import divided


class Running(NamedTuple):
    """The pools of the channels read so far; a scalar 0 in the place of `start` where it is not asked for."""

    total: Any
    largest: Any
    start: Any  # of the block of channels that `largest` is from


@triton.jit
def spatial_pool_tile(
    x,  # one sample
    gate_ptr, maps_ptr, saved,  # N C, or None for a gate of ones; N padded MAPS; maps and spatial_argmax
    n, tile, size, TILES, LAYOUT, FORM,
):  # fmt: skip
    """maps[p] = (mean_c, max_c) of x g; the zeros around the maps too.

    For a backward to come the maps are saved, rounded, and with them the first channel that has the maximum, found as
    the channel pool finds its pixel. One program owns SPATIAL_P pixels and all channels of one sample.
    """
    TRACK: tl.constexpr = FORM.SPATIAL_POOLS != "mean" and saved.spatial_argmax is not None
    GROUP: tl.constexpr = TILES.SPATIAL_C // TILES.SPATIAL_KEEP
    c = (
        fold_order(TILES.SPATIAL_C, TILES.SPATIAL_KEEP, LAYOUT.CHANNELS_LAST)
        if TRACK
        else tl.arange(0, TILES.SPATIAL_C)
    )
    p = tile * TILES.SPATIAL_P + tl.arange(0, TILES.SPATIAL_P)
    inside_p = p < size.P
    if gate_ptr is not None:
        gate_ptr += n * size.C
    pools = _pooled_channels(x, gate_ptr, c, p, size, TRACK, TILES, LAYOUT, FORM)
    peak = reduce_max(pools.largest, 0)
    mean = divided(tl.sum(pools.total, 0), size.C)
    maps_ptr += n * (FORM.MAPS * size.padded)
    _store_maps(mean, peak, maps_ptr, size.zeros + past_zeros(p, size, FORM.DIMS), inside_p, FORM)
    if saved.maps is not None:
        _store_maps(mean, peak, saved.maps + n * (FORM.MAPS * size.P), p, inside_p, FORM)
    if TRACK:
        start = first_group(pools.largest, peak, pools.start, 0, TILES.SPATIAL_KEEP, GROUP, size.C)
        first = _first_channel(x, gate_ptr, peak, start, p, size, GROUP, LAYOUT, FORM)
        argmax_ptrs = saved.spatial_argmax + n * size.P + p
        tl.store(argmax_ptrs, first.to(saved.spatial_argmax.dtype.element_ty), mask=inside_p)
    if tile == 0:
        _store_zeros(maps_ptr, size, TILES, FORM)


@triton.jit
def _pooled_channels(x, gate_ptr, c, p, size, TRACK: tl.constexpr, TILES, LAYOUT, FORM):
    """The pools of pixels p over all channels, SPATIAL_KEEP of each pixel."""
    inside_p = (p < size.P)[None, :]
    x_ptrs = pointers(x, c, p, LAYOUT)
    zeros = tl.zeros([TILES.SPATIAL_KEEP, TILES.SPATIAL_P], FORM.ACC)
    pools = Running(
        zeros,
        tl.full([TILES.SPATIAL_KEEP, TILES.SPATIAL_P], float("-inf"), FORM.ACC),
        tl.zeros([TILES.SPATIAL_KEEP, TILES.SPATIAL_P], tl.int32) if TRACK else tl.full((), 0, tl.int32),
    )
    full = size.C - size.C % TILES.SPATIAL_C
    for c0 in range(0, full, TILES.SPATIAL_C):
        y = tl.load(x_ptrs, mask=inside_p).to(FORM.ACC)
        x_ptrs += TILES.SPATIAL_C * x.stride_c
        if gate_ptr is not None:
            y = rounded_product(y, tl.load(gate_ptr + c0 + c)[:, None])
        pools = _with_tile(pools, y, None, c0, TRACK, TILES, LAYOUT, FORM)
    if full < size.C:
        inside_c = c < known_multiple(size.C - full, LAYOUT.VEC if LAYOUT.CHANNELS_LAST else 1)
        y = tl.load(x_ptrs, mask=inside_c[:, None] & inside_p, other=0.0).to(FORM.ACC)
        if gate_ptr is not None:
            y = rounded_product(y, tl.load(gate_ptr + full + c, mask=inside_c, other=0.0)[:, None])
        pools = _with_tile(pools, y, inside_c[:, None], full, TRACK, TILES, LAYOUT, FORM)
    return pools


@triton.jit
def _with_tile(pools, y, inside, c0, TRACK: tl.constexpr, TILES, LAYOUT, FORM):
    """The pools with one more tile y, of channels from c0 on; where `inside` is given y is 0 outside of it."""
    total = pools.total
    largest = pools.largest
    start = pools.start
    if FORM.SPATIAL_POOLS != "max":
        total += fold_sum(y, 0, TILES.SPATIAL_KEEP, LAYOUT.CHANNELS_LAST)
    if FORM.SPATIAL_POOLS != "mean":
        if inside is not None:
            y = tl.where(inside, y, float("-inf"))
        y = fold_max(y, 0, TILES.SPATIAL_KEEP, LAYOUT.CHANNELS_LAST)
        if TRACK:
            start = tl.where(y > largest, c0, start)
        largest = maximum(largest, y)
    return Running(total, largest, start)


@triton.jit
def _store_maps(mean, peak, ptr, place, inside_p, FORM):
    """The maps of some pixels, in the dtype of the memory; two are interleaved, so that a store fills whole sectors."""
    dtype = ptr.dtype.element_ty
    if FORM.MAPS == 2:
        ptrs = ptr + (2 * place[:, None] + tl.arange(0, 2)[None, :])
        tl.store(ptrs, tl.join(mean, peak).to(dtype), mask=inside_p[:, None])
    else:
        half: tl.constexpr = FORM.SPATIAL_POOLS == "half"
        found = 0.5 * mean + 0.5 * peak if half else mean if FORM.SPATIAL_POOLS == "mean" else peak
        tl.store(ptr + place, found.to(dtype), mask=inside_p)


@triton.jit
def _store_zeros(maps_ptr, size, TILES, FORM):
    """The zeros around the maps of a sample."""
    zeros = tl.zeros([TILES.SPATIAL_P], FORM.ACC)
    if FORM.DIMS == 3:
        count = FORM.MAPS * (size.padded - size.P)
        for i0 in range(0, count, TILES.SPATIAL_P):
            i = i0 + tl.arange(0, TILES.SPATIAL_P)
            place = FORM.MAPS * zero_at(i // FORM.MAPS, size.zeros, size, FORM.K) + i % FORM.MAPS
            tl.store(maps_ptr + place, zeros, mask=i < count)
    else:
        count = FORM.MAPS * size.zeros
        for i0 in range(0, count, TILES.SPATIAL_P):
            i = i0 + tl.arange(0, TILES.SPATIAL_P)
            tl.store(maps_ptr + i, zeros, mask=i < count)
            tl.store(maps_ptr + FORM.MAPS * (size.P + size.zeros) + i, zeros, mask=i < count)


@triton.jit
def _first_channel(x, gate_ptr, peak, start, p, size, GROUP: tl.constexpr, LAYOUT, FORM):
    """The first of GROUP channels from `start` at which x g is `peak`; any channel where that is NaN."""
    c = tl.where(start < size.C, start, 0)[None, :] + tl.arange(0, GROUP)[:, None]
    inside = (p < size.P)[None, :] & (c < size.C)
    x_ptrs = x.ptr + (c.to(LAYOUT.INDEX) * x.stride_c + p.to(LAYOUT.INDEX)[None, :] * x.stride_p)
    y = tl.load(x_ptrs, mask=inside, other=float("-inf")).to(FORM.ACC)
    if gate_ptr is not None:
        y = rounded_product(y, tl.load(gate_ptr + c, mask=inside, other=1.0))
    return tl.min(tl.where((y == peak[None, :]) & inside, c, size.C - 1), 0)
