"""The function that both gates end in."""

import triton
import triton.language as tl

from .reductions import rounded_product


@triton.jit
def gate_of(logits, HARD: tl.constexpr):
    """sigmoid(logits), or relu6(logits + 3) / 6 if HARD; NaN stays NaN in both."""
    if HARD:
        shifted = logits + 3
        return tl.where(shifted < 0, 0.0, tl.where(shifted > 6, 6.0, shifted)) / 6
    else:
        return tl.sigmoid(logits)


@triton.jit
def through_gate(dgate, gate, HARD: tl.constexpr):
    """The gradient of the logits from that of the gate, and its value; rounded before threads add it up.

    Where a hard gate does not move it is 0, also from NaN.
    """
    if HARD:
        slope = tl.full((), 1.0, gate.dtype) / 6
        return tl.where((gate > 0) & (gate < 1), rounded_product(dgate, slope), 0.0)
    else:
        return rounded_product(dgate, gate * (1 - gate))
