"""Quotients and roots rounded as PyTorch rounds them: a GPU's own in float32 are right to 2 ulp only."""

import triton
import triton.language as tl


@triton.jit
def divided(a, b):
    """a / b for a number or a count b."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, tl.cast(b, tl.float32))
    else:
        return a / b


@triton.jit
def inverse_root(a):
    """1 / sqrt(a)."""
    if a.dtype == tl.float32:
        return tl.div_rn(tl.full((), 1.0, tl.float32), tl.sqrt_rn(a))
    else:
        return 1 / tl.sqrt(a)
