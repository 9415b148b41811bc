"""Squeeze-and-excitation under its own names: timm's and torchvision's layers, by the kernels of the channel gate."""

import copy

import pytest
import torch
from torch import nn

import cbam_triton.timm as ours
from cbam_triton import settings, viz
from cbam_triton.spec import reference
from cbam_triton.squeeze_excite import EffectiveSqueezeExcite, SqueezeExcite

from .cases import SCHEDULES, of_interpreted_exp
from .errors import assert_as_good_as_eager, assert_gradients_as_good_as_eager, assert_same

timm = pytest.importorskip("timm")
theirs = pytest.importorskip("timm.layers.squeeze_excite")
torchvision = pytest.importorskip("torchvision")

C, R = 12, 3
# Our layer, and the published one that computes the same.
PAIRS = {
    "timm": (lambda: SqueezeExcite(C, 4), lambda: theirs.SEModule(C, rd_channels=R)),
    "hard, of torchvision": (
        lambda: SqueezeExcite(C, hidden_channels=R, gate="hard_sigmoid"),
        lambda: torchvision.ops.SqueezeExcitation(C, R, scale_activation=nn.Hardsigmoid),
    ),
    "light, no bias": (
        lambda: SqueezeExcite(C, 4, mlp_bias=False, light=True),
        lambda: theirs.SEModule(C, rd_channels=R, add_maxpool=True, bias=False),
    ),
    "effective": (lambda: EffectiveSqueezeExcite(C), lambda: theirs.EffectiveSEModule(C)),
    "effective, light": (
        lambda: ours.EffectiveSEModule(C, True, "sigmoid", rd_ratio=1 / 4),
        lambda: theirs.EffectiveSEModule(C, True, "sigmoid", rd_ratio=1 / 4),
    ),
}
pairs = pytest.mark.parametrize("name", PAIRS)
# Every layout and every schedule, in half the pairs of them.
runs = pytest.mark.parametrize(
    "dtype, last, schedule",
    [
        (dtype, last, schedule)
        for dtype in (torch.float16, torch.float32)
        for last in (False, True)
        for schedule in SCHEDULES
        if last == (schedule == "staged")
    ],
)


def pair(name, seed=1):
    """Our layer and theirs, with the same weights, which are larger than an initialisation's."""
    layer, published = (make() for make in PAIRS[name])
    generator = torch.Generator().manual_seed(seed)
    for parameter in published.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.7
    layer.load_state_dict(published.state_dict(), strict=True)
    return layer, published


def x_of(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def results(layer, x):
    """y, and the gradients of x and of the parameters in their order."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(x_of(*x.shape, seed=9).to(y))
    return y.detach(), [x.grad, *(parameter.grad for parameter in layer.parameters())]


@of_interpreted_exp
@pytest.mark.usefixtures("nan_memory")
@runs
@pairs
def test_the_kernels_are_as_near_to_float64_as_the_published_layer(name, dtype, last, schedule, device, monkeypatch):
    pytest.importorskip("triton")
    layer, published = (net.to(device, dtype) for net in pair(name))
    x = x_of(2, C, 5, 7).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    eager, exact = results(published, x), results(copy.deepcopy(published).double(), x.double())
    with settings(backend="triton", schedule=schedule), monkeypatch.context() as patch:
        patch.setattr(reference, "cbam", None)  # the reference does not run
        found = results(layer, x)
        with torch.no_grad():
            alone = layer(x)
    for y in (found[0], alone):
        assert_as_good_as_eager(y, eager[0], exact[0])
        assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert_gradients_as_good_as_eager(found[1], eager[1], exact[1])


@pairs
def test_weights_go_both_ways_by_the_same_keys(name):
    layer, published = pair(name)
    other = PAIRS[name][1]()
    other.load_state_dict(layer.state_dict(), strict=True)
    for key, tensor in published.state_dict().items():
        assert_same(other.state_dict()[key], tensor)


@pytest.mark.parametrize("shape", [(2, C, 9), (2, C, 3, 4, 5)], ids=str)
def test_signals_and_volumes_are_taken(shape, no_kernels):
    for name in ("timm", "effective"):
        layer, published = pair(name)
        x = x_of(*shape)
        expected = published(x.flatten(2)[..., None]).view(shape)
        torch.testing.assert_close(layer(x), expected)
        layer.get_submodule(layer.layers[0]).register_forward_hook(lambda *_: None)  # a child that is called
        torch.testing.assert_close(layer(x), expected)


@pairs
def test_a_layer_compiles_without_a_break(name, device):
    layer, published = (net.to(device) for net in pair(name))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = x_of(2, C, 5, 7).to(device)
    torch.testing.assert_close(results(compiled, x), results(published, x), rtol=1e-4, atol=1e-5)


def test_a_child_with_hooks_is_called(no_kernels):
    layer, published = pair("timm")
    x = x_of(2, C, 5, 7)
    layer.fc2.register_forward_hook(lambda module, inputs, output: output + 1)
    published.fc2.register_forward_hook(lambda module, inputs, output: output + 1)
    torch.testing.assert_close(layer(x), published(x))
    assert repr(layer).count("called=(fc2: hooks)") == 1
    layer.fc2 = nn.Conv2d(R, C, 1, stride=2, padding=1)
    with pytest.raises(
        ValueError, match=r"^the child fc2 must return a tensor of shape \(2, 12, 1, 1\), got \(2, 12, 2"
    ):
        layer(x)


def test_the_gates_are_recorded(no_kernels):
    layer, published = pair("timm")
    x = x_of(2, C, 5, 7)
    net = nn.Sequential(layer)
    with viz.record(net) as gates:
        y = net(x)
    torch.testing.assert_close(x * gates["0"].channel[:, :, None, None], y)
    torch.testing.assert_close(published(x), y)


def as_linear(state, names):
    """The weights by other names, in linear layers."""
    renamed = {key.replace("fc1", names[0]).replace("fc2", names[1]): tensor for key, tensor in state.items()}
    return {key: tensor.flatten(1) if tensor.ndim > 1 else tensor for key, tensor in renamed.items()}


@pytest.mark.parametrize(
    "names", [("fc1", "fc2"), ("fc.0", "fc.2"), ("conv_reduce", "conv_expand"), ("excitation.0", "excitation.2")]
)
def test_other_names_and_linear_layers_become_a_layer(names, no_kernels):
    _, published = pair("timm")
    state = as_linear(published.state_dict(), names)
    made = SqueezeExcite.from_state_dict(
        {f"block.se.{key}": tensor for key, tensor in state.items()}, prefix="block.se"
    )
    x = x_of(2, C, 5, 7)
    torch.testing.assert_close(made(x), published(x))
    wide = SqueezeExcite.from_state_dict({key: tensor.double() for key, tensor in state.items()}, gate="hard_sigmoid")
    assert wide.fc1.weight.dtype == torch.float64
    assert wide.variant.gate == "hard_sigmoid"
    assert type(ours.SEModule.from_state_dict(state)) is ours.SEModule


def test_the_layer_of_timms_mobilenets_becomes_a_layer(no_kernels):
    blocks = pytest.importorskip("timm.models._efficientnet_blocks")
    published = blocks.SqueezeExcite(C, rd_channels=R, gate_layer=nn.Hardsigmoid)
    made = SqueezeExcite.from_state_dict(published.state_dict(), gate="hard_sigmoid")
    x = 5 * x_of(2, C, 5, 7)
    torch.testing.assert_close(made(x), published(x))


@pytest.mark.parametrize("state, message", [
    ({"a.weight": torch.ones(2, 4)}, "state_dict must have the keys fc1.weight and fc2.weight, or fc.0.weight and "),
    ({"fc1.weight": torch.ones(2, 4)}, "state_dict must have the keys .*, got fc1.weight: pass the layer's own"),
    ({"fc1.weight": torch.ones(2, 4), "fc1.bias": torch.ones(2), "fc2.weight": torch.ones(4, 2)}, "state_dict must "),
    ({"fc1.weight": torch.ones(2, 4), "fc2.weight": torch.ones(5, 2)}, r".* must be \(R, C\) and \(C, R\), got \(2, 4"),
    ({"fc1.weight": torch.ones(2, 4, 3, 3), "fc2.weight": torch.ones(4, 2)}, "fc1.weight must be of a linear layer "),
    ({}, "state_dict must have the keys .*, got none at the prefix ''"),
])  # fmt: skip
def test_weights_of_another_layer_are_refused(state, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SqueezeExcite.from_state_dict(state)


@pytest.mark.parametrize("make, message", [
    (lambda: SqueezeExcite(C, 1 / 4), "reduction must be at least 1, got 0.25: it divides the channels, so "),
    (lambda: SqueezeExcite(C, hidden_channels=0), "hidden_channels must be at least 1, got 0"),
    (lambda: EffectiveSqueezeExcite(C, gate="tanh"), "gate must be one of sigmoid, hard_sigmoid, got 'tanh'"),
    (lambda: ours.SEModule(C, act_layer=nn.SiLU), "act_layer must be torch.nn.ReLU, got .*SiLU"),
    (lambda: ours.SEModule(C, norm_layer=nn.BatchNorm2d), "norm_layer must be None, got .*BatchNorm2d"),
    (lambda: ours.EffectiveSEModule(C, gate_layer="tanh"), "gate_layer must be 'sigmoid' or 'hard_sigmoid', got 't"),
])  # fmt: skip
def test_what_the_kernels_do_not_know_is_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@pytest.mark.parametrize("options", [{"channels": "12"}, {"light": 1}, {"mlp_bias": None}], ids=str)
def test_wrong_types_are_named(options):
    (name,) = options
    with pytest.raises(TypeError, match=rf"^{name} must be .*, got "):
        SqueezeExcite(**{"channels": C, **options})


def test_a_network_of_timm_takes_the_layer_and_its_own_checkpoint(no_kernels):
    def network(layer):
        return timm.create_model("resnet18", num_classes=7, block_args={"attn_layer": layer}).eval()

    published, net = network("se"), network(ours.SEModule)
    net.load_state_dict(published.state_dict(), strict=True)
    assert sum(isinstance(part, SqueezeExcite) for part in net.modules()) == 8
    x = x_of(2, 3, 32, 32)
    torch.testing.assert_close(net(x), published(x), rtol=1e-4, atol=1e-5)
    traced = torch.fx.symbolic_trace(net)
    assert sum(str(node.target).endswith(".se") for node in traced.graph.nodes) == 8
    torch.testing.assert_close(traced(x), published(x), rtol=1e-4, atol=1e-5)
