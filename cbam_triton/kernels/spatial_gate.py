"""Spatial gate: K x K convolution of the pooled maps, folded norm, sigmoid."""

import triton
import triton.language as tl


@triton.jit
def spatial_logit(
    pool_ptr,  # one sample: H + 2 RADIUS, W, 2
    conv_weight_ptr,  # 2 K K
    conv_bias_ptr,  # 1 or None
    norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,  # 1 or None
    p, P, W,
    NORM_EPS: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """z[p] = norm(conv(pool))[p] for a vector of pixels p; what pixels past the end get means nothing.

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
    if norm_mean_ptr is not None:
        variance = tl.load(norm_var_ptr).to(ACC) + tl.full((), NORM_EPS, ACC)
        z = (z - tl.load(norm_mean_ptr).to(ACC)) / tl.sqrt(variance)
    if norm_weight_ptr is not None:
        z *= tl.load(norm_weight_ptr).to(ACC)
    if norm_bias_ptr is not None:
        z += tl.load(norm_bias_ptr).to(ACC)
    return z
