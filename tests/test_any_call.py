"""Two thousand calls, right and wrong: an error is one of ours, and a number is the reference's."""

import inspect
import re
import traceback
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import cbam_triton

from .calls import drawn

_HERE = str(Path(cbam_triton.__file__).parent)
_CALLS, _PARTS = 2000, 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(_PARTS))
def test_no_call_ends_in_an_error_that_is_not_ours_or_in_another_number(part):
    wrong = []
    for seed in range(part, _CALLS, _PARTS):
        call = drawn(seed)
        found, error = outcome(call.run)
        if error is not None:
            complaint = None if is_ours(error) else f"{type(error).__name__}: {str(error)[:200]}"
        else:
            complaint = None if call.reference is None else difference(found, call.reference, call.coarsest)
        if complaint:
            wrong.append(f"seed {seed}: {call.words}\n    {complaint}")
    assert not wrong, "\n".join(wrong)


def outcome(run):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return run(), None
        except Exception as error:
            return None, error


def is_ours(error: Exception) -> bool:
    """Whether the package raised the error in a sentence with a remedy, or Python refused the signature."""
    frame, _ = list(traceback.walk_tb(error.__traceback__))[-1]
    if isinstance(error, TypeError) and re.search(
        r"unexpected keyword|missing \d+ required|positional argument", str(error)
    ):
        return not inspect.getfile(frame).startswith(_HERE) or "kernels" not in inspect.getfile(frame)
    said = isinstance(error, (TypeError, ValueError, RuntimeError)) and re.search(r"[:;,] .*[a-z]", str(error))
    return bool(said) and inspect.getfile(frame).startswith(_HERE)


def difference(found, reference, coarsest=torch.float32) -> str | None:
    expected, error = outcome(reference)
    if error is not None:
        return f"the reference raises {type(error).__name__}: {str(error)[:200]}"
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 6e-2}.get(coarsest, 1e-4)
    for mine, other in zip(*(one if isinstance(one, tuple) else (one,) for one in (found, expected)), strict=True):
        if type(mine) is not type(other) or mine.dtype is not other.dtype or mine.shape != other.shape:
            return f"{type(mine)} {mine.dtype} {mine.shape}, expected {type(other)} {other.dtype} {other.shape}"
        mine, other = (one.as_subclass(Tensor).double().cpu() for one in (mine, other))
        if not torch.allclose(mine, other, rtol=tolerance, atol=tolerance, equal_nan=True):
            return f"differs by {(mine - other).abs().nan_to_num().max():.3g}"
    return None


def test_an_error_of_pytorch_is_not_ours():
    assert not is_ours(outcome(lambda: torch.zeros(2) + torch.zeros(3))[1])
    assert is_ours(outcome(lambda: cbam_triton.CBAM(4)(torch.zeros(2)))[1])


def test_a_difference_is_seen():
    assert difference(torch.ones(2), lambda: torch.ones(2)) is None
    assert "differs" in difference(torch.ones(2), lambda: torch.ones(2) * 1.1)
    assert "float64" in difference(torch.ones(2).double(), lambda: torch.ones(2))
    assert "raises" in difference(torch.ones(2), lambda: torch.ones(2) + torch.ones(3))
