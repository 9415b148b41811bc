"""Maps of one value a pixel, and the zeros around it that spare the taps of the convolution a mask on rows."""

import triton
import triton.language as tl


@triton.jit
def plane_of(H, W, PLANES, DIMS: tl.constexpr):
    """Pixels of one of PLANES planes."""
    if DIMS == 3:
        return H // PLANES * W
    else:
        return H * W


@triton.jit
def zeros_around(W, K: tl.constexpr, DIMS: tl.constexpr):
    """Zeros before the first pixel of a map, after the last, and between two planes of a volume.

    So no tap needs a mask on rows. One on the planes stands for zeros there, which would be more than a small map.
    """
    return K // 2 * W if DIMS > 1 else 0 * W


@triton.jit
def padded_size(P, plane, W, K: tl.constexpr, DIMS: tl.constexpr):
    """Pixels of a map with its zeros."""
    if DIMS == 3:
        return P + (P // plane + 1) * zeros_around(W, K, DIMS)
    else:
        return P + 2 * zeros_around(W, K, DIMS)


@triton.jit
def past_zeros(p, plane, W, K: tl.constexpr, DIMS: tl.constexpr):
    """Pixels p, and the zeros between the planes before them."""
    if DIMS == 3:
        return p + p // plane * zeros_around(W, K, DIMS)
    else:
        return p


@triton.jit
def zero_at(i, lead, P, plane, W, K: tl.constexpr):
    """Where the i-th zero of a volume is, if `lead` of them come before the first pixel."""
    gap = tl.maximum(zeros_around(W, K, 3), 1)
    planes = tl.where(i < lead, 0, tl.minimum((i - lead) // gap + 1, P // plane))
    return i + tl.where(K == 1, P, planes * plane)


@triton.jit
def tap_row(row, plane, W, K: tl.constexpr, DIMS: tl.constexpr):
    """Pixels of a padded map from a pixel's own row to row `row` of the K^(DIMS-1) of its taps."""
    if DIMS == 3:
        return (row // K - K // 2) * (plane + zeros_around(W, K, DIMS)) + (row % K - K // 2) * W
    elif DIMS == 2:
        return (row - K // 2) * W
    else:
        return 0 * W


@triton.jit
def has_plane(row, p, P, plane, K: tl.constexpr):
    """Whether that row is in a plane of the volume."""
    d = p // plane + (row // K - K // 2)
    return (d >= 0) & (d < P // plane)


@triton.jit
def gradient_lead(W, K: tl.constexpr, DIMS: tl.constexpr):
    """Elements before the first pixel of a sample's dz: the zeros of a padded map, in whole sectors of float32."""
    return tl.cdiv(zeros_around(W, K, DIMS), 8) * 8


@triton.jit
def gradient_size(P, plane, W, K: tl.constexpr, DIMS: tl.constexpr):
    """Elements of a sample's dz, which is padded as a map is, in whole sectors of float32."""
    extra = gradient_lead(W, K, DIMS) - zeros_around(W, K, DIMS)
    return tl.cdiv(extra + padded_size(P, plane, W, K, DIMS), 8) * 8
