"""Weight gradients: what the samples and tiles of a backward left, added in a fixed order."""

import triton
import triton.language as tl

from ..stages.addressing import known_multiple
from ..stages.reductions import rounded_product
from ..stages.signals import follow
from .specialisation import UNSPECIALISED


@triton.jit(do_not_specialize=UNSPECIALISED)
def weight_gradients_kernel(
    saved, scratch,  # descriptors; dq, hidden, SHARES times share
    gradients,  # fc1_weight, fc1_bias, fc2_weight, fc2_bias, conv_weight, conv_bias: as the parameters, each or None
    N, C, R, SHARES,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, FORM: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """dW1 = dq' h, db1 = 2 sum dq, dW0 = sum dz' pool, db0 = sum dz over descriptors and samples, (dw, db) over shares.

    A program owns BLOCK_C x BLOCK_R weights of both layers; those that come after own BLOCK_C taps of the convolution.
    """
    follow(CHAINED)
    MLP: tl.constexpr = (
        gradients.fc1_weight is not None or gradients.fc1_bias is not None
        or gradients.fc2_weight is not None or gradients.fc2_bias is not None
    )  # fmt: skip
    CONV: tl.constexpr = gradients.conv_weight is not None or gradients.conv_bias is not None
    C = known_multiple(C, FORM.C_MULTIPLE)
    R = known_multiple(R, FORM.R_MULTIPLE)
    program = tl.program_id(0)
    c_blocks = tl.cdiv(C, BLOCK_C) if MLP else 0
    taps_begin = c_blocks * tl.cdiv(R, BLOCK_R) if MLP else 0
    if MLP:
        if program < taps_begin:
            _mlp_weights(
                saved, scratch, gradients, program % c_blocks, program // c_blocks, N, C, R,
                BLOCK_N, BLOCK_C, BLOCK_R, FORM,
            )  # fmt: skip
    if CONV:
        if program >= taps_begin:
            tap = (program - taps_begin) * BLOCK_C + tl.arange(0, BLOCK_C)
            _conv_weights(scratch.share, gradients, tap, SHARES, 4 * BLOCK_N, FORM)


@triton.jit
def _conv_weights(share_ptr, gradients, tap, SHARES, BLOCK: tl.constexpr, FORM):
    """The gradients of some taps; that past the last is the bias's."""
    ROW: tl.constexpr = FORM.TAP_ROWS * FORM.K
    TAPS: tl.constexpr = FORM.MAPS * ROW
    second = (tap >= ROW).to(tl.int32)  # of two maps
    row = (tap - second * ROW) // FORM.K
    column = tap - second * ROW - row * FORM.K
    place = row * (FORM.MAPS * FORM.BLOCK_K) + second * FORM.BLOCK_K + column
    place = tl.where(tap < TAPS, place, FORM.MAPS * FORM.TAP_ROWS * FORM.BLOCK_K)
    total = tl.zeros([tap.shape[0]], FORM.ACC)
    for i0 in range(0, SHARES, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        inside = (i < SHARES)[:, None] & (tap <= TAPS)[None, :]
        ptrs = share_ptr + (i[:, None].to(tl.int64) * FORM.SHARE + place[None, :])
        total += tl.sum(tl.load(ptrs, mask=inside, other=0.0), 0)
    if gradients.conv_weight is not None:
        dtype = gradients.conv_weight.dtype.element_ty
        tl.store(gradients.conv_weight + tap, total.to(dtype), mask=tap < TAPS)
    if gradients.conv_bias is not None:
        tl.store(gradients.conv_bias + tap - TAPS, total.to(gradients.conv_bias.dtype.element_ty), mask=tap == TAPS)


@triton.jit
def _mlp_weights(
    saved, scratch, gradients, c_block, r_block, N, C, R,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, FORM,
):  # fmt: skip
    """A tile of the weights of both layers, and the first tiles of a row or column its biases."""
    FIRST: tl.constexpr = gradients.fc1_weight is not None or gradients.fc1_bias is not None
    SECOND: tl.constexpr = gradients.fc2_weight is not None or gradients.fc2_bias is not None
    c = c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    r = r_block * BLOCK_R + tl.arange(0, BLOCK_R)
    dfc1 = tl.zeros([BLOCK_R, BLOCK_C], FORM.ACC)
    dfc2 = tl.zeros([BLOCK_C, BLOCK_R], FORM.ACC)
    dq_total = tl.zeros([BLOCK_C], FORM.ACC)
    dz_total = tl.zeros([BLOCK_R], FORM.ACC)
    for n0 in range(0, N, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        inside_c = (n < N)[:, None] & (c < C)[None, :]
        inside_r = (n < N)[:, None] & (r < R)[None, :]
        n = n.to(tl.int64)
        hidden_ptrs = scratch.hidden + (n[:, None] * ((FORM.SLOTS + 1) * R) + r[None, :])
        if SECOND:
            dq = tl.load(scratch.dq + (n[:, None] * C + c[None, :]), mask=inside_c, other=0.0)
            h = tl.load(hidden_ptrs + FORM.SLOTS * R, mask=inside_r, other=0.0)
            dfc2 += _over_samples(dq, h)
            dq_total += tl.sum(dq, 0)
        if FIRST:
            descriptors_ptrs = saved.descriptors + (n[:, None] * (FORM.SLOTS * C) + c[None, :])
            for slot in tl.static_range(FORM.SLOTS):
                if FORM.CHANNEL_POOLS >> slot & 1:
                    pool = tl.load(descriptors_ptrs + slot * C, mask=inside_c, other=0.0)
                    dz = tl.load(hidden_ptrs + slot * R, mask=inside_r, other=0.0)
                    dfc1 += _over_samples(dz, pool)
                    dz_total += tl.sum(dz, 0)
    inside_c = c < C
    inside_r = r < R
    if gradients.fc1_weight is not None:
        ptrs = gradients.fc1_weight + (r[:, None] * C + c[None, :])
        tl.store(ptrs, dfc1.to(gradients.fc1_weight.dtype.element_ty), mask=inside_r[:, None] & inside_c[None, :])
    if gradients.fc2_weight is not None:
        ptrs = gradients.fc2_weight + (c[:, None] * R + r[None, :])
        tl.store(ptrs, dfc2.to(gradients.fc2_weight.dtype.element_ty), mask=inside_c[:, None] & inside_r[None, :])
    if gradients.fc1_bias is not None:
        if c_block == 0:
            tl.store(gradients.fc1_bias + r, dz_total.to(gradients.fc1_bias.dtype.element_ty), mask=inside_r)
    if gradients.fc2_bias is not None:
        if r_block == 0:
            dq_total *= FORM.BIASES
            tl.store(gradients.fc2_bias + c, dq_total.to(gradients.fc2_bias.dtype.element_ty), mask=inside_c)


@triton.jit
def _over_samples(a, b):
    """a' b for a (n, i) and b (n, j), in the accumulator's own precision."""
    if a.dtype == tl.float64:  # which not every GPU multiplies as matrices
        return tl.sum(rounded_product(a[:, :, None], b[:, None, :]), 0)
    else:
        return tl.dot(tl.trans(a), b, input_precision="ieee")
