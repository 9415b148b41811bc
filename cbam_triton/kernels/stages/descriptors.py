"""The descriptors of a channel: which there are, how each is made, and how its gradient reaches the pixels.

A descriptor has a place, which is its bit in CHANNEL_POOLS. All that the stages know of a single one is in this file.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .reductions import finite_or_zero, first_group, fold_exp, fold_max, fold_sum, maximum, reduce_max, rounded_product
from .rounding import divided

AVERAGE, MAXIMUM, NORM, LOGSUMEXP = (tl.constexpr(1 << place) for place in range(4))
HALF = tl.constexpr(1 << 8)  # half the sum of the first two takes their place
POOLS = {"avg": AVERAGE.value, "max": MAXIMUM.value, "lp": NORM.value, "lse": LOGSUMEXP.value}
NEED_X = tl.constexpr(NORM.value | LOGSUMEXP.value)  # those whose gradient depends on the pixel


def slots_of(channel_pools: int) -> int:
    """Places for the descriptors of a channel, two by two: as many as the last that is there asks for."""
    last = (channel_pools & (HALF.value - 1)).bit_length()
    return max(2, last + last % 2)


def biases_of(channel_pools: int) -> int:
    """How often the bias of the MLP's second layer counts: once a descriptor."""
    return 1 if channel_pools & HALF.value else bin(channel_pools).count("1")


class Running(NamedTuple):
    """The pools of what was read so far; a scalar 0 in the place of one that is not asked for."""

    total: Any
    largest: Any
    start: Any  # of the block of pixels that `largest` is from
    square: Any
    exponential: Any  # sum of exp(x - largest)


@triton.jit
def no_pools(p_begin, TRACK: tl.constexpr, TILES, FORM):
    """The pools of no pixel, as a tile's are kept: POOL_C POOL_KEEP."""
    zeros = tl.zeros([TILES.POOL_C, TILES.POOL_KEEP], FORM.ACC)
    nothing = tl.full((), 0, FORM.ACC)
    return Running(
        zeros,
        tl.full([TILES.POOL_C, TILES.POOL_KEEP], float("-inf"), FORM.ACC),
        tl.zeros([TILES.POOL_C, TILES.POOL_KEEP], tl.int32) + p_begin if TRACK else tl.full((), 0, tl.int32),
        zeros if NORM & FORM.CHANNEL_POOLS else nothing,
        zeros if LOGSUMEXP & FORM.CHANNEL_POOLS else nothing,
    )


@triton.jit
def with_tile(pools, x, inside, p0, TRACK: tl.constexpr, TILES, LAYOUT, FORM):
    """The pools with one more tile x, of pixels from p0 on; where `inside` is given x is 0 outside of it.

    Exponentials are summed relative to the running maximum.
    """
    KEEP: tl.constexpr = TILES.POOL_KEEP
    UNIT: tl.constexpr = not LAYOUT.CHANNELS_LAST
    LSE: tl.constexpr = LOGSUMEXP & FORM.CHANNEL_POOLS != 0
    total = pools.total
    largest = pools.largest
    start = pools.start
    square = pools.square
    exponential = pools.exponential
    if AVERAGE & FORM.CHANNEL_POOLS:
        total += fold_sum(x, 1, KEEP, UNIT)
    if NORM & FORM.CHANNEL_POOLS:
        square += fold_sum(rounded_product(x, x), 1, KEEP, UNIT)
    if MAXIMUM & FORM.CHANNEL_POOLS != 0 or LSE:
        if inside is not None:
            x = tl.where(inside, x, float("-inf"))
        peaks = fold_max(x, 1, KEEP, UNIT)
        if TRACK:
            start = tl.where(peaks > largest, p0, start)
        peaks = maximum(largest, peaks)
        if LSE:
            exponential = _rescaled(exponential, largest, peaks)
            exponential += fold_exp(x, finite_or_zero(peaks), 1, KEEP, UNIT)
        largest = peaks
    return Running(total, largest, start, square, exponential)


@triton.jit
def reduced(pools, TRACK: tl.constexpr, TILES, size, FORM):
    """The pools of a tile's channels, POOL_C, from those of its columns."""
    GROUP: tl.constexpr = TILES.POOL_P // TILES.POOL_KEEP
    largest = reduce_max(pools.largest, 1)
    start = pools.start
    if TRACK:
        start = first_group(pools.largest, largest, start, 1, TILES.POOL_KEEP, GROUP, size.P)
    square = pools.square
    if NORM & FORM.CHANNEL_POOLS:
        square = tl.sum(square, 1)
    exponential = pools.exponential
    if LOGSUMEXP & FORM.CHANNEL_POOLS:
        exponential = tl.sum(_rescaled(exponential, pools.largest, largest[:, None]), 1)
    return Running(tl.sum(pools.total, 1), largest, start, square, exponential)


@triton.jit
def _rescaled(exponentials, before, now):
    """Sums of exp(x - before), as sums of exp(x - now); an infinite maximum counts as 0."""
    return rounded_product(exponentials, tl.exp(before - finite_or_zero(now)))


@triton.jit
def store_pools(ptr, pools, TRACK: tl.constexpr, TILES, FORM):
    """The pools of one chunk in memory, the starts as their bits."""
    BITS: tl.constexpr = tl.int64 if tl.float64 == FORM.ACC else tl.int32
    ptrs = ptr + tl.arange(0, TILES.POOL_C)
    tl.store(ptrs, pools.total)
    tl.store(ptrs + TILES.POOL_C, pools.largest)
    if TRACK:
        tl.store(ptrs + 2 * TILES.POOL_C, pools.start.to(BITS).to(FORM.ACC, bitcast=True))
    if NORM & FORM.CHANNEL_POOLS:
        tl.store(ptrs + 3 * TILES.POOL_C, pools.square)
    if LOGSUMEXP & FORM.CHANNEL_POOLS:
        tl.store(ptrs + 4 * TILES.POOL_C, pools.exponential)


@triton.jit
def combined(partial_ptr, chunks, TRACK: tl.constexpr, TILES, FORM):
    """The pools of all chunks of a block, added in the order of the chunks."""
    BITS: tl.constexpr = tl.int64 if tl.float64 == FORM.ACC else tl.int32
    NORMED: tl.constexpr = NORM & FORM.CHANNEL_POOLS != 0
    LSE: tl.constexpr = LOGSUMEXP & FORM.CHANNEL_POOLS != 0
    total = tl.zeros([TILES.POOL_C], FORM.ACC)
    largest = tl.full([TILES.POOL_C], float("-inf"), FORM.ACC)
    start = tl.zeros([TILES.POOL_C], tl.int32) if TRACK else tl.full((), 0, tl.int32)
    square = tl.zeros([TILES.POOL_C], FORM.ACC) if NORMED else tl.full((), 0, FORM.ACC)
    exponential = tl.zeros([TILES.POOL_C], FORM.ACC) if LSE else tl.full((), 0, FORM.ACC)
    for i in range(chunks):
        ptrs = partial_ptr + i * ((FORM.SLOTS + 1) * TILES.POOL_C) + tl.arange(0, TILES.POOL_C)
        total += tl.load(ptrs)
        other = tl.load(ptrs + TILES.POOL_C)
        if TRACK:
            found = tl.load(ptrs + 2 * TILES.POOL_C).to(BITS, bitcast=True).to(tl.int32)
            start = tl.where(other > largest, found, start)
        if NORMED:
            square += tl.load(ptrs + 3 * TILES.POOL_C)
        peak = maximum(largest, other)
        if LSE:
            exponential = _rescaled(exponential, largest, peak)
            exponential += _rescaled(tl.load(ptrs + 4 * TILES.POOL_C), other, peak)
        largest = peak
    return Running(total, largest, start, square, exponential)


@triton.jit
def descriptors_of(pools, inside_c, size, FORM):
    """The descriptors by their places; what is left out is not asked for."""
    NORMED: tl.constexpr = NORM & FORM.CHANNEL_POOLS != 0
    LSE: tl.constexpr = LOGSUMEXP & FORM.CHANNEL_POOLS != 0
    average = tl.where(inside_c, divided(pools.total, size.P), 0.0)
    largest = tl.where(inside_c, pools.largest, 0.0)
    norm = tl.where(inside_c, tl.sqrt(pools.square), 0.0) if NORMED else average
    lse = tl.where(inside_c, finite_or_zero(pools.largest) + tl.log(pools.exponential), 0.0) if LSE else average
    return average, largest, norm, lse


@triton.jit
def pixel_share(d, SLOT: tl.constexpr, saved, n, c, inside_c, size, FORM):
    """What `through_pools` takes for the gradient d of the descriptor in SLOT: the factor that all pixels share."""
    POOL: tl.constexpr = 1 << SLOT
    if POOL == AVERAGE:
        d = divided(d, size.P)
    if POOL == NORM:
        # Where the norm is 0 so is the subgradient that PyTorch takes.
        norm = tl.load(saved.descriptors + n * (FORM.SLOTS * size.C) + SLOT * size.C + c, mask=inside_c, other=0.0)
        d = d / tl.where(norm == 0, float("inf"), norm)
    return d


@triton.jit
def through_pools(x, d, saved, ddescriptors_ptr, n, c, inside_c, p, size, FORM):
    """d + da / P + [p == argmax_p] dm + x dlp / lp + exp(x - lse) dlse: with the gradients of all descriptors.

    x may be None where no descriptor of NEED_X is asked for.
    """
    C = size.C
    ptrs = ddescriptors_ptr + n * (FORM.SLOTS * C) + c
    if AVERAGE & FORM.CHANNEL_POOLS:
        d += tl.load(ptrs, mask=inside_c)[:, None]
    if MAXIMUM & FORM.CHANNEL_POOLS:
        share = tl.load(ptrs + C, mask=inside_c)
        peak = tl.load(saved.channel_argmax + n * C + c, mask=inside_c).to(tl.int32)
        d += tl.where(p[None, :] == peak[:, None], share[:, None], 0.0)
    if NORM & FORM.CHANNEL_POOLS:
        d += x * tl.load(ptrs + 2 * C, mask=inside_c)[:, None]
    if LOGSUMEXP & FORM.CHANNEL_POOLS:
        lse = tl.load(saved.descriptors + n * (FORM.SLOTS * C) + 3 * C + c, mask=inside_c)
        d += tl.exp(x - lse[:, None]) * tl.load(ptrs + 3 * C, mask=inside_c)[:, None]
    return d
