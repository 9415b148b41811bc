"""The staged schedule of the backward: one launch a stage, every other one backwards over the batch."""

import triton
import triton.language as tl

from .apply_gates import logit_gradient_tile
from .channel_gradient import channel_gradient_tile, mlp_gradient_tile
from .channel_pool import pool_grid, pool_slots
from .input_gradient import input_gradient_tile
from .maps import gradient_size, plane_of
from .spatial_gate import map_gradient_tile, share_size
from .staged import sample_and_tile
from .tiles import gradient_strides, known_multiple, known_sizes, known_strides


@triton.jit(do_not_specialize=[
    "x_stride_n", "x_stride_c", "x_stride_p", "dy_stride_n", "dy_stride_c", "dy_stride_p",
    "dx_stride_n", "dx_stride_c", "dx_stride_p", "N", "C", "H", "W", "PLANES",
])  # fmt: skip
def logit_gradient_kernel(
    x_ptr, dy_ptr, y_ptr, dr_ptr, gate_ptr,  # N C P, twice; the same or None, twice; N C or None
    pools_ptr, dpools_ptr, channel_argmax_ptr,  # N POOLS C twice; N C; None but with the spatial gate first
    z_ptr, dz_ptr,  # N P; N gradient_size
    norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,  # 1 or None
    x_stride_n, x_stride_c, x_stride_p, dy_stride_n, dy_stride_c, dy_stride_p, dx_stride_n, dx_stride_c, dx_stride_p,
    N, C, H, W, PLANES,
    NORM_EPS: tl.constexpr, DY_ALIGNED: tl.constexpr, K: tl.constexpr, DIMS: tl.constexpr, HARD: tl.constexpr,
    VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    SPATIAL_C: tl.constexpr, SPATIAL_P: tl.constexpr, SPATIAL_KEEP: tl.constexpr, CHANNEL_POOLS: tl.constexpr,
    BACKWARDS: tl.constexpr,
):  # fmt: skip
    """Gradient of the normed logits; a program owns SPATIAL_P pixels of one sample."""
    plane = plane_of(H, W, PLANES, DIMS)
    C, P = known_sizes(C, H * W, VEC, CHANNELS_LAST)
    x_stride_c, x_stride_p = known_strides(x_stride_c, x_stride_p, VEC, CHANNELS_LAST, INDEX)
    dx_stride_c, dx_stride_p = known_strides(dx_stride_c, dx_stride_p, VEC, CHANNELS_LAST, INDEX)
    dy_stride_n, dy_stride_c, dy_stride_p = gradient_strides(
        dy_stride_n, dy_stride_c, dy_stride_p, DY_ALIGNED, VEC, CHANNELS_LAST, INDEX
    )
    n, tile = sample_and_tile(N, tl.cdiv(P, SPATIAL_P), BACKWARDS)
    if gate_ptr is not None:
        gate_ptr += n * C
    if dpools_ptr is not None:
        pools_ptr += n * (pool_slots(CHANNEL_POOLS) * C)
        dpools_ptr += n * (pool_slots(CHANNEL_POOLS) * C)
        if channel_argmax_ptr is not None:
            channel_argmax_ptr += n * C
    if y_ptr is not None:
        y_ptr += n * known_multiple(dx_stride_n, VEC)
        dr_ptr += n * known_multiple(dx_stride_n, VEC)
    logit_gradient_tile(
        x_ptr + n * known_multiple(x_stride_n, VEC), dy_ptr + n * dy_stride_n, y_ptr, dr_ptr,
        gate_ptr, pools_ptr, dpools_ptr, channel_argmax_ptr, z_ptr + n * P,
        dz_ptr + n * gradient_size(P, plane, W, K, DIMS), norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,
        tile, C, P, W, plane, x_stride_c, x_stride_p, dy_stride_c, dy_stride_p, dx_stride_c, dx_stride_p,
        K, DIMS, NORM_EPS, SPATIAL_C, SPATIAL_P, SPATIAL_KEEP, VEC, CHANNELS_LAST, INDEX, ACC,
        CHANNEL_POOLS, HARD,
    )  # fmt: skip


@triton.jit(do_not_specialize=["N", "C", "H", "W", "PLANES"])
def map_gradient_kernel(
    dz_ptr, z_ptr, pool_ptr, conv_weight_ptr,  # N gradient_size; N P; N P M; M K^DIMS
    norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,  # 1 or None
    s_ptr, dmaps_ptr, share_ptr,  # N P, not written without a norm; N 2 P; N chunks share_size or None
    N, C, H, W, PLANES,
    NORM_EPS: tl.constexpr, GIVEN: tl.constexpr,
    K: tl.constexpr, DIMS: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
    MAP_P: tl.constexpr, TAP_SPLIT: tl.constexpr, SPATIAL_POOLS: tl.constexpr, HARD: tl.constexpr,
    ARRANGEMENT: tl.constexpr,
):  # fmt: skip
    """Back through the convolution; a program owns MAP_P pixels, or a row of taps over TAP_SPLIT of them."""
    M: tl.constexpr = 2 if SPATIAL_POOLS == "mean+max" else 1
    ROWS: tl.constexpr = 1 if DIMS == 1 else K if DIMS == 2 else K * K
    P = H * W
    plane = plane_of(H, W, PLANES, DIMS)
    map_tiles = tl.cdiv(P, MAP_P)
    tap_chunks = tl.cdiv(P, TAP_SPLIT) if share_ptr is not None else 0
    n, tile = sample_and_tile(N, map_tiles + tap_chunks * ROWS, False)
    if share_ptr is not None:
        share_ptr += n * (tap_chunks * share_size(K, DIMS, BLOCK_K, SPATIAL_POOLS))
    map_gradient_tile(
        dz_ptr + n * gradient_size(P, plane, W, K, DIMS), z_ptr + n * P, pool_ptr + n * (M * P), conv_weight_ptr,
        norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, s_ptr + n * P, dmaps_ptr + n * (2 * P), share_ptr,
        tile, map_tiles, C, P, W, plane,
        NORM_EPS, GIVEN, K, DIMS, BLOCK_K, MAP_P, TAP_SPLIT, ACC, SPATIAL_POOLS, HARD, ARRANGEMENT,
    )  # fmt: skip


@triton.jit(do_not_specialize=[
    "x_stride_n", "x_stride_c", "x_stride_p", "d_stride_n", "d_stride_c", "d_stride_p", "N", "C", "P", "R", "BLOCKS",
])  # fmt: skip
def channel_gradient_kernel(
    x_ptr, d_ptr, s_ptr, dmaps_ptr, argmax_ptr,  # N C P twice; N P, N 2 P, N P, None without spatial attention
    gate_ptr, fc2_weight_ptr,  # N C; C R
    partial_ptr, counters_ptr,  # N blocks CHUNKS POOL_C, scratch; N blocks, zeroed if there are chunks
    dq_ptr, dh_ptr,  # N C; N BLOCKS R, zeroed if BLOCKS > blocks
    x_stride_n, x_stride_c, x_stride_p, d_stride_n, d_stride_c, d_stride_p,
    N, C, P, R, BLOCKS,
    D_ALIGNED: tl.constexpr,
    VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    POOL_C: tl.constexpr, POOL_P: tl.constexpr, POOL_SPLIT: tl.constexpr, POOL_KEEP: tl.constexpr,
    POOL_R: tl.constexpr, HARD: tl.constexpr, ARRANGEMENT: tl.constexpr, BACKWARDS: tl.constexpr,
):  # fmt: skip
    """Gradient of the channel gate; a program owns POOL_C channels of a chunk of pixels."""
    C, P = known_sizes(C, P, VEC, CHANNELS_LAST)
    x_stride_c, x_stride_p = known_strides(x_stride_c, x_stride_p, VEC, CHANNELS_LAST, INDEX)
    d_stride_n, d_stride_c, d_stride_p = gradient_strides(
        d_stride_n, d_stride_c, d_stride_p, D_ALIGNED, VEC, CHANNELS_LAST, INDEX
    )
    blocks, chunks, chunk = pool_grid(C, P, POOL_C, POOL_P, POOL_SPLIT)
    n, tile = sample_and_tile(N, blocks * chunks, BACKWARDS)
    if s_ptr is not None:
        s_ptr += n * P
    if dmaps_ptr is not None:
        dmaps_ptr += n * (2 * P)
    if argmax_ptr is not None:
        argmax_ptr += n * P
    channel_gradient_tile(
        x_ptr + n * known_multiple(x_stride_n, VEC), d_ptr + n * d_stride_n, s_ptr, dmaps_ptr, argmax_ptr,
        gate_ptr + n * C, fc2_weight_ptr, partial_ptr + n * (blocks * chunks * POOL_C), counters_ptr + n * blocks,
        dq_ptr + n * C, dh_ptr + n * (BLOCKS * R),
        tile, chunks, chunk, C, P, R, x_stride_c, x_stride_p, d_stride_c, d_stride_p,
        POOL_C, POOL_P, POOL_R, POOL_KEEP, VEC, CHANNELS_LAST, INDEX, ACC, HARD, ARRANGEMENT,
    )  # fmt: skip


@triton.jit(do_not_specialize=["N", "C", "P", "R", "BLOCKS"])
def mlp_gradient_kernel(
    dh_ptr, preactivation_ptr, pools_ptr,  # N BLOCKS R; N POOLS R or None; N POOLS C
    fc1_weight_ptr, hidden_ptr, dpools_ptr,  # R C; N POOLS+1 R; N POOLS C
    N, C, P, R, BLOCKS,
    BLOCK_R: tl.constexpr, MLP_T: tl.constexpr, MLP_C: tl.constexpr, MLP_SPLIT: tl.constexpr, ACC: tl.constexpr,
    CHANNEL_POOLS: tl.constexpr,
):  # fmt: skip
    """Gradients of the pooled channels; a program owns MLP_SPLIT channels of one sample."""
    n, tile = sample_and_tile(N, tl.cdiv(C, MLP_SPLIT), False)
    c_begin = tile * MLP_SPLIT
    POOLS = pool_slots(CHANNEL_POOLS)
    if preactivation_ptr is not None:
        preactivation_ptr += n * (POOLS * R)
    mlp_gradient_tile(
        dh_ptr + n * (BLOCKS * R), preactivation_ptr, pools_ptr + n * (POOLS * C), fc1_weight_ptr,
        hidden_ptr + n * ((POOLS + 1) * R), dpools_ptr + n * (POOLS * C), c_begin,
        tl.minimum(c_begin + MLP_SPLIT, C), C, P, R, BLOCKS, MLP_T, MLP_C, BLOCK_R, ACC, CHANNEL_POOLS,
    )  # fmt: skip


@triton.jit(do_not_specialize=[
    "x_stride_n", "x_stride_c", "x_stride_p", "d_stride_n", "d_stride_c", "d_stride_p",
    "dx_stride_n", "dx_stride_c", "dx_stride_p", "N", "C", "P",
])  # fmt: skip
def input_gradient_kernel(
    x_ptr, d_ptr, dx_ptr,  # N C P
    s_ptr, dmaps_ptr, spatial_argmax_ptr,  # N P, N 2 P, N P; None without spatial attention
    gate_ptr, pools_ptr, dpools_ptr, channel_argmax_ptr,  # N C, N POOLS C twice, N C; None without channel attention
    x_stride_n, x_stride_c, x_stride_p, d_stride_n, d_stride_c, d_stride_p, dx_stride_n, dx_stride_c, dx_stride_p,
    N, C, P,
    D_ALIGNED: tl.constexpr,
    VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    APPLY_C: tl.constexpr, APPLY_P: tl.constexpr, APPLY_SPLIT: tl.constexpr, BACKWARDS: tl.constexpr,
    CHANNEL_POOLS: tl.constexpr, ARRANGEMENT: tl.constexpr,
):  # fmt: skip
    """dx; a program owns APPLY_SPLIT channels of APPLY_P pixels of one sample."""
    C, P = known_sizes(C, P, VEC, CHANNELS_LAST)
    x_stride_c, x_stride_p = known_strides(x_stride_c, x_stride_p, VEC, CHANNELS_LAST, INDEX)
    dx_stride_c, dx_stride_p = known_strides(dx_stride_c, dx_stride_p, VEC, CHANNELS_LAST, INDEX)
    d_stride_n, d_stride_c, d_stride_p = gradient_strides(
        d_stride_n, d_stride_c, d_stride_p, D_ALIGNED, VEC, CHANNELS_LAST, INDEX
    )
    pixel_tiles = tl.cdiv(P, APPLY_P)
    n, tile = sample_and_tile(N, pixel_tiles * tl.cdiv(C, APPLY_SPLIT), BACKWARDS)
    if dmaps_ptr is not None:
        s_ptr += n * P
        dmaps_ptr += n * (2 * P)
    if spatial_argmax_ptr is not None:
        spatial_argmax_ptr += n * P
    if gate_ptr is not None:
        gate_ptr += n * C
        pools_ptr += n * (pool_slots(CHANNEL_POOLS) * C)
        dpools_ptr += n * (pool_slots(CHANNEL_POOLS) * C)
    if channel_argmax_ptr is not None:
        channel_argmax_ptr += n * C
    p = (tile % pixel_tiles) * APPLY_P + tl.arange(0, APPLY_P)
    c_begin = (tile // pixel_tiles) * APPLY_SPLIT
    input_gradient_tile(
        x_ptr + n * known_multiple(x_stride_n, VEC), d_ptr + n * d_stride_n,
        dx_ptr + n * known_multiple(dx_stride_n, VEC), s_ptr, dmaps_ptr, spatial_argmax_ptr,
        gate_ptr, pools_ptr, dpools_ptr, channel_argmax_ptr,
        p, c_begin, tl.minimum(c_begin + APPLY_SPLIT, C), C, P, x_stride_c, x_stride_p,
        d_stride_c, d_stride_p, dx_stride_c, dx_stride_p, APPLY_C, VEC, CHANNELS_LAST, INDEX, ACC,
        CHANNEL_POOLS, ARRANGEMENT,
    )  # fmt: skip
