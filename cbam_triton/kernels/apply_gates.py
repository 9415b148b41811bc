"""Apply: y = act(x * g * s + residual), the only pass that writes; and back from dy to the logits."""

import triton
import triton.language as tl

from .input_gradient import through_channel_gate
from .maps import gradient_lead, gradient_size, past_zeros, zero_at
from .spatial_gate import normed
from .tiles import LOGSUMEXP, NORM, fold_sum, gate_of, gate_slope, known_multiple


@triton.jit
def apply_gates_tile(
    x_ptr, y_ptr,  # one sample: C P
    residual_ptr,  # one sample: C P, with y's strides, or None
    gate_ptr,  # one sample: C, or None for a gate of ones
    s,  # [BLOCK_P], or None for a gate of ones
    p, c_begin, c_end, P,
    x_stride_c, x_stride_p, y_stride_c, y_stride_p,
    RELU: tl.constexpr,
    BLOCK_C: tl.constexpr, VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y[c,p] = act(x[c,p] * g[c] * s[p] + residual[c,p]) for c in [c_begin, c_end) and a vector of pixels p.

    The last read of x and the writes of y leave L2 first: what it should keep is the x of samples to come.
    """
    c = c_begin + tl.arange(0, BLOCK_C)
    inside_p = (p < P)[None, :]
    x_ptrs = x_ptr + (c.to(INDEX)[:, None] * x_stride_c + p.to(INDEX)[None, :] * x_stride_p)
    y_offsets = c.to(INDEX)[:, None] * y_stride_c + p.to(INDEX)[None, :] * y_stride_p
    y_ptrs = y_ptr + y_offsets
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + y_offsets
    for c0 in range(c_begin, c_end - BLOCK_C + 1, BLOCK_C):
        y = tl.load(x_ptrs, mask=inside_p, eviction_policy="evict_first").to(ACC)
        if gate_ptr is not None:
            y *= tl.load(gate_ptr + (c0 - c_begin) + c)[:, None]
        if s is not None:
            y *= s[None, :]
        if residual_ptr is not None:
            y += tl.load(residual_ptrs, mask=inside_p, eviction_policy="evict_first").to(ACC)
            residual_ptrs += BLOCK_C * y_stride_c
        if RELU:
            y = tl.where(y < 0, 0.0, y)
        tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=inside_p, eviction_policy="evict_first")
        x_ptrs += BLOCK_C * x_stride_c
        y_ptrs += BLOCK_C * y_stride_c
    rest = known_multiple((c_end - c_begin) % BLOCK_C, VEC if CHANNELS_LAST else 1)
    if rest > 0:
        inside_c = tl.arange(0, BLOCK_C) < rest
        inside = inside_c[:, None] & inside_p
        y = tl.load(x_ptrs, mask=inside, eviction_policy="evict_first").to(ACC)
        if gate_ptr is not None:
            y *= tl.load(gate_ptr + (c_end - c_begin - rest) + c, mask=inside_c)[:, None]
        if s is not None:
            y *= s[None, :]
        if residual_ptr is not None:
            y += tl.load(residual_ptrs, mask=inside, eviction_policy="evict_first").to(ACC)
        if RELU:
            y = tl.where(y < 0, 0.0, y)
        tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=inside, eviction_policy="evict_first")


@triton.jit
def _gate_share(
    x, dr, s, gate_ptr, pools_ptr, dpools_ptr, argmax_ptr, c, inside_c, p, C, CHANNEL_POOLS: tl.constexpr,
):  # fmt: skip
    """x dr g, or with `dpools` x times what x s gets: summed over the channels the gradient of the spatial gate."""
    if dpools_ptr is not None:
        gated = x if s is None else x * s[None, :]
        return x * through_channel_gate(
            gated, dr, gate_ptr, pools_ptr, dpools_ptr, argmax_ptr, c, inside_c, p, C, CHANNEL_POOLS
        )
    elif gate_ptr is not None:
        return x * dr * tl.load(gate_ptr + c, mask=inside_c)[:, None]
    else:
        return x * dr


@triton.jit
def _gate_at(
    z_ptr, p, inside_p, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,
    NORM_EPS: tl.constexpr, ACC: tl.constexpr, HARD: tl.constexpr,
):  # fmt: skip
    """The spatial gate at pixels p, from the logits with a norm, else as it is."""
    s = tl.load(z_ptr + p, mask=inside_p, other=0.0)
    if norm_mean_ptr is not None:
        s = gate_of(normed(s, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, NORM_EPS, ACC), HARD)
    return s


@triton.jit
def logit_gradient_tile(
    x_ptr, dy_ptr,  # one sample: C P
    y_ptr, dr_ptr,  # one sample: C P with the same strides; None without ReLU
    gate_ptr,  # one sample: C, or None for a gate of ones
    pools_ptr, dpools_ptr, channel_argmax_ptr,  # one sample: POOLS C twice, C; with the spatial gate first, else None
    z_ptr,  # one sample: P; the logits with a norm, else the gate
    dz_ptr,  # one sample: gradient_size
    norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,  # 1 or None
    tile, C, P, W, plane,
    x_stride_c, x_stride_p, dy_stride_c, dy_stride_p, y_stride_c, y_stride_p,
    K: tl.constexpr, DIMS: tl.constexpr, NORM_EPS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, KEEP: tl.constexpr, VEC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    CHANNEL_POOLS: tl.constexpr, HARD: tl.constexpr,
):  # fmt: skip
    """dz[p] = s (1 - s) sum_c dr x g, the gradient of the normed logit; the zeros before and after it too.

    dr is dy where y > 0 and is stored, or is dy itself; with the spatial gate first what x s gets takes the place of
    dr g. One program owns BLOCK_P pixels and all channels of one sample.
    """
    RELU: tl.constexpr = y_ptr is not None
    GATED: tl.constexpr = dpools_ptr is not None and (NORM | LOGSUMEXP) & CHANNEL_POOLS != 0
    c = tl.arange(0, BLOCK_C)
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    inside_p = p < P
    wide_c = c.to(INDEX)[:, None]
    wide_p = p.to(INDEX)[None, :]
    x_ptrs = x_ptr + (wide_c * x_stride_c + wide_p * x_stride_p)
    dy_ptrs = dy_ptr + (wide_c * dy_stride_c + wide_p * dy_stride_p)
    if RELU:
        y_offsets = wide_c * y_stride_c + wide_p * y_stride_p
        y_ptrs = y_ptr + y_offsets
        dr_ptrs = dr_ptr + y_offsets
    gate = None
    if GATED:
        gate = _gate_at(
            z_ptr, p, inside_p, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, NORM_EPS, ACC, HARD
        )
    total = tl.zeros([KEEP, BLOCK_P], ACC)
    full = C - C % BLOCK_C
    for c0 in range(0, full, BLOCK_C):
        x = tl.load(x_ptrs, mask=inside_p[None, :]).to(ACC)
        x_ptrs += BLOCK_C * x_stride_c
        dr = tl.load(dy_ptrs, mask=inside_p[None, :])
        dy_ptrs += BLOCK_C * dy_stride_c
        if RELU:
            # Not y > 0: where y is NaN the gradient passes, as in PyTorch.
            dr = tl.where(tl.load(y_ptrs, mask=inside_p[None, :], eviction_policy="evict_first").to(ACC) <= 0, 0.0, dr)
            dr = dr.to(dr_ptr.dtype.element_ty)
            tl.store(dr_ptrs, dr, mask=inside_p[None, :])
            y_ptrs += BLOCK_C * y_stride_c
            dr_ptrs += BLOCK_C * y_stride_c
        x = _gate_share(
            x, dr.to(ACC), gate, gate_ptr, pools_ptr, dpools_ptr, channel_argmax_ptr, c0 + c, None, p, C, CHANNEL_POOLS
        )  # fmt: skip
        total += fold_sum(x, 0, KEEP, CHANNELS_LAST)
    if full < C:
        inside_c = c < known_multiple(C - full, VEC if CHANNELS_LAST else 1)
        inside = inside_c[:, None] & inside_p[None, :]
        x = tl.load(x_ptrs, mask=inside, other=0.0).to(ACC)
        dr = tl.load(dy_ptrs, mask=inside, other=0.0)
        if RELU:
            dr = tl.where(tl.load(y_ptrs, mask=inside, eviction_policy="evict_first").to(ACC) <= 0, 0.0, dr)
            dr = dr.to(dr_ptr.dtype.element_ty)
            tl.store(dr_ptrs, dr, mask=inside)
        x = _gate_share(
            x, dr.to(ACC), gate, gate_ptr, pools_ptr, dpools_ptr, channel_argmax_ptr, full + c, inside_c, p, C,
            CHANNEL_POOLS,
        )  # fmt: skip
        total += fold_sum(tl.where(inside, x, 0.0), 0, KEEP, CHANNELS_LAST)
    s = _gate_at(z_ptr, p, inside_p, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, NORM_EPS, ACC, HARD)
    lead = gradient_lead(W, K, DIMS)
    dz_ptrs = dz_ptr + (lead + past_zeros(p, plane, W, K, DIMS))
    tl.store(dz_ptrs, tl.sum(total, 0) * gate_slope(s, HARD), mask=inside_p)
    if tile == 0:
        zeros = tl.zeros([BLOCK_P], ACC)
        count = gradient_size(P, plane, W, K, DIMS) - P
        for i0 in range(0, count, BLOCK_P):
            i = i0 + tl.arange(0, BLOCK_P)
            at = zero_at(i, lead, P, plane, W, K) if DIMS == 3 else tl.where(i < lead, i, i + P)
            tl.store(dz_ptr + at, zeros, mask=i < count)
