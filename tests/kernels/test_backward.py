"""The backward kernels against autograd of the eager specification: dtypes, layouts, ties, epilogue, norm."""

import functools

import pytest
import torch
import torch.nn.functional as F

from cbam_triton.spec import reference

pytest.importorskip("triton")

from cbam_triton.kernels.launch import backward as gradients
from cbam_triton.kernels.launch import choice, grid, plan
from cbam_triton.kernels.launch import forward as launch
from cbam_triton.kernels.launch.tensors import Needed, plan_of

from ..cases import (
    AFFINE,
    CONV,
    FORMATS,
    HALF,
    MLP,
    both_formats,
    both_schedules,
    integers,
    layer,
    normal,
    of_interpreted_exp,
    picked,
)  # fmt: skip
from ..errors import assert_same

pytestmark = [pytest.mark.usefixtures("nan_memory"), of_interpreted_exp]


_GROUPS = dict.fromkeys(("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"), "channel attention")
_GROUPS |= dict.fromkeys(("conv_weight", "conv_bias", "norm_weight", "norm_bias"), "spatial attention")


def eager(x, dy, weights, residual, relu, batch, dtype):
    """Gradients in the order of `Gradients` by autograd of the reference."""

    def leaf(tensor):
        return None if tensor is None else tensor.detach().to(dtype).requires_grad_()

    x, residual = leaf(x), leaf(residual)
    mlp, conv, affine = ([leaf(tensor) for tensor in picked(weights, names)] for names in (MLP, CONV, AFFINE))
    y = x
    if weights.fc1_weight is not None:
        y = reference.apply_channel_gate(y, reference.channel_gate(y, *mlp))
    if weights.conv_weight is not None:
        z = reference.spatial_logit(y, *conv)
        if batch:
            z = F.batch_norm(z, None, None, *affine, training=True, eps=weights.norm_eps)
        elif weights.norm_mean is not None:
            mean, var = weights.norm_mean.to(dtype), weights.norm_var.to(dtype)
            z = F.batch_norm(z, mean, var, *affine, eps=weights.norm_eps)
        y = reference.apply_spatial_gate(y, torch.sigmoid(z))
    y = y if residual is None else y + residual
    y = F.relu(y) if relu else y
    leaves = [x, residual, *mlp, *conv, *affine]
    there = [tensor for tensor in leaves if tensor is not None]
    found = iter(torch.autograd.grad(y, there, dy.to(dtype), allow_unused=True))
    return [None if tensor is None else next(found) for tensor in leaves]


def by_kernels(x, dy, weights, schedule, residual=None, relu=False, batch=False, needed=None):
    y, kept, (mean, var, _) = launch.forward_saved(x, weights, schedule, residual, relu, batch)
    if batch:
        weights = weights._replace(norm_mean=mean, norm_var=var)
    needed = needed or Needed(residual=residual is not None)
    return gradients.backward(x, dy, y if relu else None, weights, kept, needed, schedule, batch_norm=batch)


def check(x, dy, weights, schedule, residual=None, relu=False, batch=False):
    """Every gradient's error against fp64, by RMS, is at most twice eager's, plus one ulp, on the scale of its largest.

    A few numbers are as near to the exact ones as luck has it: an attention's parameters are judged together. One whose
    gradient vanishes, such as a bias before a batch norm, has no scale of its own and is judged on its neighbours'.
    """
    found = by_kernels(x, dy, weights, schedule, residual, relu, batch)
    arguments = (x, dy, weights, residual, relu, batch)
    exact = eager(*arguments, torch.float64)
    rounded = eager(*arguments, torch.float32 if x.dtype == torch.float64 else x.dtype)
    shrink = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps if x.dtype == torch.float64 else 1
    groups = [_GROUPS.get(name, name) for name in found._fields]
    largest = {}
    for group, right in zip(groups, exact, strict=True):
        if right is not None:
            largest[group] = max(largest.get(group, 0.0), right.abs().max().item())
    errors, others, ulps = {}, {}, {}
    for group, name, mine, right, other in zip(groups, found._fields, found, exact, rounded, strict=True):
        assert (mine is None) == (right is None), name
        if right is None:
            continue
        assert mine.shape == right.shape, name
        assert mine.isfinite().all(), name
        scale = right.abs().max().item()
        scale = scale if scale > 1e-9 * largest[group] else largest[group]
        errors.setdefault(group, []).append((mine.double() - right).flatten() / scale)
        others.setdefault(group, []).append((other.double() - right).flatten() / scale * shrink)
        ulps[group] = torch.finfo(mine.dtype).eps
    for group, ulp in ulps.items():
        error, own = (torch.cat(part[group]).square().mean().sqrt().item() for part in (errors, others))
        assert error <= 2 * own + ulp, f"{group}: error {error:.3g} by RMS, eager's {own:.3g}, ulp {ulp:.3g}"
    return found


@both_schedules
@both_formats
@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
def test_gradients_are_as_good_as_eager(dtype, memory_format, schedule, device):
    x = normal((2, 20, 5, 7), dtype=dtype, memory_format=memory_format, device=device)
    dy = normal((2, 20, 5, 7), dtype=dtype, memory_format=memory_format, device=device, seed=5)
    found = check(x, dy, layer(20, dtype=dtype, device=device), schedule)
    assert found.x.stride() == x.stride()
    assert found.x.dtype == dtype


@both_schedules
@both_formats
@pytest.mark.parametrize(
    "size", [(4, 5, 1, 1, 1, 3), (1, 1, 5, 3, 1, 7), (3, 16, 8, 8, 3, 7), (2, 33, 1, 11, 2, 5)], ids=str
)
def test_gradients_of_every_size_are_as_good_as_eager(size, memory_format, schedule, device):
    N, C, H, W, R, K = size
    x = torch.relu(normal((N, C, H, W), memory_format=memory_format, device=device))
    dy = normal((N, C, H, W), memory_format=memory_format, device=device, seed=5)
    check(x, dy, layer(C, R, K, device=device), schedule)


@pytest.fixture
def small_chunks(monkeypatch):
    """Pixels are worked on in many chunks, by what a channel and a row of taps are summed from."""
    monkeypatch.setattr(grid, "TAP_SPLIT", 128)
    monkeypatch.setattr(choice, "configs", functools.partial(_small_chunks, choice.configs))
    plan.plan.cache_clear()
    yield
    plan.plan.cache_clear()


def _small_chunks(configs, schedule, problem):
    return tuple(
        row._replace(
            POOL_P=min(row.POOL_P, 32), POOL_KEEP=min(row.POOL_KEEP, 32), POOL_SPLIT=64, MAP_P=min(row.MAP_P, 128)
        )
        for row in configs(schedule, problem)
    )


@both_schedules
@both_formats
@pytest.mark.usefixtures("small_chunks")
def test_gradients_of_several_chunks_are_as_good_as_eager(memory_format, schedule, device):
    x, dy = (normal((2, 5, 13, 11), memory_format=memory_format, device=device, seed=seed) for seed in (0, 5))
    assert grid.tap_chunks(plan_of(x, layer(5), schedule).problem) == 2
    assert plan_of(x, layer(5), schedule, backward=True).partials > 0
    check(x, dy, layer(5, device=device), schedule)


@both_schedules
@pytest.mark.parametrize("R, K, norm, batch", [
    (4, 0, None, False), (0, 3, None, False), (4, 3, "affine", False), (4, 3, "fixed", False), (0, 3, "affine", True),
    (4, 3, "affine", True), (4, 3, None, True),
])  # fmt: skip
def test_gradients_of_parts_and_norms_are_as_good_as_eager(R, K, norm, batch, schedule, device):
    x = normal((3, 12, 5, 3), memory_format=torch.channels_last, device=device)
    dy = normal((3, 12, 5, 3), memory_format=torch.channels_last, device=device, seed=5)
    weights = layer(12, R, K, norm=norm, device=device)
    if batch:
        weights = weights._replace(norm_mean=None, norm_var=None, norm_eps=1e-5)
    check(x, dy, weights, schedule, batch=batch)


@both_schedules
@both_formats
@pytest.mark.parametrize("relu, batch", [(True, False), (False, False), (True, True)])
def test_gradients_through_the_epilogue_are_as_good_as_eager(relu, batch, memory_format, schedule, device):
    x, dy, residual = (
        normal((2, 12, 5, 4), dtype=torch.float16, memory_format=memory_format, device=device, seed=seed)
        for seed in (0, 5, 6)
    )
    weights = layer(12, norm="affine" if batch else None, device=device)
    if batch:
        weights = weights._replace(norm_mean=None, norm_var=None)
    found = check(x, dy, weights, schedule, residual, relu, batch)
    assert found.residual.stride() == x.stride()


@both_schedules
@both_formats
def test_a_gradient_may_lie_in_any_way(memory_format, schedule, device):
    x = normal((2, 12, 4, 5), memory_format=memory_format, device=device)
    weights = layer(12, device=device)
    other = FORMATS[memory_format == FORMATS[0]]
    dense = normal((2, 12, 4, 5), memory_format=other, device=device, seed=5)
    ones = torch.ones((), device=device).expand(x.shape)
    for dy in (dense, ones, dense[:, :1].expand(x.shape), dense[:1].expand(x.shape)):
        check(x, dy, weights, schedule)
    wide = normal((2, 12, 8, 10), device=device, seed=5)
    check(x, wide[:, :, ::2, ::2], weights, schedule)


@both_schedules
@both_formats
def test_ties_go_to_the_first_index(memory_format, schedule, device):
    x = integers((2, 16, 4, 8), memory_format=memory_format, device=device).clamp(min=0)
    x[1, 5:] = 0
    weights = layer(16, device=device)
    _, kept, _ = launch.forward_saved(x, weights, schedule)
    assert_same(kept.channel_argmax.long(), x.flatten(2).max(2).indices)
    gated = x.flatten(2) * kept.gate[:, :, None]
    assert_same(kept.spatial_argmax.flatten(1).long(), gated.max(1).indices)
    dy = normal((2, 16, 4, 8), memory_format=memory_format, device=device, seed=5)
    check(x, dy, weights, schedule)


@both_schedules
@both_formats
def test_gradients_are_exact_where_arithmetic_is(memory_format, schedule, device):
    # Gates of exactly one half, and no gradient through the logits: what is left is dy / 4.
    x, dy = (integers((2, 16, 4, 4), memory_format=memory_format, device=device, seed=seed) for seed in (0, 1))
    weights = layer(16, device=device)._replace(fc2_bias=None, conv_bias=None)
    weights = weights._replace(
        fc2_weight=torch.zeros_like(weights.fc2_weight), conv_weight=torch.zeros_like(weights.conv_weight)
    )
    found = by_kernels(x, dy, weights, schedule)
    assert_same(found.x, dy / 4)
    assert_same(found.fc1_weight, torch.zeros_like(weights.fc1_weight))
    exact = eager(x, dy, weights, None, False, False, torch.float64)
    assert_same(found.conv_weight.double(), exact[6])


@both_schedules
def test_a_hidden_unit_at_zero_passes_no_gradient(schedule, device):
    x, dy = (normal((2, 8, 4, 3), device=device, seed=seed) for seed in (0, 1))
    at_zero = layer(8, device=device)._replace(fc1_weight=torch.zeros(4, 8, device=device), fc1_bias=None)
    found = by_kernels(x, dy, at_zero, schedule)
    assert_same(found.fc1_weight, torch.zeros_like(found.fc1_weight))
    assert found.fc2_bias.abs().max() > 0


@both_schedules
def test_only_gradients_that_are_asked_for_are_computed(schedule, device):
    x, dy = (normal((2, 8, 4, 3), device=device, seed=seed) for seed in (0, 1))
    weights = layer(8, norm="affine", device=device)
    everything = by_kernels(x, dy, weights, schedule)
    for i, name in enumerate(Needed._fields):
        only = Needed(*(j == i for j in range(len(Needed._fields))))
        found = by_kernels(x, dy, weights, schedule, needed=only)
        assert [field for field, value in found._asdict().items() if value is not None] == [name]
        if name != "residual":
            torch.testing.assert_close(getattr(found, name), getattr(everything, name))


@both_schedules
@both_formats
def test_two_backwards_give_the_same_bits(memory_format, schedule, device):
    x, dy = (normal((3, 12, 5, 3), memory_format=memory_format, device=device, seed=seed) for seed in (0, 1))
    weights = layer(12, device=device)
    for first, second in zip(by_kernels(x, dy, weights, schedule), by_kernels(x, dy, weights, schedule), strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            assert_same(first, second)


@both_schedules
def test_the_gradient_of_nothing_is_zero(schedule, device):
    x = torch.empty(0, 8, 4, 4, device=device)
    found = by_kernels(x, torch.empty_like(x), layer(8, device=device), schedule)
    assert found.x.shape == x.shape
    assert_same(found.fc1_weight, torch.zeros(4, 8, device=device))


@both_schedules
@pytest.mark.parametrize("R", [4, 0], ids=("cbam", "spatial"))
def test_gradients_are_no_numbers_where_those_of_the_reference_are(R, schedule, device):
    x, dy = (normal((2, 8, 7, 9), device=device, seed=seed) for seed in (0, 1))
    x[1, 2, 1, 1] = float("nan")
    weights = layer(8, R, device=device)
    found = by_kernels(x, dy, weights, schedule).x
    expected = eager(x, dy, weights, None, False, False, torch.float64)[0]
    assert found[0].isfinite().all()
    assert found[1].isnan().any()
    assert_same(found.isnan(), expected.isnan())


@both_schedules
def test_channel_attention_alone_ends_in_a_relu_too(schedule, device):
    x, dy, residual = (normal((2, 12, 5, 4), device=device, seed=seed) for seed in (0, 5, 6))
    check(x, dy, layer(12, K=0, device=device), schedule, residual, relu=True)
