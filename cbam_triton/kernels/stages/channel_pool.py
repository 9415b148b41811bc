"""Channel pool: the descriptors of each channel over all pixels, and their share of the MLP's hidden layer."""

import triton
import triton.language as tl

from .addressing import known_multiple, pointers
from .descriptors import MAXIMUM, combined, descriptors_of, no_pools, reduced, store_pools, with_tile
from .reductions import fold_order, rounded_product
from .signals import publish


@triton.jit
def pool_grid(C, P, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, SPLIT_P: tl.constexpr):
    """(blocks, chunks, chunk): channel blocks, pixel chunks, pixels of a chunk (about SPLIT_P, in whole BLOCK_P).

    The host calls it, too: as `pool_grid.fn`, on Python's integers.
    """
    chunks = (P + SPLIT_P - 1) // SPLIT_P
    chunk = ((P + chunks - 1) // chunks + BLOCK_P - 1) // BLOCK_P * BLOCK_P
    return (C + BLOCK_C - 1) // BLOCK_C, (P + chunk - 1) // chunk, chunk


@triton.jit
def channel_pool_tile(
    x,  # one sample
    s_ptr,  # N P, or None; x s takes the place of x
    fc1_weight_ptr,  # R C
    partial_ptr, partial_done_ptr,  # N BLOCKS CHUNKS SLOTS+1 POOL_C, scratch; one sample: BLOCKS counters
    hidden_ptr,  # one sample: BLOCKS SLOTS R
    saved, n, tile, size, TILES, LAYOUT, FORM,
):  # fmt: skip
    """The descriptors of channels over all pixels, and hidden = W0 times each, summed over this block of channels.

    Descriptors that CHANNEL_POOLS leaves out are neither computed nor stored. For a backward to come, the descriptors
    are saved, and with them the first pixel that has the maximum: the loop notes for each running maximum only the
    block of pixels that it is from; the pixel is looked up at the end.
    One program owns POOL_C channels of one chunk of pixels. The last chunk of a block to finish goes on to the hidden
    layer. Returns whether this was the last.
    """
    TRACK: tl.constexpr = MAXIMUM & FORM.CHANNEL_POOLS != 0 and saved.channel_argmax is not None
    blocks, chunks, chunk = pool_grid(size.C, size.P, TILES.POOL_C, TILES.POOL_P, TILES.POOL_SPLIT)
    block = tile // chunks
    if s_ptr is not None:
        s_ptr += n * size.P
    c = block * TILES.POOL_C + tl.arange(0, TILES.POOL_C)
    weight = _first_layer(fc1_weight_ptr, 0, c, size, TILES)  # arrives while x is read
    pools = _pooled_chunk(x, s_ptr, c, tile % chunks * chunk, chunk, size, TRACK, TILES, LAYOUT, FORM)
    finished = True
    if chunks > 1:
        parts = (FORM.SLOTS + 1) * TILES.POOL_C
        partial_ptr += n * (blocks * chunks * parts) + block * chunks * parts
        store_pools(partial_ptr + tile % chunks * parts, pools, TRACK, TILES, FORM)
        finished = publish(partial_done_ptr + block) == chunks - 1
        if finished:
            pools = combined(partial_ptr, chunks, TRACK, TILES, FORM)
    if finished:
        if TRACK:
            first = _first_pixel(x, s_ptr, pools.largest, pools.start, c, size, TILES, LAYOUT, FORM)
            argmax_ptrs = saved.channel_argmax + n * size.C + c
            tl.store(argmax_ptrs, first.to(saved.channel_argmax.dtype.element_ty), mask=c < size.C)
        hidden_ptr += block * (FORM.SLOTS * size.R)
        _hidden_share(pools, saved.descriptors, weight, fc1_weight_ptr, hidden_ptr, n, c, size, TILES, FORM)
    return finished


@triton.jit
def _pooled_chunk(x, s_ptr, c, p_begin, chunk, size, TRACK: tl.constexpr, TILES, LAYOUT, FORM):
    """The pools of channels c over `chunk` pixels from p_begin."""
    UNIT: tl.constexpr = not LAYOUT.CHANNELS_LAST
    p_end = tl.minimum(p_begin + chunk, size.P)
    p = fold_order(TILES.POOL_P, TILES.POOL_KEEP, UNIT) if TRACK else tl.arange(0, TILES.POOL_P)
    inside_c = c < size.C
    x_ptrs = pointers(x, c, p_begin + p, LAYOUT)
    pools = no_pools(p_begin, TRACK, TILES, FORM)
    for p0 in tl.range(p_begin, p_end - TILES.POOL_P + 1, TILES.POOL_P, num_stages=TILES.POOL_DEPTH):
        values = tl.load(x_ptrs, mask=inside_c[:, None]).to(FORM.ACC)
        x_ptrs += TILES.POOL_P * x.stride_p
        if s_ptr is not None:
            values = rounded_product(values, tl.load(s_ptr + p0 + p)[None, :])
        pools = with_tile(pools, values, None, p0, TRACK, TILES, LAYOUT, FORM)
    rest = known_multiple((p_end - p_begin) % TILES.POOL_P, 1 if LAYOUT.CHANNELS_LAST else LAYOUT.VEC)
    if rest > 0:
        inside_p = (p < rest)[None, :]
        values = tl.load(x_ptrs, mask=inside_c[:, None] & inside_p, other=0.0).to(FORM.ACC)
        if s_ptr is not None:
            s = tl.load(s_ptr + (p_end - rest) + p, mask=p < rest, other=0.0)
            values = rounded_product(values, s[None, :])
        pools = with_tile(pools, values, inside_p, p_end - rest, TRACK, TILES, LAYOUT, FORM)
    return reduced(pools, TRACK, TILES, size, FORM)


@triton.jit
def _first_layer(fc1_weight_ptr, r_begin, c, size, TILES):
    """The weights of POOL_R hidden units for channels c; 0 outside."""
    r = r_begin + tl.arange(0, TILES.POOL_R)
    inside = (r < size.R)[:, None] & (c < size.C)[None, :]
    return tl.load(fc1_weight_ptr + (r[:, None] * size.C + c[None, :]), mask=inside, other=0.0)


@triton.jit
def _hidden_share(pools, descriptors_ptr, weight, fc1_weight_ptr, hidden_ptr, n, c, size, TILES, FORM):
    """The descriptors of channels c, saved where there is a place, and their share of the hidden layer.

    `weight` is that of the first POOL_R hidden units; the next is loaded while one is used.
    """
    C, R = size.C, size.R
    inside_c = c < C
    descriptors = descriptors_of(pools, inside_c, size, FORM)
    if descriptors_ptr is not None:
        for SLOT in tl.static_range(FORM.SLOTS):
            if FORM.CHANNEL_POOLS >> SLOT & 1:
                tl.store(descriptors_ptr + n * (FORM.SLOTS * C) + SLOT * C + c, descriptors[SLOT], mask=inside_c)
    for r0 in range(0, R, TILES.POOL_R):
        r = r0 + tl.arange(0, TILES.POOL_R)
        following = _first_layer(fc1_weight_ptr, r0 + TILES.POOL_R, c, size, TILES)
        values = weight.to(FORM.ACC)
        for SLOT in tl.static_range(FORM.SLOTS):
            if FORM.CHANNEL_POOLS >> SLOT & 1:
                share = tl.sum(rounded_product(values, descriptors[SLOT][None, :]), 1)
                tl.store(hidden_ptr + SLOT * R + r, share, mask=r < R)
        weight = following


@triton.jit
def _first_pixel(x, s_ptr, largest, start, c, size, TILES, LAYOUT, FORM):
    """The first pixel of the group from `start` at which x, or x s, is `largest`; any pixel where that is NaN."""
    GROUP: tl.constexpr = TILES.POOL_P // TILES.POOL_KEEP
    p = tl.where(start < size.P, start, 0)[:, None] + tl.arange(0, GROUP)[None, :]
    inside = (c < size.C)[:, None] & (p < size.P)
    x_ptrs = x.ptr + (c.to(LAYOUT.INDEX)[:, None] * x.stride_c + p.to(LAYOUT.INDEX) * x.stride_p)
    values = tl.load(x_ptrs, mask=inside, other=float("-inf")).to(FORM.ACC)
    if s_ptr is not None:
        values = rounded_product(values, tl.load(s_ptr + p, mask=p < size.P, other=1.0))
    return tl.min(tl.where((values == largest[:, None]) & inside, p, size.P - 1), 1)
