"""Logit gradient: back from dy through apply and the gate function to the logits of the spatial gate."""

import triton
import triton.language as tl

from .addressing import known_multiple, pointers
from .descriptors import NEED_X
from .gate_function import through_gate
from .input_gradient import through_channel_gate
from .packs import View
from .padded_map import gradient_size, past_zeros, zero_at
from .reductions import fold_sum, rounded_product
from .spatial_gate import spatial_gate


@triton.jit
def logit_gradient_tile(
    x, dy, dr,  # one sample; without ReLU dr is dy
    y_ptr,  # one sample with dr's strides; None without ReLU
    parameters, saved,  # the norm; gate, channel_argmax, descriptors, z
    ddescriptors_ptr,  # N SLOTS C with the spatial gate first, else None
    dz_ptr,  # N gradient_size
    n, tile, size, TILES, LAYOUT, FORM,
):  # fmt: skip
    """dz[p] = s (1 - s) sum_c dr x g, the gradient of the normed logit; the zeros before and after it too.

    dr is dy where y > 0 and is stored, or is dy itself. With the spatial gate first the gradient of x s takes the place
    of dr g. One program owns SPATIAL_P pixels and all channels of one sample.
    """
    p = tile * TILES.SPATIAL_P + tl.arange(0, TILES.SPATIAL_P)
    inside_p = p < size.P
    s = None
    if ddescriptors_ptr is not None and NEED_X & FORM.CHANNEL_POOLS != 0:
        s = _gate_at(saved.z, parameters, n, p, inside_p, size, FORM)
    total = _summed_channels(x, dy, dr, y_ptr, s, saved, ddescriptors_ptr, n, p, size, TILES, LAYOUT, FORM)
    s = _gate_at(saved.z, parameters, n, p, inside_p, size, FORM)
    dz_ptr += n * gradient_size(size.padded, size.zeros, size.lead)
    dz_ptrs = dz_ptr + (size.lead + past_zeros(p, size, FORM.DIMS))
    tl.store(dz_ptrs, through_gate(tl.sum(total, 0), s, FORM.HARD), mask=inside_p)
    if tile == 0:
        zeros = tl.zeros([TILES.SPATIAL_P], FORM.ACC)
        count = gradient_size(size.padded, size.zeros, size.lead) - size.P
        for i0 in range(0, count, TILES.SPATIAL_P):
            i = i0 + tl.arange(0, TILES.SPATIAL_P)
            place = zero_at(i, size.lead, size, FORM.K) if FORM.DIMS == 3 else tl.where(i < size.lead, i, i + size.P)
            tl.store(dz_ptr + place, zeros, mask=i < count)


@triton.jit
def _summed_channels(x, dy, dr, y_ptr, s, saved, ddescriptors_ptr, n, p, size, TILES, LAYOUT, FORM):
    """The gradient of the spatial gate at pixels p, SPATIAL_KEEP partial sums of each; dr is stored on the way."""
    BLOCK: tl.constexpr = TILES.SPATIAL_C
    c = tl.arange(0, BLOCK)
    inside_p = (p < size.P)[None, :]
    x_ptrs = pointers(x, c, p, LAYOUT)
    dy_ptrs = pointers(dy, c, p, LAYOUT)
    dr_ptrs = pointers(dr, c, p, LAYOUT)
    y_ptrs = dr_ptrs if y_ptr is None else pointers(View(y_ptr, dr.stride_c, dr.stride_p), c, p, LAYOUT)
    total = tl.zeros([TILES.SPATIAL_KEEP, TILES.SPATIAL_P], FORM.ACC)
    full = size.C - size.C % BLOCK
    for c0 in range(0, full, BLOCK):
        values = tl.load(x_ptrs, mask=inside_p).to(FORM.ACC)
        x_ptrs += BLOCK * x.stride_c
        d = tl.load(dy_ptrs, mask=inside_p)
        dy_ptrs += BLOCK * dy.stride_c
        if y_ptr is not None:
            d = _rectified(d, tl.load(y_ptrs, mask=inside_p, eviction_policy="evict_first"), dr_ptrs, inside_p, FORM)
            y_ptrs += BLOCK * dr.stride_c
            dr_ptrs += BLOCK * dr.stride_c
        values = _gate_share(values, d.to(FORM.ACC), s, saved, ddescriptors_ptr, n, c0 + c, None, p, size, FORM)
        total += fold_sum(values, 0, TILES.SPATIAL_KEEP, LAYOUT.CHANNELS_LAST)
    if full < size.C:
        inside_c = c < known_multiple(size.C - full, LAYOUT.VEC if LAYOUT.CHANNELS_LAST else 1)
        inside = inside_c[:, None] & inside_p
        values = tl.load(x_ptrs, mask=inside, other=0.0).to(FORM.ACC)
        d = tl.load(dy_ptrs, mask=inside, other=0.0)
        if y_ptr is not None:
            d = _rectified(d, tl.load(y_ptrs, mask=inside, eviction_policy="evict_first"), dr_ptrs, inside, FORM)
        values = _gate_share(values, d.to(FORM.ACC), s, saved, ddescriptors_ptr, n, full + c, inside_c, p, size, FORM)
        total += fold_sum(tl.where(inside, values, 0.0), 0, TILES.SPATIAL_KEEP, LAYOUT.CHANNELS_LAST)
    return total


@triton.jit
def _rectified(dy, y, dr_ptrs, inside, FORM):
    """dr: dy where y > 0, or is NaN as in PyTorch; it is stored, and rounded to its own dtype."""
    dr = tl.where(y.to(FORM.ACC) <= 0, 0.0, dy).to(dr_ptrs.dtype.element_ty)
    tl.store(dr_ptrs, dr, mask=inside)
    return dr


@triton.jit
def _gate_share(x, dr, s, saved, ddescriptors_ptr, n, c, inside_c, p, size, FORM):
    """x dr g, or with `ddescriptors_ptr` x times the gradient of x s: summed over c, that of the spatial gate."""
    if ddescriptors_ptr is not None:
        gated = x if s is None else x * s[None, :]
        dr = through_channel_gate(gated, dr, saved, ddescriptors_ptr, n, c, inside_c, p, size, FORM)
    elif saved.gate is not None:
        dr *= tl.load(saved.gate + n * size.C + c, mask=inside_c)[:, None]
    return rounded_product(x, dr)


@triton.jit
def _gate_at(z_ptr, parameters, n, p, inside_p, size, FORM):
    """The spatial gate at pixels p, from the logits with a norm, else as it was saved."""
    s = tl.load(z_ptr + n * size.P + p, mask=inside_p, other=0.0)
    if parameters.norm_mean is not None:
        s = spatial_gate(s, parameters, FORM)
    return s
