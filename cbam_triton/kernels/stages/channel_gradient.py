"""Channel gradient: from the gradient of x g s to that of the channel gate, and to the MLP's hidden layer."""

import triton
import triton.language as tl

from .addressing import known_multiple, pointers
from .channel_pool import pool_grid
from .gate_function import through_gate
from .reductions import fold_sum, rounded_product
from .signals import publish


@triton.jit
def channel_gradient_tile(
    x, d,  # one sample; d is the gradient of x g s
    fc2_weight_ptr,  # C R, or None for an MLP of one layer
    saved, scratch,  # gate, spatial_argmax; s, dmaps, partial, dq
    partial_done_ptr, dh_ptr,  # one sample: BLOCKS counters; BLOCKS R
    n, tile, size, TILES, LAYOUT, FORM,
):  # fmt: skip
    """dq[c] = g (1 - g) sum_p x (d s + E), and this block's share of dh = dq W1, which with one layer is dq.

    One program owns POOL_C channels of one chunk of pixels, as in the channel pool. The last chunk of a block to finish
    goes on. Returns whether this was the last.
    """
    blocks, chunks, chunk = pool_grid(size.C, size.P, TILES.POOL_C, TILES.POOL_P, TILES.POOL_SPLIT)
    block = tile // chunks
    lane = tl.arange(0, TILES.POOL_C)
    c = block * TILES.POOL_C + lane
    if fc2_weight_ptr is not None:
        weight = _second_layer(fc2_weight_ptr, c, 0, size, TILES)  # arrives while x is read
    total = _summed_pixels(x, d, saved, scratch, n, c, tile % chunks * chunk, chunk, size, TILES, LAYOUT, FORM)
    finished = True
    if chunks > 1:
        partial_ptr = scratch.partial + n * (blocks * chunks * TILES.POOL_C) + block * chunks * TILES.POOL_C
        tl.store(partial_ptr + tile % chunks * TILES.POOL_C + lane, total)
        finished = publish(partial_done_ptr + block) == chunks - 1
        if finished:
            total = tl.zeros([TILES.POOL_C], FORM.ACC)
            for i in range(chunks):
                total += tl.load(partial_ptr + i * TILES.POOL_C + lane)
    if finished:
        inside_c = c < size.C
        g = tl.load(saved.gate + n * size.C + c, mask=inside_c, other=0.0)
        dq = tl.where(inside_c, through_gate(total, g, FORM.HARD), 0.0)
        tl.store(scratch.dq + n * size.C + c, dq, mask=inside_c)
        if fc2_weight_ptr is not None:
            dh_ptr += block * size.R
            for r0 in range(0, size.R, TILES.POOL_R):
                r = r0 + tl.arange(0, TILES.POOL_R)
                following = _second_layer(fc2_weight_ptr, c, r0 + TILES.POOL_R, size, TILES)
                share = tl.sum(rounded_product(weight.to(FORM.ACC), dq[:, None]), 0)
                tl.store(dh_ptr + r, share, mask=r < size.R)
                weight = following
    return finished


@triton.jit
def _second_layer(fc2_weight_ptr, c, r_begin, size, TILES):
    """The weights of channels c for POOL_R hidden units; 0 outside."""
    r = r_begin + tl.arange(0, TILES.POOL_R)
    inside = (c < size.C)[:, None] & (r < size.R)[None, :]
    return tl.load(fc2_weight_ptr + (c[:, None] * size.R + r[None, :]), mask=inside, other=0.0)


@triton.jit
def _summed_pixels(x, d, saved, scratch, n, c, p_begin, chunk, size, TILES, LAYOUT, FORM):
    """The gradient of the channel gate over `chunk` pixels from p_begin."""
    BLOCK: tl.constexpr = TILES.POOL_P
    UNIT: tl.constexpr = not LAYOUT.CHANNELS_LAST
    length = tl.minimum(p_begin + chunk, size.P) - p_begin
    p = p_begin + tl.arange(0, BLOCK)
    inside_c = (c < size.C)[:, None]
    x_ptrs = pointers(x, c, p, LAYOUT)
    d_ptrs = pointers(d, c, p, LAYOUT)
    totals = tl.zeros([TILES.POOL_C, TILES.POOL_KEEP], FORM.ACC)
    for p0 in range(0, length - BLOCK + 1, BLOCK):
        values = tl.load(x_ptrs, mask=inside_c)
        x_ptrs += BLOCK * x.stride_p
        gradient = tl.load(d_ptrs, mask=inside_c)
        d_ptrs += BLOCK * d.stride_p
        product = _gate_share(values, gradient, saved, scratch, n, c, p0 + p, None, size, FORM)
        totals += fold_sum(product, 1, TILES.POOL_KEEP, UNIT)
    rest = known_multiple(length % BLOCK, 1 if LAYOUT.CHANNELS_LAST else LAYOUT.VEC)
    if rest > 0:
        inside_p = tl.arange(0, BLOCK) < rest
        inside = inside_c & inside_p[None, :]
        values = tl.load(x_ptrs, mask=inside, other=0.0)
        gradient = tl.load(d_ptrs, mask=inside, other=0.0)
        p += length - rest
        product = _gate_share(values, gradient, saved, scratch, n, c, p, inside_p, size, FORM)
        totals += fold_sum(tl.where(inside, product, 0.0), 1, TILES.POOL_KEEP, UNIT)
    return tl.sum(totals, 1)


@triton.jit
def _gate_share(x, d, saved, scratch, n, c, p, inside_p, size, FORM):
    """x (d s + E): summed over p, the gradient of the channel gate. E is there if that gate is first."""
    d = d.to(FORM.ACC)
    if scratch.s is not None:
        d = d * tl.load(scratch.s + n * size.P + p, mask=inside_p)[None, :]
        if FORM.ARRANGEMENT == "channel_first":
            dmaps_ptr = scratch.dmaps + n * (2 * size.P)
            e = tl.load(dmaps_ptr + p, mask=inside_p)[None, :]
            if saved.spatial_argmax is not None:
                high = tl.load(dmaps_ptr + size.P + p, mask=inside_p)
                peak = tl.load(saved.spatial_argmax + n * size.P + p, mask=inside_p).to(tl.int32)
                e = tl.where(c[:, None] == peak[None, :], high[None, :], e)
            d += e
    return rounded_product(x.to(FORM.ACC), d)
