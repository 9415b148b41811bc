"""Device functions that every stage uses: NaN-propagating maxima and reductions that stay inside a thread.

A tile of x is [BLOCK_C, BLOCK_P] in both memory formats. The axis with unit stride is C in channels_last and P in NCHW;
a thread holds VEC neighbours along it, and every `KEEP`-th row along the other one.
"""

import triton
import triton.language as tl

# CHANNEL_POOLS is a sum of these, the descriptors that there are. HALF: half the sum of the first two in their place.
AVERAGE, MAXIMUM, NORM, LOGSUMEXP, HALF = (tl.constexpr(1 << i) for i in range(5))


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
def gate_of(logits, HARD: tl.constexpr):
    """sigmoid(logits), or relu6(logits + 3) / 6 if HARD; NaN stays NaN in both."""
    if HARD:
        shifted = logits + 3
        return tl.where(shifted < 0, 0.0, tl.where(shifted > 6, 6.0, shifted)) / 6
    else:
        return tl.sigmoid(logits)


@triton.jit
def gate_slope(gate, HARD: tl.constexpr):
    """The derivative of `gate_of`, by its value."""
    if HARD:
        return tl.where((gate > 0) & (gate < 1), tl.full((), 1.0, gate.dtype) / 6, 0.0)
    else:
        return gate * (1 - gate)


@triton.jit
def rounded_product(a, b):
    """a * b, rounded. A plain product may be fused into the first addition of a reduction: then of two threads that
    exchange their terms each fuses its own, and they end with sums that differ in the last bit."""
    return tl.fma(a, b, 0.0)


@triton.jit
def known_multiple(value, VEC: tl.constexpr):
    """The same value, a multiple of VEC, in a form from which the compiler can tell: accesses get VEC elements wide."""
    return value // VEC * VEC


@triton.jit
def known_sizes(C, P, VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """(C, P), the one along the unit stride known to be a multiple of VEC."""
    if CHANNELS_LAST:
        return known_multiple(C, VEC), P
    else:
        return C, known_multiple(P, VEC)


@triton.jit
def known_strides(stride_c, stride_p, VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr):
    """(stride_c, stride_p): one of them a literal 1, the other, in INDEX arithmetic, known to be a multiple of VEC."""
    if CHANNELS_LAST:
        return 1, known_multiple(stride_p, VEC).to(INDEX)
    else:
        return known_multiple(stride_c, VEC).to(INDEX), 1


@triton.jit
def gradient_strides(
    stride_n, stride_c, stride_p,
    ALIGNED: tl.constexpr, VEC: tl.constexpr, CHANNELS_LAST: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Strides of a gradient that may lie in another memory format than x, or be expanded."""
    if ALIGNED:
        stride_c, stride_p = known_strides(stride_c, stride_p, VEC, CHANNELS_LAST, INDEX)
        return known_multiple(stride_n, VEC), stride_c, stride_p
    else:
        return stride_n, stride_c.to(INDEX), stride_p.to(INDEX)
