"""Work items: the sample and the tile of a program, by its number or by its ticket; see docs/schedules.md."""

import triton
import triton.language as tl


@triton.jit
def sample_and_tile(N, tiles, BACKWARDS: tl.constexpr):
    """(n, tile) of this program; the samples in reverse order if BACKWARDS."""
    program = tl.program_id(0)
    n = program // tiles
    tile = program % tiles
    if BACKWARDS:
        n = N - 1 - n
    return n.to(tl.int64), tile


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


@triton.jit
def forward_item(
    ticket, N, LAG, pool_tiles, spatial_tiles, map_tiles, apply_tiles,
    CHANNEL: tl.constexpr, SPATIAL: tl.constexpr, SPATIAL_FIRST: tl.constexpr,
):  # fmt: skip
    """(stage, n, tile) of a ticket of the forward: the two pools, the map of s if that gate is first, and apply.

    A stage without its attention has no tickets, and the others move up: only apply is always the last, 3.
    """
    lag = tl.minimum(LAG, N // (3 if SPATIAL_FIRST else 2))
    if SPATIAL_FIRST:
        return work_item(ticket, N, lag, 2 * lag, 3 * lag, spatial_tiles, map_tiles, pool_tiles, apply_tiles)
    elif CHANNEL and SPATIAL:
        return work_item(ticket, N, lag, lag, 2 * lag, pool_tiles, spatial_tiles, 0, apply_tiles)
    else:
        return work_item(ticket, N, 0, 0, lag, pool_tiles + spatial_tiles, 0, 0, apply_tiles)


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
