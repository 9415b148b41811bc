"""NaN and infinities: where the reference has them, and nowhere else."""

import copy

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

import cbam_triton
from cbam_triton import CBAM
from cbam_triton.kernels.launch import forward as launch
from cbam_triton.kernels.stages import reductions as tiles

from ..cases import assert_refined, both_formats, both_schedules, eager, integers, layer, normal, of_interpreted_exp
from ..checkpoints.published import randomised
from ..errors import assert_same

pytestmark = [pytest.mark.usefixtures("nan_memory"), of_interpreted_exp]

NAN, INF = float("nan"), float("inf")


@triton.jit
def _maxima(x_ptr, out_ptr, AXIS: tl.constexpr, KEEP: tl.constexpr, UNIT_STRIDE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, 8)[:, None] * 8 + tl.arange(0, 8)[None, :])
    folded = tiles.fold_max(x, AXIS, KEEP, UNIT_STRIDE)
    largest = tiles.reduce_max(folded, AXIS)
    tl.store(out_ptr + tl.arange(0, 8), largest)
    tl.store(out_ptr + 8 + tl.arange(0, 8), tiles.maximum(largest, tl.full((8,), 1.0, x.dtype)))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("keep, unit_stride", [(8, True), (2, True), (2, False), (1, False)])
def test_maxima_are_those_of_torch_with_every_nan(keep, unit_stride, axis, device):
    # No result of the layer tells: where a maximum is NaN the mean is too.
    x = integers((8, 8), device=device)
    x[2, 5], x[7, 0], x[4, 1], x[4, 2], x[3] = NAN, INF, NAN, INF, -INF
    out = torch.empty(2, 8, device=device)
    _maxima[(1,)](x, out, axis, keep, unit_stride)
    assert_same(out[0], x.amax(axis))
    assert_same(out[1], torch.maximum(x.amax(axis), torch.ones((), device=device)))


@both_schedules
@both_formats
@pytest.mark.parametrize("R", [4, 0], ids=("cbam", "spatial"))
@pytest.mark.parametrize("first, last", [(0, NAN), (INF, NAN), (INF, 0), (INF, -INF)])
def test_what_is_no_finite_number_stays_where_it_is_in_the_reference(first, last, R, memory_format, schedule, device):
    x = normal((2, 10, 7, 5), memory_format=memory_format, device=device)
    x[1, 0, 0, 0] = first
    x[1, -1, -1, -1] = last
    weights = layer(10, R, device=device)
    y = launch.forward(x, weights, schedule)
    assert not eager(x, weights).isfinite().all()
    assert y[0].isfinite().all()
    assert_refined(y, x, weights)


@both_schedules
def test_a_channel_and_a_pixel_of_minus_infinity_are_pooled_as_such(schedule, device):
    x = normal((2, 6, 3, 4), device=device)
    x[0, 4] = -INF
    weights = layer(6, device=device)
    assert_refined(launch.forward(x, weights, schedule), x, weights)
    x = normal((1, 6, 3, 4), device=device)
    x[:, :, 1, 2] = -INF
    assert_refined(launch.forward(x, layer(6, R=0, device=device), schedule), x, layer(6, R=0, device=device))


def gradients(layer, x, dy, backend, schedule="auto"):
    x = x.detach().requires_grad_()
    with cbam_triton.settings(backend=backend, schedule=schedule):
        found = torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)
    return dict(zip(["x", *(name for name, _ in layer.named_parameters())], found, strict=True))


@both_schedules
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("where, value", [("x", INF), ("x", NAN), ("dy", INF), ("dy", NAN), ("fc2", NAN)])
def test_gradients_are_no_numbers_where_the_references_are_none(value, where, gate, schedule, device):
    # One pixel away from every edge: what NaN times the zeros around a map is depends on PyTorch's convolution.
    layer = randomised(CBAM(4, 2, kernel_size=3, spatial_norm=None, gate=gate)).to(device)
    x, dy = normal((2, 4, 5, 6), device=device), normal((2, 4, 5, 6), device=device, seed=5)
    with torch.no_grad():
        {"x": x[0, 2, 2], "dy": dy[0, 2, 2], "fc2": layer.channel.fc2.weight[2]}[where][1] = value
    found = gradients(layer, x, dy, "triton", schedule)
    expected = gradients(copy.deepcopy(layer).double(), x.double(), dy.double(), "reference")
    for name, mine in found.items():
        torch.testing.assert_close(mine.double(), expected[name], rtol=1e-3, atol=1e-4, equal_nan=True, msg=name)
