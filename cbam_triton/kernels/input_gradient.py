"""Input gradient: dx from the gradients of both gates and all four pools, the only pass of a backward that writes."""

import triton
import triton.language as tl

from .tiles import AVERAGE, LOGSUMEXP, MAXIMUM, NORM, known_multiple


@triton.jit
def through_channel_gate(
    x, d, gate_ptr, pools_ptr, dpools_ptr, argmax_ptr, c, inside_c, p, C, CHANNEL_POOLS: tl.constexpr,
):  # fmt: skip
    """g d + da / P + [p == argmax_p] dm + x dlp / lp + exp(x - lse) dlse: what x, that gate's input, gets.

    Descriptors that there are not are left out; for the first two there need be no x.
    """
    d *= tl.load(gate_ptr + c, mask=inside_c)[:, None]
    if AVERAGE & CHANNEL_POOLS:
        d += tl.load(dpools_ptr + c, mask=inside_c)[:, None]
    if MAXIMUM & CHANNEL_POOLS:
        peak_share = tl.load(dpools_ptr + C + c, mask=inside_c)
        at = tl.load(argmax_ptr + c, mask=inside_c).to(tl.int32)
        d += tl.where(p[None, :] == at[:, None], peak_share[:, None], 0.0)
    if NORM & CHANNEL_POOLS:
        d += x * tl.load(dpools_ptr + 2 * C + c, mask=inside_c)[:, None]
    if LOGSUMEXP & CHANNEL_POOLS:
        lse = tl.load(pools_ptr + 3 * C + c, mask=inside_c)
        d += tl.exp(x - lse[:, None]) * tl.load(dpools_ptr + 3 * C + c, mask=inside_c)[:, None]
    return d


@triton.jit
def _input_gradient(
    x, d, s, low, high, spatial_at, gate_ptr, pools_ptr, dpools_ptr, channel_argmax_ptr, c, inside_c, p, C,
    CHANNEL_POOLS: tl.constexpr, ARRANGEMENT: tl.constexpr,
):  # fmt: skip
    """g (d s + E) + what the descriptors give, the gates in the order of ARRANGEMENT; a gate that is None left out.

    In parallel E, and with the spatial gate first s and E, come after the channel gate.
    """
    if s is not None:
        e = low[None, :]
        if high is not None:
            e = tl.where(c[:, None] == spatial_at[None, :], high[None, :], e)
        if ARRANGEMENT != "spatial_first":
            d *= s[None, :]
        if ARRANGEMENT == "channel_first":
            d += e
    if gate_ptr is not None:
        if x is not None and s is not None:
            if ARRANGEMENT == "spatial_first":
                x *= s[None, :]
        d = through_channel_gate(
            x, d, gate_ptr, pools_ptr, dpools_ptr, channel_argmax_ptr, c, inside_c, p, C, CHANNEL_POOLS
        )  # fmt: skip
    if s is not None:
        if ARRANGEMENT == "spatial_first":
            d *= s[None, :]
        if ARRANGEMENT != "channel_first":
            d += e
    return d


@triton.jit
def input_gradient_tile(
    x_ptr, d_ptr, dx_ptr,  # one sample: C P; d is the gradient of x * g * s
    # one sample: P, 2 P, P and C, POOLS C, POOLS C, C; None without spatial and channel attention, an argmax also
    # without a maximum
    s_ptr, dmaps_ptr, spatial_argmax_ptr,
    gate_ptr, pools_ptr, dpools_ptr, channel_argmax_ptr,
    p, c_begin, c_end, C, P,
    x_stride_c, x_stride_p, d_stride_c, d_stride_p, dx_stride_c, dx_stride_p,
    BLOCK_C: tl.constexpr, VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    CHANNEL_POOLS: tl.constexpr, ARRANGEMENT: tl.constexpr,
):  # fmt: skip
    """dx[c,p] = g (d s + E) + da / P + [p == argmax_p] dm for c in [c_begin, c_end) and a vector of pixels p.

    x is read for the gradients of lp and lse alone.
    E[c,p] = dmean / C + [c == argmax_c] dmax comes as the two values that it can have.
    """
    READS_X: tl.constexpr = gate_ptr is not None and (NORM | LOGSUMEXP) & CHANNEL_POOLS != 0
    inside_p = p < P
    s = None
    low = None
    high = None
    spatial_at = None
    if dmaps_ptr is not None:
        s = tl.load(s_ptr + p, mask=inside_p, other=0.0)
        low = tl.load(dmaps_ptr + p, mask=inside_p, other=0.0)
        if spatial_argmax_ptr is not None:
            high = tl.load(dmaps_ptr + P + p, mask=inside_p, other=0.0)
            spatial_at = tl.load(spatial_argmax_ptr + p, mask=inside_p, other=0).to(tl.int32)
    lane = tl.arange(0, BLOCK_C)
    wide_c = (c_begin + lane).to(INDEX)[:, None]
    wide_p = p.to(INDEX)[None, :]
    d_ptrs = d_ptr + (wide_c * d_stride_c + wide_p * d_stride_p)
    dx_ptrs = dx_ptr + (wide_c * dx_stride_c + wide_p * dx_stride_p)
    if READS_X:
        x_ptrs = x_ptr + (wide_c * x_stride_c + wide_p * x_stride_p)
    full = c_end - (c_end - c_begin) % BLOCK_C
    for c0 in range(c_begin, full, BLOCK_C):
        c = c0 + lane
        d = tl.load(d_ptrs, mask=inside_p[None, :], eviction_policy="evict_first").to(ACC)
        x = tl.load(x_ptrs, mask=inside_p[None, :], eviction_policy="evict_first").to(ACC) if READS_X else None
        if READS_X:
            x_ptrs += BLOCK_C * x_stride_c
        dx = _input_gradient(
            x, d, s, low, high, spatial_at, gate_ptr, pools_ptr, dpools_ptr, channel_argmax_ptr, c, None, p, C,
            CHANNEL_POOLS, ARRANGEMENT,
        )  # fmt: skip
        tl.store(dx_ptrs, dx.to(dx_ptr.dtype.element_ty), mask=inside_p[None, :], eviction_policy="evict_first")
        d_ptrs += BLOCK_C * d_stride_c
        dx_ptrs += BLOCK_C * dx_stride_c
    rest = known_multiple(c_end - full, VEC if CHANNELS_LAST else 1)
    if rest > 0:
        c = full + lane
        inside_c = lane < rest
        inside = inside_c[:, None] & inside_p[None, :]
        d = tl.load(d_ptrs, mask=inside, eviction_policy="evict_first").to(ACC)
        x = tl.load(x_ptrs, mask=inside, eviction_policy="evict_first").to(ACC) if READS_X else None
        dx = _input_gradient(
            x, d, s, low, high, spatial_at, gate_ptr, pools_ptr, dpools_ptr, channel_argmax_ptr, c, inside_c, p, C,
            CHANNEL_POOLS, ARRANGEMENT,
        )  # fmt: skip
        tl.store(dx_ptrs, dx.to(dx_ptr.dtype.element_ty), mask=inside, eviction_policy="evict_first")
