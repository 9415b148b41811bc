"""The staged schedule: one launch a stage. Every other one walks the batch backwards, to begin with what is in L2."""

import triton
import triton.language as tl

from ..stages.addressing import known_multiple, known_sizes, sample_view, size_of
from ..stages.apply_gates import apply_gates_tile
from ..stages.channel_mlp import channel_mlp_tile
from ..stages.channel_pool import channel_pool_tile, pool_grid
from ..stages.signals import follow
from ..stages.spatial_gate import spatial_gate, spatial_logit
from ..stages.spatial_pool import spatial_pool_tile
from .specialisation import UNSPECIALISED
from .work_items import sample_and_tile


@triton.jit(do_not_specialize=UNSPECIALISED)
def channel_pool_kernel(
    x_ptr, parameters, saved, scratch,  # N C P; fc1_weight; descriptors, channel_argmax; s, partial
    hidden_ptr, counters_ptr,  # N BLOCKS SLOTS R, zeroed if BLOCKS > blocks; N blocks, zeroed if there are chunks
    x_stride_n, x_stride_c, x_stride_p,
    N, C, H, W, PLANES, R, BLOCKS,
    BACKWARDS: tl.constexpr, TILES: tl.constexpr, LAYOUT: tl.constexpr, FORM: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Channel pool and hidden layer; a program owns POOL_C channels of a chunk of pixels of one sample."""
    follow(CHAINED)
    C, P = known_sizes(C, H * W, LAYOUT)
    size = size_of(C, P, H, W, PLANES, R, FORM)
    blocks, chunks, _ = pool_grid(C, P, TILES.POOL_C, TILES.POOL_P, TILES.POOL_SPLIT)
    n, tile = sample_and_tile(N, blocks * chunks, BACKWARDS)
    channel_pool_tile(
        sample_view(x_ptr, n, x_stride_n, x_stride_c, x_stride_p, LAYOUT), scratch.s, parameters.fc1_weight,
        scratch.partial, counters_ptr + n * blocks, hidden_ptr + n * (BLOCKS * FORM.SLOTS * R),
        saved, n, tile, size, TILES, LAYOUT, FORM,
    )  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALISED)
def channel_mlp_kernel(
    hidden_ptr, parameters, saved, scratch,  # N BLOCKS SLOTS R; the MLP's; preactivation; gate
    N, C, H, W, PLANES, R, BLOCKS,
    TILES: tl.constexpr, FORM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Channel gate; a program owns MLP_SPLIT channels of one sample."""
    follow(CHAINED)
    size = size_of(C, H * W, H, W, PLANES, R, FORM)
    n, tile = sample_and_tile(N, tl.cdiv(C, TILES.MLP_SPLIT), False)
    channel_mlp_tile(
        hidden_ptr + n * (BLOCKS * FORM.SLOTS * R), parameters, scratch.gate, saved,
        n, tile * TILES.MLP_SPLIT, (tile + 1) * TILES.MLP_SPLIT, BLOCKS, size, TILES, FORM,
    )  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALISED)
def spatial_pool_kernel(
    x_ptr, saved, scratch,  # N C P; maps, spatial_argmax; gate, maps
    x_stride_n, x_stride_c, x_stride_p,
    N, C, H, W, PLANES, R,
    BACKWARDS: tl.constexpr, TILES: tl.constexpr, LAYOUT: tl.constexpr, FORM: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """Spatial pool; a program owns SPATIAL_P pixels of one sample."""
    follow(CHAINED)
    C, P = known_sizes(C, H * W, LAYOUT)
    size = size_of(C, P, H, W, PLANES, R, FORM)
    n, tile = sample_and_tile(N, tl.cdiv(P, TILES.SPATIAL_P), BACKWARDS)
    x = sample_view(x_ptr, n, x_stride_n, x_stride_c, x_stride_p, LAYOUT)
    gate_ptr = scratch.gate if FORM.ARRANGEMENT == "channel_first" else None
    spatial_pool_tile(x, gate_ptr, scratch.maps, saved, n, tile, size, TILES, LAYOUT, FORM)


@triton.jit(do_not_specialize=UNSPECIALISED)
def spatial_logit_kernel(
    parameters, saved, scratch,  # the convolution's and the norm's; z; maps, s
    N, C, H, W, PLANES, R,
    TILES: tl.constexpr, FORM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """The convolution alone, and the gate made from it; a program owns APPLY_P pixels of one sample."""
    follow(CHAINED)
    size = size_of(C, H * W, H, W, PLANES, R, FORM)
    n, tile = sample_and_tile(N, tl.cdiv(size.P, TILES.APPLY_P), False)
    p = tile * TILES.APPLY_P + tl.arange(0, TILES.APPLY_P)
    z = spatial_logit(scratch.maps, parameters, n, p, size, FORM)
    if saved.z is not None:
        tl.store(saved.z + n * size.P + p, z, mask=p < size.P)
    if scratch.s is not None:
        tl.store(scratch.s + n * size.P + p, spatial_gate(z, parameters, FORM), mask=p < size.P)


@triton.jit(do_not_specialize=UNSPECIALISED)
def apply_gates_kernel(
    x_ptr, residual_ptr, y_ptr,  # N C P; the same with y's strides, or None; N C P
    parameters, saved, scratch,  # the convolution's and the norm's; z; gate, maps, s
    x_stride_n, x_stride_c, x_stride_p, y_stride_n, y_stride_c, y_stride_p,
    N, C, H, W, PLANES, R,
    RELU: tl.constexpr, BACKWARDS: tl.constexpr, TILES: tl.constexpr, LAYOUT: tl.constexpr, FORM: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    """y = act(x g s + residual); a program owns APPLY_SPLIT channels of APPLY_P pixels.

    The gate s is made from the maps, and saved.z is then a place for the logits, or without a norm for the gate.
    Without maps s is given, or made from the given logits saved.z.
    """
    follow(CHAINED)
    C, P = known_sizes(C, H * W, LAYOUT)
    size = size_of(C, P, H, W, PLANES, R, FORM)
    pixel_tiles = tl.cdiv(P, TILES.APPLY_P)
    n, tile = sample_and_tile(N, pixel_tiles * tl.cdiv(C, TILES.APPLY_SPLIT), BACKWARDS)
    p = (tile % pixel_tiles) * TILES.APPLY_P + tl.arange(0, TILES.APPLY_P)
    s = None
    if scratch.maps is not None:
        z = spatial_logit(scratch.maps, parameters, n, p, size, FORM)
        s = spatial_gate(z, parameters, FORM)
        if saved.z is not None:
            if tile < pixel_tiles:
                tl.store(saved.z + n * P + p, z if parameters.norm_mean is not None else s, mask=p < P)
    elif scratch.s is not None:
        s = tl.load(scratch.s + n * P + p, mask=p < P, other=0.0)
    elif saved.z is not None:
        s = spatial_gate(tl.load(saved.z + n * P + p, mask=p < P, other=0.0).to(FORM.ACC), parameters, FORM)
    if residual_ptr is not None:
        residual_ptr += n * known_multiple(y_stride_n, LAYOUT.VEC)
    apply_gates_tile(
        sample_view(x_ptr, n, x_stride_n, x_stride_c, x_stride_p, LAYOUT),
        sample_view(y_ptr, n, y_stride_n, y_stride_c, y_stride_p, LAYOUT), residual_ptr, scratch.gate, s,
        n, p, (tile // pixel_tiles) * TILES.APPLY_SPLIT, size, RELU, TILES, LAYOUT, FORM,
    )  # fmt: skip
