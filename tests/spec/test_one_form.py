"""One form of the layer while it is traced, transformed or differentiated later."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

from cbam_triton import CBAM, settings

from ..checkpoints.published import randomised
from ..errors import assert_same

LAYERS = {
    "default": ({}, (6, 5)),
    "signals": ({"dims": 1}, (7,)),
    "volumes": ({"dims": 3, "kernel_size": 3}, (3, 4, 5)),
    "light, hard, parallel": ({"arrangement": "parallel", "light": True, "gate": "hard_sigmoid"}, (6, 5)),
    "norm and logsumexp, learnt maps": ({"channel_pools": ("lp", "lse"), "spatial_pools": ("conv",)}, (6, 5)),
    "spatial first, residual block's end": (
        {"arrangement": "spatial_first", "add_input": True, "activation": "relu", "mlp_bias": False},
        (6, 5),
    ),
    "channel only, one layer": ({"arrangement": "channel_only", "mlp_layers": 1}, (6, 5)),
    "spatial only, no norm": ({"arrangement": "spatial_only", "spatial_norm": None, "conv_bias": True}, (6, 5)),
    "no hidden units": ({"hidden_channels": 0}, (6, 5)),
}
layers = pytest.mark.parametrize("options, pixels", LAYERS.values(), ids=LAYERS)
traced_without_warnings = pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore:`torch.jit.script")


@pytest.fixture(autouse=True)
def _reference_backend():
    with settings(backend="reference"):
        yield


def layer_of(options: dict) -> CBAM:
    return randomised(CBAM(16, 4, **options)).eval()


def map_of(pixels: tuple[int, ...], seed: int = 0, batch: int = 2, last: bool = False) -> torch.Tensor:
    """A map with zeros, as a ReLU leaves it, so that maxima have ties."""
    x = torch.randn(batch, 16, *pixels, generator=torch.Generator().manual_seed(seed)).relu()
    return x.to(memory_format=torch.channels_last) if last and x.ndim == 4 else x


def gradient(function, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).square().sum(), x)[0]


@traced_without_warnings
@layers
@pytest.mark.parametrize("gradient_mode", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_a_trace_serves_any_size_and_layout_and_any_later_gradient(options, pixels, gradient_mode, last):
    layer, x = layer_of(options), map_of(pixels, last=last)
    with torch.set_grad_enabled(gradient_mode):
        traced = torch.jit.trace(layer, x)  # with its check, and without one of its warnings
    for other in (map_of([side + 3 for side in pixels], 1, 5), map_of(pixels, 2, last=True), map_of([1] * len(pixels))):
        torch.testing.assert_close(traced(other), layer(other))
        torch.testing.assert_close(gradient(traced, other), gradient(layer, other))


@traced_without_warnings
def test_a_trace_of_small_maps_serves_larger_ones():
    layer = layer_of({})
    traced = torch.jit.trace(layer, map_of((1, 1)))  # which lie in every layout at once
    torch.testing.assert_close(traced(map_of((6, 5))), layer(map_of((6, 5))))


@layers
def test_each_parameter_can_be_batched_alone(options, pixels):
    layer, x = layer_of(options), map_of(pixels)
    for name, parameter in layer.named_parameters():
        batch = torch.stack([parameter.detach(), parameter.detach() * 2 - 0.5])

        def call(value, name=name):
            return functional_call(layer, {name: value}, (x,))

        expected = torch.stack([call(value) for value in batch])
        for gradient_mode in (False, True):
            with torch.set_grad_enabled(gradient_mode):
                torch.testing.assert_close(vmap(call)(batch), expected)


@layers
def test_a_batch_of_maps_is_each_map_by_itself(options, pixels):
    layer = layer_of(options)
    x = torch.stack([map_of(pixels, seed, last=True) for seed in range(3)])
    each = [layer(one) for one in x]
    torch.testing.assert_close(vmap(layer)(x), torch.stack(each))
    torch.testing.assert_close(vmap(layer, in_dims=-1)(x.movedim(0, -1)), torch.stack(each))


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # PyTorch's own forward mode
@layers
def test_transforms_have_the_gradients_of_autograd(options, pixels):
    layer = layer_of(options).double()
    x = torch.stack([map_of(pixels, seed) for seed in range(2)]).double()

    def loss(x):
        return layer(x).square().sum()

    expected = torch.stack([gradient(layer, one) for one in x])
    torch.testing.assert_close(vmap(grad(loss))(x), expected)
    torch.testing.assert_close(grad(lambda x: vmap(layer)(x).square().sum())(x), expected)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    torch.testing.assert_close(jvp(loss, (x[0],), (direction[0],))[1], (expected[0] * direction[0]).sum())
    torch.testing.assert_close(
        vmap(lambda x, v: jvp(loss, (x,), (v,))[1])(x, direction), (expected * direction).flatten(1).sum(1)
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_jacobians_of_parameters_agree_in_both_modes():
    layer, x = layer_of({}).double(), map_of((2, 2), batch=1).double()
    for name, parameter in layer.named_parameters():

        def call(value, name=name):
            return functional_call(layer, {name: value}, (x,))

        torch.testing.assert_close(jacrev(call)(parameter.detach()), jacfwd(call)(parameter.detach()))


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_gradients_of_each_sample_are_those_of_a_batch_of_one():
    layer, x = layer_of({}), map_of((6, 5), batch=4)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(parameters, one):
        return functional_call(layer, parameters, (one[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, one in enumerate(x):
        layer.zero_grad()
        layer(one[None]).square().sum().backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(found[name][i], parameter.grad)


@pytest.mark.parametrize("hooked", [False, True])
def test_what_a_descriptor_was_given_stays_what_it_was(hooked):
    kept = []

    def keep(module, inputs, output=None):
        kept.append((inputs[0], inputs[0].clone()))

    for arrangement in ("channel_first", "spatial_first", "parallel", "spatial_only"):
        layer = layer_of({"spatial_pools": ("conv",), "arrangement": arrangement})
        if hooked:
            layer.spatial.squeeze.register_forward_hook(keep)
        else:
            layer.spatial.squeeze = Keeping(layer.spatial.squeeze, keep)
        with torch.no_grad():
            layer(map_of((6, 5)) - 0.5)
    assert len(kept) == 4
    for now, then in kept:
        assert_same(now, then)


class Keeping(nn.Module):
    def __init__(self, layer: nn.Module, keep) -> None:
        super().__init__()
        self.layer, self.keep = layer, keep

    def forward(self, x):
        self.keep(self, (x,))
        return self.layer(x)


@given(
    value=st.sampled_from([float("inf"), -float("inf"), float("nan")]),
    where=st.integers(0, 2 * 16 * 6 * 5 - 1),
    gradient_mode=st.booleans(),
    backend=st.sampled_from(["reference", "auto"]),
)
def test_without_hidden_units_the_channel_gate_is_of_the_biases_alone(value, where, gradient_mode, backend, device):
    layer = layer_of({"hidden_channels": 0, "arrangement": "channel_only"}).to(device)
    x = map_of((6, 5)) - 0.5
    x.view(-1)[where] = value
    x = x.to(device)
    g = torch.sigmoid(2 * layer.channel.fc2.bias)
    with torch.set_grad_enabled(gradient_mode), settings(backend=backend):
        assert_same(layer(x).detach(), (x * g[:, None, None]).detach())


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore:`torch.jit.script")
@layers
def test_the_legacy_onnx_export_serves_every_layout_and_size(options, pixels, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    layer = layer_of(options)
    axes = {"x": {0: "n", **{i + 2: f"side{i}" for i in range(len(pixels))}}}
    for i, x in enumerate((map_of(pixels), map_of(pixels, last=True), map_of([1] * len(pixels)))):
        path = tmp_path / f"{i}.onnx"
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter itself
            torch.onnx.export(layer, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
        session = onnxruntime.InferenceSession(path)
        for other in (map_of([side + 3 for side in pixels], 1, 3), map_of([1] * len(pixels), 2)):
            (found,) = session.run(None, {"x": other.numpy()})
            torch.testing.assert_close(torch.from_numpy(found), layer(other).detach())


@traced_without_warnings
@layers
def test_openvino_converts_a_layer(options, pixels):
    openvino = pytest.importorskip("openvino")
    if options.get("hidden_channels") == 0:
        pytest.skip("OpenVINO's CPU plugin has no product over no elements")
    layer, other = layer_of(options), map_of([side + 2 for side in pixels], 1, 3)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16, where the CPU has its instructions
    model = openvino.compile_model(openvino.convert_model(layer, example_input=map_of(pixels)), "CPU", exact)
    torch.testing.assert_close(torch.from_numpy(model(other.numpy())[0]), layer(other).detach(), rtol=1e-4, atol=1e-4)
