"""The wavefront schedule of the backward: every stage in one launch, behind one another as in the forward.

A batch norm parts it. With the channel gate first, the logit gradient then has its own kernel; with the spatial gate
first, the two stages before the norm are one wavefront and the two after it another.
"""

import triton
import triton.language as tl

from .apply_gates import logit_gradient_tile
from .channel_gradient import channel_gradient_tile, mlp_gradient_tile
from .channel_pool import pool_grid, pool_slots
from .input_gradient import input_gradient_tile
from .maps import gradient_size, plane_of
from .signals import publish, wait_for
from .spatial_gate import map_gradient_tile, share_size
from .tiles import gradient_strides, known_multiple, known_sizes, known_strides
from .wavefront import work_item


@triton.jit
def backward_item(
    ticket, N, LAG, logit_tiles, map_tiles, channel_tiles, input_tiles,
    LOGIT: tl.constexpr, MAP: tl.constexpr, CHANNEL: tl.constexpr, INPUT: tl.constexpr, SPATIAL_FIRST: tl.constexpr,
):  # fmt: skip
    """(stage, n, tile) of a ticket for the stages 0 to 3 that there are: logit, map, channel and input gradient.

    With the spatial gate first they are channel, logit, map and input gradient: all, or the first or last two.
    """
    lag = tl.minimum(LAG, N // (LOGIT + MAP + CHANNEL))
    if SPATIAL_FIRST and not INPUT:
        stage, n, tile = work_item(ticket, N, 0, 0, lag, channel_tiles, 0, 0, logit_tiles)
        return tl.minimum(stage, 1), n, tile
    elif SPATIAL_FIRST and not LOGIT:
        stage, n, tile = work_item(ticket, N, 0, 0, lag, map_tiles, 0, 0, input_tiles)
        return tl.maximum(stage, 2), n, tile
    elif SPATIAL_FIRST:
        return work_item(ticket, N, lag, 2 * lag, 3 * lag, channel_tiles, logit_tiles, map_tiles, input_tiles)
    elif LOGIT and CHANNEL:
        return work_item(ticket, N, lag, 2 * lag, 3 * lag, logit_tiles, map_tiles, channel_tiles, input_tiles)
    elif LOGIT:
        return work_item(ticket, N, lag, lag, 2 * lag, logit_tiles, map_tiles, 0, input_tiles)
    elif MAP:
        second = channel_tiles if CHANNEL else 0
        stage, n, tile = work_item(
            ticket, N, lag, lag, (MAP + CHANNEL) * lag, map_tiles, second, 0, input_tiles
        )  # fmt: skip
        return tl.minimum(stage + 1, 3), n, tile
    else:
        stage, n, tile = work_item(ticket, N, 0, 0, lag, channel_tiles, 0, 0, input_tiles)
        return tl.maximum(stage, 2), n, tile


@triton.jit(do_not_specialize=[
    "x_stride_n", "x_stride_c", "x_stride_p", "dy_stride_n", "dy_stride_c", "dy_stride_p",
    "dx_stride_n", "dx_stride_c", "dx_stride_p", "N", "C", "H", "W", "PLANES", "R",
    "LAG",
])  # fmt: skip
def backward_wavefront(
    x_ptr, dy_ptr,  # N C H W
    y_ptr, dr_ptr,  # N C H W with dx's strides; None without ReLU
    # N C, N POOLS C, N C, N POOLS R; None without channel attention, the argmax also without a maximum, the last with
    # one layer
    gate_ptr, pools_ptr, channel_argmax_ptr, preactivation_ptr,
    # N H W M, N H W, N H W (logits with a norm, else the gate); None without spatial attention, the argmax as above
    pool_ptr, spatial_argmax_ptr, z_ptr,
    fc1_weight_ptr, fc2_weight_ptr, conv_weight_ptr,  # R C, C R or None, M K^DIMS
    norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,  # 1 or None
    dz_ptr,  # N gradient_size: scratch, or with GIVEN the gradient of the convolution's output
    partial_ptr, dh_ptr, dpools_ptr, dmaps_ptr,  # N BLOCKS CHUNKS POOL_C, N BLOCKS R, N POOLS C, N 2 H W; scratch
    s_ptr,  # N H W: scratch with a norm, given with the spatial gate first, else z's
    dq_ptr, hidden_ptr, share_ptr,  # N C, N POOLS+1 R, N chunks share_size or None: for the weights' gradients
    dx_ptr,  # N C H W, or None to stop at the logits
    # zeroed, 1 + N (4 + BLOCKS): ticket; of each sample: logit, map, channel gradients, dpools, chunks of each block
    counters_ptr,
    x_stride_n, x_stride_c, x_stride_p, dy_stride_n, dy_stride_c, dy_stride_p, dx_stride_n, dx_stride_c, dx_stride_p,
    N, C, H, W, PLANES, R, LAG,
    NORM_EPS: tl.constexpr, GIVEN: tl.constexpr, DY_ALIGNED: tl.constexpr,
    K: tl.constexpr, DIMS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
    CHANNEL_POOLS: tl.constexpr, SPATIAL_POOLS: tl.constexpr, ARRANGEMENT: tl.constexpr, HARD: tl.constexpr,
    VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    POOL_C: tl.constexpr, POOL_P: tl.constexpr, POOL_SPLIT: tl.constexpr, POOL_KEEP: tl.constexpr,
    POOL_R: tl.constexpr, MLP_T: tl.constexpr, MLP_C: tl.constexpr,
    SPATIAL_C: tl.constexpr, SPATIAL_P: tl.constexpr, SPATIAL_KEEP: tl.constexpr,
    MAP_P: tl.constexpr, TAP_SPLIT: tl.constexpr,
    APPLY_C: tl.constexpr, APPLY_P: tl.constexpr, APPLY_SPLIT: tl.constexpr,
):  # fmt: skip
    """All of the backward of CBAM but the weights; each program takes a ticket and does that tile."""
    CHANNEL: tl.constexpr = gate_ptr is not None
    SPATIAL: tl.constexpr = conv_weight_ptr is not None
    LOGIT: tl.constexpr = SPATIAL and not GIVEN
    INPUT: tl.constexpr = dx_ptr is not None
    SPATIAL_FIRST: tl.constexpr = ARRANGEMENT == "spatial_first"
    LOGIT_STAGE: tl.constexpr = 1 if SPATIAL_FIRST else 0
    MAP_STAGE: tl.constexpr = 2 if SPATIAL_FIRST else 1
    CHANNEL_STAGE: tl.constexpr = 0 if SPATIAL_FIRST else 2
    M: tl.constexpr = 2 if SPATIAL_POOLS == "mean+max" else 1
    POOLS = pool_slots(CHANNEL_POOLS)
    ROWS: tl.constexpr = 1 if DIMS == 1 else K if DIMS == 2 else K * K
    plane = plane_of(H, W, PLANES, DIMS)
    C, P = known_sizes(C, H * W, VEC, CHANNELS_LAST)
    x_stride_c, x_stride_p = known_strides(x_stride_c, x_stride_p, VEC, CHANNELS_LAST, INDEX)
    dx_stride_c, dx_stride_p = known_strides(dx_stride_c, dx_stride_p, VEC, CHANNELS_LAST, INDEX)
    dy_stride_n, dy_stride_c, dy_stride_p = gradient_strides(
        dy_stride_n, dy_stride_c, dy_stride_p, DY_ALIGNED, VEC, CHANNELS_LAST, INDEX
    )

    ticket = tl.atomic_add(counters_ptr, 1, sem="relaxed", scope="gpu")
    blocks, chunks, chunk = pool_grid(C, P, POOL_C, POOL_P, POOL_SPLIT)
    logit_tiles = tl.cdiv(P, SPATIAL_P)
    map_tiles = tl.cdiv(P, MAP_P)
    tap_chunks = tl.cdiv(P, TAP_SPLIT) if share_ptr is not None else 0
    pixel_tiles = tl.cdiv(P, APPLY_P)
    stage, n, tile = backward_item(
        ticket, N, LAG, logit_tiles, map_tiles + tap_chunks * ROWS, blocks * chunks,
        pixel_tiles * tl.cdiv(C, APPLY_SPLIT), LOGIT, SPATIAL, CHANNEL, INPUT, SPATIAL_FIRST,
    )  # fmt: skip

    if GIVEN:
        n = N - 1 - n  # first the samples that the launch before read last, which are in L2
    n = n.to(tl.int64)
    x_ptr += n * known_multiple(x_stride_n, VEC)
    dy_ptr += n * dy_stride_n
    logit_done_ptr = counters_ptr + (1 + n * (4 + blocks))
    map_done_ptr = logit_done_ptr + 1
    channel_done_ptr = logit_done_ptr + 2
    dpools_done_ptr = logit_done_ptr + 3
    if CHANNEL:
        gate_ptr += n * C
        pools_ptr += n * (POOLS * C)
        dpools_ptr += n * (POOLS * C)
    if SPATIAL:
        dz_ptr += n * gradient_size(P, plane, W, K, DIMS)
        z_ptr += n * P
        dmaps_ptr += n * (2 * P)
        s_ptr += n * P
    if spatial_argmax_ptr is not None:
        spatial_argmax_ptr += n * P
    if channel_argmax_ptr is not None:
        channel_argmax_ptr += n * C
    dx_offset = n * known_multiple(dx_stride_n, VEC)
    if y_ptr is not None:
        d_ptr = dr_ptr + dx_offset
        d_stride_c = dx_stride_c
        d_stride_p = dx_stride_p
        y_ptr += dx_offset
        dr_ptr += dx_offset
    else:
        d_ptr = dy_ptr
        d_stride_c = dy_stride_c
        d_stride_p = dy_stride_p

    # Not `LOGIT and stage == ...`: Triton 3.2 and 3.3 would compile such a branch without LOGIT too.
    if stage == LOGIT_STAGE:
        if LOGIT:
            if SPATIAL_FIRST:
                wait_for(dpools_done_ptr, 1)
            logit_gradient_tile(
                x_ptr, dy_ptr, y_ptr, dr_ptr, gate_ptr,
                pools_ptr if SPATIAL_FIRST else None, dpools_ptr if SPATIAL_FIRST else None,
                channel_argmax_ptr if SPATIAL_FIRST else None, z_ptr, dz_ptr,
                norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, tile, C, P, W, plane,
                x_stride_c, x_stride_p, dy_stride_c, dy_stride_p, dx_stride_c, dx_stride_p,
                K, DIMS, NORM_EPS, SPATIAL_C, SPATIAL_P, SPATIAL_KEEP, VEC, CHANNELS_LAST, INDEX, ACC,
                CHANNEL_POOLS, HARD,
            )  # fmt: skip
            publish(logit_done_ptr)
    elif stage == MAP_STAGE:
        if SPATIAL and INPUT:
            if LOGIT:
                wait_for(logit_done_ptr, logit_tiles)
            if share_ptr is not None:
                share_ptr += n * (tap_chunks * share_size(K, DIMS, BLOCK_K, SPATIAL_POOLS))
            to_maps = map_gradient_tile(
                dz_ptr, z_ptr, pool_ptr + n * (M * P), conv_weight_ptr,
                norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, s_ptr, dmaps_ptr, share_ptr,
                tile, map_tiles, C, P, W, plane,
                NORM_EPS, GIVEN, K, DIMS, BLOCK_K, MAP_P, TAP_SPLIT, ACC, SPATIAL_POOLS, HARD, ARRANGEMENT,
            )  # fmt: skip
            if to_maps:
                publish(map_done_ptr)
    elif stage == CHANNEL_STAGE:
        if CHANNEL and (LOGIT or not SPATIAL_FIRST):
            if SPATIAL and not SPATIAL_FIRST:
                wait_for(map_done_ptr, map_tiles)
            dh_ptr += n * (blocks * R)
            finished = channel_gradient_tile(
                x_ptr, d_ptr, s_ptr, dmaps_ptr, spatial_argmax_ptr, gate_ptr, fc2_weight_ptr,
                partial_ptr + n * (blocks * chunks * POOL_C), dpools_done_ptr + 1, dq_ptr + n * C, dh_ptr,
                tile, chunks, chunk, C, P, R, x_stride_c, x_stride_p, d_stride_c, d_stride_p,
                POOL_C, POOL_P, POOL_R, POOL_KEEP, VEC, CHANNELS_LAST, INDEX, ACC, HARD, ARRANGEMENT,
            )  # fmt: skip
            if finished:
                if publish(channel_done_ptr) == blocks - 1:
                    if fc2_weight_ptr is None:
                        mlp_gradient_tile(
                            dq_ptr + n * C, None, pools_ptr, fc1_weight_ptr,
                            hidden_ptr + n * ((POOLS + 1) * R), dpools_ptr,
                            0, C, C, P, R, 1, MLP_T, MLP_C, BLOCK_R, ACC, CHANNEL_POOLS,
                        )  # fmt: skip
                    else:
                        mlp_gradient_tile(
                            dh_ptr, preactivation_ptr + n * (POOLS * R), pools_ptr, fc1_weight_ptr,
                            hidden_ptr + n * ((POOLS + 1) * R), dpools_ptr,
                            0, C, C, P, R, blocks, MLP_T, MLP_C, BLOCK_R, ACC, CHANNEL_POOLS,
                        )  # fmt: skip
                    publish(dpools_done_ptr)
    else:
        if INPUT:
            if CHANNEL and not SPATIAL_FIRST:
                wait_for(dpools_done_ptr, 1)
            else:
                wait_for(map_done_ptr, map_tiles)
            p = (tile % pixel_tiles) * APPLY_P + tl.arange(0, APPLY_P)
            c_begin = (tile // pixel_tiles) * APPLY_SPLIT
            input_gradient_tile(
                x_ptr, d_ptr, dx_ptr + dx_offset, s_ptr, dmaps_ptr, spatial_argmax_ptr,
                gate_ptr, pools_ptr, dpools_ptr, channel_argmax_ptr,
                p, c_begin, tl.minimum(c_begin + APPLY_SPLIT, C), C, P,
                x_stride_c, x_stride_p, d_stride_c, d_stride_p, dx_stride_c, dx_stride_p,
                APPLY_C, VEC, CHANNELS_LAST, INDEX, ACC, CHANNEL_POOLS, ARRANGEMENT,
            )  # fmt: skip
