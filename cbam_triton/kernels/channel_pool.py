"""Channel pool: average and maximum over the pixels of each channel, and their share of the MLP's hidden layer."""

import triton
import triton.language as tl

from .signals import publish
from .tiles import fold_max, fold_sum, known_multiple, maximum, reduce_max, rounded_product


@triton.jit
def pool_grid(C, P, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, SPLIT_P: tl.constexpr):
    """(blocks, chunks, chunk): channel blocks, pixel chunks, pixels of a chunk (about SPLIT_P, in whole BLOCK_P)."""
    chunk = tl.cdiv(tl.cdiv(P, tl.cdiv(P, SPLIT_P)), BLOCK_P) * BLOCK_P
    return tl.cdiv(C, BLOCK_C), tl.cdiv(P, chunk), chunk


@triton.jit
def channel_pool_tile(
    x_ptr,  # one sample: C P
    fc1_weight_ptr,  # R C
    partial_ptr,  # one sample: BLOCKS CHUNKS 2 BLOCK_C, scratch
    partial_done_ptr,  # one sample: BLOCKS, counters
    hidden_ptr,  # one sample: BLOCKS 2 R
    tile, chunks, chunk, C, P, R,
    x_stride_c, x_stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, KEEP: tl.constexpr, VEC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """avg[c], max[c] over all pixels, and hidden = (W0 avg, W0 max) summed over this block of channels.

    One program owns BLOCK_C channels of one chunk of pixels; the last of a block's chunks to finish goes on to the
    hidden layer. Returns whether this was the last.
    """
    block = tile // chunks
    p_begin = tile % chunks * chunk
    p_end = tl.minimum(p_begin + chunk, P)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.arange(0, BLOCK_P)
    inside_c = c < C
    x_ptrs = x_ptr + (c.to(INDEX)[:, None] * x_stride_c + (p_begin + p).to(INDEX)[None, :] * x_stride_p)
    totals = tl.zeros([BLOCK_C, KEEP], ACC)
    largests = tl.full([BLOCK_C, KEEP], float("-inf"), ACC)
    for _ in range(p_begin + BLOCK_P, p_end + 1, BLOCK_P):
        x = tl.load(x_ptrs, mask=inside_c[:, None]).to(ACC)
        x_ptrs += BLOCK_P * x_stride_p
        totals += fold_sum(x, 1, KEEP, not CHANNELS_LAST)
        largests = maximum(largests, fold_max(x, 1, KEEP, not CHANNELS_LAST))
    rest = known_multiple((p_end - p_begin) % BLOCK_P, 1 if CHANNELS_LAST else VEC)
    if rest > 0:
        inside_p = (p < rest)[None, :]
        x = tl.load(x_ptrs, mask=inside_c[:, None] & inside_p, other=0.0).to(ACC)
        totals += fold_sum(x, 1, KEEP, not CHANNELS_LAST)
        x = tl.where(inside_p, x, float("-inf"))
        largests = maximum(largests, fold_max(x, 1, KEEP, not CHANNELS_LAST))
    total = tl.sum(totals, 1)
    largest = reduce_max(largests, 1)

    finished = True
    if chunks > 1:
        lane = tl.arange(0, BLOCK_C)
        partial_ptr += block * chunks * (2 * BLOCK_C)
        mine_ptr = partial_ptr + tile % chunks * (2 * BLOCK_C)
        tl.store(mine_ptr + lane, total)
        tl.store(mine_ptr + BLOCK_C + lane, largest)
        finished = publish(partial_done_ptr + block) == chunks - 1
        if finished:
            total = tl.zeros([BLOCK_C], ACC)
            largest = tl.full([BLOCK_C], float("-inf"), ACC)
            for i in range(chunks):
                total += tl.load(partial_ptr + i * (2 * BLOCK_C) + lane)
                largest = maximum(largest, tl.load(partial_ptr + i * (2 * BLOCK_C) + BLOCK_C + lane))
    if finished:
        avg = tl.where(inside_c, total / P, 0.0)
        max = tl.where(inside_c, largest, 0.0)
        hidden_ptr += block * (2 * R)
        for r0 in range(0, R, BLOCK_R):
            r = r0 + tl.arange(0, BLOCK_R)
            inside = (r < R)[:, None] & inside_c[None, :]
            weight = tl.load(fc1_weight_ptr + (r[:, None] * C + c[None, :]), mask=inside, other=0.0).to(ACC)
            tl.store(hidden_ptr + r, tl.sum(rounded_product(weight, avg[None, :]), 1), mask=r < R)
            tl.store(hidden_ptr + R + r, tl.sum(rounded_product(weight, max[None, :]), 1), mask=r < R)
    return finished
