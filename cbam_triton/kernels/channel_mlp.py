"""Channel MLP: the rest of the shared MLP, from partial hidden vectors to the channel gate."""

import triton
import triton.language as tl

from .channel_pool import pool_count, pool_slots
from .tiles import AVERAGE, HALF, LOGSUMEXP, MAXIMUM, NORM, gate_of, rounded_product


@triton.jit
def _hidden_vector(
    hidden_ptr,  # one sample: BLOCKS POOLS R, from the first of the two
    fc1_bias_ptr, preactivation_ptr,  # R or None; one sample: from the first of the two, or None
    keep, R, BLOCKS, POOLS,
    RELU: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, HALVED: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """relu(za) + relu(zm), or za + zm, of two neighbouring descriptors, of which one may not be there."""
    r = tl.arange(0, BLOCK_R)
    inside_r = r < R
    za = tl.zeros([BLOCK_R], ACC)
    zm = tl.zeros([BLOCK_R], ACC)
    for t0 in range(0, BLOCKS, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        hidden_ptrs = hidden_ptr + (t[:, None] * (POOLS * R) + r[None, :])
        inside = (t < BLOCKS)[:, None] & inside_r[None, :]
        if FIRST:
            za += tl.sum(tl.load(hidden_ptrs, mask=inside, other=0.0), 0)
        if SECOND:
            zm += tl.sum(tl.load(hidden_ptrs + R, mask=inside, other=0.0), 0)
    if HALVED:
        za = 0.5 * za + 0.5 * zm
    if fc1_bias_ptr is not None:
        bias = tl.load(fc1_bias_ptr + r, mask=inside_r, other=0.0).to(ACC)
        if FIRST:
            za += bias
        if SECOND and not HALVED:
            zm += bias
    if preactivation_ptr is not None:
        if keep:
            if FIRST:
                tl.store(preactivation_ptr + r, za, mask=inside_r)
            if SECOND and not HALVED:
                tl.store(preactivation_ptr + R + r, zm, mask=inside_r)
    if RELU:
        # Not tl.maximum(za, 0.): a NaN must stay.
        za = tl.where(za < 0, 0.0, za)
        zm = tl.where(zm < 0, 0.0, zm)
    if SECOND and not HALVED:
        za += zm
    return za


@triton.jit
def channel_mlp_tile(
    hidden_ptr,  # one sample: BLOCKS POOLS R
    fc1_bias_ptr,  # R or None
    fc2_weight_ptr,  # C R, or None for an MLP of one layer, then R = C
    fc2_bias_ptr,  # C or None
    gate_ptr,  # one sample: C
    preactivation_ptr,  # one sample: POOLS R, or None
    c_begin, c_end, C, R, BLOCKS,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, ACC: tl.constexpr,
    CHANNEL_POOLS: tl.constexpr, HARD: tl.constexpr,
):  # fmt: skip
    """g[c] = gate(W1 (relu(za) + relu(zm)) + 2 b1) for c in [c_begin, c_end).

    One program owns these channels of one sample. The partial sums are added in a fixed order; for a backward to come
    za and zm are kept in `preactivation`. Each descriptor has its z, and b1 counts as often; with HALF there is one z,
    of the half of both pools' sum. With one layer g = gate(za + zm).
    """
    AVG: tl.constexpr = AVERAGE & CHANNEL_POOLS != 0
    MAX: tl.constexpr = MAXIMUM & CHANNEL_POOLS != 0
    LP: tl.constexpr = NORM & CHANNEL_POOLS != 0
    LSE: tl.constexpr = LOGSUMEXP & CHANNEL_POOLS != 0
    HALVED: tl.constexpr = HALF & CHANNEL_POOLS != 0
    RELU: tl.constexpr = fc2_weight_ptr is not None
    POOLS = pool_slots(CHANNEL_POOLS)
    keep = c_begin == 0
    h = _hidden_vector(
        hidden_ptr, fc1_bias_ptr, preactivation_ptr, keep, R, BLOCKS, POOLS,
        RELU, AVG, MAX, HALVED, BLOCK_T, BLOCK_R, ACC,
    )  # fmt: skip
    if LP or LSE:
        if preactivation_ptr is not None:
            preactivation_ptr += 2 * R
        h += _hidden_vector(
            hidden_ptr + 2 * R, fc1_bias_ptr, preactivation_ptr, keep, R, BLOCKS, POOLS,
            RELU, LP, LSE, False, BLOCK_T, BLOCK_R, ACC,
        )  # fmt: skip
    r = tl.arange(0, BLOCK_R)
    if fc2_weight_ptr is None:
        tl.store(gate_ptr + r, gate_of(h, HARD), mask=(r >= c_begin) & (r < c_end))
    else:
        for c0 in range(c_begin, c_end, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            inside_c = c < c_end
            inside = inside_c[:, None] & (r < R)[None, :]
            weight = tl.load(fc2_weight_ptr + (c[:, None] * R + r[None, :]), mask=inside, other=0.0).to(ACC)
            q = tl.sum(rounded_product(weight, h[None, :]), 1)
            if fc2_bias_ptr is not None:
                q += pool_count(CHANNEL_POOLS) * tl.load(fc2_bias_ptr + c, mask=inside_c, other=0.0).to(ACC)
            tl.store(gate_ptr + c, gate_of(q, HARD), mask=inside_c)
