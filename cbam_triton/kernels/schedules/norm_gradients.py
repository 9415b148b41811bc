"""Norm gradients: of the norm's weight and bias, and back through statistics that are those of the batch."""

import triton
import triton.language as tl

from ..stages.addressing import size_of
from ..stages.padded_map import gradient_size, past_zeros
from ..stages.rounding import divided, inverse_root
from ..stages.signals import follow
from .specialisation import UNSPECIALISED


@triton.jit(do_not_specialize=UNSPECIALISED)
def norm_sums_kernel(
    parameters, saved, scratch,  # norm_mean, norm_var; z; dz
    sums_ptr,  # PROGRAMS 2
    N, C, H, W, PLANES, R,
    PROGRAMS: tl.constexpr, BLOCK: tl.constexpr, FORM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """Shares of (sum dz, sum dz zn) over all logits, zn the normed ones; a program owns every PROGRAMS-th block."""
    follow(CHAINED)
    size = size_of(C, H * W, H, W, PLANES, R, FORM)
    dbias = tl.zeros([BLOCK], FORM.ACC)
    dweight = tl.zeros([BLOCK], FORM.ACC)
    logits = tl.cast(N, tl.int64) * size.P
    for begin in range(tl.program_id(0).to(tl.int64) * BLOCK, logits, PROGRAMS * BLOCK):
        dz_ptrs, normal, inside = _block(parameters, saved, scratch, begin, logits, size, BLOCK, FORM)
        dz = tl.load(dz_ptrs, mask=inside, other=0.0)
        dbias += dz
        dweight += dz * normal
    tl.store(sums_ptr + 2 * tl.program_id(0), tl.sum(dbias, 0))
    tl.store(sums_ptr + 2 * tl.program_id(0) + 1, tl.sum(dweight, 0))


@triton.jit(do_not_specialize=UNSPECIALISED)
def norm_gradient_kernel(
    parameters, saved, scratch,  # the norm's; z; dz
    gradients, sums_ptr,  # norm_weight, norm_bias: (1,) each or None; SHARES 2
    N, C, H, W, PLANES, R, SHARES, COUNT,
    PROGRAMS: tl.constexpr, BLOCK: tl.constexpr, BATCH: tl.constexpr, FORM: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """The gradients of the norm's parameters, from shares; with BATCH dz becomes the gradient of what is normed.

    dz = (dz - sum dz / COUNT - zn sum(dz zn) / COUNT) weight / sqrt(var + eps), over all logits that the statistics are
    of (Ioffe and Szegedy 2015, section 3). A program owns every PROGRAMS-th block.
    """
    follow(CHAINED)
    share = tl.arange(0, PROGRAMS)
    of_bias = tl.sum(tl.load(sums_ptr + 2 * share, mask=share < SHARES, other=0.0), 0)
    of_weight = tl.sum(tl.load(sums_ptr + 2 * share + 1, mask=share < SHARES, other=0.0), 0)
    if tl.program_id(0) == 0:
        if gradients.norm_weight is not None:
            tl.store(gradients.norm_weight, of_weight.to(gradients.norm_weight.dtype.element_ty))
        if gradients.norm_bias is not None:
            tl.store(gradients.norm_bias, of_bias.to(gradients.norm_bias.dtype.element_ty))
    if BATCH:
        of_bias = divided(of_bias, COUNT)
        of_weight = divided(of_weight, COUNT)
        slope = _slope(parameters, FORM)
        if parameters.norm_weight is not None:
            slope *= tl.load(parameters.norm_weight).to(FORM.ACC)
        size = size_of(C, H * W, H, W, PLANES, R, FORM)
        logits = tl.cast(N, tl.int64) * size.P
        for begin in range(tl.program_id(0).to(tl.int64) * BLOCK, logits, PROGRAMS * BLOCK):
            dz_ptrs, normal, inside = _block(parameters, saved, scratch, begin, logits, size, BLOCK, FORM)
            dz = tl.load(dz_ptrs, mask=inside, other=0.0)
            tl.store(dz_ptrs, (dz - (of_bias + normal * of_weight)) * slope, mask=inside)


@triton.jit
def _block(parameters, saved, scratch, begin, logits, size, BLOCK: tl.constexpr, FORM):
    """Pointers to the gradients of BLOCK logits, the normed logits, and which of them there are."""
    i = begin + tl.arange(0, BLOCK)
    inside = i < logits
    z = tl.load(saved.z + i, mask=inside, other=0.0)
    normal = (z - tl.load(parameters.norm_mean).to(FORM.ACC)) * _slope(parameters, FORM)
    places = i // size.P * gradient_size(size.padded, size.zeros, size.lead) + size.lead
    return scratch.dz + (places + past_zeros(i % size.P, size, FORM.DIMS)), normal, inside


@triton.jit
def _slope(parameters, FORM):
    """1 / sqrt(var + eps)."""
    variance = tl.load(parameters.norm_var).to(FORM.ACC) + tl.full((), FORM.NORM_EPS, FORM.ACC)
    return inverse_root(variance)
