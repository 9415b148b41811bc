"""Every variant of the layer by the kernels: values and gradients are the reference's."""

import copy

import pytest
import torch

from cbam_triton import CBAM, ChannelAttention, SpatialAttention, functional, settings
from cbam_triton.spec import reference

pytest.importorskip("triton")

from ..cases import SCHEDULES, both_schedules, of_interpreted_exp
from ..errors import assert_as_good_as_eager, assert_gradients_as_good_as_eager, assert_same

pytestmark = [pytest.mark.usefixtures("nan_memory"), of_interpreted_exp]

VARIANTS = {
    "average alone": {"channel_pools": ("avg",)},
    "maximum alone": {"channel_pools": ("max",), "spatial_pools": ("max",)},
    "mean alone": {"spatial_pools": ("mean",)},
    "norm alone": {"channel_pools": ("lp",)},
    "logsumexp alone": {"channel_pools": ("lse",), "mlp_layers": 1},
    "all pools": {"channel_pools": ("lse", "max", "lp", "avg")},
    "parallel, all pools": {"arrangement": "parallel", "channel_pools": ("avg", "max", "lp", "lse")},
    "spatial first, all pools": {"arrangement": "spatial_first", "channel_pools": ("avg", "max", "lp", "lse")},
    "channel only, norm and logsumexp": {"arrangement": "channel_only", "channel_pools": ("lp", "lse")},
    "maximum first": {"channel_pools": ("max", "avg"), "spatial_pools": ("max", "mean")},
    "light": {"light": True},
    "hard": {"gate": "hard_sigmoid"},
    "parallel": {"arrangement": "parallel"},
    "one layer": {"mlp_layers": 1, "channel_pools": ("avg",), "spatial_norm": None},
    "one layer, both pools": {"mlp_layers": 1, "mlp_bias": False},
    "one layer, light": {"mlp_layers": 1, "light": True},
    "hard, light, parallel": {"gate": "hard_sigmoid", "light": True, "arrangement": "parallel"},
    "parallel, pools alone": {"arrangement": "parallel", "channel_pools": ("max",), "spatial_pools": ("mean",)},
    "spatial first": {"arrangement": "spatial_first"},
    "spatial first, no norm": {"arrangement": "spatial_first", "spatial_norm": None, "channel_pools": ("max",)},
    "spatial first, one layer": {"arrangement": "spatial_first", "mlp_layers": 1, "spatial_pools": ("max",)},
    "channel only": {"arrangement": "channel_only", "channel_pools": ("max",), "gate": "hard_sigmoid"},
    "spatial only": {"arrangement": "spatial_only", "light": True},
    "input added": {"add_input": True, "activation": "relu"},
}
# Every layout and every schedule; all pairs of them take twice as long.
layouts_and_schedules = pytest.mark.parametrize(
    "last, schedule",
    [
        pytest.param(last, schedule, marks=[] if last == (schedule == "staged") else pytest.mark.slow)
        for last in (False, True)
        for schedule in SCHEDULES
    ],
)


def made(C, options, *, kernel_size=3, seed=3):
    """A CBAM with normal parameters, larger than an initialisation's."""
    layer = CBAM(C, 3, kernel_size=kernel_size, **options)
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.7
    return layer


def x_of(shape, *, seed=0, last=False):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    axes = len(shape) - 2
    if last and axes == 1:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[axes]) if last else x


def gradients(layer, x, dy, residual=None):
    """y, dx, dresidual and every parameter's gradient, by name."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    residual = None if residual is None else residual.detach().requires_grad_()
    y = layer(x) if residual is None else layer(x, residual)
    y.backward(dy.to(y.dtype))
    found = {"y": y.detach(), "x": x.grad} | {name: p.grad for name, p in layer.named_parameters()}
    return found | ({} if residual is None else {"residual": residual.grad})


def compare(layer, x, schedule, monkeypatch, residual=None):
    """In fp64 the kernels' values and gradients are the reference's, and the reference does not run."""
    layer, x, residual = layer.double(), x.double(), None if residual is None else residual.double()
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).to(x.device)
    other = copy.deepcopy(layer)
    with settings(backend="reference"):
        want = gradients(other, x, dy, residual)
    with settings(backend="triton", schedule=schedule), monkeypatch.context() as patch:
        patch.setattr(reference, "cbam", None)
        found = gradients(copy.deepcopy(layer), x, dy, residual)
        with torch.no_grad():
            found["without gradient"] = layer(x, *(() if residual is None else (residual,)))
    want["without gradient"] = want["y"]
    assert _strides(found["y"]) == _strides(want["y"])
    for name, right in want.items():
        if right is None or right.numel() == 0:
            assert found[name] is None or found[name].numel() == 0, name
            continue
        torch.testing.assert_close(
            found[name], right, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )
    for buffer, right in zip(layer.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, right, rtol=1e-12, atol=1e-12)


def _strides(x):
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


def _given(residual):
    return () if residual is None else (residual.detach(),)


@layouts_and_schedules
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_gives_what_the_reference_gives(name, last, schedule, device, monkeypatch):
    layer = made(6, VARIANTS[name]).to(device).eval()
    compare(layer, x_of((2, 6, 5, 4), last=last).to(device), schedule, monkeypatch)


@both_schedules
@pytest.mark.parametrize(
    "name", ["maximum alone", "hard, light, parallel", "one layer", "spatial only", "spatial first"]
)
def test_a_variant_in_training_with_a_residual_gives_what_the_reference_gives(name, schedule, device, monkeypatch):
    options = VARIANTS[name] | {"spatial_norm": "batch", "activation": "relu"}
    layer = made(5, options).to(device)
    x, residual = x_of((3, 5, 3, 4)).to(device), x_of((3, 5, 3, 4), seed=4).to(device)
    compare(layer, x, schedule, monkeypatch, residual)


@layouts_and_schedules
@pytest.mark.parametrize(
    "shape, K", [((2, 6, 17), 5), ((3, 4, 1), 3), ((2, 6, 3, 4, 5), 3), ((1, 3, 2, 3, 1), 5), ((2, 2, 4, 1, 3), 1)],
    ids=str,
)  # fmt: skip
def test_signals_and_volumes_give_what_the_reference_gives(shape, K, last, schedule, device, monkeypatch):
    layer = made(shape[1], {"dims": len(shape) - 2}, kernel_size=K).to(device)
    compare(layer, x_of(shape, last=last).to(device), schedule, monkeypatch)
    compare(layer.eval(), x_of(shape, last=last, seed=2).to(device), schedule, monkeypatch)


@both_schedules
@pytest.mark.parametrize("name", ["hard, light, parallel", "maximum alone", "spatial first"])
def test_a_variant_of_a_volume_gives_what_the_reference_gives(name, schedule, device, monkeypatch):
    layer = made(4, VARIANTS[name] | {"dims": 3}).to(device).eval()
    compare(layer, x_of((2, 4, 3, 5, 2), last=True).to(device), schedule, monkeypatch)


def test_a_crop_of_a_volume_keeps_its_memory_format(device):
    layer = made(4, {"dims": 3}).to(device).eval()
    x = x_of((2, 4, 4, 5, 6), last=True).to(device)[:, :, 1:3, 1:4, 2:]
    with torch.no_grad(), settings(backend="triton"):
        y = layer(x)
        torch.testing.assert_close(y, layer(x.contiguous()))
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("name", ["hard, light, parallel", "maximum first", "one layer"])
def test_the_maps_of_a_variant_are_those_it_applies(name, device):
    layer = made(6, VARIANTS[name]).to(device).eval()
    x = x_of((2, 6, 5, 4)).to(device)
    with torch.no_grad(), settings(backend="triton"):
        g, s = layer.attention_maps(x)
        torch.testing.assert_close(x * g[:, :, None, None] * s, layer(x))
        with settings(backend="reference"):
            torch.testing.assert_close((g, s), tuple(layer.attention_maps(x)))


@pytest.mark.parametrize("pools", [("lp",), ("lse", "avg"), ("avg", "max", "lp", "lse")])
def test_power_and_exponential_pools_have_finite_gradients(pools, device):
    layer = made(6, {"channel_pools": pools}).to(device).eval()
    x = torch.relu(x_of((2, 6, 5, 4))).to(device)
    x[0, 0] = 0
    found = gradients(layer, x, torch.ones_like(x))
    assert all(tensor.isfinite().all() for tensor in found.values())
    flat = x.double().flatten(2)
    want = {"lp": flat.square().sum(2).sqrt(), "lse": flat.exp().sum(2).log(), "avg": flat.mean(2), "max": flat.amax(2)}
    variant = layer.variant
    for pool, name in zip(reference.channel_pool(x.double(), variant), pools, strict=True):
        torch.testing.assert_close(pool, want[name])


# The larger one is pooled in two chunks.
@pytest.mark.parametrize(
    "shape, schedule",
    [
        ((2, 4, 5, 3), "staged"),
        ((1, 8, 46, 47), "wavefront"),
        pytest.param((1, 8, 46, 47), "staged", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_norm_and_logsumexp_take_values_that_exponentials_do_not(shape, schedule, device, monkeypatch):
    layer = made(shape[1], {"channel_pools": ("lp", "lse"), "arrangement": "channel_only"}).to(device).eval()
    x = 40 * x_of(shape).to(device)
    x[-1, 0] += 900
    x[-1, 1] -= 900
    layer.channel.fc1.weight.data *= 1e-3
    compare(layer, x, schedule, monkeypatch)


@both_schedules
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norm_and_logsumexp_in_half_precision_are_as_good_as_eager(dtype, schedule, device):
    layer = made(6, {"channel_pools": ("lse", "avg", "lp", "max")}).to(device, dtype).eval()
    x, dy = (x_of((2, 6, 5, 4), seed=seed).to(device, dtype) for seed in (0, 9))
    found = []
    for backend, wide in (("triton", dtype), ("reference", dtype), ("reference", torch.float64)):
        with settings(backend=backend, schedule=schedule):
            found.append(gradients(copy.deepcopy(layer).to(wide), x.to(wide), dy))
    assert_as_good_as_eager(*(one.pop("y") for one in found))
    assert_gradients_as_good_as_eager(*(list(one.values()) for one in found))


@pytest.mark.filterwarnings("ignore:divide by zero encountered in log")
@both_schedules
def test_infinities_in_the_norm_and_the_logsumexp_come_out_as_in_eager(schedule, device):
    layer = made(5, {"channel_pools": ("lse", "lp"), "arrangement": "channel_only", "mlp_layers": 1}).to(device).eval()
    layer = layer.double()
    layer.channel.fc1.weight.data.copy_(torch.eye(5))
    x = x_of((2, 5, 9, 9)).to(device).double()
    x[0, 0, 3, 4], x[0, 1], x[0, 2, 8, 8], x[0, 3, 0, 1:3] = torch.inf, -torch.inf, torch.nan, -torch.inf
    found = []
    for backend in ("triton", "reference"):
        with torch.no_grad(), settings(backend=backend, schedule=schedule):
            found.append(layer.channel(x[:, i : i + 1].expand(-1, 5, -1, -1).contiguous()) for i in range(5))
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-12, atol=1e-12, equal_nan=True)


@both_schedules
def test_a_residual_block_with_the_spatial_gate_first_is_what_the_reference_gives(schedule, device, monkeypatch):
    layer = made(5, {"arrangement": "spatial_first", "activation": "relu"}).to(device).eval()
    compare(layer, x_of((3, 5, 3, 4)).to(device), schedule, monkeypatch, x_of((3, 5, 3, 4), seed=4).to(device))


def test_spatial_first_is_the_spatial_layer_and_then_the_channel_layer(device):
    layer = made(6, {"arrangement": "spatial_first"}).to(device).eval()
    x = x_of((2, 6, 5, 4)).to(device)
    torch.testing.assert_close(layer(x), layer.channel(layer.spatial(x)))


def test_a_learnt_descriptor_takes_the_place_of_the_spatial_pools(device):
    layer = made(6, {"spatial_pools": ("conv",)}).to(device).eval()
    x = x_of((2, 6, 5, 4)).to(device)
    refined = layer.channel(x)
    logits = layer.spatial.norm(layer.spatial.conv(layer.spatial.squeeze(refined)))
    torch.testing.assert_close(layer(x), refined * torch.sigmoid(logits))


def test_a_variant_compiles_without_a_break_and_a_recompilation(device):
    layer = made(6, {"dims": 3, "light": True, "arrangement": "parallel"}).to(device).eval()
    with settings(backend="triton"):
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
        for N in (2, 3):
            x = x_of((N, 6, 3, 4, 5)).to(device)
            assert_same(compiled(x), layer(x))


@pytest.mark.parametrize("options, message", [
    ({"channel_pools": ()}, "channel_pools must be a tuple of some of avg, max, lp, lse, each once, got "),
    ({"channel_pools": ("avg", "avg")}, "channel_pools must be a tuple of some of "),
    ({"spatial_pools": ("min",)}, "spatial_pools must be a tuple of some of mean, max, each once, got \\('min',\\)"),
    ({"arrangement": "spatial"}, "arrangement must be one of channel_first, spatial_first, parallel, channel_only, "),
    ({"gate": "tanh"}, "gate must be one of sigmoid, hard_sigmoid, got 'tanh'"),
    ({"light": True, "channel_pools": ("avg",)}, "light halves the sum of both pools, so it needs "),
    ({"mlp_layers": 3}, "mlp_layers must be 1 or 2, got 3"),
    ({"mlp_layers": 1, "hidden_channels": 4}, "an MLP of one layer has no hidden_channels, got 4"),
    ({"dims": 4}, "dims must be 1, 2 or 3, got 4"),
])  # fmt: skip
def test_an_option_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        CBAM(8, 2, **options)
    assert "\n" not in str(caught.value)


def test_the_parts_alone_take_the_same_options(device):
    x = x_of((2, 6, 5, 4)).to(device)
    channel = ChannelAttention(6, 2, channel_pools=("max",), gate="hard_sigmoid").to(device)
    spatial = SpatialAttention(3, spatial_pools=("mean",), spatial_norm=None).to(device)
    weights = [p for layer in (channel.fc1, channel.fc2) for p in (layer.weight, layer.bias)]
    y = functional.channel_attention(x, *weights, channel_pools=("max",), gate="hard_sigmoid")
    assert_same(channel(x), y)
    assert_same(spatial(x), functional.spatial_attention(x, spatial.conv.weight, spatial_pools=("mean",)))
