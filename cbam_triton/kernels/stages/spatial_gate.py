"""Spatial gate: convolution of the pooled maps, folded norm, gate function."""

import triton
import triton.language as tl

from .gate_function import gate_of
from .padded_map import has_plane, past_zeros, tap_row
from .rounding import inverse_root


@triton.jit
def spatial_logit(maps_ptr, parameters, n, p, size, FORM):
    """z[p] = conv(maps)[p] for a vector of pixels p of sample n; the values of pixels past the end mean nothing.

    maps is N padded MAPS. A row of taps is MAPS K neighbours in memory (mean and max alternate), so taps lie along a
    second axis and no lane repeats another's work. The rows above and below the map exist and are zero: only columns
    need a mask.
    """
    M: tl.constexpr = FORM.MAPS
    K: tl.constexpr = FORM.K
    maps_ptr += n * (M * size.padded)
    tap = tl.arange(0, M * FORM.BLOCK_K)
    kw = tap // M
    column = (p % size.W)[:, None] + (kw - K // 2)[None, :]
    inside = (column >= 0) & (column < size.W) & ((kw < K)[None, :] & (p < size.P)[:, None])
    ptrs = maps_ptr + (M * (size.zeros + past_zeros(p, size, FORM.DIMS) - K // 2)[:, None] + tap)
    weight_ptrs = parameters.conv_weight + ((tap % M) * (FORM.TAP_ROWS * K) + kw)
    z = tl.zeros([p.shape[0], M * FORM.BLOCK_K], FORM.ACC)
    if FORM.DIMS == 3:
        for kd in range(K):
            there = inside & has_plane(kd * K, p, size, K)[:, None]
            row_ptrs = ptrs + M * tap_row(kd * K, size, K, FORM.DIMS)
            for kh in tl.static_range(K):
                weight = tl.load(weight_ptrs + (kd * K + kh) * K, mask=kw < K, other=0.0).to(FORM.ACC)
                z += weight[None, :] * tl.load(row_ptrs, mask=there, other=0.0)
                row_ptrs += M * size.W
    else:
        ptrs += M * tap_row(0, size, K, FORM.DIMS)
        for row in tl.static_range(FORM.TAP_ROWS):
            weight = tl.load(weight_ptrs + row * K, mask=kw < K, other=0.0).to(FORM.ACC)
            z += weight[None, :] * tl.load(ptrs, mask=inside, other=0.0)
            ptrs += M * size.W
    z = tl.sum(z, 1)
    if parameters.conv_bias is not None:
        z += tl.load(parameters.conv_bias).to(FORM.ACC)
    return z


@triton.jit
def spatial_gate(z, parameters, FORM):
    """s = gate(norm(z))."""
    return gate_of(normed(z, parameters, FORM), FORM.HARD)


@triton.jit
def normed(z, parameters, FORM):
    """norm(z) by fixed statistics, without those of its parameters that are None."""
    if parameters.norm_mean is not None:
        variance = tl.load(parameters.norm_var).to(FORM.ACC) + tl.full((), FORM.NORM_EPS, FORM.ACC)
        z = (z - tl.load(parameters.norm_mean).to(FORM.ACC)) * inverse_root(variance)
    if parameters.norm_weight is not None:
        z *= tl.load(parameters.norm_weight).to(FORM.ACC)
    if parameters.norm_bias is not None:
        z += tl.load(parameters.norm_bias).to(FORM.ACC)
    return z


@triton.jit
def norm_slope(parameters, FORM):
    """d norm(z) / d z for fixed statistics."""
    slope = tl.full((), 1.0, FORM.ACC)
    if parameters.norm_var is not None:
        slope = inverse_root(tl.load(parameters.norm_var).to(FORM.ACC) + tl.full((), FORM.NORM_EPS, FORM.ACC))
        if parameters.norm_weight is not None:
            slope *= tl.load(parameters.norm_weight).to(FORM.ACC)
    return slope
