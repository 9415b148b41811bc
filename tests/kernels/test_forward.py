"""The kernels against the eager specification: dtypes, layouts, schedules, odd sizes."""

import pytest
import torch
from torch import Tensor, nn

from cbam_triton import functional, settings

pytest.importorskip("triton")

from cbam_triton.kernels.launch import forward as launch
from cbam_triton.kernels.launch.tensors import Weights, accumulator

from ..cases import (
    CONV,
    FORMATS,
    HALF,
    MLP,
    SCHEDULES,
    assert_refined,
    both_formats,
    both_schedules,
    changed,
    eager_gates,
    integers,
    layer,
    normal,
    of_interpreted_exp,
    picked,
)
from ..errors import assert_as_good_as_eager, assert_same

pytestmark = [pytest.mark.usefixtures("nan_memory"), of_interpreted_exp]

DTYPES = (*HALF, torch.float32, torch.float64)

# N, C, H, W, R, K
SIZES = [
    (2, 5, 1, 1, 1, 3),
    (1, 1, 5, 3, 1, 7),
    (1, 3, 2, 9, 5, 1),
    (1, 7, 9, 2, 3, 15),
    (1, 24, 3, 1, 33, 3),
    (1, 33, 1, 11, 2, 7),
]
LARGE = [(1, 2048, 7, 7, 128, 7), (2, 2048, 1, 1, 3, 7), (2, 65, 17, 19, 17, 15)]


@both_schedules
@both_formats
@pytest.mark.parametrize("x_dtype, dtype", [(d, d) for d in DTYPES] + [(d, torch.float32) for d in HALF])
def test_cbam_is_as_good_as_eager(x_dtype, dtype, memory_format, schedule, device):
    x = normal((2, 20, 5, 7), dtype=x_dtype, memory_format=memory_format, device=device)
    weights = layer(20, norm="affine", dtype=dtype, device=device)
    y = launch.forward(x, weights, schedule)
    assert_refined(y, x, weights)
    assert y.stride() == x.stride()


def _check_size(N, C, H, W, R, K, memory_format, schedule, device):
    x = normal((N, C, H, W), memory_format=memory_format, device=device)
    weights = layer(C, R, K, device=device)
    assert_refined(launch.forward(x, weights, schedule), x, weights)


@both_schedules
@both_formats
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_size_is_as_good_as_eager(size, memory_format, schedule, device):
    _check_size(*size, memory_format, schedule, device)


@pytest.mark.slow
@both_schedules
@both_formats
@pytest.mark.parametrize("size", LARGE, ids=str)
def test_large_sizes_are_as_good_as_eager(size, memory_format, schedule, device):
    _check_size(*size, memory_format, schedule, device)


@both_schedules
@pytest.mark.parametrize("R, K, bias, norm", [
    (4, 0, True, None), (4, 0, False, None), (0, 3, True, "fixed"), (0, 3, False, None),
    (4, 3, False, "affine"), (4, 3, True, "fixed"),
])  # fmt: skip
def test_stages_biases_and_norm_may_be_left_out(R, K, bias, norm, schedule, device):
    x = normal((2, 12, 5, 3), memory_format=torch.channels_last, device=device)
    weights = layer(12, R, K, mlp_bias=bias, conv_bias=bias, norm=norm, device=device)
    assert_refined(launch.forward(x, weights, schedule), x, weights)


@both_schedules
@pytest.mark.parametrize("R", [3, 0])
def test_gates_are_as_good_as_eager_in_float32(R, schedule, device):
    x = normal((2, 12, 5, 3), dtype=torch.bfloat16, device=device)
    weights = layer(12, R, device=device)
    found = launch.gates(x, weights, schedule)
    exact = eager_gates(x.double(), changed(weights, Tensor.double))
    rounded = eager_gates(x.float(), weights)
    assert_as_good_as_eager(found[1], rounded[1], exact[1])
    if R:
        assert_as_good_as_eager(found[0], rounded[0], exact[0])
    else:
        assert found[0].shape == (2, 0)


def _half_gate(weights: Weights) -> Weights:
    """A channel gate of exactly 0.5, so that what follows is exact."""
    return weights._replace(fc2_weight=torch.zeros_like(weights.fc2_weight), fc2_bias=None)


@both_schedules
@both_formats
@pytest.mark.parametrize("H, W, K", [(5, 4, 1), (4, 5, 3), (9, 2, 7), (3, 8, 15)])
def test_logits_of_integers_are_exact(H, W, K, memory_format, schedule, device):
    x = integers((2, 16, H, W), dtype=torch.float16, memory_format=memory_format, device=device)
    weights = _half_gate(layer(16, K=K, device=device))._replace(
        conv_weight=integers((1, 2, K, K), device=device, seed=2), conv_bias=torch.full((1,), 3.0, device=device)
    )
    g, z = launch.gates(x, weights, schedule)
    assert_same(g, torch.full((2, 16), 0.5, device=device))
    assert_same(z.double(), eager_gates(x.double(), changed(weights, Tensor.double))[1])


@both_schedules
@pytest.mark.parametrize("tap", [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1), (0, 2, 0), (1, 1, 2)])
def test_a_one_hot_kernel_moves_a_pooled_map(tap, schedule, device):
    x = integers((1, 8, 4, 5), device=device)
    conv_weight = torch.zeros(1, 2, 3, 3, device=device)
    conv_weight[0][tap] = 1
    weights = layer(8, R=0, device=device)._replace(conv_weight=conv_weight, conv_bias=None)
    pooled = (x.amax(1) if tap[0] else x.mean(1))[0]
    padded = nn.functional.pad(pooled, (1, 1, 1, 1))
    assert_same(launch.gates(x, weights, schedule)[1][0, 0], padded[tap[1] : tap[1] + 4, tap[2] : tap[2] + 5])


@both_schedules
@both_formats
def test_the_channel_gate_of_integers_is_the_sigmoid_of_an_exact_number(memory_format, schedule, device):
    x = integers((2, 20, 4, 8), memory_format=memory_format, device=device) - 1
    weights = layer(20, R=6, device=device)._replace(
        fc1_weight=integers((6, 20), device=device, seed=3), fc1_bias=integers((6,), device=device, seed=4),
        fc2_weight=integers((20, 6), device=device, seed=5) / 256, fc2_bias=integers((20,), device=device, seed=6) / 16,
    )  # fmt: skip
    exact = eager_gates(x.double(), changed(weights, Tensor.double))[0]
    g = launch.gates(x, weights, schedule)[0]
    assert_as_good_as_eager(g, exact.float(), exact)


@both_schedules
@both_formats
@pytest.mark.parametrize("dtype", HALF)
def test_gates_of_one_leave_x_as_it_is_and_gates_of_zero_nothing(dtype, memory_format, schedule, device):
    x = normal((2, 9, 5, 3), dtype=dtype, memory_format=memory_format, device=device)
    weights = _half_gate(layer(9, device=device))
    open_channels = weights._replace(fc2_bias=torch.full((9,), 60.0, device=device))
    ajar = open_channels._replace(conv_bias=torch.full((1,), 60.0, device=device))
    assert_same(launch.forward(x, ajar, schedule), x)
    shut = open_channels._replace(conv_bias=torch.full((1,), -200.0, device=device))
    assert_same(launch.forward(x, shut, schedule), torch.zeros_like(x))


def test_layouts_and_schedules_agree_exactly_on_integers(device):
    weights = _half_gate(layer(16, K=7, device=device))._replace(
        conv_weight=integers((1, 2, 7, 7), device=device, seed=2) / 64
    )
    x = integers((3, 16, 5, 6), device=device)
    results = [
        launch.forward(x.contiguous(memory_format=memory_format), weights, schedule)
        for memory_format in FORMATS
        for schedule in SCHEDULES
    ]
    for other in results[1:]:
        assert_same(other, results[0])


@both_schedules
@both_formats
def test_samples_are_independent_and_every_run_gives_the_same_bits(memory_format, schedule, device):
    x = normal((3, 12, 5, 3), memory_format=memory_format, device=device)
    weights = layer(12, device=device)
    y = launch.forward(x, weights, schedule)
    assert_same(launch.forward(x, weights, schedule), y)
    order = torch.tensor([2, 0, 1], device=device)
    assert_same(launch.forward(x[order].contiguous(memory_format=memory_format), weights, schedule), y[order])
    assert_same(launch.forward(x[1:2], weights, schedule), y[1:2])


@both_schedules
def test_channels_may_come_in_any_order_if_the_weights_do_too(schedule, device):
    x = integers((2, 16, 4, 4), device=device)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).to(device)
    weights = layer(16, device=device)
    moved = weights._replace(
        fc1_weight=weights.fc1_weight[:, order].contiguous(),
        fc2_weight=weights.fc2_weight[order].contiguous(),
        fc2_bias=weights.fc2_bias[order],
    )
    assert_refined(launch.forward(x[:, order].contiguous(), moved, schedule)[:, order.argsort()], x, weights)
    halved, moved = _half_gate(weights), _half_gate(moved)
    g, z = launch.gates(x[:, order].contiguous(), moved, schedule)
    assert_same(z, launch.gates(x, halved, schedule)[1])
    assert_same(g, torch.full_like(g, 0.5))


@both_schedules
@both_formats
@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4), (2, 8, 4, 0)], ids=str)
def test_nothing_comes_of_nothing(shape, memory_format, schedule, device):
    x = torch.empty(shape, dtype=torch.float16, device=device, memory_format=memory_format)
    y = launch.forward(x, layer(8, device=device), schedule)
    g, z = launch.gates(x, layer(8, device=device), schedule)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, x.stride())
    assert g.shape == (shape[0], 8)
    assert z.shape == (shape[0], 1, *shape[2:])
    assert launch.apply_gates(x, g, z).shape == x.shape


@both_formats
@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_gates_is_exact_and_keeps_the_layout(dtype, memory_format, device):
    x = integers((3, 11, 5, 4), dtype=dtype, memory_format=memory_format, device=device)
    wide = accumulator(dtype)
    g = 2.0 ** integers((3, 11), dtype=wide, device=device, seed=1)
    z = torch.zeros(3, 1, 5, 4, dtype=wide, device=device)
    z[:, :, 1::2] = -800.0
    s = torch.where(z < 0, 0.0, 0.5)
    gated = x * g[:, :, None, None]
    for gate, logit, expected in [(g, z, gated * s), (g, None, gated), (None, z, x * s)]:
        y = launch.apply_gates(x, gate, logit)
        assert_same(y, expected.to(dtype))
        assert y.stride() == x.stride()


@both_schedules
@pytest.mark.parametrize("affine", [True, False])
def test_functional_folds_a_fixed_norm_and_runs_a_training_one(affine, schedule, device):
    x = normal((2, 8, 3, 5), dtype=torch.float16, memory_format=torch.channels_last, device=device)
    weights = layer(8, norm="affine" if affine else "fixed", device=device)
    norm = nn.BatchNorm2d(1, eps=weights.norm_eps, affine=affine).to(device).requires_grad_(False).eval()
    norm.running_mean.copy_(weights.norm_mean)
    norm.running_var.copy_(weights.norm_var)
    if affine:
        norm.weight.copy_(weights.norm_weight)
        norm.bias.copy_(weights.norm_bias)
    parameters = picked(weights, MLP + CONV)
    with settings(backend="triton", schedule=schedule):
        assert_refined(functional.cbam(x, *parameters, norm=norm), x, weights)
        mean, var = norm.running_mean.clone(), norm.running_var.clone()
        y = functional.cbam(x, *parameters, norm=norm.train())
    z = eager_gates(x.double(), changed(Weights(*parameters), Tensor.double))[1]
    torch.testing.assert_close(norm.running_mean, 0.9 * mean + 0.1 * z.mean().float())
    torch.testing.assert_close(norm.running_var, 0.9 * var + 0.1 * z.var().float())
    batch = weights._replace(norm_mean=z.mean()[None].float(), norm_var=z.var(correction=0)[None].float())
    assert_refined(y, x, batch)


@both_schedules
def test_functional_parts_are_as_good_as_eager(schedule, device):
    x = normal((2, 8, 3, 5), dtype=torch.float16, device=device)
    channel, spatial = layer(8, K=0, device=device), layer(8, R=0, device=device)
    with settings(backend="triton", schedule=schedule):
        assert_refined(functional.channel_attention(x, *picked(channel, MLP)), x, channel)
        assert_refined(functional.spatial_attention(x, *picked(spatial, CONV)), x, spatial)
