"""Spatial gate: K x K convolution of the pooled maps, folded norm, sigmoid; and back through the convolution."""

import triton
import triton.language as tl

from .tiles import rounded_product


@triton.jit
def spatial_logit(
    pool_ptr,  # one sample: H + 2 RADIUS, W, 2
    conv_weight_ptr,  # 2 K K
    conv_bias_ptr,  # 1 or None
    p, P, W,
    K: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """z[p] = conv(pool)[p] for a vector of pixels p; what pixels past the end get means nothing.

    A row of taps is 2 K neighbours in memory (mean and max alternate), so taps lie along a second axis and no lane
    repeats another's work. The rows above and below the map exist and are zero: only columns need a mask.
    """
    RADIUS: tl.constexpr = K // 2
    tap = tl.arange(0, 2 * BLOCK_K)
    kw = tap // 2
    column = (p % W)[:, None] + (kw - RADIUS)[None, :]
    inside = (column >= 0) & (column < W) & ((kw < K)[None, :] & (p < P)[:, None])
    pool_ptrs = pool_ptr + (2 * (p - RADIUS)[:, None] + tap[None, :])
    weight_ptrs = conv_weight_ptr + ((tap % 2) * (K * K) + kw)
    z = tl.zeros([p.shape[0], 2 * BLOCK_K], ACC)
    for kh in tl.static_range(K):
        weight = tl.load(weight_ptrs + kh * K, mask=kw < K, other=0.0).to(ACC)
        z += weight[None, :] * tl.load(pool_ptrs, mask=inside, other=0.0)
        pool_ptrs += 2 * W
    z = tl.sum(z, 1)
    if conv_bias_ptr is not None:
        z += tl.load(conv_bias_ptr).to(ACC)
    return z


@triton.jit
def normed(
    z, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, NORM_EPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """norm(z) by fixed statistics; what is None is left out."""
    if norm_mean_ptr is not None:
        variance = tl.load(norm_var_ptr).to(ACC) + tl.full((), NORM_EPS, ACC)
        z = (z - tl.load(norm_mean_ptr).to(ACC)) / tl.sqrt(variance)
    if norm_weight_ptr is not None:
        z *= tl.load(norm_weight_ptr).to(ACC)
    if norm_bias_ptr is not None:
        z += tl.load(norm_bias_ptr).to(ACC)
    return z


@triton.jit
def norm_slope(norm_weight_ptr, norm_var_ptr, NORM_EPS: tl.constexpr, ACC: tl.constexpr):
    """d norm(z) / d z for fixed statistics."""
    slope = tl.full((), 1.0, ACC)
    if norm_var_ptr is not None:
        slope /= tl.sqrt(tl.load(norm_var_ptr).to(ACC) + tl.full((), NORM_EPS, ACC))
        if norm_weight_ptr is not None:
            slope *= tl.load(norm_weight_ptr).to(ACC)
    return slope


@triton.jit
def map_gradient_tile(
    dz_ptr,  # one sample: H + 2 RADIUS, W; gradient of the normed logit
    s, slope,  # [BLOCK_P]; d norm(z) / d z
    pool_ptr,  # one sample: P 2
    conv_weight_ptr,  # 2 K K
    slopes_ptr,  # one sample: 3 P
    share_ptr,  # this tile: 2 K K + 1, or None
    p, C, P, W,
    K: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Back through the convolution: per pixel what x's gradient needs, per tile a share of the parameters' gradient.

    slopes = (s, dmean / C, dmean / C + dmax), where dmean and dmax are the gradients of the two pooled maps: the
    transposed convolution of dz. share = (dw, db), this tile's correlation of the pooled maps with dz.
    One program owns a vector of pixels p of one sample. Both sums read the same K x K neighbours of dz.
    """
    RADIUS: tl.constexpr = K // 2
    inside_p = p < P
    kw = tl.arange(0, BLOCK_K)
    column = (p % W)[:, None] + (kw - RADIUS)[None, :]
    inside = (column >= 0) & (column < W) & ((kw < K)[None, :] & inside_p[:, None])
    dz_ptrs = dz_ptr + ((p - RADIUS)[:, None] + kw[None, :])
    mean = tl.load(pool_ptr + 2 * p, mask=inside_p, other=0.0).to(ACC)[:, None]
    peak = tl.load(pool_ptr + 2 * p + 1, mask=inside_p, other=0.0).to(ACC)[:, None]
    dmean = tl.zeros([p.shape[0], BLOCK_K], ACC)
    dmax = tl.zeros([p.shape[0], BLOCK_K], ACC)
    for kh in tl.static_range(K):
        # The neighbour at (kh, kw) saw this pixel through the opposite tap.
        tap = (K - 1 - kh) * K + K - 1 - kw
        dz = tl.load(dz_ptrs + kh * W, mask=inside, other=0.0)
        dmean += dz * tl.load(conv_weight_ptr + tap, mask=kw < K, other=0.0).to(ACC)[None, :]
        dmax += dz * tl.load(conv_weight_ptr + K * K + tap, mask=kw < K, other=0.0).to(ACC)[None, :]
        if share_ptr is not None:
            tl.store(share_ptr + tap, slope * tl.sum(rounded_product(dz, mean), 0), mask=kw < K)
            tl.store(share_ptr + K * K + tap, slope * tl.sum(rounded_product(dz, peak), 0), mask=kw < K)
    if share_ptr is not None:
        dz = tl.load(dz_ptr + RADIUS * W + p, mask=inside_p, other=0.0)
        tl.store(share_ptr + 2 * K * K, slope * tl.sum(dz, 0))
    low = slope * tl.sum(dmean, 1) / C
    tl.store(slopes_ptr + p, s, mask=inside_p)
    tl.store(slopes_ptr + P + p, low, mask=inside_p)
    tl.store(slopes_ptr + 2 * P + p, low + slope * tl.sum(dmax, 1), mask=inside_p)
