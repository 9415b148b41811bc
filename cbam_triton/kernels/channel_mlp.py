"""Channel MLP: the rest of the shared MLP, from partial hidden vectors to the channel gate."""

import triton
import triton.language as tl

from .tiles import rounded_product


@triton.jit
def channel_mlp_tile(
    hidden_ptr,  # one sample: BLOCKS 2 R
    fc1_bias_ptr,  # R or None
    fc2_weight_ptr,  # C R
    fc2_bias_ptr,  # C or None
    gate_ptr,  # one sample: C
    c_begin, c_end, C, R, BLOCKS,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """g[c] = sigmoid(W1 (relu(za) + relu(zm)) + 2 b1) for c in [c_begin, c_end).

    One program owns these channels of one sample. The partial sums are added in a fixed order.
    """
    r = tl.arange(0, BLOCK_R)
    inside_r = r < R
    za = tl.zeros([BLOCK_R], ACC)
    zm = tl.zeros([BLOCK_R], ACC)
    if fc1_bias_ptr is not None:
        za += tl.load(fc1_bias_ptr + r, mask=inside_r, other=0.0).to(ACC)
        zm += tl.load(fc1_bias_ptr + r, mask=inside_r, other=0.0).to(ACC)
    for t0 in range(0, BLOCKS, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        hidden_ptrs = hidden_ptr + (t[:, None] * (2 * R) + r[None, :])
        inside = (t < BLOCKS)[:, None] & inside_r[None, :]
        za += tl.sum(tl.load(hidden_ptrs, mask=inside, other=0.0), 0)
        zm += tl.sum(tl.load(hidden_ptrs + R, mask=inside, other=0.0), 0)
    # Not tl.maximum(za, 0.): a NaN must stay.
    h = tl.where(za < 0, 0.0, za) + tl.where(zm < 0, 0.0, zm)
    for c0 in range(c_begin, c_end, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        inside_c = c < c_end
        inside = inside_c[:, None] & inside_r[None, :]
        weight = tl.load(fc2_weight_ptr + (c[:, None] * R + r[None, :]), mask=inside, other=0.0).to(ACC)
        q = tl.sum(rounded_product(weight, h[None, :]), 1)
        if fc2_bias_ptr is not None:
            q += 2 * tl.load(fc2_bias_ptr + c, mask=inside_c, other=0.0).to(ACC)
        tl.store(gate_ptr + c, tl.sigmoid(q), mask=inside_c)
