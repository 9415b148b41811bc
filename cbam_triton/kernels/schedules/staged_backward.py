"""The staged schedule of the backward: one launch a stage, every other one backwards over the batch."""

import triton
import triton.language as tl

from ..stages.addressing import gradient_view, known_multiple, known_sizes, sample_view, size_of
from ..stages.channel_gradient import channel_gradient_tile
from ..stages.channel_pool import pool_grid
from ..stages.input_gradient import input_gradient_tile
from ..stages.logit_gradient import logit_gradient_tile
from ..stages.map_gradient import map_gradient_tile
from ..stages.mlp_gradient import mlp_gradient_tile
from ..stages.signals import follow
from .specialisation import UNSPECIALISED
from .work_items import sample_and_tile


@triton.jit(do_not_specialize=UNSPECIALISED)
def logit_gradient_kernel(
    x_ptr, dy_ptr, y_ptr, dr_ptr,  # N C P, twice; the same or None, twice
    parameters, saved,  # the norm's; gate, z, with the spatial gate first descriptors and channel_argmax
    scratch,  # dz; ddescriptors with the spatial gate first, else None
    x_stride_n, x_stride_c, x_stride_p, dy_stride_n, dy_stride_c, dy_stride_p, dx_stride_n, dx_stride_c, dx_stride_p,
    N, C, H, W, PLANES, R,
    BACKWARDS: tl.constexpr, TILES: tl.constexpr, LAYOUT: tl.constexpr, FORM: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Gradient of the normed logits; a program owns SPATIAL_P pixels of one sample."""
    follow(CHAINED)
    C, P = known_sizes(C, H * W, LAYOUT)
    size = size_of(C, P, H, W, PLANES, R, FORM)
    n, tile = sample_and_tile(N, tl.cdiv(P, TILES.SPATIAL_P), BACKWARDS)
    dy = gradient_view(dy_ptr, n, dy_stride_n, dy_stride_c, dy_stride_p, LAYOUT)
    dr = dy if y_ptr is None else sample_view(dr_ptr, n, dx_stride_n, dx_stride_c, dx_stride_p, LAYOUT)
    if y_ptr is not None:
        y_ptr += n * known_multiple(dx_stride_n, LAYOUT.VEC)
    logit_gradient_tile(
        sample_view(x_ptr, n, x_stride_n, x_stride_c, x_stride_p, LAYOUT), dy, dr, y_ptr,
        parameters, saved, scratch.ddescriptors, scratch.dz, n, tile, size, TILES, LAYOUT, FORM,
    )  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALISED)
def map_gradient_kernel(
    parameters, saved,  # the convolution's and the norm's; maps, z
    scratch,  # dz, s (not written without a norm), dmaps, share (or None)
    N, C, H, W, PLANES, R,
    GIVEN: tl.constexpr, TILES: tl.constexpr, FORM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Back through the convolution; a program owns MAP_P pixels, or a row of taps over MAP_SPLIT of them."""
    follow(CHAINED)
    size = size_of(C, H * W, H, W, PLANES, R, FORM)
    tap_chunks = tl.cdiv(size.P, TILES.MAP_SPLIT) if scratch.share is not None else 0
    n, tile = sample_and_tile(N, tl.cdiv(size.P, TILES.MAP_P) + tap_chunks * FORM.TAP_ROWS, False)
    map_gradient_tile(parameters, saved, scratch, n, tile, size, GIVEN, TILES, FORM)


@triton.jit(do_not_specialize=UNSPECIALISED)
def channel_gradient_kernel(
    x_ptr, d_ptr, parameters, saved,  # N C P twice; fc2_weight; gate, spatial_argmax
    scratch,  # s, dmaps, partial, dq
    counters_ptr, dh_ptr,  # N blocks, zeroed if there are chunks; N BLOCKS R, zeroed if BLOCKS > blocks
    x_stride_n, x_stride_c, x_stride_p, d_stride_n, d_stride_c, d_stride_p,
    N, C, H, W, PLANES, R, BLOCKS,
    BACKWARDS: tl.constexpr, TILES: tl.constexpr, LAYOUT: tl.constexpr, FORM: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Gradient of the channel gate; a program owns POOL_C channels of a chunk of pixels."""
    follow(CHAINED)
    C, P = known_sizes(C, H * W, LAYOUT)
    size = size_of(C, P, H, W, PLANES, R, FORM)
    blocks, chunks, _ = pool_grid(C, P, TILES.POOL_C, TILES.POOL_P, TILES.POOL_SPLIT)
    n, tile = sample_and_tile(N, blocks * chunks, BACKWARDS)
    channel_gradient_tile(
        sample_view(x_ptr, n, x_stride_n, x_stride_c, x_stride_p, LAYOUT),
        gradient_view(d_ptr, n, d_stride_n, d_stride_c, d_stride_p, LAYOUT), parameters.fc2_weight, saved, scratch,
        counters_ptr + n * blocks, dh_ptr + n * (BLOCKS * R), n, tile, size, TILES, LAYOUT, FORM,
    )  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALISED)
def mlp_gradient_kernel(
    dh_ptr, parameters, saved, scratch,  # N BLOCKS R; fc1_weight; preactivation, descriptors; hidden, ddescriptors
    N, C, H, W, PLANES, R, BLOCKS,
    TILES: tl.constexpr, FORM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Gradients of the descriptors; a program owns MLP_SPLIT channels of one sample."""
    follow(CHAINED)
    size = size_of(C, H * W, H, W, PLANES, R, FORM)
    n, tile = sample_and_tile(N, tl.cdiv(C, TILES.MLP_SPLIT), False)
    mlp_gradient_tile(
        dh_ptr + n * (BLOCKS * R), parameters.fc1_weight, saved, scratch,
        n, tile * TILES.MLP_SPLIT, (tile + 1) * TILES.MLP_SPLIT, BLOCKS, size, TILES, FORM,
    )  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALISED)
def input_gradient_kernel(
    x_ptr, d_ptr, dx_ptr,  # N C P
    saved, scratch,  # gate, descriptors, both argmax; s, dmaps, ddescriptors
    x_stride_n, x_stride_c, x_stride_p, d_stride_n, d_stride_c, d_stride_p, dx_stride_n, dx_stride_c, dx_stride_p,
    N, C, H, W, PLANES, R,
    BACKWARDS: tl.constexpr, TILES: tl.constexpr, LAYOUT: tl.constexpr, FORM: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """dx; a program owns APPLY_SPLIT channels of APPLY_P pixels of one sample."""
    follow(CHAINED)
    C, P = known_sizes(C, H * W, LAYOUT)
    size = size_of(C, P, H, W, PLANES, R, FORM)
    pixel_tiles = tl.cdiv(P, TILES.APPLY_P)
    n, tile = sample_and_tile(N, pixel_tiles * tl.cdiv(C, TILES.APPLY_SPLIT), BACKWARDS)
    p = (tile % pixel_tiles) * TILES.APPLY_P + tl.arange(0, TILES.APPLY_P)
    input_gradient_tile(
        sample_view(x_ptr, n, x_stride_n, x_stride_c, x_stride_p, LAYOUT),
        gradient_view(d_ptr, n, d_stride_n, d_stride_c, d_stride_p, LAYOUT),
        sample_view(dx_ptr, n, dx_stride_n, dx_stride_c, dx_stride_p, LAYOUT),
        saved, scratch, n, p, (tile // pixel_tiles) * TILES.APPLY_SPLIT, size, TILES, LAYOUT, FORM,
    )  # fmt: skip
