"""MLP gradient: from shares of dh to the gradients of the hidden vectors and of the descriptors."""

import triton
import triton.language as tl

from .descriptors import HALF, pixel_share
from .reductions import rounded_product


@triton.jit
def mlp_gradient_tile(
    dh_ptr,  # one sample: BLOCKS R
    fc1_weight_ptr,  # R C
    saved, scratch,  # preactivation, descriptors; hidden, ddescriptors
    n, c_begin, c_end, BLOCKS, size, TILES, FORM,
):  # fmt: skip
    """ddescriptors = the gradients of the descriptors, as `through_pools` takes them; hidden = (dza, dzm, ..., h).

    One program owns the channels of one sample from c_begin to c_end, MLP_C at a time; the weights of the next are
    loaded while these are used. The shares are added in a fixed order.
    """
    C, R = size.C, size.R
    r = tl.arange(0, FORM.BLOCK_R)
    inside_r = r < R
    c_end = tl.minimum(c_end, C)
    weight = _first_layer(fc1_weight_ptr, c_begin, c_end, C, R, TILES, FORM)
    t = tl.arange(0, TILES.MLP_T)
    shares = tl.zeros([TILES.MLP_T, FORM.BLOCK_R], FORM.ACC)
    for t0 in range(0, BLOCKS, TILES.MLP_T):
        inside = (t0 + t < BLOCKS)[:, None] & inside_r[None, :]
        shares += tl.load(dh_ptr + ((t0 + t)[:, None] * R + r[None, :]), mask=inside, other=0.0)
    dh = tl.sum(shares, 0)
    for c0 in range(c_begin, c_end, TILES.MLP_C):
        following = _first_layer(fc1_weight_ptr, c0 + TILES.MLP_C, c_end, C, R, TILES, FORM)
        _descriptor_gradients(weight.to(FORM.ACC), dh, saved, scratch, n, c0, c_end, size, TILES, FORM)
        weight = following


@triton.jit
def _first_layer(fc1_weight_ptr, c_begin, c_end, C, R, TILES, FORM):
    """The weights of MLP_C channels; 0 from c_end on."""
    r = tl.arange(0, FORM.BLOCK_R)
    c = c_begin + tl.arange(0, TILES.MLP_C)
    inside = (r < R)[:, None] & (c < c_end)[None, :]
    return tl.load(fc1_weight_ptr + (r[:, None] * C + c[None, :]), mask=inside, other=0.0)


@triton.jit
def _descriptor_gradients(weight, dh, saved, scratch, n, c_begin, c_end, size, TILES, FORM):
    """The gradients of the descriptors of MLP_C channels, and with a sample's first ones of the hidden layer."""
    C, R = size.C, size.R
    r = tl.arange(0, FORM.BLOCK_R)
    c = c_begin + tl.arange(0, TILES.MLP_C)
    inside_c = c < c_end
    keep = c_begin == 0
    h = tl.zeros([FORM.BLOCK_R], FORM.ACC)
    for SLOT in tl.static_range(0, FORM.SLOTS, 2):
        dza, dzm, active = _hidden_gradient(dh, saved, scratch.hidden, SLOT, n, keep, R, FORM)
        h += active
        ptrs = scratch.ddescriptors + n * (FORM.SLOTS * C) + SLOT * C + c
        if FORM.CHANNEL_POOLS >> SLOT & 1:
            d = tl.sum(rounded_product(weight, dza[:, None]), 0)
            tl.store(ptrs, pixel_share(d, SLOT, saved, n, c, inside_c, size, FORM), mask=inside_c)
        if FORM.CHANNEL_POOLS >> SLOT & 2:
            d = tl.sum(rounded_product(weight, dzm[:, None]), 0)
            tl.store(ptrs + C, pixel_share(d, SLOT + 1, saved, n, c, inside_c, size, FORM), mask=inside_c)
    if keep:
        tl.store(scratch.hidden + n * ((FORM.SLOTS + 1) * R) + FORM.SLOTS * R + r, h, mask=r < R)


@triton.jit
def _hidden_gradient(dh, saved, hidden_ptr, SLOT: tl.constexpr, n, keep, R, FORM):
    """(dza, dzm, h) of the descriptors in SLOT and the one after it; dza and dzm are stored too."""
    FIRST: tl.constexpr = FORM.CHANNEL_POOLS >> SLOT & 1 != 0
    SECOND: tl.constexpr = FORM.CHANNEL_POOLS >> SLOT & 2 != 0
    HALVED: tl.constexpr = SLOT == 0 and HALF & FORM.CHANNEL_POOLS != 0
    r = tl.arange(0, FORM.BLOCK_R)
    inside_r = r < R
    dza, dzm, h = dh, dh, tl.zeros([FORM.BLOCK_R], FORM.ACC)
    if saved.preactivation is not None:
        z_ptrs = saved.preactivation + n * (FORM.SLOTS * R) + SLOT * R + r
        if FIRST:
            za = tl.load(z_ptrs, mask=inside_r, other=0.0)
            dza = tl.where(za <= 0, 0.0, dh)
            h = tl.where(za < 0, 0.0, za)
        if SECOND and not HALVED:
            zm = tl.load(z_ptrs + R, mask=inside_r, other=0.0)
            dzm = tl.where(zm <= 0, 0.0, dh)
            active = tl.where(zm < 0, 0.0, zm)
            h = h + active if FIRST else active
    if HALVED:
        dza *= 0.5
        dzm = dza
    if keep:
        hidden_ptrs = hidden_ptr + n * ((FORM.SLOTS + 1) * R) + SLOT * R + r
        if FIRST:
            tl.store(hidden_ptrs, dza, mask=inside_r)
        if SECOND:
            tl.store(hidden_ptrs + R, dzm, mask=inside_r)
    return dza, dzm, h
