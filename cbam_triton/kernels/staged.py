"""The staged schedule: one launch a stage. Every other one walks the batch backwards, to begin with what is in L2."""

import triton
import triton.language as tl

from .apply_gates import apply_gates_tile
from .channel_mlp import channel_mlp_tile
from .channel_pool import channel_pool_tile, pool_grid, pool_slots
from .maps import padded_size, plane_of
from .spatial_gate import normed, sample_logit
from .spatial_pool import spatial_pool_tile
from .tiles import gate_of, known_multiple, known_sizes, known_strides


@triton.jit
def sample_and_tile(N, tiles, BACKWARDS: tl.constexpr):
    """(n, tile) of this program; the samples in reverse order if BACKWARDS."""
    program = tl.program_id(0)
    n = program // tiles
    tile = program % tiles
    if BACKWARDS:
        n = N - 1 - n
    return n.to(tl.int64), tile


@triton.jit(do_not_specialize=["x_stride_n", "x_stride_c", "x_stride_p", "N", "C", "P", "R", "BLOCKS"])
def channel_pool_kernel(
    x_ptr, s_ptr,  # N C P; N P or None
    fc1_weight_ptr,  # R C
    partial_ptr, hidden_ptr,  # N blocks CHUNKS POOLS+1 POOL_C, scratch; N BLOCKS POOLS R, zeroed if BLOCKS > blocks
    pools_ptr, argmax_ptr,  # N POOLS C, N C, kept for a backward, or None
    counters_ptr,  # N blocks, zeroed if there are chunks
    x_stride_n, x_stride_c, x_stride_p,
    N, C, P, R, BLOCKS,
    VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    POOL_C: tl.constexpr, POOL_P: tl.constexpr, POOL_SPLIT: tl.constexpr, POOL_KEEP: tl.constexpr,
    POOL_R: tl.constexpr, CHANNEL_POOLS: tl.constexpr, BACKWARDS: tl.constexpr,
):  # fmt: skip
    """Channel pool and hidden layer; a program owns POOL_C channels of a chunk of pixels of one sample."""
    C, P = known_sizes(C, P, VEC, CHANNELS_LAST)
    x_stride_c, x_stride_p = known_strides(x_stride_c, x_stride_p, VEC, CHANNELS_LAST, INDEX)
    blocks, chunks, chunk = pool_grid(C, P, POOL_C, POOL_P, POOL_SPLIT)
    n, tile = sample_and_tile(N, blocks * chunks, BACKWARDS)
    POOLS = pool_slots(CHANNEL_POOLS)
    if s_ptr is not None:
        s_ptr += n * P
    if pools_ptr is not None:
        pools_ptr += n * (POOLS * C)
    if argmax_ptr is not None:
        argmax_ptr += n * C
    channel_pool_tile(
        x_ptr + n * known_multiple(x_stride_n, VEC), s_ptr, fc1_weight_ptr,
        partial_ptr + n * (blocks * chunks * (POOLS + 1) * POOL_C), counters_ptr + n * blocks,
        hidden_ptr + n * (BLOCKS * POOLS * R), pools_ptr, argmax_ptr,
        tile, chunks, chunk, C, P, R, x_stride_c, x_stride_p,
        POOL_C, POOL_P, POOL_R, POOL_KEEP, VEC, CHANNELS_LAST, INDEX, ACC, CHANNEL_POOLS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["N", "C", "R", "BLOCKS"])
def channel_mlp_kernel(
    hidden_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, gate_ptr,  # N BLOCKS POOLS R; R; C R; C; N C
    preactivation_ptr,  # N POOLS R, kept for a backward, or None
    N, C, R, BLOCKS,
    BLOCK_R: tl.constexpr, MLP_T: tl.constexpr, MLP_C: tl.constexpr, MLP_SPLIT: tl.constexpr, ACC: tl.constexpr,
    CHANNEL_POOLS: tl.constexpr, HARD: tl.constexpr,
):  # fmt: skip
    """Channel gate; a program owns MLP_SPLIT channels of one sample."""
    n, tile = sample_and_tile(N, tl.cdiv(C, MLP_SPLIT), False)
    c_begin = tile * MLP_SPLIT
    POOLS = pool_slots(CHANNEL_POOLS)
    if preactivation_ptr is not None:
        preactivation_ptr += n * (POOLS * R)
    channel_mlp_tile(
        hidden_ptr + n * (BLOCKS * POOLS * R), fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, gate_ptr + n * C,
        preactivation_ptr, c_begin, tl.minimum(c_begin + MLP_SPLIT, C), C, R, BLOCKS, MLP_T, MLP_C, BLOCK_R, ACC,
        CHANNEL_POOLS, HARD,
    )  # fmt: skip


@triton.jit(do_not_specialize=["x_stride_n", "x_stride_c", "x_stride_p", "N", "C", "H", "W", "PLANES"])
def spatial_pool_kernel(
    x_ptr, gate_ptr, pool_ptr,  # N C P; N C or None; N padded_size M
    kept_ptr, argmax_ptr,  # N P M, N P, kept for a backward, or None
    x_stride_n, x_stride_c, x_stride_p,
    N, C, H, W, PLANES,
    K: tl.constexpr, DIMS: tl.constexpr,
    VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    SPATIAL_C: tl.constexpr, SPATIAL_P: tl.constexpr, SPATIAL_KEEP: tl.constexpr, SPATIAL_POOLS: tl.constexpr,
    BACKWARDS: tl.constexpr,
):  # fmt: skip
    """Spatial pool; a program owns SPATIAL_P pixels of one sample."""
    M: tl.constexpr = 2 if SPATIAL_POOLS == "mean+max" else 1
    plane = plane_of(H, W, PLANES, DIMS)
    C, P = known_sizes(C, H * W, VEC, CHANNELS_LAST)
    x_stride_c, x_stride_p = known_strides(x_stride_c, x_stride_p, VEC, CHANNELS_LAST, INDEX)
    n, tile = sample_and_tile(N, tl.cdiv(P, SPATIAL_P), BACKWARDS)
    if gate_ptr is not None:
        gate_ptr += n * C
    if kept_ptr is not None:
        kept_ptr += n * (M * P)
    if argmax_ptr is not None:
        argmax_ptr += n * P
    spatial_pool_tile(
        x_ptr + n * known_multiple(x_stride_n, VEC), gate_ptr, pool_ptr + n * (M * padded_size(P, plane, W, K, DIMS)),
        kept_ptr, argmax_ptr, tile, C, P, W, plane, x_stride_c, x_stride_p, K, DIMS,
        SPATIAL_C, SPATIAL_P, SPATIAL_KEEP, VEC, CHANNELS_LAST, INDEX, ACC, SPATIAL_POOLS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["N", "H", "W", "PLANES"])
def spatial_logit_kernel(
    pool_ptr, conv_weight_ptr, conv_bias_ptr,  # N padded_size M; M K^DIMS; 1 or None
    norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,  # 1 or None
    z_ptr, s_ptr,  # N P or None
    N, H, W, PLANES,
    NORM_EPS: tl.constexpr, K: tl.constexpr, DIMS: tl.constexpr, BLOCK_K: tl.constexpr, ACC: tl.constexpr,
    APPLY_P: tl.constexpr, SPATIAL_POOLS: tl.constexpr, HARD: tl.constexpr,
):  # fmt: skip
    """The convolution alone, and the gate that it makes; a program owns APPLY_P pixels of one sample."""
    P = H * W
    n, tile = sample_and_tile(N, tl.cdiv(P, APPLY_P), False)
    p = tile * APPLY_P + tl.arange(0, APPLY_P)
    z = sample_logit(
        pool_ptr, conv_weight_ptr, conv_bias_ptr, n, p, P, H, W, PLANES, K, DIMS, BLOCK_K, ACC, SPATIAL_POOLS
    )  # fmt: skip
    if z_ptr is not None:
        tl.store(z_ptr + n * P + p, z, mask=p < P)
    if s_ptr is not None:
        s = gate_of(normed(z, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, NORM_EPS, ACC), HARD)
        tl.store(s_ptr + n * P + p, s, mask=p < P)


@triton.jit(do_not_specialize=[
    "x_stride_n", "x_stride_c", "x_stride_p", "y_stride_n", "y_stride_c", "y_stride_p", "N", "C", "H", "W", "PLANES",
])  # fmt: skip
def apply_gates_kernel(
    x_ptr, residual_ptr,  # N C P; the latter with y's strides, or None
    gate_ptr, pool_ptr, z_ptr, s_ptr, y_ptr,  # N C or None; N padded_size M or None; N P or None, twice; N C P
    conv_weight_ptr, conv_bias_ptr,  # M K^DIMS and 1, with pool
    norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,  # 1 or None
    x_stride_n, x_stride_c, x_stride_p, y_stride_n, y_stride_c, y_stride_p,
    N, C, H, W, PLANES,
    NORM_EPS: tl.constexpr, RELU: tl.constexpr, K: tl.constexpr, DIMS: tl.constexpr, BLOCK_K: tl.constexpr,
    VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    APPLY_C: tl.constexpr, APPLY_P: tl.constexpr, APPLY_SPLIT: tl.constexpr, BACKWARDS: tl.constexpr,
    SPATIAL_POOLS: tl.constexpr, HARD: tl.constexpr,
):  # fmt: skip
    """y = act(x * g * gate(norm(z)) + residual); the gate s is given, or z is, or z is made from pool and kept
    where there is a place, or the gate is if there is no norm.

    A program owns APPLY_SPLIT channels of APPLY_P pixels.
    """
    C, P = known_sizes(C, H * W, VEC, CHANNELS_LAST)
    x_stride_c, x_stride_p = known_strides(x_stride_c, x_stride_p, VEC, CHANNELS_LAST, INDEX)
    y_stride_c, y_stride_p = known_strides(y_stride_c, y_stride_p, VEC, CHANNELS_LAST, INDEX)
    pixel_tiles = tl.cdiv(P, APPLY_P)
    n, tile = sample_and_tile(N, pixel_tiles * tl.cdiv(C, APPLY_SPLIT), BACKWARDS)
    p = (tile % pixel_tiles) * APPLY_P + tl.arange(0, APPLY_P)
    s = None
    if pool_ptr is not None:
        z = sample_logit(
            pool_ptr, conv_weight_ptr, conv_bias_ptr, n, p, P, H, W, PLANES, K, DIMS, BLOCK_K, ACC, SPATIAL_POOLS
        )  # fmt: skip
        s = gate_of(normed(z, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, NORM_EPS, ACC), HARD)
        if z_ptr is not None:
            if tile < pixel_tiles:
                tl.store(z_ptr + n * P + p, z if norm_mean_ptr is not None else s, mask=p < P)
    elif s_ptr is not None:
        s = tl.load(s_ptr + n * P + p, mask=p < P, other=0.0)
    elif z_ptr is not None:
        z = tl.load(z_ptr + n * P + p, mask=p < P, other=0.0).to(ACC)
        s = gate_of(normed(z, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, NORM_EPS, ACC), HARD)
    if gate_ptr is not None:
        gate_ptr += n * C
    c_begin = (tile // pixel_tiles) * APPLY_SPLIT
    y_offset = n * known_multiple(y_stride_n, VEC)
    if residual_ptr is not None:
        residual_ptr += y_offset
    apply_gates_tile(
        x_ptr + n * known_multiple(x_stride_n, VEC), y_ptr + y_offset, residual_ptr, gate_ptr, s,
        p, c_begin, tl.minimum(c_begin + APPLY_SPLIT, C), P, x_stride_c, x_stride_p, y_stride_c, y_stride_p,
        RELU, APPLY_C, VEC, CHANNELS_LAST, INDEX, ACC,
    )  # fmt: skip
