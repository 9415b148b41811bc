"""Apply: y = x * g * s, the only pass that writes."""

import triton
import triton.language as tl

from .tiles import known_multiple


@triton.jit
def apply_gates_tile(
    x_ptr, y_ptr,  # one sample: C P
    gate_ptr,  # one sample: C, or None for a gate of ones
    s,  # [BLOCK_P], or None for a gate of ones
    p, c_begin, c_end, P,
    x_stride_c, x_stride_p, y_stride_c, y_stride_p,
    BLOCK_C: tl.constexpr, VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y[c,p] = x[c,p] * g[c] * s[p] for c in [c_begin, c_end) and a vector of pixels p.

    The last read of x and the writes of y leave L2 first: what it should keep is the x of samples to come.
    """
    c = c_begin + tl.arange(0, BLOCK_C)
    inside_p = (p < P)[None, :]
    x_ptrs = x_ptr + (c.to(INDEX)[:, None] * x_stride_c + p.to(INDEX)[None, :] * x_stride_p)
    y_ptrs = y_ptr + (c.to(INDEX)[:, None] * y_stride_c + p.to(INDEX)[None, :] * y_stride_p)
    for c0 in range(c_begin, c_end - BLOCK_C + 1, BLOCK_C):
        y = tl.load(x_ptrs, mask=inside_p, eviction_policy="evict_first").to(ACC)
        if gate_ptr is not None:
            y *= tl.load(gate_ptr + (c0 - c_begin) + c)[:, None]
        if s is not None:
            y *= s[None, :]
        tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=inside_p, eviction_policy="evict_first")
        x_ptrs += BLOCK_C * x_stride_c
        y_ptrs += BLOCK_C * y_stride_c
    rest = known_multiple((c_end - c_begin) % BLOCK_C, VEC if CHANNELS_LAST else 1)
    if rest > 0:
        inside_c = tl.arange(0, BLOCK_C) < rest
        inside = inside_c[:, None] & inside_p
        y = tl.load(x_ptrs, mask=inside, eviction_policy="evict_first").to(ACC)
        if gate_ptr is not None:
            y *= tl.load(gate_ptr + (c_end - c_begin - rest) + c, mask=inside_c)[:, None]
        if s is not None:
            y *= s[None, :]
        tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=inside, eviction_policy="evict_first")
