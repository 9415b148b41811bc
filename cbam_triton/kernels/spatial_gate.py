"""Spatial gate: K x K convolution of the pooled maps, folded norm, sigmoid; and back through the convolution."""

import triton
import triton.language as tl


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
def map_lead(W, RADIUS: tl.constexpr):
    """Elements before the first pixel of a sample's dz: RADIUS rows of zeros, in whole sectors of float32."""
    return tl.cdiv(RADIUS * W, 8) * 8


@triton.jit
def map_size(P, W, RADIUS: tl.constexpr):
    """Elements of a sample's dz with the zeros before and after it."""
    return tl.cdiv(map_lead(W, RADIUS) + P + RADIUS * W, 8) * 8


@triton.jit
def _column(p, P, W):
    """The column of pixels p; none of any map for those past the end."""
    return tl.where(p < P, p % W, -(1 << 20))


@triton.jit
def _map_gradient(
    dz_ptr,  # one sample: map_size; gradient of the normed logit
    z_ptr,  # one sample: P; the logits with a norm, else the gate
    conv_weight_ptr,  # 2 K K
    norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,  # 1 or None
    s_ptr, dmaps_ptr,  # one sample: P, 2 P; without a norm s is z_ptr's
    p, C, P, W,
    NORM_EPS: tl.constexpr, GIVEN: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dmaps = (dmean / C, dmean / C + dmax), and with a norm s.

    The gradients dmean and dmax of the two pooled maps are the transposed convolution of dz. One program owns a vector
    of pixels p of one sample. With GIVEN dz is already that of the unnormed logit.
    """
    dmean = tl.zeros([p.shape[0]], ACC)
    dmax = tl.zeros([p.shape[0]], ACC)
    inside = p < P
    column = _column(p, P, W)
    dz_ptrs = dz_ptr + (map_lead(W, K // 2) - (K // 2) * (W + 1) + p)
    for kh in range(K):
        for kw in tl.static_range(K):
            # The neighbour at (kh, kw) saw this pixel through the opposite tap.
            tap = K * K - 1 - kh * K - kw
            on_row = (column >= K // 2 - kw) & (column < W + K // 2 - kw)
            dz = tl.load(dz_ptrs + kw, mask=on_row, other=0.0)
            dmean += dz * tl.load(conv_weight_ptr + tap).to(ACC)
            dmax += dz * tl.load(conv_weight_ptr + K * K + tap).to(ACC)
        dz_ptrs += W
    slope = tl.full((), 1.0, ACC) if GIVEN else norm_slope(norm_weight_ptr, norm_var_ptr, NORM_EPS, ACC)
    if norm_mean_ptr is not None:
        z = tl.load(z_ptr + p, mask=inside, other=0.0)
        z = normed(z, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, NORM_EPS, ACC)
        tl.store(s_ptr + p, tl.sigmoid(z), mask=inside)
    low = slope * dmean / C
    tl.store(dmaps_ptr + p, low, mask=inside)
    tl.store(dmaps_ptr + P + p, low + slope * dmax, mask=inside)


@triton.jit
def share_size(K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Elements of a share of the convolution's gradient: K rows of BLOCK_K taps of both maps, a sector for the bias."""
    return 2 * K * BLOCK_K + 8


@triton.jit
def _tap_gradient(
    dz_ptr,  # one sample: map_size; gradient of the normed logit
    pool_ptr,  # one sample: P 2
    norm_weight_ptr, norm_var_ptr,  # 1 or None
    share_ptr,  # these pixels: K 2 BLOCK_K, then 1
    kh, p_begin, p_end, P, W,
    NORM_EPS: tl.constexpr, GIVEN: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """share = (dw, db): the correlation of the pooled maps with dz over the pixels in [p_begin, p_end).

    One program owns a row of taps, that which sees the neighbours in row kh; the first also the bias.
    """
    kw = tl.arange(0, BLOCK_K)
    dz_ptr += map_lead(W, K // 2)
    # Times a one that the compiler does not know for one: threads then lie along the pixels, and every sum saves the
    # exchange of taps between threads.
    columns = kw * tl.minimum(W, 1)
    mean = tl.zeros([BLOCK_K, BLOCK_P], ACC)
    peak = tl.zeros([BLOCK_K, BLOCK_P], ACC)
    db = tl.zeros([BLOCK_P], ACC)
    for p0 in range(p_begin, p_end, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        inside = p < P
        column = _column(p, P, W)[None, :] + (kw - K // 2)[:, None]
        on_row = (column >= 0) & (column < W) & (kw < K)[:, None]
        row = p + (kh * W - (K // 2) * (W + 1))
        dz = tl.load(dz_ptr + (row[None, :] + columns[:, None]), mask=on_row, other=0.0)
        mean += dz * tl.load(pool_ptr + 2 * p, mask=inside, other=0.0).to(ACC)[None, :]
        peak += dz * tl.load(pool_ptr + 2 * p + 1, mask=inside, other=0.0).to(ACC)[None, :]
        if kh == 0:
            db += tl.load(dz_ptr + p, mask=inside, other=0.0)
    slope = tl.full((), 1.0, ACC) if GIVEN else norm_slope(norm_weight_ptr, norm_var_ptr, NORM_EPS, ACC)
    # The neighbour at (kh, kw) is what the opposite tap saw. Taps that there are not are stored too: whole sectors.
    share_ptrs = share_ptr + (K - 1 - kh) * (2 * BLOCK_K) + tl.where(kw < K, K - 1 - kw, kw)
    tl.store(share_ptrs, slope * tl.sum(mean, 1))
    tl.store(share_ptrs + BLOCK_K, slope * tl.sum(peak, 1))
    if kh == 0:
        tl.store(share_ptr + 2 * K * BLOCK_K, slope * tl.sum(db, 0))


@triton.jit
def map_gradient_tile(
    dz_ptr, z_ptr, pool_ptr,  # one sample: map_size, P, P 2
    conv_weight_ptr,  # 2 K K
    norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,  # 1 or None
    s_ptr, dmaps_ptr,  # one sample: P, 2 P
    share_ptr,  # one sample: chunks share_size, or None
    tile, map_tiles, C, P, W,
    NORM_EPS: tl.constexpr, GIVEN: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr, TAP_SPLIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Back through the convolution: to BLOCK_P pixels of the maps, or to a row of its taps over TAP_SPLIT pixels.

    The tiles of the maps, `map_tiles` of them, come first. Returns whether this was one: others wait for these alone.
    """
    to_maps = tile < map_tiles
    if to_maps:
        _map_gradient(
            dz_ptr, z_ptr, conv_weight_ptr, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,
            s_ptr, dmaps_ptr, tile * BLOCK_P + tl.arange(0, BLOCK_P), C, P, W, NORM_EPS, GIVEN, K, ACC,
        )  # fmt: skip
    else:
        chunk = (tile - map_tiles) // K
        _tap_gradient(
            dz_ptr, pool_ptr, norm_weight_ptr, norm_var_ptr, share_ptr + chunk * share_size(K, BLOCK_K),
            (tile - map_tiles) % K, chunk * TAP_SPLIT, tl.minimum((chunk + 1) * TAP_SPLIT, P), P, W,
            NORM_EPS, GIVEN, K, BLOCK_K, BLOCK_P, ACC,
        )  # fmt: skip
    return to_maps
