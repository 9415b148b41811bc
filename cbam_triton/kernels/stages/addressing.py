"""Sizes, views and pointers, in a form from which the compiler can tell what divides what."""

import triton
import triton.language as tl

from .packs import Size, View
from .padded_map import gradient_lead, padded_size, plane_of, zeros_around


@triton.jit
def known_multiple(value, VEC: tl.constexpr):
    """The same value, a multiple of VEC, in a form from which the compiler can tell: accesses get VEC elements wide."""
    return value // VEC * VEC


@triton.jit
def known_sizes(C, P, LAYOUT):
    """(C, P), the one along the unit stride known to be a multiple of VEC."""
    if LAYOUT.CHANNELS_LAST:
        return known_multiple(C, LAYOUT.VEC), P
    else:
        return C, known_multiple(P, LAYOUT.VEC)


@triton.jit
def size_of(C, P, H, W, PLANES, R, FORM):
    """The sizes of a sample of P = H W pixels, in PLANES planes; C and R are known to be multiples of their own."""
    C = known_multiple(C, FORM.C_MULTIPLE)
    R = known_multiple(R, FORM.R_MULTIPLE)
    plane = plane_of(H, W, PLANES, FORM.DIMS)
    zeros = zeros_around(W, FORM.K, FORM.DIMS)
    return Size(C, P, W, R, plane, zeros, padded_size(P, plane, zeros, FORM.DIMS), gradient_lead(zeros))


@triton.jit
def sample_view(ptr, n, stride_n, stride_c, stride_p, LAYOUT):
    """Sample n: the unit stride a literal 1, the others known to be multiples of VEC."""
    ptr += n * known_multiple(stride_n, LAYOUT.VEC)
    if LAYOUT.CHANNELS_LAST:
        return View(ptr, 1, known_multiple(stride_p, LAYOUT.VEC).to(LAYOUT.INDEX))
    else:
        return View(ptr, known_multiple(stride_c, LAYOUT.VEC).to(LAYOUT.INDEX), 1)


@triton.jit
def gradient_view(ptr, n, stride_n, stride_c, stride_p, LAYOUT):
    """Sample n of a gradient, which may lie in another memory format than x, or be expanded."""
    if LAYOUT.ALIGNED:
        return sample_view(ptr, n, stride_n, stride_c, stride_p, LAYOUT)
    else:
        return View(ptr + n * stride_n, stride_c.to(LAYOUT.INDEX), stride_p.to(LAYOUT.INDEX))


@triton.jit
def pointers(view, c, p, LAYOUT):
    """Pointers to channels c of pixels p."""
    wide_c = c.to(LAYOUT.INDEX)[:, None]
    wide_p = p.to(LAYOUT.INDEX)[None, :]
    return view.ptr + (wide_c * view.stride_c + wide_p * view.stride_p)
