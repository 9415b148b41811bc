"""Training through the kernels: modules, autograd, torch.compile, what is saved, batch norm, double backward."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from cbam_triton import CBAM, ChannelAttention, SpatialAttention, settings

pytest.importorskip("triton")

from cbam_triton import ops
from cbam_triton.kernels.launch.tensors import PARAMETERS

from ..cases import both_formats, layer, normal, of_interpreted_exp
from ..errors import assert_same

pytestmark = of_interpreted_exp


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gradients(module, x, residual=None, backend="triton"):
    """Output, and gradients of its sum of squares with respect to x, the residual and all parameters."""
    leaves = [tensor for tensor in (x, residual) if tensor is not None]
    with settings(backend=backend):
        y = module(x) if residual is None else module(x, residual)
        return y, torch.autograd.grad(y.square().sum(), [*leaves, *module.parameters()])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation, momentum", [(None, 0.1), ("relu", None)])
def test_a_module_trains_as_by_the_reference(activation, momentum, training, device):
    mine = CBAM(8, 2, kernel_size=3, activation=activation).double().to(device).train(training)
    mine.spatial.norm.momentum = momentum
    other = copy.deepcopy(mine)
    for seed in (0, 1):
        x = normal((2, 8, 4, 5), dtype=torch.float64, device=device, seed=seed).requires_grad_()
        residual = normal(x.shape, dtype=x.dtype, device=device, seed=7).requires_grad_() if activation else None
        y, found = gradients(mine, x, residual)
        right, expected = gradients(other, x, residual, "reference")
        torch.testing.assert_close(y, right)
        torch.testing.assert_close(found, expected)
        assert "cbam_training" in type(y.grad_fn).__name__
    for (name, buffer), expected in zip(mine.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=name)


@pytest.mark.parametrize(
    "module", [ChannelAttention(8, 2), SpatialAttention(3), SpatialAttention(3, spatial_norm=None)]
)
def test_each_attention_trains_alone(module, device):
    module = copy.deepcopy(module).double().to(device)
    x = normal((2, 8, 4, 5), dtype=torch.float64, device=device).requires_grad_()
    y, found = gradients(copy.deepcopy(module), x)
    assert "cbam_training" in type(y.grad_fn).__name__
    torch.testing.assert_close(found, gradients(module, x, backend="reference")[1])


def test_one_sample_of_one_pixel_has_no_batch_statistics(device):
    with settings(backend="triton"), pytest.raises(ValueError, match="more than 1 value per channel"):
        CBAM(8, 2).to(device)(torch.ones(1, 8, 1, 1, device=device, requires_grad=True))


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 1), nn.Identity()])
def test_any_other_norm_trains(norm, device):
    module = CBAM(8, 2, kernel_size=3).to(device)
    module.spatial.norm = norm.to(device)
    x = normal((2, 8, 4, 5), device=device).requires_grad_()
    _, found = gradients(copy.deepcopy(module), x)
    torch.testing.assert_close(found, gradients(module, x, backend="reference")[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_a_gradient_of_the_gradient_is_that_of_the_reference(training, device):
    module = CBAM(8, 2, kernel_size=3, activation="relu").double().to(device).train(training)

    def penalty(backend):
        x = normal((2, 8, 3, 4), dtype=torch.float64, device=device).requires_grad_()
        with settings(backend=backend):
            (first,) = torch.autograd.grad(module(x, x.detach()).square().sum(), x, create_graph=True)
            return torch.autograd.grad(first.sin().sum(), [x, *module.parameters()])

    torch.testing.assert_close(penalty("triton"), penalty("reference"))


@pytest.mark.slow
def test_gradcheck_through_the_kernels(device):
    module = CBAM(4, 2, kernel_size=3).double().to(device)
    x = normal((2, 4, 3, 3), dtype=torch.float64, device=device).requires_grad_()
    with settings(backend="triton"):
        assert torch.autograd.gradcheck(lambda x: module(x), x)


@pytest.mark.parametrize("spatial_norm", [None, "batch"])
@pytest.mark.parametrize("C, share", [(64, 0.08), (256, 0.05)])
def test_little_is_saved_besides_x_and_parameters(C, share, spatial_norm, device):
    saved = []
    with FakeTensorMode(), settings(backend="triton"):
        module = CBAM(C, spatial_norm=spatial_norm, device=device)
        x = torch.empty(2, C, 56, 56, dtype=torch.float16, device=device, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            module(x)
        mine = [x, *module.parameters()]
        beyond = sum(t.numel() * t.element_size() for t in saved if all(t is not other for other in mine))
        assert any(t is x for t in saved)
    assert 0 < beyond <= share * x.numel() * x.element_size()


def test_nothing_is_saved_that_duplicates_x(device):
    module = CBAM(16, 4, kernel_size=3).to(device)
    x = normal((2, 16, 8, 8), device=device).requires_grad_()
    saved = []
    with (
        settings(backend="triton"),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        module(x)
    large = [tensor for tensor in saved if tensor.numel() >= x.numel()]
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]


@both_formats
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_module_trains_without_a_break(dynamic, memory_format, device):
    module = CBAM(8, 2, kernel_size=3).to(device)
    compiled = torch.compile(copy.deepcopy(module), backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for N in (3, 4):
        x = normal((N, 8, 4, 5), memory_format=memory_format, device=device).requires_grad_()
        y, found = gradients(compiled, x)
        right, expected = gradients(module, x)
        assert_same(y, right)
        assert_same(found, expected)
        assert found[0].stride() == x.stride()


def test_checkpointing_computes_the_same(device):
    module = CBAM(8, 2, kernel_size=3, spatial_norm=None).to(device)
    x = normal((2, 8, 4, 5), device=device).requires_grad_()
    _, found = gradients(module, x)
    with settings(backend="triton"):
        y = checkpoint(module, x, use_reentrant=False)
        assert_same(torch.autograd.grad(y.square().sum(), [x, *module.parameters()]), found)


def test_half_precision_with_float32_parameters_trains(device):
    module = CBAM(8, 2, kernel_size=3).to(device)
    x = torch.relu(normal((2, 8, 4, 5), dtype=torch.bfloat16, device=device)).requires_grad_()
    _, found = gradients(copy.deepcopy(module), x)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16] + [torch.float32] * (len(found) - 1)
    _, rounded = gradients(copy.deepcopy(module), x, backend="reference")
    _, exact = gradients(copy.deepcopy(module).double(), x.detach().double().requires_grad_(), backend="reference")
    for mine, other, right in zip(found, rounded, exact, strict=True):
        own = (other.double() - right).square().mean().sqrt()
        ulp = torch.finfo(torch.bfloat16).eps * right.abs().max()
        assert (mine.double() - right).square().mean().sqrt() <= 2 * own + ulp


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # torch.func's own
def test_transforms_of_functions_run_the_reference(device):
    module = CBAM(8, 2, kernel_size=3).to(device).eval()
    x = normal((3, 2, 8, 4, 5), device=device)
    with settings(backend="triton"):
        torch.testing.assert_close(torch.func.vmap(module)(x)[1], module(x[1]))
        expected = gradients(module, x[0].clone().requires_grad_(), backend="reference")[1][0]
        torch.testing.assert_close(torch.func.grad(lambda x: module(x).square().sum())(x[0]), expected)
        _, tangent = torch.func.jvp(module, (x[0],), (torch.ones_like(x[0]),))
    assert tangent.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the checker's own
@both_formats
@pytest.mark.parametrize("R, K, batch_norm, relu", [(4, 3, False, False), (4, 3, True, True), (4, 0, False, False)])
def test_the_training_operator_passes_the_operator_check(R, K, batch_norm, relu, memory_format, device):
    weights = layer(8, R, K, norm="affine" if K else None, device=device)
    if batch_norm:
        weights = weights._replace(norm_mean=None, norm_var=None)
    x = normal((2, 8, 3, 5), memory_format=memory_format, device=device).requires_grad_()
    for name in PARAMETERS:
        if getattr(weights, name) is not None:
            getattr(weights, name).requires_grad_()
    residual = normal(x.shape, memory_format=memory_format, device=device, seed=3).requires_grad_() if relu else None
    arguments = (x, residual, *weights.parameters, 1e-5, batch_norm, None, relu, "staged", "", 1)
    torch.library.opcheck(ops.cbam_training, arguments)
