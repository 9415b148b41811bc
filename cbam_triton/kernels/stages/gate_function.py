"""The function that both gates end in."""

import triton
import triton.language as tl


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
