"""Input gradient: dx from the gradients of both gates and all descriptors, the only pass of a backward that writes."""

import triton
import triton.language as tl

from .addressing import known_multiple, pointers
from .descriptors import NEED_X, through_pools


@triton.jit
def input_gradient_tile(
    x, d, dx,  # one sample; d is the gradient of x g s
    saved, scratch,  # gate, descriptors, both argmax; s, dmaps, ddescriptors
    n, p, c_begin, size, TILES, LAYOUT, FORM,
):  # fmt: skip
    """dx[c,p] = g (d s + E) + da / P + [p == argmax_p] dm for APPLY_SPLIT channels from c_begin, a vector of pixels p.

    x is read for the descriptors of NEED_X alone.
    E[c,p] = dmean / C + [c == argmax_c] dmax comes as the two values that it can have.
    """
    BLOCK: tl.constexpr = TILES.APPLY_C
    READS_X: tl.constexpr = saved.gate is not None and NEED_X & FORM.CHANNEL_POOLS != 0
    inside_p = (p < size.P)[None, :]
    s, low, high, peak = None, None, None, None
    if scratch.dmaps is not None:
        dmaps_ptrs = scratch.dmaps + n * (2 * size.P) + p
        s = tl.load(scratch.s + n * size.P + p, mask=p < size.P, other=0.0)
        low = tl.load(dmaps_ptrs, mask=p < size.P, other=0.0)
        if saved.spatial_argmax is not None:
            high = tl.load(dmaps_ptrs + size.P, mask=p < size.P, other=0.0)
            peak = tl.load(saved.spatial_argmax + n * size.P + p, mask=p < size.P, other=0).to(tl.int32)
    ddescriptors_ptr = scratch.ddescriptors
    lane = tl.arange(0, BLOCK)
    d_ptrs = pointers(d, c_begin + lane, p, LAYOUT)
    dx_ptrs = pointers(dx, c_begin + lane, p, LAYOUT)
    x_ptrs = pointers(x, c_begin + lane, p, LAYOUT)
    c_end = tl.minimum(c_begin + TILES.APPLY_SPLIT, size.C)
    full = c_end - (c_end - c_begin) % BLOCK
    for c0 in range(c_begin, full, BLOCK):
        gradient = tl.load(d_ptrs, mask=inside_p, eviction_policy="evict_first").to(FORM.ACC)
        values = tl.load(x_ptrs, mask=inside_p, eviction_policy="evict_first").to(FORM.ACC) if READS_X else None
        gradient = _input_gradient(
            values, gradient, s, low, high, peak, saved, ddescriptors_ptr, n, c0 + lane, None, p, size, FORM
        )  # fmt: skip
        tl.store(dx_ptrs, gradient.to(dx.ptr.dtype.element_ty), mask=inside_p, eviction_policy="evict_first")
        x_ptrs += BLOCK * x.stride_c
        d_ptrs += BLOCK * d.stride_c
        dx_ptrs += BLOCK * dx.stride_c
    rest = known_multiple(c_end - full, LAYOUT.VEC if LAYOUT.CHANNELS_LAST else 1)
    if rest > 0:
        inside_c = lane < rest
        inside = inside_c[:, None] & inside_p
        gradient = tl.load(d_ptrs, mask=inside, eviction_policy="evict_first").to(FORM.ACC)
        values = tl.load(x_ptrs, mask=inside, eviction_policy="evict_first").to(FORM.ACC) if READS_X else None
        gradient = _input_gradient(
            values, gradient, s, low, high, peak, saved, ddescriptors_ptr, n, full + lane, inside_c, p, size, FORM
        )  # fmt: skip
        tl.store(dx_ptrs, gradient.to(dx.ptr.dtype.element_ty), mask=inside, eviction_policy="evict_first")


@triton.jit
def _input_gradient(x, d, s, low, high, peak, saved, ddescriptors_ptr, n, c, inside_c, p, size, FORM):
    """g (d s + E) + the descriptors' gradients, the gates in the order of ARRANGEMENT; a gate that is None left out.

    E is `high` where c == peak and else `low`. In parallel E comes after the channel gate. With the spatial gate first
    s does, too.
    """
    if s is not None:
        e = low[None, :]
        if high is not None:
            e = tl.where(c[:, None] == peak[None, :], high[None, :], e)
        if FORM.ARRANGEMENT != "spatial_first":
            d *= s[None, :]
        if FORM.ARRANGEMENT == "channel_first":
            d += e
    if saved.gate is not None:
        if x is not None and s is not None:
            if FORM.ARRANGEMENT == "spatial_first":
                x *= s[None, :]
        d = through_channel_gate(x, d, saved, ddescriptors_ptr, n, c, inside_c, p, size, FORM)
    if s is not None:
        if FORM.ARRANGEMENT == "spatial_first":
            d *= s[None, :]
        if FORM.ARRANGEMENT != "channel_first":
            d += e
    return d


@triton.jit
def through_channel_gate(x, d, saved, ddescriptors_ptr, n, c, inside_c, p, size, FORM):
    """g d, and the gradients of all descriptors: the gradient of that gate's input x."""
    d *= tl.load(saved.gate + n * size.C + c, mask=inside_c)[:, None]
    return through_pools(x, d, saved, ddescriptors_ptr, n, c, inside_c, p, size, FORM)
