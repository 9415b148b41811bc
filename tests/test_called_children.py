"""Children that compute something else than their weights say are called: the layer gives what PyTorch gives."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from cbam_triton import CBAM, ChannelAttention, SpatialAttention, settings

from .checkpoints.published import published_cbam, randomised

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.nn.utils.(weight|spectral)_norm` is deprecated:FutureWarning", "ignore:torch.ao.quantization is dep"
)


@pytest.fixture(autouse=True)
def _reference():
    with settings(backend="reference"):
        yield


class Adapter(nn.Module):
    """The layer that it stands for, whose weight it shows, plus a low-rank branch."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, z):
        return self.base(z) + self.up(self.down(z))


class Doubled(nn.Linear):
    def forward(self, z):
        return 2 * super().forward(z)


def doubled(layer: nn.Linear) -> nn.Linear:
    other = Doubled(layer.in_features, layer.out_features)
    other.load_state_dict(layer.state_dict())
    return other


def patched(layer):
    own = layer.forward
    layer.forward = lambda z: 2 * own(z)


def patched_convolution(layer):
    own = layer._conv_forward
    layer._conv_forward = lambda z, *weights: 2 * own(z, *weights)


def convolution(**options):
    return lambda layer: nn.Conv2d(2, 1, 3, bias=False, **options)


CHANGES = {
    "pruned": ("channel.fc1", lambda child: prune.l1_unstructured(child, "weight", 0.5)),
    "bias pruned": ("channel.fc2", lambda child: prune.random_unstructured(child, "bias", 0.5)),
    "weight norm": ("channel.fc2", nn.utils.weight_norm),
    "spectral norm": ("spatial.conv", nn.utils.spectral_norm),
    "adapter": ("channel.fc1", Adapter),
    "subclass": ("channel.fc2", doubled),
    "patched forward": ("channel.fc1", patched),
    "patched convolution": ("spatial.conv", patched_convolution),
    "several layers": ("spatial.conv", lambda child: nn.Sequential(child, nn.Tanh())),
    "forward hook": ("channel.fc2", lambda child: child.register_forward_hook(lambda m, i, y: y - 1) and None),
    "forward pre-hook": ("spatial.conv", lambda child: child.register_forward_pre_hook(lambda m, i: i[0] + 1) and None),
    "dilation": ("spatial.conv", convolution(padding=2, dilation=2)),
    "padding mode": ("spatial.conv", convolution(padding=1, padding_mode="reflect")),
    "padding changed": ("spatial.conv", lambda child: vars(child).update(padding=(6, 6), dilation=(2, 2))),
}


def changed(name: str, layer: CBAM | None = None) -> CBAM:
    torch.manual_seed(0)
    path, change = CHANGES[name]
    layer = randomised(CBAM(16, 4)) if layer is None else layer
    replacement = change(layer.get_submodule(path))
    if isinstance(replacement, nn.Module):
        parent, _, child = path.rpartition(".")
        setattr(layer.get_submodule(parent), child, replacement)
    return layer


def image(device="cpu", seed=0):
    return torch.randn(3, 16, 6, 5, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_child_trains_as_in_pytorch(name, device):
    layer = changed(name).to(device)
    twin = changed(name).to(device)
    results = []
    for module, forward in ((layer, CBAM.__call__), (twin, published_cbam)):
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for seed in range(3):
            optimizer.zero_grad()
            y = forward(module, image(device, seed))
            y.square().mean().backward()
            optimizer.step()
        results.append(y)
    torch.testing.assert_close(*results)
    for (key, mine), theirs in zip(layer.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=key)
        assert mine.grad is not None, key


def test_a_weight_that_a_class_makes_is_asked_for(device):
    layer = randomised(CBAM(16, 4)).to(device).eval()
    made = {"weight": property(lambda self: 2 * self._parameters["weight"])}
    layer.channel.fc1.__class__ = type("Scaled", (nn.Linear,), made)
    torch.testing.assert_close(layer(image(device)), published_cbam(layer, image(device)))


def test_hooks_of_all_modules_run_on_children(device):
    layer = randomised(CBAM(16, 4)).to(device).eval()
    before = layer(image(device))
    hook = nn.modules.module.register_module_forward_hook(lambda m, _, y: y / 2 if type(m) is nn.Linear else None)
    try:
        found, expected = layer(image(device)), published_cbam(layer, image(device))
        assert "called=(fc1: hooks; fc2: hooks)" in repr(layer)
    finally:
        hook.remove()
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, before)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_child_is_named_with_the_reason(name):
    before, after = repr(CBAM(16, 4)), repr(changed(name))
    assert "called=" not in before
    assert f"called=({CHANGES[name][0].split('.')[1]}: " in after


def test_weights_that_a_checkpoint_brings_after_pruning_count(device):
    layer = changed("pruned").to(device).eval()
    with torch.no_grad():
        before = layer(image(device))
        layer.channel.fc1.weight_orig.mul_(5)
        assert not torch.equal(layer(image(device)), before)


def test_plain_children_are_read_and_not_called(monkeypatch, device):
    layer = randomised(CBAM(16, 4)).to(device).eval()
    handles = [child.register_forward_hook(lambda *_: None) for child in layer.modules() if child is not layer]
    with torch.no_grad():
        expected = layer(image(device))
        for handle in handles:
            handle.remove()
        for kind in (nn.Linear, nn.Conv2d):
            monkeypatch.setattr(kind, "forward", lambda *_: pytest.fail("a plain child was called"))
        torch.testing.assert_close(layer(image(device)), expected)


@pytest.mark.parametrize("arrangement", ["channel_first", "spatial_first", "parallel"])
@pytest.mark.parametrize("name", ["adapter", "several layers"])
def test_attention_maps_are_those_of_the_changed_children(name, arrangement, device):
    layer = changed(name, randomised(CBAM(16, 4, arrangement=arrangement))).to(device).eval()
    x = image(device)
    with torch.no_grad():
        maps = layer.attention_maps(x)
        torch.testing.assert_close(x * maps.channel[:, :, None, None] * maps.spatial, layer(x))


@pytest.mark.parametrize("arrangement", ["channel_first", "spatial_first", "parallel"])
@pytest.mark.parametrize(
    "options, child",
    [
        ({}, ("channel", lambda: nn.Identity())),
        ({}, ("channel", lambda: ChannelAttention(16, 4, channel_pools=("avg",)))),
        ({}, ("spatial", lambda: SpatialAttention(3, gate="hard_sigmoid"))),
        ({"gate": "hard_sigmoid", "mlp_layers": 1}, ("spatial", lambda: SpatialAttention(3, spatial_pools=("max",)))),
    ],
)
def test_a_replaced_attention_computes_what_it_computes_alone(options, child, arrangement, device):
    layer = CBAM(16, 4, arrangement=arrangement, **options)
    name, make = child
    setattr(layer, name, make())
    layer.to(device).eval()
    x = image(device)
    with torch.no_grad():
        channel, spatial = layer.channel(x), layer.spatial(x)
        expected = {
            "channel_first": lambda: layer.spatial(channel),
            "spatial_first": lambda: layer.channel(spatial),
            "parallel": lambda: channel * spatial / x,
        }
        torch.testing.assert_close(layer(x), expected[arrangement](), rtol=1e-4, atol=1e-5)


def test_a_child_that_returns_another_shape_is_named():
    x = image()
    layer = CBAM(16, 4)
    layer.channel = nn.AdaptiveAvgPool2d(1)
    with pytest.raises(ValueError, match=r"^the child channel must return a tensor of shape \(3, 16, 6, 5\), got"):
        layer(x)
    layer = CBAM(16, 4, spatial_norm=None)
    layer.spatial.conv.stride = (2, 2)
    with pytest.raises(ValueError, match=r"^the child conv must return a tensor of shape \(3, 1, 6, 5\), got"):
        layer(x)
    layer = CBAM(16, 4)
    layer.channel.fc2 = nn.Sequential(nn.Linear(4, 8))
    with pytest.raises(ValueError, match=r"^the child fc2 must return a tensor of shape \(3, 16\), got \(3, 8\)"):
        layer(x)
    layer = CBAM(16, 4, arrangement="parallel")
    layer.spatial = nn.Identity()
    with pytest.raises(ValueError, match=r"^arrangement 'parallel' needs a SpatialAttention as the child spatial"):
        layer(x)
    with pytest.raises(ValueError, match=r"^attention_maps needs a gate of the child spatial, got Identity"):
        layer.attention_maps(x)


def test_parameters_that_stay_on_meta_are_named():
    layer = CBAM(16, 4)
    layer.channel.fc1 = nn.Sequential(layer.channel.fc1.to("meta"))
    with pytest.raises(ValueError, match=r"^the child fc1 must have its parameters on x's device cpu"):
        layer(image())


def test_parameters_that_a_replaced_forward_brings_back_are_used():
    # As tools that offload parameters do it.
    layer = randomised(CBAM(16, 4)).eval()
    expected = published_cbam(layer, image())
    for child in (layer.channel.fc1, layer.spatial.conv, layer.spatial.norm):
        child.forward = copy.deepcopy(child).forward
        child.load_state_dict({key: value.to("meta") for key, value in child.state_dict().items()}, assign=True)
    torch.testing.assert_close(layer(image()), expected)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_dynamically_quantised_children_are_called():
    layer = randomised(CBAM(16, 4)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        torch.testing.assert_close(quantised(image()), layer(image()), rtol=0.05, atol=0.05)


def test_half_precision_maps_are_cast_to_the_dtype_of_a_called_child(device):
    layer = changed("adapter").to(device).eval()
    x = image(device).half()
    with torch.no_grad():
        y = layer(x)
        assert y.dtype == torch.float16
        torch.testing.assert_close(y, layer(x.float()).half(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["pruned", "adapter", "dilation", "forward hook"])
def test_a_layer_with_a_changed_child_compiles_in_one_graph(name, device):
    layer = changed(name).to(device).eval()
    torch._dynamo.reset()
    with torch.no_grad():
        expected = layer(image(device))
        torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(image(device)), expected)
