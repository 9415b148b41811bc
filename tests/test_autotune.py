"""Autotuning over the table: only where there is a driver, since the interpreter has no time to compare."""

import pytest
import torch

pytest.importorskip("triton")

from cbam_triton import CBAM, settings
from cbam_triton.kernels import launch, plan
from cbam_triton.kernels.call import plan_of
from cbam_triton.kernels.device import device_type, interpreted

from .cases import SCHEDULES, assert_refined, layer, normal
from .errors import assert_as_good_as_eager, assert_gradients_as_good_as_eager

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


@pytest.mark.parametrize("schedule, norm", [("wavefront", None), ("wavefront", "batch"), ("staged", None)])
def test_a_tuned_step_of_training_gives_the_gradients_of_the_reference(schedule, norm, monkeypatch, device):
    monkeypatch.setattr(plan, "AUTOTUNE", True)
    plan.plan.cache_clear()
    module = CBAM(16, 4, kernel_size=3, spatial_norm=norm).to(device)
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = normal(parameter.shape, device=device, seed=seed)
    x, dy = (normal((2, 16, 12, 12), device=device, seed=seed) for seed in (0, 1))
    found = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        leaf = x.detach().to(dtype).requires_grad_()
        with settings(backend=backend, schedule=schedule):
            y = module.to(dtype)(leaf)
            found.append((y.detach(), torch.autograd.grad(y, (leaf, *module.parameters()), dy.to(dtype))))
    assert len(plan_of(x, layer(16, 4, 3, device=device), schedule, backward=True).rows) > 1
    outputs, gradients = zip(*found, strict=True)
    assert_as_good_as_eager(*outputs)
    assert_gradients_as_good_as_eager(*gradients)
    plan.plan.cache_clear()
