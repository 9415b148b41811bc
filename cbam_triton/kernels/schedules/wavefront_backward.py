"""The wavefront schedule of the backward: every stage in one launch, behind one another as in the forward.

A batch norm parts it. With the channel gate first, the logit gradient then has its own kernel; with the spatial gate
first, the two stages before the norm are one wavefront and the two after it another.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..stages.addressing import gradient_view, known_multiple, known_sizes, sample_view, size_of
from ..stages.channel_gradient import channel_gradient_tile
from ..stages.channel_pool import pool_grid
from ..stages.input_gradient import input_gradient_tile
from ..stages.logit_gradient import logit_gradient_tile
from ..stages.map_gradient import map_gradient_tile
from ..stages.mlp_gradient import mlp_gradient_tile
from ..stages.signals import publish, wait_for
from .specialisation import UNSPECIALISED
from .work_items import backward_item


class Done(NamedTuple):
    """Counters of one sample."""

    logit: Any  # tiles of the logit gradient
    map: Any  # tiles of the maps
    channel: Any  # blocks of channels
    descriptors: Any  # gradients of the descriptors
    chunks: Any  # BLOCKS: chunks of each block


@triton.jit(do_not_specialize=UNSPECIALISED)
def backward_wavefront(
    x_ptr, dy_ptr, y_ptr, dr_ptr, dx_ptr,  # N C H W; y, dr with dx's strides, or None; dx None: stop at the logits
    parameters, saved, scratch,  # with GIVEN scratch.dz is the gradient of the convolution's output
    dh_ptr,  # N BLOCKS R, scratch
    counters_ptr,  # zeroed, 1 + N (4 + BLOCKS): ticket; the counters of each sample
    x_stride_n, x_stride_c, x_stride_p, dy_stride_n, dy_stride_c, dy_stride_p, dx_stride_n, dx_stride_c, dx_stride_p,
    N, C, H, W, PLANES, R, LAG,
    GIVEN: tl.constexpr, TILES: tl.constexpr, LAYOUT: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """All of the backward of CBAM but the weights; each program takes a ticket and does that tile."""
    CHANNEL: tl.constexpr = saved.gate is not None
    SPATIAL: tl.constexpr = parameters.conv_weight is not None
    LOGIT: tl.constexpr = SPATIAL and not GIVEN
    SPATIAL_FIRST: tl.constexpr = FORM.ARRANGEMENT == "spatial_first"
    LOGIT_STAGE: tl.constexpr = 1 if SPATIAL_FIRST else 0
    MAP_STAGE: tl.constexpr = 2 if SPATIAL_FIRST else 1
    CHANNEL_STAGE: tl.constexpr = 0 if SPATIAL_FIRST else 2
    C, P = known_sizes(C, H * W, LAYOUT)
    size = size_of(C, P, H, W, PLANES, R, FORM)

    ticket = tl.atomic_add(counters_ptr, 1, sem="relaxed", scope="gpu")
    blocks, chunks, _ = pool_grid(C, P, TILES.POOL_C, TILES.POOL_P, TILES.POOL_SPLIT)
    tap_chunks = tl.cdiv(P, TILES.MAP_SPLIT) if scratch.share is not None else 0
    stage, n, tile = backward_item(
        ticket, N, LAG, tl.cdiv(P, TILES.SPATIAL_P), tl.cdiv(P, TILES.MAP_P) + tap_chunks * FORM.TAP_ROWS,
        blocks * chunks, tl.cdiv(P, TILES.APPLY_P) * tl.cdiv(C, TILES.APPLY_SPLIT),
        LOGIT, SPATIAL, CHANNEL, dx_ptr is not None, SPATIAL_FIRST,
    )  # fmt: skip
    if GIVEN:
        n = N - 1 - n  # first the samples that the launch before read last, which are in L2
    n = n.to(tl.int64)
    x = sample_view(x_ptr, n, x_stride_n, x_stride_c, x_stride_p, LAYOUT)
    dy = gradient_view(dy_ptr, n, dy_stride_n, dy_stride_c, dy_stride_p, LAYOUT)
    dr = dy if y_ptr is None else sample_view(dr_ptr, n, dx_stride_n, dx_stride_c, dx_stride_p, LAYOUT)
    done_ptr = counters_ptr + (1 + n * (4 + blocks))
    done = Done(done_ptr, done_ptr + 1, done_ptr + 2, done_ptr + 3, done_ptr + 4)

    if stage == LOGIT_STAGE:
        if LOGIT:
            if y_ptr is not None:
                y_ptr += n * known_multiple(dx_stride_n, LAYOUT.VEC)
            _logit_stage(x, dy, dr, y_ptr, parameters, saved, scratch, done, n, tile, size, TILES, LAYOUT, FORM)
    elif stage == MAP_STAGE:
        if SPATIAL and dx_ptr is not None:
            _map_stage(parameters, saved, scratch, done, n, tile, size, GIVEN, TILES, FORM)
    elif stage == CHANNEL_STAGE:
        if CHANNEL and (LOGIT or not SPATIAL_FIRST):
            dh_ptr += n * (blocks * R)
            _channel_stage(x, dr, parameters, saved, scratch, dh_ptr, done, n, tile, size, TILES, LAYOUT, FORM)
    else:
        if dx_ptr is not None:
            dx = sample_view(dx_ptr, n, dx_stride_n, dx_stride_c, dx_stride_p, LAYOUT)
            _input_stage(x, dr, dx, saved, scratch, done, n, tile, size, TILES, LAYOUT, FORM)


@triton.jit
def _logit_stage(x, dy, dr, y_ptr, parameters, saved, scratch, done, n, tile, size, TILES, LAYOUT, FORM):
    """A tile of the logit gradient; with the spatial gate first it needs the gradients of the descriptors."""
    SPATIAL_FIRST: tl.constexpr = FORM.ARRANGEMENT == "spatial_first"
    if SPATIAL_FIRST:
        wait_for(done.descriptors, 1)
    logit_gradient_tile(
        x, dy, dr, y_ptr, parameters, saved, scratch.ddescriptors if SPATIAL_FIRST else None, scratch.dz,
        n, tile, size, TILES, LAYOUT, FORM,
    )  # fmt: skip
    publish(done.logit)


@triton.jit
def _map_stage(parameters, saved, scratch, done, n, tile, size, GIVEN: tl.constexpr, TILES, FORM):
    """A tile of the map gradient, or a row of taps, which nobody waits for."""
    if not GIVEN:
        wait_for(done.logit, tl.cdiv(size.P, TILES.SPATIAL_P))
    to_maps = map_gradient_tile(parameters, saved, scratch, n, tile, size, GIVEN, TILES, FORM)
    if to_maps:
        publish(done.map)


@triton.jit
def _channel_stage(x, d, parameters, saved, scratch, dh_ptr, done, n, tile, size, TILES, LAYOUT, FORM):
    """A tile of the channel gradient; the last of a sample goes on to the gradients of the descriptors."""
    if parameters.conv_weight is not None and FORM.ARRANGEMENT != "spatial_first":
        wait_for(done.map, tl.cdiv(size.P, TILES.MAP_P))
    finished = channel_gradient_tile(
        x, d, parameters.fc2_weight, saved, scratch, done.chunks, dh_ptr, n, tile, size, TILES, LAYOUT, FORM
    )  # fmt: skip
    if finished:
        blocks = tl.cdiv(size.C, TILES.POOL_C)
        if publish(done.channel) == blocks - 1:
            ONE_LAYER: tl.constexpr = parameters.fc2_weight is None
            shares_ptr = scratch.dq + n * size.C if ONE_LAYER else dh_ptr
            mlp_gradient_tile(
                shares_ptr, parameters.fc1_weight, saved, scratch,
                n, 0, size.C, 1 if ONE_LAYER else blocks, size, TILES, FORM,
            )  # fmt: skip
            publish(done.descriptors)


@triton.jit
def _input_stage(x, d, dx, saved, scratch, done, n, tile, size, TILES, LAYOUT, FORM):
    """A tile of the input gradient."""
    if saved.gate is not None and FORM.ARRANGEMENT != "spatial_first":
        wait_for(done.descriptors, 1)
    else:
        wait_for(done.map, tl.cdiv(size.P, TILES.MAP_P))
    pixel_tiles = tl.cdiv(size.P, TILES.APPLY_P)
    p = (tile % pixel_tiles) * TILES.APPLY_P + tl.arange(0, TILES.APPLY_P)
    c_begin = (tile // pixel_tiles) * TILES.APPLY_SPLIT
    input_gradient_tile(x, d, dx, saved, scratch, n, p, c_begin, size, TILES, LAYOUT, FORM)
