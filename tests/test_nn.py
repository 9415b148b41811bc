import copy
import pickle

import pytest
import torch
from torch import nn

from cbam_triton import CBAM, ChannelAttention, SpatialAttention

from .checkpoints.published import published_cbam, published_channel_gate, published_spatial_gate, randomised
from .errors import assert_same

ALL_KEYS = {
    "channel.fc1.weight": (4, 64),
    "channel.fc1.bias": (4,),
    "channel.fc2.weight": (64, 4),
    "channel.fc2.bias": (64,),
    "spatial.conv.weight": (1, 2, 7, 7),
    "spatial.conv.bias": (1,),
    "spatial.norm.weight": (1,),
    "spatial.norm.bias": (1,),
    "spatial.norm.running_mean": (1,),
    "spatial.norm.running_var": (1,),
    "spatial.norm.num_batches_tracked": (),
}


def shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}


def test_state_dict_has_the_documented_keys_and_shapes():
    assert shapes(CBAM(64, conv_bias=True)) == ALL_KEYS


@pytest.mark.parametrize(
    "options, absent",
    [
        ({}, {"spatial.conv.bias"}),
        ({"mlp_bias": False}, {"channel.fc1.bias", "channel.fc2.bias", "spatial.conv.bias"}),
        ({"spatial_norm": None, "conv_bias": True}, {key for key in ALL_KEYS if "norm" in key}),
    ],
)
def test_options_leave_their_keys_out(options, absent):
    assert set(shapes(CBAM(64, **options))) == set(ALL_KEYS) - absent


@pytest.mark.parametrize("channels, reduction, hidden", [(64, 16, 4), (8, 16, 1), (40, 16, 2), (1, 1, 1), (6, 4.0, 1)])
def test_hidden_width_is_at_least_one_and_rounds_down(channels, reduction, hidden):
    assert CBAM(channels, reduction).channel.fc1.weight.shape == (hidden, channels)


def test_hidden_channels_override_the_reduction():
    assert CBAM(64, 16, hidden_channels=5).channel.fc2.weight.shape == (64, 5)


def test_parameter_count_is_the_papers():
    # 2*C*(C//16) + C + C//16 + 100: a biased MLP, a 7x7 convolution of two maps, one batch norm.
    assert sum(p.numel() for p in CBAM(256).parameters()) == 2 * 256 * 16 + 256 + 16 + 100


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((0,), {}, "channels must be at least 1, got 0: "),
        ((8, 0), {}, "reduction must be positive and finite, got 0: "),
        ((8,), {"hidden_channels": -1}, "hidden_channels must be at least 0, got -1: "),
        ((8,), {"kernel_size": 4}, "kernel_size must be odd and positive, got 4: "),
        ((8,), {"kernel_size": -1}, "kernel_size must be odd and positive, got -1: "),
        ((8,), {"spatial_norm": "layer"}, "spatial_norm must be 'batch' or None, got 'layer': "),
    ],
)
def test_a_layer_that_cannot_be_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        CBAM(*arguments, **options)


def test_options_are_keyword_only():
    with pytest.raises(TypeError):
        CBAM(8, 16, 4)


def test_dtype_and_device_reach_every_floating_tensor():
    layer = CBAM(8, conv_bias=True, device="meta", dtype=torch.bfloat16)
    floating = [t for t in layer.state_dict().values() if t.is_floating_point()]
    assert {(t.dtype, t.device.type) for t in floating} == {(torch.bfloat16, "meta")}


def test_a_state_dict_makes_another_layer_the_same(device):
    layer, other = randomised(CBAM(16)), CBAM(16)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 16, 5, 5, device=device)
    assert_same(other.to(device).eval()(x), layer.to(device).eval()(x))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_compute_the_same_and_share_nothing(clone, device):
    layer = randomised(CBAM(16)).to(device).eval()
    other = clone(layer)
    x = torch.randn(2, 16, 5, 5, device=device)
    with torch.no_grad():
        expected = layer(x)
        assert_same(other(x), expected)
        other.channel.fc2.bias.add_(1)
        assert_same(layer(x), expected)


def test_repr_names_the_configuration():
    assert "64, hidden_channels=4, kernel_size=3" in repr(CBAM(64, kernel_size=3))
    assert ChannelAttention(64).extra_repr() == "64, hidden_channels=4"
    assert SpatialAttention(5).extra_repr() == "kernel_size=5"


@pytest.mark.parametrize("gradient", [False, True])
def test_attention_maps_are_the_gates_that_forward_applies(gradient, device):
    layer = randomised(CBAM(16)).to(device).eval()
    x = torch.randn(2, 16, 5, 6, device=device)
    with torch.set_grad_enabled(gradient):
        maps = layer.attention_maps(x)
        y = layer(x)
    assert maps.channel.shape == (2, 16)
    assert maps.spatial.shape == (2, 1, 5, 6)
    assert maps.channel.requires_grad is gradient
    torch.testing.assert_close(x * maps.channel[:, :, None, None] * maps.spatial, y)
    torch.testing.assert_close(maps.channel, published_channel_gate(x, layer.channel.fc1, layer.channel.fc2))


@pytest.mark.parametrize("gradient", [False, True])
def test_each_attention_works_alone(gradient, device):
    layer = randomised(CBAM(16)).to(device).eval()
    x = torch.randn(2, 16, 5, 6, device=device)
    channel, spatial = layer.channel, layer.spatial
    with torch.set_grad_enabled(gradient):
        g, s = (
            published_channel_gate(x, channel.fc1, channel.fc2),
            published_spatial_gate(x, spatial.conv, spatial.norm),
        )
        torch.testing.assert_close(channel(x), x * g[:, :, None, None])
        torch.testing.assert_close(spatial(x), x * s)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("gradient", [False, True])
def test_running_statistics_are_those_of_the_published_layer(gradient, momentum, device):
    layer = randomised(CBAM(16)).to(device)
    layer.spatial.norm.momentum = momentum
    twin = copy.deepcopy(layer)
    with torch.set_grad_enabled(gradient):
        for seed in range(3):
            x = torch.randn(4, 16, 5, 5, generator=torch.Generator().manual_seed(seed)).to(device)
            torch.testing.assert_close(layer(x), published_cbam(twin, x))
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())
    assert layer.spatial.norm.num_batches_tracked == 3


def test_sync_batch_norm_conversion_keeps_weights_and_results(device):
    layer = randomised(CBAM(16)).to(device).eval()
    x = torch.randn(2, 16, 5, 5, device=device)
    with torch.no_grad():
        expected = layer(x)
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
        assert type(converted.spatial.norm) is nn.SyncBatchNorm
        torch.testing.assert_close(converted(x), expected)
    assert shapes(converted) == shapes(layer)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(
    "norm",
    [
        nn.GroupNorm(1, 1),
        nn.Identity(),
        nn.BatchNorm2d(1, track_running_stats=False),
        nn.BatchNorm2d(1, affine=False),
        nn.Sequential(nn.BatchNorm2d(1), nn.Softsign()),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_the_norm_may_be_replaced(norm, gradient, device):
    layer = randomised(CBAM(16))
    layer.spatial.norm = norm
    layer.to(device).eval()
    x = torch.randn(2, 16, 5, 5, device=device)
    with torch.set_grad_enabled(gradient):
        torch.testing.assert_close(layer(x), published_cbam(layer, x))


def test_hooks_of_the_norm_run_in_eval(device):
    layer = CBAM(8).to(device).eval()
    seen = []
    layer.spatial.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    with torch.no_grad():
        layer(torch.randn(2, 8, 3, 3, device=device))
    assert seen == [(2, 1, 3, 3)]


def test_parametrized_weights_are_computed(device):
    layer = randomised(CBAM(8)).to(device).eval()
    x = torch.randn(2, 8, 3, 3, device=device)
    nn.utils.parametrizations.weight_norm(layer.channel.fc1)
    nn.utils.parametrizations.spectral_norm(layer.spatial.conv)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), published_cbam(layer, x))
