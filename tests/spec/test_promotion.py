"""Dtypes that meet in a layer, with and without autocast: result and dtype of the plain model."""

import copy
import itertools

import pytest
import torch
from torch import nn

from cbam_triton import CBAM, settings
from cbam_triton.testing.published import timm_like

from ..cases import of_interpreted_exp
from ..checkpoints.published import randomised

pytestmark = of_interpreted_exp

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-5}


def layer_of(dtype=torch.float32, **options) -> CBAM:
    return randomised(CBAM(8, 2, kernel_size=3, mlp_bias=False, **options)).to(dtype).eval()


def map_of(dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 8, 4, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(found: torch.Tensor, expected: torch.Tensor, *computed_in: torch.dtype) -> None:
    assert found.dtype is expected.dtype
    coarsest = max(TOLERANCE[dtype] for dtype in (found.dtype, *computed_in))
    scale = max(1.0, expected.double().abs().max().item())
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=coarsest * scale)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("of_x, of_residual", list(itertools.product(DTYPES, DTYPES)))
def test_a_residual_of_any_dtype_is_promoted(of_x, of_residual, activation, backend, device):
    layer = layer_of(of_x, activation=activation).to(device)
    x, residual = map_of(of_x).to(device), map_of(of_residual, 1).to(device)
    with torch.no_grad(), settings(backend=backend):
        y = layer(x, residual=residual)
        expected = layer_of(of_x).to(device)(x) + residual
    assert_close(y, expected.relu() if activation else expected, of_x)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_gradients_of_two_dtypes_reach_both(backend, device):
    for of_x, of_residual in ((torch.float16, torch.float32), (torch.float32, torch.float16)):
        layer = layer_of(of_x, activation="relu").to(device)
        x, residual = (map_of(dtype, i).to(device).requires_grad_() for i, dtype in enumerate((of_x, of_residual)))
        with settings(backend=backend):
            y = layer(x, residual=residual)
        y.sum().backward()
        assert (x.grad.dtype, residual.grad.dtype) == (of_x, of_residual)
        torch.testing.assert_close(residual.grad, (y > 0).to(of_residual))


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("of_layer", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("of_x", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("of_residual", [None, torch.bfloat16, torch.float32])
def test_autocast_gives_the_plain_models_result(of_x, of_layer, of_residual, gradient, backend, device):
    layer = layer_of(of_layer).to(device)
    x = map_of(of_x).to(device)
    residual = None if of_residual is None else map_of(of_residual, 1).to(device)
    with torch.set_grad_enabled(gradient), torch.autocast(device, torch.bfloat16), settings(backend=backend):
        y = layer(x, residual=residual)
        expected = timm_like(layer)(x)
        assert_close(y, expected if residual is None else expected + residual, torch.bfloat16)
    if gradient:
        y.sum().backward()
        assert {parameter.grad.dtype for parameter in layer.parameters()} == {of_layer}


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("of_layer", [torch.bfloat16, torch.float32])
def test_both_half_precisions_meet_in_float32(of_layer, backend):
    layer, x = layer_of(of_layer).eval(), map_of(torch.float16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), settings(backend=backend):
        y, expected = layer(x), timm_like(layer)(x)
        assert expected.dtype is torch.float32
        assert_close(y, expected, torch.bfloat16)
        assert layer.attention_maps(x).channel.dtype is torch.float32


class Branch(nn.Module):
    """A residual branch that ends in a GroupNorm, which autocast computes in float32 on a GPU."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.shortcut = nn.Conv2d(8, 8, 1)
        self.cbam = layer_of(**options)

    def forward(self, x):
        return self.cbam(self.norm(self.conv(x)).float(), residual=self.shortcut(x))


def test_a_branch_in_float32_and_a_shortcut_in_half_precision_meet(device):
    block, x = Branch(activation="relu").to(device), map_of(torch.float32).to(device)
    with torch.autocast(device, torch.bfloat16):
        y = block(x)
        branch = block.norm(block.conv(x)).float()
        expected = (timm_like(block.cbam)(branch) + block.shortcut(x)).relu()
    assert_close(y, expected, torch.bfloat16)


@pytest.mark.parametrize("of_x", DTYPES)
@pytest.mark.parametrize("autocast", [False, True])
def test_learnt_maps_have_parameters_of_float32(of_x, autocast):
    if autocast and of_x in (torch.float16, torch.float64):
        pytest.skip("PyTorch's own convolution refuses these two under autocast")
    layer = layer_of(spatial_pools=("conv",))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(map_of(of_x))
    with torch.no_grad():
        exact = layer.double()(map_of(of_x).double())
    assert_close(y, exact.to(of_x), *[torch.bfloat16] * autocast)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_without_parameters_has_the_dtype_of_its_buffers(dtype, training, backend, device):
    layer = layer_of()
    layer.spatial.norm = nn.BatchNorm2d(1, affine=False)
    layer = layer.to(device, dtype).train(training)
    exact, x = copy.deepcopy(layer).double(), map_of(dtype).to(device)
    with torch.no_grad(), settings(backend=backend):
        found = layer(x), *layer.attention_maps(x)
    with torch.no_grad(), settings(backend="reference"):
        expected = exact(x.double()), *exact.attention_maps(x.double())
    for ours, right in zip(found, expected, strict=True):
        assert_close(ours, right.to(dtype))
    assert_close(layer.spatial.norm.running_var, exact.spatial.norm.running_var.to(dtype))
