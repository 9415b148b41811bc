import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cbam_triton import CBAM, settings
from cbam_triton.spec import reference as ref
from cbam_triton.testing.agreement import gradient_agreement
from cbam_triton.testing.published import timm_like

from ..checkpoints.published import published_cbam, published_channel_gate, randomised
from ..errors import assert_as_good_as_eager, assert_same

FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def _reference_backend():
    with settings(backend="reference"):
        yield


def ramp(*shape: int, dtype=torch.float32) -> torch.Tensor:
    """Small integers with many ties and zeros."""
    return (torch.arange(torch.Size(shape).numel()) * 7 % 5 - 2).reshape(shape).to(dtype)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 16, 7, 5), (1, 3, 1, 1), (3, 1, 4, 4), (2, 40, 1, 9)])
def test_cbam_is_the_published_layer_in_every_dtype_and_layout(shape, dtype, memory_format):
    layer = randomised(CBAM(shape[1], conv_bias=True)).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(memory_format=memory_format)
    same = copy.deepcopy(layer).to(dtype)
    exact = published_cbam(copy.deepcopy(same).double(), x.double())
    y = same(x)
    assert y.is_contiguous(memory_format=memory_format)
    assert_as_good_as_eager(y, published_cbam(same, x), exact)


@given(
    n=st.integers(1, 3),
    c=st.integers(1, 20),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    k=st.sampled_from([1, 3, 7, 15]),
)
def test_cbam_is_the_published_layer_at_any_size(n, c, h, w, k):
    layer = randomised(CBAM(c, kernel_size=k, reduction=4)).double().eval()
    x = torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(layer(x), published_cbam(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_take_float32_parameters(dtype):
    layer = randomised(CBAM(16)).eval()
    x = torch.randn(2, 16, 5, 5, generator=torch.Generator().manual_seed(3)).to(dtype)
    exact = published_cbam(copy.deepcopy(layer).double(), x.double())
    y = layer(x)
    assert_as_good_as_eager(y, published_cbam(copy.deepcopy(layer).to(dtype), x), exact)


def test_float64_maps_keep_float64_gates_with_float32_parameters():
    layer = randomised(CBAM(8, spatial_norm=None)).eval()
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(x), published_cbam(copy.deepcopy(layer).double(), x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("gradient", [False, True])
def test_pools_are_exact_on_small_integers(memory_format, gradient):
    x = ramp(2, 8, 4, 4).to(memory_format=memory_format).requires_grad_(gradient)
    avg, peak = ref.channel_pool(x)
    assert_same(avg, x.sum((2, 3)) / 16)
    assert_same(peak, x.flatten(2).sort(2).values[..., -1])
    mean, top = ref.spatial_pool(x).unbind(1)
    assert_same(mean, x.sum(1) / 8)
    assert_same(top, x.sort(1).values[:, -1])


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_tie_sends_its_whole_gradient_to_the_first_index(memory_format):
    x = torch.zeros(2, 3, 4, 5).to(memory_format=memory_format).requires_grad_()
    ref.channel_pool(x)[1].sum().backward()
    expected = torch.zeros(2, 3, 4, 5)
    expected[:, :, 0, 0] = 1
    assert_same(x.grad, expected)
    x.grad = None
    ref.spatial_pool(x)[:, 1].sum().backward()
    expected = torch.zeros(2, 3, 4, 5)
    expected[:, 0] = 1
    assert_same(x.grad, expected)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradients_are_those_of_the_published_layer(memory_format):
    layer = randomised(CBAM(6, reduction=2, conv_bias=True)).double()
    twin = copy.deepcopy(layer)
    x = ramp(3, 6, 5, 4, dtype=torch.float64).to(memory_format=memory_format)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    dy = torch.randn(x.shape, dtype=torch.float64)
    layer(ours).backward(dy)
    published_cbam(twin, theirs).backward(dy)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    for (name, p), q in zip(layer.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_gradients_reach_parameters_when_x_needs_none():
    layer = CBAM(8)
    layer(torch.randn(2, 8, 4, 4)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("memory_format", FORMATS)
def test_second_derivatives_are_right(memory_format):
    layer = randomised(CBAM(2, reduction=1, kernel_size=3, spatial_norm=None)).double().requires_grad_(False)
    x = torch.randn(1, 2, 2, 2, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
def test_forward_mode_derivatives_are_right():
    layer = randomised(CBAM(4, reduction=2)).double().eval().requires_grad_(False)
    x, v = torch.randn(2, 1, 4, 3, 3, dtype=torch.float64)
    _, tangent = torch.func.jvp(layer, (x,), (v,))
    step = 1e-6
    torch.testing.assert_close(tangent, (layer(x + step * v) - layer(x - step * v)) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("gradient", [False, True])
def test_nan_and_infinities_are_where_the_published_layer_has_them(value, memory_format, gradient):
    layer = randomised(CBAM(8)).eval()
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(4)).to(memory_format=memory_format)
    x[0, 3, 1, 2] = value
    x.requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        torch.testing.assert_close(layer(x), published_cbam(layer, x), equal_nan=True)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_an_empty_batch_gives_an_empty_batch(gradient, memory_format):
    x = torch.empty(0, 8, 4, 4).to(memory_format=memory_format).requires_grad_(gradient)
    layer = CBAM(8).eval()
    with torch.set_grad_enabled(gradient):
        assert layer(x).shape == (0, 8, 4, 4)
    maps = layer.attention_maps(x)
    assert maps.channel.shape == (0, 8)
    assert maps.spatial.shape == (0, 1, 4, 4)


def test_x_is_left_as_it_was():
    x = torch.randn(2, 8, 4, 4)
    before = x.clone()
    with torch.no_grad():
        CBAM(8).eval()(x)
    assert_same(x, before)


def test_gates_are_those_of_permuted_channels_and_samples():
    layer = randomised(CBAM(8, reduction=2)).double().eval()
    fc1, fc2 = layer.channel.fc1, layer.channel.fc2
    x = torch.randn(3, 8, 4, 4, dtype=torch.float64)
    g = ref.channel_gate(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    torch.testing.assert_close(g, published_channel_gate(x, fc1, fc2))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    moved = ref.channel_gate(x[:, order].flip(0), fc1.weight[:, order], fc1.bias, fc2.weight[order], fc2.bias[order])
    torch.testing.assert_close(moved, g[:, order].flip(0))


def test_export_holds_only_pytorch_operators():
    layer = CBAM(8).eval()
    x = torch.randn(2, 8, 4, 4)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
    assert not [node for node in program.graph.nodes if "cbam" in str(node.target)]
    larger = torch.randn(5, 8, 4, 4)
    torch.testing.assert_close(program.module()(larger), layer(larger))


def tied(dtype, memory_format):
    """A map after a ReLU: zeros, and few other values, so that most maxima are tied."""
    x = torch.randn(2, 16, 9, 7, generator=torch.Generator().manual_seed(6)).mul(2).round().div(2).relu()
    x[0, :, 3:5] = 0
    return x.to(dtype).to(memory_format=memory_format)


def gradients(layer, x):
    """dx, then the parameters' gradients as one vector, for a seeded dy."""
    x = x.detach().requires_grad_()
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).to(x)
    dx, *rest = torch.autograd.grad(layer(x), (x, *layer.parameters()), dy)
    return dx, torch.cat([one.flatten() for one in rest])


def compiled_agreement(compiled, eager, x):
    """Of a compiled layer's gradients with those of the eager one, which fp64 copies judge."""
    exact = gradients(copy.deepcopy(eager).double(), x.double())
    found = (gradients(compiled, x), gradients(eager, x), exact)
    return gradient_agreement(*(dict(zip(("x", "parameters"), one, strict=True)) for one in found))


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


inductor = pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # Inductor's own


@inductor
@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compiled_half_precision_gradients_are_as_good_as_eager(dtype, memory_format):
    layer = randomised(CBAM(16)).to(dtype)
    found = compiled_agreement(torch.compile(layer, fullgraph=True), copy.deepcopy(layer), tied(dtype, memory_format))
    assert found.ok, found


@inductor
@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gradient_check_refuses_a_compiled_amax(dtype):
    layer = timm_like(randomised(CBAM(16))).to(dtype)
    found = compiled_agreement(torch.compile(layer), copy.deepcopy(layer), tied(dtype, torch.contiguous_format))
    assert not found.ok
    assert found.error == float("inf")


@inductor
@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("memory_format", FORMATS)
def test_compiled_pools_have_the_values_and_gradients_of_eager(memory_format):
    x = ramp(2, 6, 9, 7)
    x[0, 1, 2, 3], x[0, 4, 5, 6], x[1, 2] = torch.inf, -torch.inf, -torch.inf

    def peaks(x):
        return torch.cat((ref.channel_pool(x)[1].flatten(), ref.spatial_pool(x)[:, 1].flatten()))

    compiled = torch.compile(peaks, fullgraph=True)
    mine, theirs = (x.clone(memory_format=memory_format).requires_grad_() for _ in range(2))
    found, expected = compiled(mine), peaks(theirs)
    assert_same(found, expected)
    weights = torch.arange(1.0, 1 + found.numel())
    found.backward(weights)
    expected.backward(weights)
    assert_same(mine.grad, theirs.grad)
    x[1, 3, 8, 0] = torch.nan
    assert_same(compiled(x.clone(memory_format=memory_format).requires_grad_()), peaks(x))


@inductor
@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_dynamo")
def test_compiled_training_takes_any_size():
    layer = randomised(CBAM(8)).double()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for n, h, w in ((2, 5, 4), (3, 7, 9), (4, 16, 17)):
        x = torch.randn(n, 8, h, w, dtype=torch.float64)
        for found, expected in zip(gradients(compiled, x), gradients(layer, x), strict=True):
            torch.testing.assert_close(found, expected)
