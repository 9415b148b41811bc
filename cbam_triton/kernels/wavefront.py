"""The wavefront schedule: every stage in one launch, while the samples in flight stay in L2. See docs/schedules.md."""

import triton
import triton.language as tl

from .apply_gates import apply_gates_tile
from .channel_mlp import channel_mlp_tile
from .channel_pool import channel_pool_tile, pool_grid, pool_slots
from .maps import padded_size, plane_of
from .signals import publish, wait_for
from .spatial_gate import normed, spatial_logit
from .spatial_pool import spatial_pool_tile
from .tiles import gate_of, known_multiple, known_sizes, known_strides


@triton.jit
def work_item(ticket, N, LAG_B, LAG_C, LAG_D, TILES_A, TILES_B, TILES_C, TILES_D):
    """(stage, n, tile) of a ticket, for stages A, B, C, D of which the last three follow some samples behind.

    Step i holds the tiles of sample i in A, of i - LAG_B in B, of i - LAG_C in C and of i - LAG_D in D, as far as these
    samples exist. Up to step N the number of tickets before a step is convex and piecewise linear in it, so its inverse
    is the least of the pieces' inverses; after step N it is concave, and the inverse is the greatest.
    A step's tiles come in the order D, C, B, A: x of the oldest sample leaves L2 before that of the newest comes.
    Without a lag, which is for few samples, it is all of A, then all of B, of C, of D.
    Needs TILES_A, TILES_D >= 1, TILES_B, TILES_C >= 0 and LAG_B <= LAG_C <= LAG_D <= N.
    """
    if LAG_D == 0:
        begin_b = N * TILES_A
        begin_c = begin_b + N * TILES_B
        begin_d = begin_c + N * TILES_C
        stage = tl.where(ticket < begin_b, 0, tl.where(ticket < begin_c, 1, tl.where(ticket < begin_d, 2, 3)))
        begin = tl.where(stage == 0, 0, tl.where(stage == 1, begin_b, tl.where(stage == 2, begin_c, begin_d)))
        tiles = tl.where(stage == 0, TILES_A, tl.where(stage == 1, TILES_B, tl.where(stage == 2, TILES_C, TILES_D)))
        n = (ticket - begin) // tiles
        tile = (ticket - begin) % tiles
    else:
        stage, n, tile = _item_in_step(ticket, N, LAG_B, LAG_C, LAG_D, TILES_A, TILES_B, TILES_C, TILES_D)
    return stage, n, tile


@triton.jit
def _item_in_step(ticket, N, LAG_B, LAG_C, LAG_D, TILES_A, TILES_B, TILES_C, TILES_D):
    missing_b = TILES_B * LAG_B
    missing_c = TILES_C * LAG_C
    missing_d = TILES_D * LAG_D
    tiles = TILES_A + TILES_B + TILES_C + TILES_D
    late = ticket - (N * tiles - missing_b - missing_c - missing_d)
    if late < 0:
        step = tl.minimum(ticket // TILES_A, (ticket + missing_b) // (TILES_A + TILES_B))
        step = tl.minimum(step, (ticket + missing_b + missing_c) // (TILES_A + TILES_B + TILES_C))
        step = tl.minimum(step, (ticket + missing_b + missing_c + missing_d) // tiles)
        slot = ticket - TILES_A * step - TILES_B * tl.maximum(step - LAG_B, 0)
        slot -= TILES_C * tl.maximum(step - LAG_C, 0) + TILES_D * tl.maximum(step - LAG_D, 0)
    else:
        step = tl.maximum(late // (TILES_B + TILES_C + TILES_D), (late - missing_b) // (TILES_C + TILES_D))
        step = tl.maximum(step, (late - missing_b - missing_c) // TILES_D)
        slot = late - TILES_B * tl.minimum(step, LAG_B) - TILES_C * tl.minimum(step, LAG_C) - TILES_D * step
        step += N
    end_a = tl.where(step < N, TILES_A, 0)
    end_b = end_a + tl.where((step >= LAG_B) & (step < N + LAG_B), TILES_B, 0)
    end_c = end_b + tl.where((step >= LAG_C) & (step < N + LAG_C), TILES_C, 0)
    slot = end_c + tl.where(step >= LAG_D, TILES_D, 0) - 1 - slot
    stage = tl.where(slot < end_a, 0, tl.where(slot < end_b, 1, tl.where(slot < end_c, 2, 3)))
    n = step - tl.where(stage == 0, 0, tl.where(stage == 1, LAG_B, tl.where(stage == 2, LAG_C, LAG_D)))
    tile = slot - tl.where(stage == 0, 0, tl.where(stage == 1, end_a, tl.where(stage == 2, end_b, end_c)))
    return stage, n, tile


@triton.jit(do_not_specialize=[
    "x_stride_n", "x_stride_c", "x_stride_p", "y_stride_n", "y_stride_c", "y_stride_p", "N", "C", "H", "W",
    "PLANES", "R", "LAG",
])  # fmt: skip
def cbam_wavefront(
    x_ptr, residual_ptr,  # N C H W; the latter with y's strides, or None
    fc1_weight_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr,  # R C, R, C R, C; all None without channel attention
    conv_weight_ptr, conv_bias_ptr,  # M K^DIMS, 1; both None without spatial attention
    norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr,  # 1 or None
    partial_ptr, hidden_ptr,  # N BLOCKS CHUNKS POOLS+1 POOL_C, N BLOCKS POOLS R; scratch
    gate_ptr,  # N C
    pool_ptr,  # N padded_size M, scratch
    s_ptr,  # N H W with the spatial gate first: scratch, or without spatial attention a given gate; else None
    y_ptr,  # N C H W, or None to stop at the logits
    # kept for a backward, or None: the logits N H W, or the gate if there is no norm; channel attention's N POOLS C,
    # N C, N POOLS R; spatial attention's N H W M, N H W; an argmax also without a maximum
    z_ptr, pools_ptr, channel_argmax_ptr, preactivation_ptr, kept_ptr, spatial_argmax_ptr,
    # zeroed, 1 + N (4 + BLOCKS): ticket; of each sample: blocks pooled, gate made, spatial tiles, tiles of the map s,
    # chunks of each block
    counters_ptr,
    x_stride_n, x_stride_c, x_stride_p, y_stride_n, y_stride_c, y_stride_p,
    N, C, H, W, PLANES, R, LAG,
    NORM_EPS: tl.constexpr, RELU: tl.constexpr,
    K: tl.constexpr, DIMS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
    CHANNEL_POOLS: tl.constexpr, SPATIAL_POOLS: tl.constexpr, ARRANGEMENT: tl.constexpr, HARD: tl.constexpr,
    VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
    POOL_C: tl.constexpr, POOL_P: tl.constexpr, POOL_SPLIT: tl.constexpr, POOL_KEEP: tl.constexpr,
    POOL_R: tl.constexpr, MLP_T: tl.constexpr, MLP_C: tl.constexpr,
    SPATIAL_C: tl.constexpr, SPATIAL_P: tl.constexpr, SPATIAL_KEEP: tl.constexpr,
    APPLY_C: tl.constexpr, APPLY_P: tl.constexpr, APPLY_SPLIT: tl.constexpr,
):  # fmt: skip
    """All of CBAM; each program takes a ticket and does that tile, waiting only for tiles with smaller tickets."""
    CHANNEL: tl.constexpr = fc1_weight_ptr is not None
    SPATIAL: tl.constexpr = conv_weight_ptr is not None
    LOGITS: tl.constexpr = y_ptr is None
    SPATIAL_FIRST: tl.constexpr = SPATIAL and ARRANGEMENT == "spatial_first"
    CHANNEL_STAGE: tl.constexpr = -1 if not CHANNEL else 2 if SPATIAL_FIRST else 0
    SPATIAL_STAGE: tl.constexpr = -1 if not SPATIAL else 1 if CHANNEL and not SPATIAL_FIRST else 0
    MAP_STAGE: tl.constexpr = 1 if SPATIAL_FIRST else -1
    M: tl.constexpr = 2 if SPATIAL_POOLS == "mean+max" else 1
    POOLS = pool_slots(CHANNEL_POOLS)
    plane = plane_of(H, W, PLANES, DIMS)
    C, P = known_sizes(C, H * W, VEC, CHANNELS_LAST)
    x_stride_c, x_stride_p = known_strides(x_stride_c, x_stride_p, VEC, CHANNELS_LAST, INDEX)
    y_stride_c, y_stride_p = known_strides(y_stride_c, y_stride_p, VEC, CHANNELS_LAST, INDEX)

    ticket = tl.atomic_add(counters_ptr, 1, sem="relaxed", scope="gpu")
    blocks, chunks, chunk = pool_grid(C, P, POOL_C, POOL_P, POOL_SPLIT)
    pool_tiles = blocks * chunks if CHANNEL else 0
    spatial_tiles = tl.cdiv(P, SPATIAL_P) if SPATIAL else 0
    pixel_tiles = tl.cdiv(P, APPLY_P)
    apply_tiles = pixel_tiles * (1 if LOGITS else tl.cdiv(C, APPLY_SPLIT))
    lag = tl.minimum(LAG, N // (3 if SPATIAL_FIRST else 2))
    if SPATIAL_FIRST:
        stage, n, tile = work_item(
            ticket, N, lag, 2 * lag, 3 * lag, spatial_tiles, pixel_tiles, pool_tiles, apply_tiles
        )  # fmt: skip
    elif CHANNEL and SPATIAL:
        stage, n, tile = work_item(ticket, N, lag, lag, 2 * lag, pool_tiles, spatial_tiles, 0, apply_tiles)
    else:
        stage, n, tile = work_item(ticket, N, 0, 0, lag, pool_tiles + spatial_tiles, 0, 0, apply_tiles)

    if s_ptr is not None and not SPATIAL:
        n = N - 1 - n  # first the samples that the launch before read last, which are in L2
    n = n.to(tl.int64)
    x_ptr += n * known_multiple(x_stride_n, VEC)
    pool_done_ptr = counters_ptr + (1 + n * (4 + blocks))
    gate_done_ptr = pool_done_ptr + 1
    spatial_done_ptr = pool_done_ptr + 2
    map_done_ptr = pool_done_ptr + 3
    if CHANNEL:
        gate_ptr += n * C
    if SPATIAL:
        pool_ptr += n * (M * padded_size(P, plane, W, K, DIMS))
    if pools_ptr is not None:
        pools_ptr += n * (POOLS * C)
    if preactivation_ptr is not None:
        preactivation_ptr += n * (POOLS * R)
    if channel_argmax_ptr is not None:
        channel_argmax_ptr += n * C
    if kept_ptr is not None:
        kept_ptr += n * (M * P)
    if spatial_argmax_ptr is not None:
        spatial_argmax_ptr += n * P
    if s_ptr is not None:
        s_ptr += n * P

    # Not `CHANNEL and stage == ...`: Triton 3.2 and 3.3 would compile such a branch without CHANNEL too.
    if stage == CHANNEL_STAGE:
        if CHANNEL:
            if SPATIAL_FIRST:
                wait_for(map_done_ptr, pixel_tiles)
            hidden_ptr += n * (blocks * POOLS * R)
            pooled = channel_pool_tile(
                x_ptr, s_ptr, fc1_weight_ptr, partial_ptr + n * (pool_tiles * (POOLS + 1) * POOL_C), pool_done_ptr + 4,
                hidden_ptr, pools_ptr, channel_argmax_ptr, tile, chunks, chunk, C, P, R, x_stride_c, x_stride_p,
                POOL_C, POOL_P, POOL_R, POOL_KEEP, VEC, CHANNELS_LAST, INDEX, ACC, CHANNEL_POOLS,
            )  # fmt: skip
            if pooled:
                if publish(pool_done_ptr) == blocks - 1:
                    channel_mlp_tile(
                        hidden_ptr, fc1_bias_ptr, fc2_weight_ptr, fc2_bias_ptr, gate_ptr, preactivation_ptr,
                        0, C, C, R, blocks, MLP_T, MLP_C, BLOCK_R, ACC, CHANNEL_POOLS, HARD,
                    )  # fmt: skip
                    publish(gate_done_ptr)
    elif stage == SPATIAL_STAGE:
        if SPATIAL:
            if CHANNEL and ARRANGEMENT == "channel_first":
                wait_for(gate_done_ptr, 1)
            spatial_pool_tile(
                x_ptr, gate_ptr if ARRANGEMENT == "channel_first" else None, pool_ptr, kept_ptr, spatial_argmax_ptr,
                tile, C, P, W, plane, x_stride_c, x_stride_p, K, DIMS,
                SPATIAL_C, SPATIAL_P, SPATIAL_KEEP, VEC, CHANNELS_LAST, INDEX, ACC, SPATIAL_POOLS,
            )  # fmt: skip
            publish(spatial_done_ptr)
    elif stage == MAP_STAGE:
        if SPATIAL_FIRST:
            wait_for(spatial_done_ptr, spatial_tiles)
            p = tile * APPLY_P + tl.arange(0, APPLY_P)
            z = spatial_logit(
                pool_ptr, conv_weight_ptr, conv_bias_ptr, p, P, W, plane, K, DIMS, BLOCK_K, ACC, SPATIAL_POOLS
            )  # fmt: skip
            s = gate_of(normed(z, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, NORM_EPS, ACC), HARD)
            tl.store(s_ptr + p, s, mask=p < P)
            if z_ptr is not None:
                tl.store(z_ptr + n * P + p, z, mask=p < P)
            publish(map_done_ptr)
    else:
        p = (tile % pixel_tiles) * APPLY_P + tl.arange(0, APPLY_P)
        s = None
        if s_ptr is not None:
            wait_for(gate_done_ptr, 1)
            s = tl.load(s_ptr + p, mask=p < P, other=0.0)
        elif SPATIAL:
            wait_for(spatial_done_ptr, spatial_tiles)
            z = spatial_logit(
                pool_ptr, conv_weight_ptr, conv_bias_ptr, p, P, W, plane, K, DIMS, BLOCK_K, ACC, SPATIAL_POOLS
            )  # fmt: skip
            s = gate_of(normed(z, norm_weight_ptr, norm_bias_ptr, norm_mean_ptr, norm_var_ptr, NORM_EPS, ACC), HARD)
            if z_ptr is not None:
                if tile < pixel_tiles:
                    tl.store(z_ptr + n * P + p, z if LOGITS or norm_mean_ptr is not None else s, mask=p < P)
        if CHANNEL and s_ptr is None:
            if ARRANGEMENT == "parallel" or not SPATIAL:
                wait_for(gate_done_ptr, 1)
        if not LOGITS:
            c_begin = (tile // pixel_tiles) * APPLY_SPLIT
            y_offset = n * known_multiple(y_stride_n, VEC)
            if residual_ptr is not None:
                residual_ptr += y_offset
            apply_gates_tile(
                x_ptr, y_ptr + y_offset, residual_ptr, gate_ptr, s,
                p, c_begin, tl.minimum(c_begin + APPLY_SPLIT, C), P, x_stride_c, x_stride_p, y_stride_c, y_stride_p,
                RELU, APPLY_C, VEC, CHANNELS_LAST, INDEX, ACC,
            )  # fmt: skip
