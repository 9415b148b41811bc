"""Autotuning over the table: only where there is a driver, since the interpreter has no time to compare."""

import pytest

pytest.importorskip("triton")

from cbam_triton.kernels import launch, plan
from cbam_triton.kernels.call import plan_of
from cbam_triton.kernels.device import device_type, interpreted

from .cases import SCHEDULES, assert_refined, layer, normal

pytestmark = pytest.mark.skipif(interpreted() or device_type() is None, reason="needs a GPU or another Triton driver")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_class_is_tuned_once_and_any_row_gives_the_right_result(schedule, monkeypatch, device):
    monkeypatch.setattr(plan, "AUTOTUNE", True)
    plan.plan.cache_clear()
    weights = layer(32, device=device)
    for N in (3, 2):
        x = normal((N, 32, 14, 14), device=device)
        assert len(plan_of(x, weights, schedule).rows) > 1
        assert_refined(launch.forward(x, weights, schedule), x, weights)
        if N == 3:
            tuners = plan._tuned.cache_info().currsize
    assert plan._tuned.cache_info().currsize == tuners
    plan.plan.cache_clear()
