"""Maxima that propagate NaN, and reductions that stay inside a thread.

A tile of x is [BLOCK_C, BLOCK_P] in both memory formats. The axis with unit stride is C in channels_last and P in NCHW;
a thread holds VEC neighbours along it, and every `KEEP`-th row along the other one.
"""

import triton
import triton.language as tl


@triton.jit
def maximum(a, b):
    """Elementwise maximum; NaN where either is NaN, as `torch.maximum`."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


# The interpreter calls Python once an element for a combine function that is not one of Triton's own.
INTERPRETED = tl.constexpr(not isinstance(maximum, triton.JITFunction))


@triton.jit
def reduce_max(values, AXIS: tl.constexpr):
    """Maximum along AXIS; NaN where any element is NaN, as `torch.amax`."""
    if INTERPRETED:
        is_nan = values != values
        largest = tl.max(tl.where(is_nan, float("-inf"), values), AXIS)
        return tl.where(tl.max(is_nan.to(tl.int32), AXIS) != 0, float("nan"), largest)
    else:
        return tl.reduce(values, AXIS, maximum)


@triton.jit
def split_axis(tile, AXIS: tl.constexpr, KEEP: tl.constexpr, UNIT_STRIDE: tl.constexpr):
    """AXIS of a 2-D tile as (KEEP, rest) if it has unit stride, else as (rest, KEEP): `rest` lies in one thread."""
    A: tl.constexpr = tile.shape[0]
    B: tl.constexpr = tile.shape[1]
    if AXIS == 0:
        if UNIT_STRIDE:
            return tl.reshape(tile, [KEEP, A // KEEP, B])
        else:
            return tl.reshape(tile, [A // KEEP, KEEP, B])
    else:
        if UNIT_STRIDE:
            return tl.reshape(tile, [A, KEEP, B // KEEP])
        else:
            return tl.reshape(tile, [A, B // KEEP, KEEP])


@triton.jit
def fold_sum(tile, AXIS: tl.constexpr, KEEP: tl.constexpr, UNIT_STRIDE: tl.constexpr):
    """Sum along AXIS down to KEEP partial sums, without leaving the thread."""
    return tl.sum(split_axis(tile, AXIS, KEEP, UNIT_STRIDE), AXIS + (1 if UNIT_STRIDE else 0))


@triton.jit
def fold_max(tile, AXIS: tl.constexpr, KEEP: tl.constexpr, UNIT_STRIDE: tl.constexpr):
    """Maximum along AXIS down to KEEP partial maxima, without leaving the thread."""
    return reduce_max(split_axis(tile, AXIS, KEEP, UNIT_STRIDE), AXIS + (1 if UNIT_STRIDE else 0))


@triton.jit
def fold_order(BLOCK: tl.constexpr, KEEP: tl.constexpr, UNIT_STRIDE: tl.constexpr):
    """0 to BLOCK - 1 in the order in which entry k of a fold along this axis is that of neighbours.

    Laid out so, entry k is made of the BLOCK // KEEP indices from k * (BLOCK // KEEP) on.
    """
    i = tl.arange(0, BLOCK)
    if UNIT_STRIDE:
        return i
    else:
        return i % KEEP * (BLOCK // KEEP) + i // KEEP


@triton.jit
def first_group(values, extreme, starts, AXIS: tl.constexpr, KEEP: tl.constexpr, GROUP: tl.constexpr, END):
    """Where the first group of GROUP neighbours that holds `extreme` begins; END where that is NaN.

    values, starts: running maxima along AXIS, KEEP of them, and the index at which the block of each began.
    """
    k = tl.arange(0, KEEP)
    if AXIS == 0:
        starts = starts + (k * GROUP)[:, None]
        return tl.min(tl.where(values == extreme[None, :], starts, END), 0)
    else:
        starts = starts + (k * GROUP)[None, :]
        return tl.min(tl.where(values == extreme[:, None], starts, END), 1)


@triton.jit
def finite_or_zero(values):
    """The values, 0 in place of infinities."""
    return tl.where(tl.abs(values) == float("inf"), 0.0, values)


@triton.jit
def fold_exp(tile, offsets, AXIS: tl.constexpr, KEEP: tl.constexpr, UNIT_STRIDE: tl.constexpr):
    """`fold_sum` of exp(tile - offsets), with an offset for each of its results."""
    inner: tl.constexpr = AXIS + (1 if UNIT_STRIDE else 0)
    return tl.sum(tl.exp(split_axis(tile, AXIS, KEEP, UNIT_STRIDE) - tl.expand_dims(offsets, inner)), inner)


@triton.jit
def rounded_product(a, b):
    """a * b, rounded. A plain product may be fused into the first addition of a reduction: then of two threads that
    exchange their terms each fuses its own, and they end with sums that differ in the last bit."""
    return tl.fma(a, b, 0.0)
