"""Channel gradient: from the gradient of x g s to those of the channel gate, the MLP's vectors and the descriptors."""

import triton
import triton.language as tl

from .channel_pool import pool_slots
from .signals import publish
from .tiles import AVERAGE, HALF, LOGSUMEXP, MAXIMUM, NORM, fold_sum, gate_slope, known_multiple, rounded_product


@triton.jit
def _gate_gradient(
    x, d, s_ptr, dmaps_ptr, argmax_ptr, c, p, inside_p, P, ACC: tl.constexpr, ARRANGEMENT: tl.constexpr,
):  # fmt: skip
    """x (d s + E): summed over the pixels the gradient of the channel gate. E is there if that gate is first."""
    d = d.to(ACC)
    if s_ptr is not None:
        d = d * tl.load(s_ptr + p, mask=inside_p)[None, :]
        if ARRANGEMENT == "channel_first":
            e = tl.load(dmaps_ptr + p, mask=inside_p)[None, :]
            if argmax_ptr is not None:
                high = tl.load(dmaps_ptr + P + p, mask=inside_p)
                at = tl.load(argmax_ptr + p, mask=inside_p).to(tl.int32)
                e = tl.where(c[:, None] == at[None, :], high[None, :], e)
            d += e
    return x.to(ACC) * d


@triton.jit
def channel_gradient_tile(
    x_ptr, d_ptr,  # one sample: C P; d is the gradient of x * g * s
    s_ptr, dmaps_ptr, argmax_ptr,  # one sample: P, 2 P, P; None without spatial attention, the last also without a max
    gate_ptr,  # one sample: C
    fc2_weight_ptr,  # C R, or None for an MLP of one layer
    partial_ptr,  # one sample: BLOCKS CHUNKS BLOCK_C, scratch
    partial_done_ptr,  # one sample: BLOCKS, counters
    dq_ptr,  # one sample: C
    dh_ptr,  # one sample: BLOCKS R
    tile, chunks, chunk, C, P, R,
    x_stride_c, x_stride_p, d_stride_c, d_stride_p,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, KEEP: tl.constexpr, VEC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr, HARD: tl.constexpr,
    ARRANGEMENT: tl.constexpr,
):  # fmt: skip
    """dq[c] = g (1 - g) sum_p x (d s + E), and this block's share of dh = dq W1, which with one layer is dq.

    One program owns BLOCK_C channels of one chunk of pixels, as in the channel pool; the last of a block's chunks to
    finish goes on. Returns whether this was the last.
    """
    block = tile // chunks
    p_begin = tile % chunks * chunk
    p_end = tl.minimum(p_begin + chunk, P)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    p = p_begin + tl.arange(0, BLOCK_P)
    inside_c = c < C
    wide_c = c.to(INDEX)[:, None]
    wide_p = p.to(INDEX)[None, :]
    x_ptrs = x_ptr + (wide_c * x_stride_c + wide_p * x_stride_p)
    d_ptrs = d_ptr + (wide_c * d_stride_c + wide_p * d_stride_p)
    totals = tl.zeros([BLOCK_C, KEEP], ACC)
    for p0 in range(0, p_end - p_begin - BLOCK_P + 1, BLOCK_P):
        x = tl.load(x_ptrs, mask=inside_c[:, None])
        x_ptrs += BLOCK_P * x_stride_p
        d = tl.load(d_ptrs, mask=inside_c[:, None])
        d_ptrs += BLOCK_P * d_stride_p
        product = _gate_gradient(x, d, s_ptr, dmaps_ptr, argmax_ptr, c, p0 + p, None, P, ACC, ARRANGEMENT)
        totals += fold_sum(product, 1, KEEP, not CHANNELS_LAST)
    rest = known_multiple((p_end - p_begin) % BLOCK_P, 1 if CHANNELS_LAST else VEC)
    if rest > 0:
        inside_p = tl.arange(0, BLOCK_P) < rest
        inside = inside_c[:, None] & inside_p[None, :]
        x = tl.load(x_ptrs, mask=inside, other=0.0)
        d = tl.load(d_ptrs, mask=inside, other=0.0)
        p += p_end - p_begin - rest
        product = _gate_gradient(x, d, s_ptr, dmaps_ptr, argmax_ptr, c, p, inside_p, P, ACC, ARRANGEMENT)
        product = tl.where(inside, product, 0.0)
        totals += fold_sum(product, 1, KEEP, not CHANNELS_LAST)
    total = tl.sum(totals, 1)

    finished = True
    if chunks > 1:
        lane = tl.arange(0, BLOCK_C)
        partial_ptr += block * chunks * BLOCK_C
        tl.store(partial_ptr + tile % chunks * BLOCK_C + lane, total)
        finished = publish(partial_done_ptr + block) == chunks - 1
        if finished:
            total = tl.zeros([BLOCK_C], ACC)
            for i in range(chunks):
                total += tl.load(partial_ptr + i * BLOCK_C + lane)
    if finished:
        g = tl.load(gate_ptr + c, mask=inside_c, other=0.0)
        dq = tl.where(inside_c, rounded_product(total, gate_slope(g, HARD)), 0.0)
        tl.store(dq_ptr + c, dq, mask=inside_c)
        if fc2_weight_ptr is not None:
            dh_ptr += block * R
            for r0 in range(0, R, BLOCK_R):
                r = r0 + tl.arange(0, BLOCK_R)
                inside_w = inside_c[:, None] & (r < R)[None, :]
                weight = tl.load(fc2_weight_ptr + (c[:, None] * R + r[None, :]), mask=inside_w, other=0.0).to(ACC)
                tl.store(dh_ptr + r, tl.sum(rounded_product(weight, dq[:, None]), 0), mask=r < R)
    return finished


@triton.jit
def _hidden_gradient(
    dh, preactivation_ptr, hidden_ptr, keep, R,
    FIRST: tl.constexpr, SECOND: tl.constexpr, HALVED: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """(dza, dzm, h) of two neighbouring descriptors, pointers as in `_hidden_vector`; dza and dzm are stored too."""
    r = tl.arange(0, BLOCK_R)
    inside_r = r < R
    dza, dzm, h = dh, dh, dh
    if preactivation_ptr is not None:
        if FIRST:
            za = tl.load(preactivation_ptr + r, mask=inside_r, other=0.0)
            dza = tl.where(za <= 0, 0.0, dh)
            h = tl.where(za < 0, 0.0, za)
        if SECOND and not HALVED:
            zm = tl.load(preactivation_ptr + R + r, mask=inside_r, other=0.0)
            dzm = tl.where(zm <= 0, 0.0, dh)
            active = tl.where(zm < 0, 0.0, zm)
            h = h + active if FIRST else active
    if HALVED:
        dza *= 0.5
        dzm = dza
    if keep:
        if FIRST:
            tl.store(hidden_ptr + r, dza, mask=inside_r)
        if SECOND:
            tl.store(hidden_ptr + R + r, dzm, mask=inside_r)
    return dza, dzm, h


@triton.jit
def mlp_gradient_tile(
    dh_ptr,  # one sample: BLOCKS R
    preactivation_ptr,  # one sample: POOLS R; za and zm; None for an MLP of one layer
    pools_ptr,  # one sample: POOLS C; the descriptors
    fc1_weight_ptr,  # R C
    hidden_ptr,  # one sample: POOLS+1 R
    dpools_ptr,  # one sample: POOLS C
    c_begin, c_end, C, P, R, BLOCKS,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, ACC: tl.constexpr,
    CHANNEL_POOLS: tl.constexpr,
):  # fmt: skip
    """dpools = (da / P, dm, dlp / lp, dlse), what the descriptors hand to their pixels; hidden = (dza, dzm, ..., h).

    One program owns the channels in [c_begin, c_end) of one sample. The shares are added in a fixed order.
    """
    AVG: tl.constexpr = AVERAGE & CHANNEL_POOLS != 0
    MAX: tl.constexpr = MAXIMUM & CHANNEL_POOLS != 0
    LP: tl.constexpr = NORM & CHANNEL_POOLS != 0
    LSE: tl.constexpr = LOGSUMEXP & CHANNEL_POOLS != 0
    HALVED: tl.constexpr = HALF & CHANNEL_POOLS != 0
    r = tl.arange(0, BLOCK_R)
    inside_r = r < R
    dh = tl.zeros([BLOCK_R], ACC)
    for t0 in range(0, BLOCKS, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        inside = (t < BLOCKS)[:, None] & inside_r[None, :]
        dh += tl.sum(tl.load(dh_ptr + (t[:, None] * R + r[None, :]), mask=inside, other=0.0), 0)
    keep = c_begin == 0
    dza, dzm, h = _hidden_gradient(dh, preactivation_ptr, hidden_ptr, keep, R, AVG, MAX, HALVED, BLOCK_R)
    if LP or LSE:
        if preactivation_ptr is not None:
            preactivation_ptr += 2 * R
        dzl, dze, other = _hidden_gradient(dh, preactivation_ptr, hidden_ptr + 2 * R, keep, R, LP, LSE, False, BLOCK_R)
        h = h + other if AVG or MAX else other
    if keep:
        tl.store(hidden_ptr + pool_slots(CHANNEL_POOLS) * R + r, h, mask=inside_r)
    for c0 in range(c_begin, c_end, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        inside_c = c < c_end
        inside = inside_r[:, None] & inside_c[None, :]
        weight = tl.load(fc1_weight_ptr + (r[:, None] * C + c[None, :]), mask=inside, other=0.0).to(ACC)
        if AVG:
            tl.store(dpools_ptr + c, tl.sum(rounded_product(weight, dza[:, None]), 0) / P, mask=inside_c)
        if MAX:
            tl.store(dpools_ptr + C + c, tl.sum(rounded_product(weight, dzm[:, None]), 0), mask=inside_c)
        if LP:
            # Where the norm is 0 so is the subgradient that PyTorch takes.
            lp = tl.load(pools_ptr + 2 * C + c, mask=inside_c, other=0.0)
            lp = tl.where(lp == 0, float("inf"), lp)
            tl.store(dpools_ptr + 2 * C + c, tl.sum(rounded_product(weight, dzl[:, None]), 0) / lp, mask=inside_c)
        if LSE:
            tl.store(dpools_ptr + 3 * C + c, tl.sum(rounded_product(weight, dze[:, None]), 0), mask=inside_c)
