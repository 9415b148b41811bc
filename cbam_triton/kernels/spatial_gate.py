"""Spatial gate: convolution of the pooled maps, folded norm, gate function; and back through the convolution."""

import triton
import triton.language as tl

from .maps import gradient_lead, has_plane, padded_size, past_zeros, plane_of, tap_row, zeros_around
from .tiles import gate_of


@triton.jit
def spatial_logit(
    pool_ptr,  # one sample: padded_size, M maps
    conv_weight_ptr,  # M K^DIMS
    conv_bias_ptr,  # 1 or None
    p, P, W, plane,
    K: tl.constexpr, DIMS: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr, SPATIAL_POOLS: tl.constexpr,
):  # fmt: skip
    """z[p] = conv(pool)[p] for a vector of pixels p; what pixels past the end get means nothing.

    A row of taps is M K neighbours in memory (mean and max alternate), so taps lie along a second axis and no lane
    repeats another's work. The rows above and below the map exist and are zero: only columns need a mask.
    """
    M: tl.constexpr = 2 if SPATIAL_POOLS == "mean+max" else 1
    ROWS: tl.constexpr = 1 if DIMS == 1 else K if DIMS == 2 else K * K
    tap = tl.arange(0, M * BLOCK_K)
    kw = tap // M
    column = (p % W)[:, None] + (kw - K // 2)[None, :]
    inside = (column >= 0) & (column < W) & ((kw < K)[None, :] & (p < P)[:, None])
    pool_ptrs = pool_ptr + (M * (zeros_around(W, K, DIMS) + past_zeros(p, plane, W, K, DIMS) - K // 2)[:, None] + tap)
    weight_ptrs = conv_weight_ptr + ((tap % M) * (ROWS * K) + kw)
    z = tl.zeros([p.shape[0], M * BLOCK_K], ACC)
    if DIMS == 3:
        for kd in range(K):
            there = inside & has_plane(kd * K, p, P, plane, K)[:, None]
            row_ptrs = pool_ptrs + M * tap_row(kd * K, plane, W, K, DIMS)
            for kh in tl.static_range(K):
                weight = tl.load(weight_ptrs + (kd * K + kh) * K, mask=kw < K, other=0.0).to(ACC)
                z += weight[None, :] * tl.load(row_ptrs, mask=there, other=0.0)
                row_ptrs += M * W
    else:
        pool_ptrs += M * tap_row(0, plane, W, K, DIMS)
        for row in tl.static_range(ROWS):
            weight = tl.load(weight_ptrs + row * K, mask=kw < K, other=0.0).to(ACC)
            z += weight[None, :] * tl.load(pool_ptrs, mask=inside, other=0.0)
            pool_ptrs += M * W
    z = tl.sum(z, 1)
    if conv_bias_ptr is not None:
        z += tl.load(conv_bias_ptr).to(ACC)
    return z


@triton.jit
def sample_logit(
    pool_ptr,  # N padded_size M
    conv_weight_ptr, conv_bias_ptr,  # M K^DIMS, 1 or None
    n, p, P, H, W, PLANES,
    K: tl.constexpr, DIMS: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr, SPATIAL_POOLS: tl.constexpr,
):  # fmt: skip
    """`spatial_logit` of sample n."""
    M: tl.constexpr = 2 if SPATIAL_POOLS == "mean+max" else 1
    plane = plane_of(H, W, PLANES, DIMS)
    pool_ptr += n * (M * padded_size(P, plane, W, K, DIMS))
    return spatial_logit(
        pool_ptr, conv_weight_ptr, conv_bias_ptr, p, P, W, plane, K, DIMS, BLOCK_K, ACC, SPATIAL_POOLS
    )  # fmt: skip


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
def _column(p, P, W):
    """The column of pixels p; none of any map for those past the end."""
    return tl.where(p < P, p % W, -(1 << 20))


@triton.jit
def _map_gradient(
    dz_ptr,  # one sample: gradient_size; gradient of the normed logit
    z_ptr,  # one sample: P; the logits with a norm, else the gate
    conv_weight_ptr,  # M K^DIMS
    norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,  # 1 or None
    s_ptr, dmaps_ptr,  # one sample: P, 2 P; without a norm s is z_ptr's
    p, C, P, W, plane,
    NORM_EPS: tl.constexpr, GIVEN: tl.constexpr, K: tl.constexpr, DIMS: tl.constexpr, ACC: tl.constexpr,
    SPATIAL_POOLS: tl.constexpr, HARD: tl.constexpr, ARRANGEMENT: tl.constexpr,
):  # fmt: skip
    """dmaps = (dmean / C, dmean / C + dmax), and with a norm s, unless the spatial gate is first: then s is there.

    The gradients dmean and dmax of the two pooled maps are the transposed convolution of dz. One program owns a vector
    of pixels p of one sample. With GIVEN dz is already that of the unnormed logit.
    """
    BOTH: tl.constexpr = SPATIAL_POOLS == "mean+max"
    ROWS: tl.constexpr = 1 if DIMS == 1 else K if DIMS == 2 else K * K
    dmean = tl.zeros([p.shape[0]], ACC)
    dmax = tl.zeros([p.shape[0]], ACC)
    inside = p < P
    column = _column(p, P, W)
    dz_ptrs = dz_ptr + (gradient_lead(W, K, DIMS) - K // 2 + past_zeros(p, plane, W, K, DIMS))
    for row in range(ROWS):
        row_ptrs = dz_ptrs + tap_row(row, plane, W, K, DIMS)
        if DIMS == 3:
            column = tl.where(has_plane(row, p, P, plane, K), _column(p, P, W), -(1 << 20))
        for kw in tl.static_range(K):
            # The neighbour at (row, kw) saw this pixel through the opposite tap.
            tap = ROWS * K - 1 - row * K - kw
            on_row = (column >= K // 2 - kw) & (column < W + K // 2 - kw)
            dz = tl.load(row_ptrs + kw, mask=on_row, other=0.0)
            dmean += dz * tl.load(conv_weight_ptr + tap).to(ACC)
            if BOTH:
                dmax += dz * tl.load(conv_weight_ptr + ROWS * K + tap).to(ACC)
    if SPATIAL_POOLS == "half":
        dmean *= 0.5
    if not BOTH:
        dmax = dmean
    slope = tl.full((), 1.0, ACC) if GIVEN else norm_slope(norm_weight_ptr, norm_var_ptr, NORM_EPS, ACC)
    if norm_mean_ptr is not None and ARRANGEMENT != "spatial_first":
        z = tl.load(z_ptr + p, mask=inside, other=0.0)
        z = normed(z, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, NORM_EPS, ACC)
        tl.store(s_ptr + p, gate_of(z, HARD), mask=inside)
    low = slope * dmean / C
    if SPATIAL_POOLS == "max":
        low = tl.zeros_like(low)
    tl.store(dmaps_ptr + p, low, mask=inside)
    if SPATIAL_POOLS != "mean":
        tl.store(dmaps_ptr + P + p, low + slope * dmax, mask=inside)


@triton.jit
def share_size(K: tl.constexpr, DIMS: tl.constexpr, BLOCK_K: tl.constexpr, SPATIAL_POOLS: tl.constexpr):
    """Elements of a share of the convolution's gradient: rows of BLOCK_K taps of every map, a sector for the bias."""
    ROWS: tl.constexpr = 1 if DIMS == 1 else K if DIMS == 2 else K * K
    return (2 if SPATIAL_POOLS == "mean+max" else 1) * ROWS * BLOCK_K + 8


@triton.jit
def _tap_gradient(
    dz_ptr,  # one sample: gradient_size; gradient of the normed logit
    pool_ptr,  # one sample: P M
    norm_weight_ptr, norm_var_ptr,  # 1 or None
    share_ptr,  # these pixels: ROWS M BLOCK_K, then 1
    row, p_begin, p_end, P, W, plane,
    NORM_EPS: tl.constexpr, GIVEN: tl.constexpr, K: tl.constexpr, DIMS: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr, ACC: tl.constexpr, SPATIAL_POOLS: tl.constexpr,
):  # fmt: skip
    """share = (dw, db): the correlation of the pooled maps with dz over the pixels in [p_begin, p_end).

    One program owns a row of taps, that which sees the neighbours in row `row`; the first also the bias.
    """
    M: tl.constexpr = 2 if SPATIAL_POOLS == "mean+max" else 1
    ROWS: tl.constexpr = 1 if DIMS == 1 else K if DIMS == 2 else K * K
    kw = tl.arange(0, BLOCK_K)
    dz_ptr += gradient_lead(W, K, DIMS)
    above = tap_row(row, plane, W, K, DIMS) - K // 2
    # Times a one that the compiler does not know for one: threads then lie along the pixels, and every sum saves the
    # exchange of taps between threads.
    columns = kw * tl.minimum(W, 1)
    first = tl.zeros([BLOCK_K, BLOCK_P], ACC)
    second = tl.zeros([BLOCK_K, BLOCK_P], ACC)
    db = tl.zeros([BLOCK_P], ACC)
    for p0 in range(p_begin, p_end, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        inside = p < P
        column = _column(p, P, W)
        if DIMS == 3:
            column = tl.where(has_plane(row, p, P, plane, K), column, -(1 << 20))
        column = column[None, :] + (kw - K // 2)[:, None]
        on_row = (column >= 0) & (column < W) & (kw < K)[:, None]
        place = past_zeros(p, plane, W, K, DIMS)
        dz = tl.load(dz_ptr + ((place + above)[None, :] + columns[:, None]), mask=on_row, other=0.0)
        first += dz * tl.load(pool_ptr + M * p, mask=inside, other=0.0).to(ACC)[None, :]
        if M == 2:
            second += dz * tl.load(pool_ptr + 2 * p + 1, mask=inside, other=0.0).to(ACC)[None, :]
        if row == 0:
            db += tl.load(dz_ptr + place, mask=inside, other=0.0)
    slope = tl.full((), 1.0, ACC) if GIVEN else norm_slope(norm_weight_ptr, norm_var_ptr, NORM_EPS, ACC)
    # The neighbour at (row, kw) is what the opposite tap saw. Taps that there are not are stored too: whole sectors.
    share_ptrs = share_ptr + (ROWS - 1 - row) * (M * BLOCK_K) + tl.where(kw < K, K - 1 - kw, kw)
    tl.store(share_ptrs, slope * tl.sum(first, 1))
    if M == 2:
        tl.store(share_ptrs + BLOCK_K, slope * tl.sum(second, 1))
    if row == 0:
        tl.store(share_ptr + M * ROWS * BLOCK_K, slope * tl.sum(db, 0))


@triton.jit
def map_gradient_tile(
    dz_ptr, z_ptr, pool_ptr,  # one sample: gradient_size, P, P M
    conv_weight_ptr,  # M K^DIMS
    norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,  # 1 or None
    s_ptr, dmaps_ptr,  # one sample: P, 2 P
    share_ptr,  # one sample: chunks share_size, or None
    tile, map_tiles, C, P, W, plane,
    NORM_EPS: tl.constexpr, GIVEN: tl.constexpr, K: tl.constexpr, DIMS: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr, TAP_SPLIT: tl.constexpr, ACC: tl.constexpr,
    SPATIAL_POOLS: tl.constexpr, HARD: tl.constexpr, ARRANGEMENT: tl.constexpr,
):  # fmt: skip
    """Back through the convolution: to BLOCK_P pixels of the maps, or to a row of its taps over TAP_SPLIT pixels.

    The tiles of the maps, `map_tiles` of them, come first. Returns whether this was one: others wait for these alone.
    """
    ROWS: tl.constexpr = 1 if DIMS == 1 else K if DIMS == 2 else K * K
    p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    to_maps = tile < map_tiles
    if to_maps:
        _map_gradient(
            dz_ptr, z_ptr, conv_weight_ptr, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,
            s_ptr, dmaps_ptr, p, C, P, W, plane, NORM_EPS, GIVEN, K, DIMS, ACC, SPATIAL_POOLS, HARD,
            ARRANGEMENT,
        )  # fmt: skip
    elif share_ptr is not None:
        chunk = (tile - map_tiles) // ROWS
        _tap_gradient(
            dz_ptr, pool_ptr, norm_weight_ptr, norm_var_ptr,
            share_ptr + chunk * share_size(K, DIMS, BLOCK_K, SPATIAL_POOLS),
            (tile - map_tiles) % ROWS, chunk * TAP_SPLIT, tl.minimum((chunk + 1) * TAP_SPLIT, P), P, W, plane,
            NORM_EPS, GIVEN, K, DIMS, BLOCK_K, BLOCK_P, ACC, SPATIAL_POOLS,
        )  # fmt: skip
    return to_maps
