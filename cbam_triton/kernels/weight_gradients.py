"""Weight gradients: what the samples and tiles of a backward left, added in a fixed order."""

import triton
import triton.language as tl

from .channel_pool import pool_count, pool_slots
from .spatial_gate import share_size
from .tiles import rounded_product


@triton.jit(do_not_specialize=["N", "C", "R", "SHARES"])
def weight_gradients_kernel(
    dq_ptr, hidden_ptr, pools_ptr,  # N C, N POOLS+1 R (dza, dzm, ..., h), N POOLS C; None without channel attention
    share_ptr,  # SHARES share_size, or None
    dfc1_weight_ptr, dfc1_bias_ptr, dfc2_weight_ptr, dfc2_bias_ptr,  # R C, R, C R, C; each or None
    dconv_weight_ptr, dconv_bias_ptr,  # M K^DIMS, 1; each or None
    N, C, R, SHARES,
    K: tl.constexpr, DIMS: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
    CHANNEL_POOLS: tl.constexpr, SPATIAL_POOLS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """dW1 = dq' h, db1 = 2 sum dq, dW0 = sum dz' pool, db0 = sum dz over descriptors and samples, (dw, db) over shares.

    A program owns BLOCK_C x BLOCK_R weights of both layers; those that come after own BLOCK_C taps of the convolution.
    """
    c_blocks = tl.cdiv(C, BLOCK_C) if dq_ptr is not None else 0
    program = tl.program_id(0)
    taps_begin = c_blocks * tl.cdiv(R, BLOCK_R) if dq_ptr is not None else 0
    if dq_ptr is not None:
        if program < taps_begin:
            _mlp_weights(
                dq_ptr, hidden_ptr, pools_ptr, dfc1_weight_ptr, dfc1_bias_ptr, dfc2_weight_ptr, dfc2_bias_ptr,
                program % c_blocks, program // c_blocks, N, C, R, BLOCK_N, BLOCK_C, BLOCK_R, ACC, CHANNEL_POOLS,
            )  # fmt: skip
    if share_ptr is not None:
        if program >= taps_begin:
            tap = (program - taps_begin) * BLOCK_C + tl.arange(0, BLOCK_C)
            M: tl.constexpr = 2 if SPATIAL_POOLS == "mean+max" else 1
            ROWS: tl.constexpr = 1 if DIMS == 1 else K if DIMS == 2 else K * K
            taps: tl.constexpr = M * ROWS * K
            row = tap % (ROWS * K) // K
            place = row * (M * BLOCK_K) + tap // (ROWS * K) * BLOCK_K + tap % K
            place = tl.where(tap < taps, place, M * ROWS * BLOCK_K)
            total = tl.zeros([BLOCK_C], ACC)
            for i0 in range(0, SHARES, BLOCK_N):
                i = i0 + tl.arange(0, BLOCK_N)
                inside = (i < SHARES)[:, None] & (tap <= taps)[None, :]
                ptrs = share_ptr + (
                    i[:, None].to(tl.int64) * share_size(K, DIMS, BLOCK_K, SPATIAL_POOLS) + place[None, :]
                )
                total += tl.sum(tl.load(ptrs, mask=inside, other=0.0), 0)
            if dconv_weight_ptr is not None:
                tl.store(dconv_weight_ptr + tap, total.to(dconv_weight_ptr.dtype.element_ty), mask=tap < taps)
            if dconv_bias_ptr is not None:
                tl.store(dconv_bias_ptr + tap - taps, total.to(dconv_bias_ptr.dtype.element_ty), mask=tap == taps)


@triton.jit
def _mlp_weights(
    dq_ptr, hidden_ptr, pools_ptr, dfc1_weight_ptr, dfc1_bias_ptr, dfc2_weight_ptr, dfc2_bias_ptr,
    c_block, r_block, N, C, R,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, ACC: tl.constexpr,
    CHANNEL_POOLS: tl.constexpr,
):  # fmt: skip
    POOLS = pool_slots(CHANNEL_POOLS)
    c = c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    r = r_block * BLOCK_R + tl.arange(0, BLOCK_R)
    dfc1 = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    dfc2 = tl.zeros([BLOCK_C, BLOCK_R], ACC)
    dq_total = tl.zeros([BLOCK_C], ACC)
    dz_total = tl.zeros([BLOCK_R], ACC)
    for n0 in range(0, N, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        inside_c = (n < N)[:, None] & (c < C)[None, :]
        inside_r = (n < N)[:, None] & (r < R)[None, :]
        hidden_ptrs = hidden_ptr + (n[:, None] * ((POOLS + 1) * R) + r[None, :])
        if dfc2_weight_ptr is not None or dfc2_bias_ptr is not None:
            dq = tl.load(dq_ptr + (n[:, None] * C + c[None, :]), mask=inside_c, other=0.0)
            h = tl.load(hidden_ptrs + POOLS * R, mask=inside_r, other=0.0)
            dfc2 += tl.sum(rounded_product(dq[:, :, None], h[:, None, :]), 0)
            dq_total += tl.sum(dq, 0)
        if dfc1_weight_ptr is not None or dfc1_bias_ptr is not None:
            pools_ptrs = pools_ptr + (n[:, None] * (POOLS * C) + c[None, :])
            for slot in tl.static_range(4):
                if CHANNEL_POOLS >> slot & 1:
                    pool = tl.load(pools_ptrs + slot * C, mask=inside_c, other=0.0)
                    dz = tl.load(hidden_ptrs + slot * R, mask=inside_r, other=0.0)
                    dfc1 += tl.sum(rounded_product(dz[:, :, None], pool[:, None, :]), 0)
                    dz_total += tl.sum(dz, 0)
    inside_c = c < C
    inside_r = r < R
    if dfc1_weight_ptr is not None:
        ptrs = dfc1_weight_ptr + (r[:, None] * C + c[None, :])
        tl.store(ptrs, dfc1.to(dfc1_weight_ptr.dtype.element_ty), mask=inside_r[:, None] & inside_c[None, :])
    if dfc2_weight_ptr is not None:
        ptrs = dfc2_weight_ptr + (c[:, None] * R + r[None, :])
        tl.store(ptrs, dfc2.to(dfc2_weight_ptr.dtype.element_ty), mask=inside_c[:, None] & inside_r[None, :])
    if dfc1_bias_ptr is not None:
        if c_block == 0:
            tl.store(dfc1_bias_ptr + r, dz_total.to(dfc1_bias_ptr.dtype.element_ty), mask=inside_r)
    if dfc2_bias_ptr is not None:
        if r_block == 0:
            dq_total *= pool_count(CHANNEL_POOLS)
            tl.store(dfc2_bias_ptr + c, dq_total.to(dfc2_bias_ptr.dtype.element_ty), mask=inside_c)
