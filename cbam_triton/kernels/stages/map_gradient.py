"""Map gradient: back through the convolution of the spatial gate, to the pooled maps and to its weight."""

import triton
import triton.language as tl

from .padded_map import gradient_size, has_plane, past_zeros, tap_row
from .rounding import divided
from .spatial_gate import norm_slope, spatial_gate

_NO_COLUMN = tl.constexpr(-(1 << 20))  # a column of no map


@triton.jit
def map_gradient_tile(
    parameters, saved,  # the convolution and the norm; maps, z
    scratch,  # dz (the gradient of the normed logit), s, dmaps, share
    n, tile, size, GIVEN: tl.constexpr, TILES, FORM,
):  # fmt: skip
    """Back through the convolution: to MAP_P pixels of the maps, or to a row of its taps over MAP_SPLIT pixels.

    The tiles of the maps come first. Returns whether this was one: others wait for these alone.
    With GIVEN dz is already that of the unnormed logit.
    """
    map_tiles = tl.cdiv(size.P, TILES.MAP_P)
    to_maps = tile < map_tiles
    dz_ptr = scratch.dz + n * gradient_size(size.padded, size.zeros, size.lead)
    slope = tl.full((), 1.0, FORM.ACC) if GIVEN else norm_slope(parameters, FORM)
    if to_maps:
        p = tile * TILES.MAP_P + tl.arange(0, TILES.MAP_P)
        _map_gradient(dz_ptr, slope, parameters, saved, scratch, n, p, size, FORM)
    elif scratch.share is not None:
        chunks = tl.cdiv(size.P, TILES.MAP_SPLIT)
        chunk = (tile - map_tiles) // FORM.TAP_ROWS
        _tap_gradient(
            dz_ptr, slope, saved.maps + n * (FORM.MAPS * size.P), scratch.share + (n * chunks + chunk) * FORM.SHARE,
            (tile - map_tiles) % FORM.TAP_ROWS, chunk * TILES.MAP_SPLIT, size, TILES, FORM,
        )  # fmt: skip
    return to_maps


@triton.jit
def _map_gradient(dz_ptr, slope, parameters, saved, scratch, n, p, size, FORM):
    """dmaps = (dmean / C, dmean / C + dmax), and with a norm s, unless the spatial gate is first: then s is there.

    The gradients dmean and dmax of the two pooled maps are the transposed convolution of dz, of one sample. One program
    owns a vector of pixels p.
    """
    K: tl.constexpr = FORM.K
    BOTH: tl.constexpr = FORM.SPATIAL_POOLS == "mean+max"
    dmean = tl.zeros([p.shape[0]], FORM.ACC)
    dmax = tl.zeros([p.shape[0]], FORM.ACC)
    inside = p < size.P
    column = _column(p, size)
    dz_ptrs = dz_ptr + (size.lead - K // 2 + past_zeros(p, size, FORM.DIMS))
    for row in range(FORM.TAP_ROWS):
        row_ptrs = dz_ptrs + tap_row(row, size, K, FORM.DIMS)
        if FORM.DIMS == 3:
            column = tl.where(has_plane(row, p, size, K), _column(p, size), _NO_COLUMN)
        for kw in tl.static_range(K):
            # The neighbour at (row, kw) saw this pixel through the opposite tap.
            tap = FORM.TAP_ROWS * K - 1 - row * K - kw
            on_row = (column >= K // 2 - kw) & (column < size.W + K // 2 - kw)
            dz = tl.load(row_ptrs + kw, mask=on_row, other=0.0)
            dmean += dz * tl.load(parameters.conv_weight + tap).to(FORM.ACC)
            if BOTH:
                dmax += dz * tl.load(parameters.conv_weight + FORM.TAP_ROWS * K + tap).to(FORM.ACC)
    if FORM.SPATIAL_POOLS == "half":
        dmean *= 0.5
    if not BOTH:
        dmax = dmean
    if parameters.norm_mean is not None and FORM.ARRANGEMENT != "spatial_first":
        z = tl.load(saved.z + n * size.P + p, mask=inside, other=0.0)
        tl.store(scratch.s + n * size.P + p, spatial_gate(z, parameters, FORM), mask=inside)
    dmaps_ptr = scratch.dmaps + n * (2 * size.P)
    low = divided(slope * dmean, size.C)
    if FORM.SPATIAL_POOLS == "max":
        low = tl.zeros_like(low)
    tl.store(dmaps_ptr + p, low, mask=inside)
    if FORM.SPATIAL_POOLS != "mean":
        tl.store(dmaps_ptr + size.P + p, low + slope * dmax, mask=inside)


@triton.jit
def _tap_gradient(
    dz_ptr, slope, maps_ptr,  # one sample: gradient_size; of the norm; one sample: P MAPS
    share_ptr,  # these pixels: SHARE
    row, p_begin, size, TILES, FORM,
):  # fmt: skip
    """share = (dw, db): the correlation of the pooled maps with dz over MAP_SPLIT pixels from p_begin.

    One program owns the taps that see the neighbours in row `row`; the first also the bias.
    """
    M: tl.constexpr = FORM.MAPS
    K: tl.constexpr = FORM.K
    kw = tl.arange(0, FORM.BLOCK_K)
    dz_ptr += size.lead
    above = tap_row(row, size, K, FORM.DIMS) - K // 2
    # Times a one that the compiler does not know for one: threads then lie along the pixels, and every sum saves the
    # exchange of taps between threads.
    columns = kw * tl.minimum(size.W, 1)
    first = tl.zeros([FORM.BLOCK_K, TILES.MAP_P], FORM.ACC)
    second = tl.zeros([FORM.BLOCK_K, TILES.MAP_P], FORM.ACC)
    db = tl.zeros([TILES.MAP_P], FORM.ACC)
    for p0 in range(p_begin, tl.minimum(p_begin + TILES.MAP_SPLIT, size.P), TILES.MAP_P):
        p = p0 + tl.arange(0, TILES.MAP_P)
        inside = p < size.P
        column = _column(p, size)
        if FORM.DIMS == 3:
            column = tl.where(has_plane(row, p, size, K), column, _NO_COLUMN)
        column = column[None, :] + (kw - K // 2)[:, None]
        on_row = (column >= 0) & (column < size.W) & (kw < K)[:, None]
        place = past_zeros(p, size, FORM.DIMS)
        dz = tl.load(dz_ptr + ((place + above)[None, :] + columns[:, None]), mask=on_row, other=0.0)
        first += dz * tl.load(maps_ptr + M * p, mask=inside, other=0.0).to(FORM.ACC)[None, :]
        if M == 2:
            second += dz * tl.load(maps_ptr + 2 * p + 1, mask=inside, other=0.0).to(FORM.ACC)[None, :]
        if row == 0:
            db += tl.load(dz_ptr + place, mask=inside, other=0.0)
    # The neighbour at (row, kw) is what the opposite tap saw. The places past K are stored too: whole sectors.
    opposite = (FORM.TAP_ROWS - 1 - row) * (M * FORM.BLOCK_K) + tl.where(kw < K, K - 1 - kw, kw)
    tl.store(share_ptr + opposite, slope * tl.sum(first, 1))
    if M == 2:
        tl.store(share_ptr + opposite + FORM.BLOCK_K, slope * tl.sum(second, 1))
    if row == 0:
        tl.store(share_ptr + M * FORM.TAP_ROWS * FORM.BLOCK_K, slope * tl.sum(db, 0))


@triton.jit
def _column(p, size):
    """The column of pixels p; none of any map for those past the end."""
    return tl.where(p < size.P, p % size.W, _NO_COLUMN)
