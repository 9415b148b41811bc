"""Spatial pool: mean and maximum over the channels of each pixel of x * g."""

import triton
import triton.language as tl

from .tiles import fold_max, fold_sum, known_multiple, maximum, reduce_max, rounded_product


@triton.jit
def spatial_pool_tile(
    x_ptr,  # one sample: C P
    gate_ptr,  # one sample: C, or None for a gate of ones
    pool_ptr,  # one sample: H + 2 RADIUS, W, 2
    tile, C, P, W,
    x_stride_c, x_stride_p,
    RADIUS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, KEEP: tl.constexpr, VEC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """pool[p] = (mean_c, max_c) of x * g; the rows of zeros above and below the map too.

    One program owns BLOCK_P pixels and all channels of one sample.
    """
    c = tl.arange(0, BLOCK_C)
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    inside_p = p < P
    x_ptrs = x_ptr + (c.to(INDEX)[:, None] * x_stride_c + p.to(INDEX)[None, :] * x_stride_p)
    total = tl.zeros([KEEP, BLOCK_P], ACC)
    largest = tl.full([KEEP, BLOCK_P], float("-inf"), ACC)
    full = C - C % BLOCK_C
    for c0 in range(0, full, BLOCK_C):
        y = tl.load(x_ptrs, mask=inside_p[None, :]).to(ACC)
        x_ptrs += BLOCK_C * x_stride_c
        if gate_ptr is not None:
            y = rounded_product(y, tl.load(gate_ptr + c0 + c)[:, None])
        total += fold_sum(y, 0, KEEP, CHANNELS_LAST)
        largest = maximum(largest, fold_max(y, 0, KEEP, CHANNELS_LAST))
    if full < C:
        inside_c = c < known_multiple(C - full, VEC if CHANNELS_LAST else 1)
        y = tl.load(x_ptrs, mask=inside_c[:, None] & inside_p[None, :], other=0.0).to(ACC)
        if gate_ptr is not None:
            y = rounded_product(y, tl.load(gate_ptr + full + c, mask=inside_c, other=0.0)[:, None])
        total += fold_sum(y, 0, KEEP, CHANNELS_LAST)
        y = tl.where(inside_c[:, None], y, float("-inf"))
        largest = maximum(largest, fold_max(y, 0, KEEP, CHANNELS_LAST))
    # Interleaved, so that one store fills whole sectors.
    pool = tl.join(tl.sum(total, 0) / C, reduce_max(largest, 0))
    pool_ptrs = pool_ptr + 2 * (RADIUS * W + p)[:, None] + tl.arange(0, 2)[None, :]
    tl.store(pool_ptrs, pool, mask=inside_p[:, None])
    if tile == 0:
        border = 2 * RADIUS * W
        for i0 in range(0, border, BLOCK_P):
            i = i0 + tl.arange(0, BLOCK_P)
            zeros = tl.zeros([BLOCK_P], ACC)
            tl.store(pool_ptr + i, zeros, mask=i < border)
            tl.store(pool_ptr + 2 * P + border + i, zeros, mask=i < border)
