"""Channel pool: average, maximum, 2-norm, logsumexp of each channel, and their share of the MLP's hidden layer."""

import triton
import triton.language as tl

from .signals import publish
from .tiles import (
    AVERAGE,
    HALF,
    LOGSUMEXP,
    MAXIMUM,
    NORM,
    finite_or_zero,
    first_group,
    fold_exp,
    fold_max,
    fold_order,
    fold_sum,
    known_multiple,
    maximum,
    reduce_max,
    rounded_product,
)


@triton.jit
def pool_slots(CHANNEL_POOLS: tl.constexpr):
    """Places for the descriptors of a channel: avg, max, and where there is one of the others, lp and lse."""
    return 4 if (NORM | LOGSUMEXP) & CHANNEL_POOLS else 2


@triton.jit
def pool_count(CHANNEL_POOLS: tl.constexpr):
    """How often the second layer's bias counts: once a descriptor."""
    if HALF & CHANNEL_POOLS:
        return 1
    else:
        return (CHANNEL_POOLS & 1) + (CHANNEL_POOLS >> 1 & 1) + (CHANNEL_POOLS >> 2 & 1) + (CHANNEL_POOLS >> 3 & 1)


@triton.jit
def pool_grid(C, P, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, SPLIT_P: tl.constexpr):
    """(blocks, chunks, chunk): channel blocks, pixel chunks, pixels of a chunk (about SPLIT_P, in whole BLOCK_P)."""
    chunk = tl.cdiv(tl.cdiv(P, tl.cdiv(P, SPLIT_P)), BLOCK_P) * BLOCK_P
    return tl.cdiv(C, BLOCK_C), tl.cdiv(P, chunk), chunk


@triton.jit
def channel_pool_tile(
    x_ptr,  # one sample: C P
    s_ptr,  # one sample: P, or None; what is pooled is x * s
    fc1_weight_ptr,  # R C
    partial_ptr,  # one sample: BLOCKS CHUNKS POOLS+1 BLOCK_C, scratch
    partial_done_ptr,  # one sample: BLOCKS, counters
    hidden_ptr,  # one sample: BLOCKS POOLS R
    pools_ptr, argmax_ptr,  # one sample: POOLS C, C; kept or None
    tile, chunks, chunk, C, P, R,
    x_stride_c, x_stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, KEEP: tl.constexpr, VEC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, CHANNEL_POOLS: tl.constexpr,
):  # fmt: skip
    """avg[c], max[c], lp[c], lse[c] over all pixels, and hidden = W0 times each, summed over this block of channels.

    What CHANNEL_POOLS leaves out is neither computed nor stored; POOLS is `pool_slots`. For a backward to come, the
    descriptors are kept in `pools` and the first pixel that has the maximum in `argmax`: the loop notes for each
    running maximum only which block of pixels it is from, the rest is looked up at the end. Exponentials are summed
    relative to the running maximum.
    One program owns BLOCK_C channels of one chunk of pixels; the last of a block's chunks to finish goes on to the
    hidden layer. Returns whether this was the last.
    """
    AVG: tl.constexpr = AVERAGE & CHANNEL_POOLS != 0
    MAX: tl.constexpr = MAXIMUM & CHANNEL_POOLS != 0
    LP: tl.constexpr = NORM & CHANNEL_POOLS != 0
    LSE: tl.constexpr = LOGSUMEXP & CHANNEL_POOLS != 0
    TRACK: tl.constexpr = MAX and argmax_ptr is not None
    UNIT: tl.constexpr = not CHANNELS_LAST
    GROUP: tl.constexpr = BLOCK_P // KEEP
    SAME_BITS: tl.constexpr = tl.int64 if tl.float64 == ACC else tl.int32
    block = tile // chunks
    p_begin = tile % chunks * chunk
    p_end = tl.minimum(p_begin + chunk, P)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    p = fold_order(BLOCK_P, KEEP, UNIT) if TRACK else tl.arange(0, BLOCK_P)
    inside_c = c < C
    x_ptrs = x_ptr + (c.to(INDEX)[:, None] * x_stride_c + (p_begin + p).to(INDEX)[None, :] * x_stride_p)
    totals = tl.zeros([BLOCK_C, KEEP], ACC)
    largests = tl.full([BLOCK_C, KEEP], float("-inf"), ACC)
    starts = tl.zeros([BLOCK_C, KEEP], tl.int32) + p_begin if TRACK else None
    squares = tl.zeros([BLOCK_C, KEEP], ACC) if LP else None
    exponentials = tl.zeros([BLOCK_C, KEEP], ACC) if LSE else None
    for p0 in range(p_begin, p_end - BLOCK_P + 1, BLOCK_P):
        x = tl.load(x_ptrs, mask=inside_c[:, None]).to(ACC)
        x_ptrs += BLOCK_P * x_stride_p
        if s_ptr is not None:
            x = rounded_product(x, tl.load(s_ptr + p0 + p)[None, :])
        if AVG:
            totals += fold_sum(x, 1, KEEP, UNIT)
        if LP:
            squares += fold_sum(rounded_product(x, x), 1, KEEP, UNIT)
        if MAX or LSE:
            peaks = fold_max(x, 1, KEEP, UNIT)
            if TRACK:
                starts = tl.where(peaks > largests, p0, starts)
            peaks = maximum(largests, peaks)
            if LSE:
                exponentials = _rescaled(exponentials, largests, peaks)
                exponentials += fold_exp(x, finite_or_zero(peaks), 1, KEEP, UNIT)
            largests = peaks
    rest = known_multiple((p_end - p_begin) % BLOCK_P, 1 if CHANNELS_LAST else VEC)
    if rest > 0:
        inside_p = (p < rest)[None, :]
        x = tl.load(x_ptrs, mask=inside_c[:, None] & inside_p, other=0.0).to(ACC)
        if s_ptr is not None:
            x = rounded_product(x, tl.load(s_ptr + (p_end - rest) + p, mask=p < rest, other=0.0)[None, :])
        if AVG:
            totals += fold_sum(x, 1, KEEP, UNIT)
        if LP:
            squares += fold_sum(rounded_product(x, x), 1, KEEP, UNIT)
        if MAX or LSE:
            x = tl.where(inside_p, x, float("-inf"))
            peaks = fold_max(x, 1, KEEP, UNIT)
            if TRACK:
                starts = tl.where(peaks > largests, p_end - rest, starts)
            peaks = maximum(largests, peaks)
            if LSE:
                exponentials = _rescaled(exponentials, largests, peaks)
                exponentials += fold_exp(x, finite_or_zero(peaks), 1, KEEP, UNIT)
            largests = peaks
    total = tl.sum(totals, 1)
    largest = reduce_max(largests, 1)
    square = tl.sum(squares, 1) if LP else None
    exponential = tl.sum(_rescaled(exponentials, largests, largest[:, None]), 1) if LSE else None
    start = first_group(largests, largest, starts, 1, KEEP, GROUP, P) if TRACK else None

    finished = True
    if chunks > 1:
        lane = tl.arange(0, BLOCK_C)
        parts = (pool_slots(CHANNEL_POOLS) + 1) * BLOCK_C
        partial_ptr += block * chunks * parts
        mine_ptr = partial_ptr + tile % chunks * parts
        tl.store(mine_ptr + lane, total)
        tl.store(mine_ptr + BLOCK_C + lane, largest)
        if TRACK:
            tl.store(mine_ptr + 2 * BLOCK_C + lane, start.to(SAME_BITS).to(ACC, bitcast=True))
        if LP:
            tl.store(mine_ptr + 3 * BLOCK_C + lane, square)
        if LSE:
            tl.store(mine_ptr + 4 * BLOCK_C + lane, exponential)
        finished = publish(partial_done_ptr + block) == chunks - 1
        if finished:
            total = tl.zeros([BLOCK_C], ACC)
            largest = tl.full([BLOCK_C], float("-inf"), ACC)
            if TRACK:
                start = tl.zeros([BLOCK_C], tl.int32)
            if LP:
                square = tl.zeros([BLOCK_C], ACC)
            if LSE:
                exponential = tl.zeros([BLOCK_C], ACC)
            for i in range(chunks):
                chunk_ptr = partial_ptr + i * parts
                total += tl.load(chunk_ptr + lane)
                other = tl.load(chunk_ptr + BLOCK_C + lane)
                if TRACK:
                    found = tl.load(chunk_ptr + 2 * BLOCK_C + lane).to(SAME_BITS, bitcast=True).to(tl.int32)
                    start = tl.where(other > largest, found, start)
                if LP:
                    square += tl.load(chunk_ptr + 3 * BLOCK_C + lane)
                peak = maximum(largest, other)
                if LSE:
                    exponential = _rescaled(exponential, largest, peak)
                    exponential += _rescaled(tl.load(chunk_ptr + 4 * BLOCK_C + lane), other, peak)
                largest = peak
    if finished:
        avg = tl.where(inside_c, total / P, 0.0)
        max = tl.where(inside_c, largest, 0.0)
        lp = tl.where(inside_c, tl.sqrt(square), 0.0) if LP else None
        lse = tl.where(inside_c, finite_or_zero(largest) + tl.log(exponential), 0.0) if LSE else None
        if pools_ptr is not None:
            if AVG:
                tl.store(pools_ptr + c, avg, mask=inside_c)
            if MAX:
                tl.store(pools_ptr + C + c, max, mask=inside_c)
            if LP:
                tl.store(pools_ptr + 2 * C + c, lp, mask=inside_c)
            if LSE:
                tl.store(pools_ptr + 3 * C + c, lse, mask=inside_c)
        if TRACK:
            first = _first_pixel(
                x_ptr, s_ptr, largest, start, c, inside_c, P, x_stride_c, x_stride_p, GROUP, INDEX, ACC
            )  # fmt: skip
            tl.store(argmax_ptr + c, first.to(argmax_ptr.dtype.element_ty), mask=inside_c)
        hidden_ptr += block * (pool_slots(CHANNEL_POOLS) * R)
        for r0 in range(0, R, BLOCK_R):
            r = r0 + tl.arange(0, BLOCK_R)
            inside = (r < R)[:, None] & inside_c[None, :]
            weight = tl.load(fc1_weight_ptr + (r[:, None] * C + c[None, :]), mask=inside, other=0.0).to(ACC)
            if AVG:
                tl.store(hidden_ptr + r, tl.sum(rounded_product(weight, avg[None, :]), 1), mask=r < R)
            if MAX:
                tl.store(hidden_ptr + R + r, tl.sum(rounded_product(weight, max[None, :]), 1), mask=r < R)
            if LP:
                tl.store(hidden_ptr + 2 * R + r, tl.sum(rounded_product(weight, lp[None, :]), 1), mask=r < R)
            if LSE:
                tl.store(hidden_ptr + 3 * R + r, tl.sum(rounded_product(weight, lse[None, :]), 1), mask=r < R)
    return finished


@triton.jit
def _rescaled(exponentials, before, now):
    """Sums of exp(x - before), as sums of exp(x - now); an infinite maximum counts as 0."""
    return rounded_product(exponentials, tl.exp(before - finite_or_zero(now)))


@triton.jit
def _first_pixel(
    x_ptr, s_ptr, largest, start, c, inside_c, P, x_stride_c, x_stride_p,
    GROUP: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The first of GROUP pixels from `start` at which x, or x * s, is `largest`; any pixel where that is NaN."""
    p = tl.where(start < P, start, 0)[:, None] + tl.arange(0, GROUP)[None, :]
    inside = inside_c[:, None] & (p < P)
    x_ptrs = x_ptr + (c.to(INDEX)[:, None] * x_stride_c + p.to(INDEX) * x_stride_p)
    x = tl.load(x_ptrs, mask=inside, other=float("-inf")).to(ACC)
    if s_ptr is not None:
        x = rounded_product(x, tl.load(s_ptr + p, mask=p < P, other=1.0))
    return tl.min(tl.where((x == largest[:, None]) & inside, p, P - 1), 1)
