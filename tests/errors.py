"""The one tolerance rule: against fp64, at most twice eager's own error at the same dtype, plus one ulp."""

from collections.abc import Sequence

import torch
from torch import Tensor


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Exactly equal, NaN for NaN: for arithmetic that is exact."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def assert_as_good_as_eager(actual: Tensor, eager: Tensor, exact: Tensor) -> None:
    """`actual` is as near to the fp64 result `exact` as twice `eager` is, plus one ulp of the largest value.

    NaN and infinities must be where `exact` has them.
    """
    assert exact.dtype == torch.float64, "the yardstick must be fp64"
    assert actual.dtype == eager.dtype, f"expected {eager.dtype}, got {actual.dtype}"
    assert actual.shape == eager.shape == exact.shape, f"expected {tuple(exact.shape)}, got {tuple(actual.shape)}"
    wide = actual.double().cpu()
    exact = exact.cpu()
    # What overflows the dtype is infinite in a right result.
    finite = exact.to(actual.dtype).isfinite()
    assert_same(wide[~finite], exact.to(actual.dtype).double()[~finite])
    if not finite.any():
        return
    ulp = torch.finfo(actual.dtype).eps * exact[finite].abs().max().item()
    allowed = 2 * worst_error(eager.cpu()[finite], exact[finite]) + ulp
    found = worst_error(wide[finite], exact[finite])
    assert found <= allowed, f"error {found:.3g} against fp64, allowed {allowed:.3g} (twice eager's plus one ulp)"


def worst_error(actual: Tensor, exact: Tensor) -> float:
    """Largest absolute error; infinite where `actual` is not a number."""
    return (actual.double() - exact).abs().nan_to_num(nan=torch.inf).max().item()


def assert_gradients_as_good_as_eager(
    found: Sequence[Tensor], eager: Sequence[Tensor], exact: Sequence[Tensor]
) -> None:
    """The first gradient, x's, and the others together, as near to fp64 by RMS as twice eager's, plus one ulp.

    Each is measured on the scale of its largest exact value. An arg-max that rounding moves moves single values, and a
    parameter of one number is as near to the exact one as luck has it.
    """
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in eager]
    for part in (slice(0, 1), slice(1, None)):
        if not exact[part]:
            continue
        ulp = max(torch.finfo(tensor.dtype).eps for tensor in found[part])
        error, own = _scaled_rms(found[part], exact[part]), _scaled_rms(eager[part], exact[part])
        assert error <= 2 * own + ulp, f"error {error:.3g} by RMS, eager's {own:.3g}, ulp {ulp:.3g}"


def _scaled_rms(tensors: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    pairs = zip(tensors, exact, strict=True)
    errors = [(tensor.double() - right).flatten() / (right.abs().max().item() or 1.0) for tensor, right in pairs]
    return torch.cat(errors).square().mean().sqrt().item()
