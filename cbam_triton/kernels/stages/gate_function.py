"""The function that both gates end in."""

import triton
import triton.language as tl

from .reductions import rounded_product

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2_HIGH, _LN_2_LOW = tl.constexpr(355 / 512), tl.constexpr(-2.121944400546906e-4)  # products of the first are exact


@triton.jit
def gate_of(logits, HARD: tl.constexpr):
    """sigmoid(logits), or relu6(logits + 3) / 6 if HARD; NaN stays NaN in both."""
    if HARD:
        shifted = logits + 3
        return tl.where(shifted < 0, 0.0, tl.where(shifted > 6, 6.0, shifted)) / 6
    else:
        return _sigmoid(logits)


@triton.jit
def _sigmoid(logits):
    """1 / (1 + exp(-logits)), in float32 to the last bit or two.

    A GPU has a power of two that is exact to 2 ulp; what the product of a large logit with log2 e loses before it would
    cost more. So exp(-logits) = 2^k exp(rest), where `rest` is below a half of ln 2 and exact (Cody and Waite 1980).
    """
    if logits.dtype == tl.float32:
        moderate = tl.abs(logits) < 80
        x = tl.where(moderate, -logits, 0.0)
        k = tl.floor(x * _LOG2_E + 0.5)
        rest = x - k * _LN_2_HIGH - k * _LN_2_LOW
        power = tl.exp2(k) * tl.exp2(rest * _LOG2_E)
        return tl.where(moderate, tl.div_rn(tl.full((), 1.0, tl.float32), 1 + power), tl.sigmoid(logits))
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
