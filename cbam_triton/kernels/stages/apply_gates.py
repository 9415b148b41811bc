"""Apply: y = act(x g s + residual), the only pass of a forward that writes."""

import triton
import triton.language as tl

from .addressing import known_multiple, pointers
from .packs import View


@triton.jit
def apply_gates_tile(
    x, y,  # one sample
    residual_ptr,  # one sample, with y's strides, or None
    gate_ptr, s,  # N C and [APPLY_P]; None for a gate of ones
    n, p, c_begin, size, RELU: tl.constexpr, TILES, LAYOUT, FORM,
):  # fmt: skip
    """y[c,p] = act(x[c,p] g[c] s[p] + residual[c,p]) for APPLY_SPLIT channels from c_begin and a vector of pixels p.

    The last read of x and the writes of y leave L2 first: it should keep the x of samples to come.
    """
    BLOCK: tl.constexpr = TILES.APPLY_C
    c_end = tl.minimum(c_begin + TILES.APPLY_SPLIT, size.C)
    c = c_begin + tl.arange(0, BLOCK)
    inside_p = (p < size.P)[None, :]
    x_ptrs = pointers(x, c, p, LAYOUT)
    y_ptrs = pointers(y, c, p, LAYOUT)
    residual_ptrs = (
        y_ptrs if residual_ptr is None else pointers(View(residual_ptr, y.stride_c, y.stride_p), c, p, LAYOUT)
    )
    if gate_ptr is not None:
        gate_ptr += n * size.C
    for c0 in range(c_begin, c_end - BLOCK + 1, BLOCK):
        values = tl.load(x_ptrs, mask=inside_p, eviction_policy="evict_first").to(FORM.ACC)
        g = tl.load(gate_ptr + (c0 - c_begin) + c) if gate_ptr is not None else None
        values = _gated(values, g, s)
        if residual_ptr is not None:
            values += tl.load(residual_ptrs, mask=inside_p, eviction_policy="evict_first").to(FORM.ACC)
            residual_ptrs += BLOCK * y.stride_c
        _store(y_ptrs, values, inside_p, RELU)
        x_ptrs += BLOCK * x.stride_c
        y_ptrs += BLOCK * y.stride_c
    rest = known_multiple((c_end - c_begin) % BLOCK, LAYOUT.VEC if LAYOUT.CHANNELS_LAST else 1)
    if rest > 0:
        inside_c = tl.arange(0, BLOCK) < rest
        inside = inside_c[:, None] & inside_p
        values = tl.load(x_ptrs, mask=inside, eviction_policy="evict_first").to(FORM.ACC)
        g = tl.load(gate_ptr + (c_end - c_begin - rest) + c, mask=inside_c) if gate_ptr is not None else None
        values = _gated(values, g, s)
        if residual_ptr is not None:
            values += tl.load(residual_ptrs, mask=inside, eviction_policy="evict_first").to(FORM.ACC)
        _store(y_ptrs, values, inside, RELU)


@triton.jit
def _gated(x, g, s):
    """x g s; a gate that is None is left out."""
    if g is not None:
        x *= g[:, None]
    if s is not None:
        x *= s[None, :]
    return x


@triton.jit
def _store(y_ptrs, y, inside, RELU: tl.constexpr):
    """y, or relu(y), in the dtype of the memory."""
    if RELU:
        y = tl.where(y < 0, 0.0, y)
    tl.store(y_ptrs, y.to(y_ptrs.dtype.element_ty), mask=inside, eviction_policy="evict_first")
