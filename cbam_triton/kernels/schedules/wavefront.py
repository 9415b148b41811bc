"""The wavefront schedule: every stage in one launch, while the samples in flight stay in L2. See docs/schedules.md."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ..stages.addressing import known_multiple, known_sizes, sample_view, size_of
from ..stages.apply_gates import apply_gates_tile
from ..stages.channel_mlp import channel_mlp_tile
from ..stages.channel_pool import channel_pool_tile, pool_grid
from ..stages.signals import publish, wait_for
from ..stages.spatial_gate import spatial_gate, spatial_logit
from ..stages.spatial_pool import spatial_pool_tile
from .specialisation import UNSPECIALISED
from .work_items import forward_item


class Done(NamedTuple):
    """Counters of one sample."""

    pool: Any  # blocks of channels pooled
    gate: Any  # channel gate made
    spatial: Any  # tiles of the spatial pool
    map: Any  # tiles of s
    chunks: Any  # BLOCKS: chunks pooled of each block


@triton.jit(do_not_specialize=UNSPECIALISED)
def cbam_wavefront(
    x_ptr, residual_ptr, y_ptr,  # N C H W; the same with y's strides, or None; y None: stop at the logits
    parameters, saved,
    scratch,  # s is scratch with the spatial gate first, given without spatial attention, else None
    hidden_ptr,  # N BLOCKS SLOTS R, scratch
    counters_ptr,  # zeroed, 1 + N (4 + BLOCKS): ticket; the counters of each sample
    x_stride_n, x_stride_c, x_stride_p, y_stride_n, y_stride_c, y_stride_p,
    N, C, H, W, PLANES, R, LAG,
    RELU: tl.constexpr, TILES: tl.constexpr, LAYOUT: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """All of CBAM; each program takes a ticket and does that tile, waiting only for tiles with smaller tickets."""
    CHANNEL: tl.constexpr = parameters.fc1_weight is not None
    SPATIAL: tl.constexpr = parameters.conv_weight is not None
    SPATIAL_FIRST: tl.constexpr = SPATIAL and FORM.ARRANGEMENT == "spatial_first"
    CHANNEL_STAGE: tl.constexpr = -1 if not CHANNEL else 2 if SPATIAL_FIRST else 0
    SPATIAL_STAGE: tl.constexpr = -1 if not SPATIAL else 1 if CHANNEL and not SPATIAL_FIRST else 0
    MAP_STAGE: tl.constexpr = 1 if SPATIAL_FIRST else -1
    C, P = known_sizes(C, H * W, LAYOUT)
    size = size_of(C, P, H, W, PLANES, R, FORM)

    ticket = tl.atomic_add(counters_ptr, 1, sem="relaxed", scope="gpu")
    blocks, chunks, _ = pool_grid(C, P, TILES.POOL_C, TILES.POOL_P, TILES.POOL_SPLIT)
    pixel_tiles = tl.cdiv(P, TILES.APPLY_P)
    stage, n, tile = forward_item(
        ticket, N, LAG, blocks * chunks if CHANNEL else 0, tl.cdiv(P, TILES.SPATIAL_P) if SPATIAL else 0, pixel_tiles,
        pixel_tiles * (1 if y_ptr is None else tl.cdiv(C, TILES.APPLY_SPLIT)), CHANNEL, SPATIAL, SPATIAL_FIRST,
    )  # fmt: skip
    if scratch.s is not None and not SPATIAL:
        n = N - 1 - n  # first the samples that the launch before read last, which are in L2
    n = n.to(tl.int64)
    x = sample_view(x_ptr, n, x_stride_n, x_stride_c, x_stride_p, LAYOUT)
    done_ptr = counters_ptr + (1 + n * (4 + blocks))
    done = Done(done_ptr, done_ptr + 1, done_ptr + 2, done_ptr + 3, done_ptr + 4)

    if stage == CHANNEL_STAGE:
        if CHANNEL:
            hidden_ptr += n * (blocks * FORM.SLOTS * R)
            _channel_stage(x, parameters, saved, scratch, hidden_ptr, done, n, tile, size, TILES, LAYOUT, FORM)
    elif stage == SPATIAL_STAGE:
        if SPATIAL:
            gate_ptr = scratch.gate if FORM.ARRANGEMENT == "channel_first" else None
            if gate_ptr is not None:
                wait_for(done.gate, 1)
            spatial_pool_tile(x, gate_ptr, scratch.maps, saved, n, tile, size, TILES, LAYOUT, FORM)
            publish(done.spatial)
    elif stage == MAP_STAGE:
        if SPATIAL_FIRST:
            _map_stage(parameters, saved, scratch, done, n, tile, size, TILES, FORM)
    else:
        y = x if y_ptr is None else sample_view(y_ptr, n, y_stride_n, y_stride_c, y_stride_p, LAYOUT)
        if residual_ptr is not None:
            residual_ptr += n * known_multiple(y_stride_n, LAYOUT.VEC)
        _apply_stage(
            x, y, residual_ptr, parameters, saved, scratch, done, n, tile, size,
            y_ptr is None, RELU, TILES, LAYOUT, FORM,
        )  # fmt: skip


@triton.jit
def _channel_stage(x, parameters, saved, scratch, hidden_ptr, done, n, tile, size, TILES, LAYOUT, FORM):
    """A tile of the channel pool; the last of a sample makes the gate."""
    if parameters.conv_weight is not None and FORM.ARRANGEMENT == "spatial_first":
        wait_for(done.map, tl.cdiv(size.P, TILES.APPLY_P))
    pooled = channel_pool_tile(
        x, scratch.s, parameters.fc1_weight, scratch.partial, done.chunks, hidden_ptr,
        saved, n, tile, size, TILES, LAYOUT, FORM,
    )  # fmt: skip
    if pooled:
        blocks = tl.cdiv(size.C, TILES.POOL_C)
        if publish(done.pool) == blocks - 1:
            channel_mlp_tile(hidden_ptr, parameters, scratch.gate, saved, n, 0, size.C, blocks, size, TILES, FORM)
            publish(done.gate)


@triton.jit
def _map_stage(parameters, saved, scratch, done, n, tile, size, TILES, FORM):
    """A tile of s, where the spatial gate is first."""
    wait_for(done.spatial, tl.cdiv(size.P, TILES.SPATIAL_P))
    p = tile * TILES.APPLY_P + tl.arange(0, TILES.APPLY_P)
    z = spatial_logit(scratch.maps, parameters, n, p, size, FORM)
    tl.store(scratch.s + n * size.P + p, spatial_gate(z, parameters, FORM), mask=p < size.P)
    if saved.z is not None:
        tl.store(saved.z + n * size.P + p, z, mask=p < size.P)
    publish(done.map)


@triton.jit
def _apply_stage(
    x, y, residual_ptr, parameters, saved, scratch, done, n, tile, size,
    LOGITS: tl.constexpr, RELU: tl.constexpr, TILES, LAYOUT, FORM,
):  # fmt: skip
    """A tile of y, once both gates are made; with LOGITS the spatial gate's logits are all there is to do."""
    SPATIAL: tl.constexpr = parameters.conv_weight is not None
    pixel_tiles = tl.cdiv(size.P, TILES.APPLY_P)
    p = (tile % pixel_tiles) * TILES.APPLY_P + tl.arange(0, TILES.APPLY_P)
    s = None
    if SPATIAL or scratch.s is not None:
        s = _gate_at(parameters, saved, scratch, done, n, p, tile < pixel_tiles, LOGITS, size, TILES, FORM)
    if parameters.fc1_weight is not None and scratch.s is None:
        if FORM.ARRANGEMENT == "parallel" or not SPATIAL:
            wait_for(done.gate, 1)
    if not LOGITS:
        c_begin = (tile // pixel_tiles) * TILES.APPLY_SPLIT
        apply_gates_tile(
            x, y, residual_ptr, scratch.gate, s, n, p, c_begin, size, RELU, TILES, LAYOUT, FORM
        )  # fmt: skip


@triton.jit
def _gate_at(parameters, saved, scratch, done, n, p, first, LOGITS: tl.constexpr, size, TILES, FORM):
    """The spatial gate at pixels p: as it is in memory, once the channel gate is made, or from the maps.

    With `first` it is saved, if it is made here: the logits, or without a norm the gate.
    """
    if scratch.s is not None:
        wait_for(done.gate, 1)
        s = tl.load(scratch.s + n * size.P + p, mask=p < size.P, other=0.0)
    else:
        wait_for(done.spatial, tl.cdiv(size.P, TILES.SPATIAL_P))
        z = spatial_logit(scratch.maps, parameters, n, p, size, FORM)
        s = spatial_gate(z, parameters, FORM)
        if saved.z is not None:
            if first:
                kept = z if LOGITS or parameters.norm_mean is not None else s
                tl.store(saved.z + n * size.P + p, kept, mask=p < size.P)
    return s
