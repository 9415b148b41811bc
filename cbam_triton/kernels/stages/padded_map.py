"""Maps of one value a pixel, and the zeros around it that spare the taps of the convolution a mask on rows.

The host calls the functions of sizes, too: as `padded_size.fn`, on Python's integers.
"""

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

    No tap needs a mask on rows. One on the planes stands for zeros there, which would be more than a small map.
    """
    return K // 2 * W if DIMS > 1 else 0 * W


@triton.jit
def padded_size(P, plane, zeros, DIMS: tl.constexpr):
    """Pixels of a map with its zeros."""
    if DIMS == 3:
        return P + (P // plane + 1) * zeros
    else:
        return P + 2 * zeros


@triton.jit
def gradient_lead(zeros):
    """Elements before the first pixel of a sample's dz: the zeros of a padded map, in whole sectors of float32."""
    return (zeros + 7) // 8 * 8


@triton.jit
def gradient_size(padded, zeros, lead):
    """Elements of a sample's dz, which is padded as a map is, in whole sectors of float32."""
    return (lead - zeros + padded + 7) // 8 * 8


@triton.jit
def past_zeros(p, size, DIMS: tl.constexpr):
    """Pixels p, and the zeros between the planes before them."""
    if DIMS == 3:
        return p + p // size.plane * size.zeros
    else:
        return p


@triton.jit
def zero_at(i, lead, size, K: tl.constexpr):
    """The place of the i-th zero of a volume, if `lead` of them come before the first pixel."""
    gap = tl.maximum(size.zeros, 1)
    planes = tl.where(i < lead, 0, tl.minimum((i - lead) // gap + 1, size.P // size.plane))
    return i + tl.where(K == 1, size.P, planes * size.plane)


@triton.jit
def tap_row(row, size, K: tl.constexpr, DIMS: tl.constexpr):
    """Pixels of a padded map from a pixel's own row to row `row` of the K^(DIMS-1) of its taps."""
    if DIMS == 3:
        return (row // K - K // 2) * (size.plane + size.zeros) + (row % K - K // 2) * size.W
    elif DIMS == 2:
        return (row - K // 2) * size.W
    else:
        return 0 * size.W


@triton.jit
def has_plane(row, p, size, K: tl.constexpr):
    """Whether that row is in a plane of the volume."""
    d = p // size.plane + (row // K - K // 2)
    return (d >= 0) & (d < size.P // size.plane)
