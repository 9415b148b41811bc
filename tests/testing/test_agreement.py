"""The error rule, and timings in turns."""

import math

import pytest
import torch

from cbam_triton.testing.agreement import Agreement, agreement, gradient_agreement
from cbam_triton.testing.timing import interleaved


def test_gradients_are_judged_by_root_mean_square_and_by_part():
    want = {"x": torch.linspace(1, 2, 1000).double(), "spatial.norm.bias": torch.tensor([4.0]).double()}
    single = {name: tensor.float() for name, tensor in want.items()}
    assert gradient_agreement(single, single, want).ok
    moved = single | {"x": single["x"].clone()}
    moved["x"][0] += 0.01
    also = single | {"x": single["x"].clone()}
    also["x"][7] += 0.01
    assert gradient_agreement(moved, also, want).ok, "eager moved another arg-max"
    assert gradient_agreement(moved, also, want).ratio == pytest.approx(1, rel=1e-3)
    assert not gradient_agreement(moved, single, want).ok
    bias = single | {"spatial.norm.bias": torch.tensor([4.01])}
    assert not gradient_agreement(bias, also, want).ok, "a part that is wrong hides behind no other"
    assert not gradient_agreement(single | {"x": single["x"] * float("nan")}, also, want).ok


def test_a_nan_never_agrees():
    want = torch.ones(4, dtype=torch.float64)
    got = torch.tensor([1.0, 1.0, float("nan"), 1.0])
    assert agreement(got, got, want).ok is True, "eager is as wrong"
    assert not agreement(got, torch.ones(4), want).ok
    assert not agreement(torch.ones(4) * float("inf"), torch.ones(4), want).ok
    assert agreement(got, torch.ones(4), got.double()).ok, "NaN where the reference has it"


@pytest.mark.parametrize("error, eager", [(0.0, 0.0), (3.0, 1.0), (3.01, 1.0), (1.0, 0.0), (math.inf, math.inf)])
def test_the_share_is_at_most_one_where_the_rule_holds(error, eager):
    found = Agreement(error, eager, 1.0)
    assert (found.share <= 1) == found.ok


def test_interleaved_timing_tells_slow_from_fast():
    a, b = torch.ones(10), torch.ones(1_000_000)
    timings = interleaved({"small": a.sum, "large": b.exp}, torch.device("cpu"), seconds=0.05)
    assert 0 < timings["small"].median < timings["large"].median
