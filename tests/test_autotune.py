"""Autotuning over the table: only where there is a driver, since the interpreter has no time to compare."""

import pytest
import torch

pytest.importorskip("triton")

from cbam_triton import CBAM, settings
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


@pytest.mark.parametrize("schedule, norm", [("wavefront", None), ("wavefront", "batch"), ("staged", None)])
def test_a_tuned_step_of_training_gives_the_gradients_of_the_reference(schedule, norm, monkeypatch, device):
    monkeypatch.setattr(plan, "AUTOTUNE", True)
    plan.plan.cache_clear()
    module = CBAM(16, 4, kernel_size=3, spatial_norm=norm).to(device)
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = normal(parameter.shape, device=device, seed=seed)
    x, found = normal((2, 16, 12, 12), device=device), {}
    for backend in ("reference", "triton"):
        leaf = x.detach().requires_grad_()
        with settings(backend=backend, schedule=schedule):
            y = module(leaf)
            found[backend] = y, *torch.autograd.grad(y.square().sum(), (leaf, *module.parameters()))
    assert len(plan_of(x, layer(16, 4, 3, device=device), schedule, backward=True).rows) > 1
    torch.testing.assert_close(found["triton"], found["reference"], rtol=1e-4, atol=1e-4)
    plan.plan.cache_clear()
