"""Channel MLP: the rest of the shared MLP, from partial hidden vectors to the channel gate."""

import triton
import triton.language as tl

from .descriptors import HALF
from .gate_function import gate_of
from .reductions import rounded_product


@triton.jit
def channel_mlp_tile(
    hidden_ptr,  # one sample: BLOCKS SLOTS R
    parameters, gate_ptr, saved,  # fc1_bias, fc2_weight, fc2_bias; N C; preactivation
    n, c_begin, c_end, BLOCKS, size, TILES, FORM,
):  # fmt: skip
    """g[c] = gate(W1 (relu(za) + relu(zm)) + 2 b1) for the channels c from c_begin to c_end, MLP_C at a time.

    One program owns these channels of one sample. The weights of the first are loaded first: they arrive while the
    hidden vector is made, and those of the next while these are used. The partial sums are added in a fixed order; for
    a backward to come za and zm are saved as `preactivation`. Each descriptor has its z, and b1 counts as often. With
    HALF there is one z, of the half of both pools' sum. With one layer g = gate(za + zm).
    """
    LAYERS: tl.constexpr = 1 if parameters.fc2_weight is None else 2
    R = size.R
    r = tl.arange(0, FORM.BLOCK_R)
    c_end = tl.minimum(c_end, size.C)
    if LAYERS == 2:
        weight = _second_layer(parameters, c_begin, c_end, R, TILES, FORM)
    keep = c_begin == 0
    h = tl.zeros([FORM.BLOCK_R], FORM.ACC)
    for SLOT in tl.static_range(0, FORM.SLOTS, 2):
        h += _hidden_vector(hidden_ptr, parameters, saved, SLOT, n, keep, BLOCKS, R, TILES, FORM)
    gate_ptr += n * size.C
    if LAYERS == 2:
        for c0 in range(c_begin, c_end, TILES.MLP_C):
            following = _second_layer(parameters, c0 + TILES.MLP_C, c_end, R, TILES, FORM)
            c = c0 + tl.arange(0, TILES.MLP_C)
            q = tl.sum(rounded_product(weight.to(FORM.ACC), h[None, :]), 1)
            if parameters.fc2_bias is not None:
                q += FORM.BIASES * tl.load(parameters.fc2_bias + c, mask=c < c_end, other=0.0).to(FORM.ACC)
            tl.store(gate_ptr + c, gate_of(q, FORM.HARD), mask=c < c_end)
            weight = following
    else:
        tl.store(gate_ptr + r, gate_of(h, FORM.HARD), mask=(r >= c_begin) & (r < c_end))


@triton.jit
def _second_layer(parameters, c_begin, c_end, R, TILES, FORM):
    """The weights of MLP_C channels; 0 from c_end on."""
    r = tl.arange(0, FORM.BLOCK_R)
    c = c_begin + tl.arange(0, TILES.MLP_C)
    inside = (c < c_end)[:, None] & (r < R)[None, :]
    return tl.load(parameters.fc2_weight + (c[:, None] * R + r[None, :]), mask=inside, other=0.0)


@triton.jit
def _hidden_vector(hidden_ptr, parameters, saved, SLOT: tl.constexpr, n, keep, BLOCKS, R, TILES, FORM):
    """relu(za) + relu(zm), or za + zm, of the descriptors in SLOT and after it, of which one may be left out."""
    FIRST: tl.constexpr = FORM.CHANNEL_POOLS >> SLOT & 1 != 0
    SECOND: tl.constexpr = FORM.CHANNEL_POOLS >> SLOT & 2 != 0
    HALVED: tl.constexpr = SLOT == 0 and HALF & FORM.CHANNEL_POOLS != 0
    r = tl.arange(0, FORM.BLOCK_R)
    inside_r = r < R
    t = tl.arange(0, TILES.MLP_T)
    # Added up block by block in threads; between threads once.
    first = tl.zeros([TILES.MLP_T, FORM.BLOCK_R], FORM.ACC)
    second = tl.zeros([TILES.MLP_T, FORM.BLOCK_R], FORM.ACC)
    hidden_ptrs = hidden_ptr + SLOT * R + (t[:, None] * (FORM.SLOTS * R) + r[None, :])
    for t0 in range(0, BLOCKS, TILES.MLP_T):
        inside = (t0 + t < BLOCKS)[:, None] & inside_r[None, :]
        if FIRST:
            first += tl.load(hidden_ptrs, mask=inside, other=0.0)
        if SECOND:
            second += tl.load(hidden_ptrs + R, mask=inside, other=0.0)
        hidden_ptrs += TILES.MLP_T * FORM.SLOTS * R
    za = tl.sum(first, 0)
    zm = tl.sum(second, 0)
    if HALVED:
        za = 0.5 * za + 0.5 * zm
    if parameters.fc1_bias is not None:
        bias = tl.load(parameters.fc1_bias + r, mask=inside_r, other=0.0).to(FORM.ACC)
        if FIRST:
            za += bias
        if SECOND and not HALVED:
            zm += bias
    if saved.preactivation is not None:
        if keep:
            ptrs = saved.preactivation + n * (FORM.SLOTS * R) + SLOT * R + r
            if FIRST:
                tl.store(ptrs, za, mask=inside_r)
            if SECOND and not HALVED:
                tl.store(ptrs + R, zm, mask=inside_r)
    if parameters.fc2_weight is not None:
        # Not tl.maximum(za, 0.): a NaN must stay.
        za = tl.where(za < 0, 0.0, za)
        zm = tl.where(zm < 0, 0.0, zm)
    if SECOND and not HALVED:
        za += zm
    return za
