"""timm's layers by ours: its arguments, keys and models."""

import copy

import pytest
import torch
from torch import fx, nn

import cbam_triton.timm as ours
from cbam_triton import convert_cbam, restore_cbam

timm = pytest.importorskip("timm")
theirs = pytest.importorskip("timm.layers.cbam")

PAIRS = {"CbamModule": (ours.CbamModule, theirs.CbamModule), "light": (ours.LightCbamModule, theirs.LightCbamModule)}
both = pytest.mark.parametrize("kind", PAIRS)


def model(layer, **options):
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=7, block_args={"attn_layer": layer}, **options)


def image(seed=0):
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def drawn(net):
    """Parameters and statistics that are not those of an initialisation."""
    generator = torch.Generator().manual_seed(1)
    for tensor in (*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())):
        tensor.data += 0.1 * torch.rand(tensor.shape, generator=generator)
    return net


def results(net, x):
    """y and the gradients of x and of every parameter."""
    x = x.clone().requires_grad_()
    net.zero_grad()
    y = net(x)
    y.square().sum().backward()
    return {"y": y.detach(), "x": x.grad} | {name: p.grad for name, p in net.named_parameters()}


def test_the_hidden_width_is_timms():
    widths = [(C, ratio, divisor) for C in range(1, 513) for ratio in (1 / 16, 1 / 4) for divisor in (1, 8)]
    for C, ratio, divisor in widths:
        expected = timm.layers.make_divisible(C * ratio, divisor, round_limit=0.0)
        assert ours._hidden_channels(C, ratio, None, divisor) == expected, (C, ratio, divisor)


@both
@pytest.mark.parametrize("training", [False, True], ids=("eval", "training"))
def test_a_layer_loads_timms_weights_and_computes_the_same(kind, training, no_kernels):
    mine, their = PAIRS[kind]
    for options in ({}, {"rd_ratio": 1 / 4, "mlp_bias": True, "spatial_kernel_size": 3}, {"rd_channels": 5}):
        published = drawn(their(24, **options)).double().train(training)
        layer = mine(24, **options).double().train(training)
        layer.load_state_dict(published.state_dict())
        x = torch.randn(3, 24, 5, 7, dtype=torch.double, generator=torch.Generator().manual_seed(2))
        torch.testing.assert_close(results(layer, x), results(published, x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(dict(layer.named_buffers()), dict(published.named_buffers()), rtol=1e-12, atol=1e-12)


def test_a_hard_gate_is_timms(no_kernels):
    published = drawn(theirs.CbamModule(16, gate_layer="hard_sigmoid")).eval()
    layer = ours.CbamModule(16, gate_layer="hard_sigmoid").eval()
    layer.load_state_dict(published.state_dict())
    x = torch.randn(2, 16, 4, 4) * 5
    torch.testing.assert_close(layer(x), published(x))


@pytest.mark.parametrize("options, message", [
    ({"act_layer": nn.SiLU}, "act_layer must be torch.nn.ReLU, got "),
    ({"gate_layer": "tanh"}, "gate_layer must be 'sigmoid' or 'hard_sigmoid', got 'tanh'"),
    ({"spatial_kernel_size": 4}, "spatial_kernel_size must be odd and positive, got 4"),
    ({"rd_divisor": 0}, "rd_divisor must be at least 1, got 0"),
])  # fmt: skip
def test_what_the_kernels_do_not_know_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ours.CbamModule(16, **options)


@both
def test_a_child_with_hooks_is_called(kind, no_kernels):
    layer, x = drawn(PAIRS[kind][0](16)).eval(), torch.randn(2, 16, 4, 4)
    plain = layer(x)
    layer.channel.fc1.register_forward_hook(lambda module, inputs, output: output + 0)
    torch.testing.assert_close(layer(x), plain)
    layer.spatial.conv.conv.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    half = torch.sigmoid(layer.spatial.conv.bn(torch.zeros(2, 1, 4, 4)))
    gate = layer(x) / half
    assert not torch.allclose(layer(x), plain)
    assert gate.isfinite().all()


def test_a_model_loads_the_eager_checkpoint_and_computes_the_same(no_kernels):
    published, net = drawn(model("cbam")).eval(), model(ours.CbamModule).eval()
    assert sum(isinstance(part, ours.CbamModule) for part in net.modules()) == 8
    net.load_state_dict(published.state_dict(), strict=True)
    torch.testing.assert_close(net(image()), published(image()), rtol=1e-4, atol=1e-5)


def test_a_model_gives_features_and_traces(no_kernels):
    net = drawn(model(ours.CbamModule)).eval()
    expected = net(image())
    traced = fx.symbolic_trace(net)
    assert sum(str(node.target).endswith((".attn", ".se")) for node in traced.graph.nodes) == 8
    torch.testing.assert_close(traced(image()), expected)
    features = model(ours.CbamModule, features_only=True).eval()(image())
    assert [feature.shape[1] for feature in features] == [64, 64, 128, 256, 512]


def test_a_converted_model_trains_by_the_same_optimizer(no_kernels):
    published = drawn(model("cbam")).double()
    net = copy.deepcopy(published)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    keys, tensors = list(net.state_dict()), [id(p) for p in net.parameters()]
    report = convert_cbam(net)
    assert len(report.converted) == 8
    assert not report.skipped
    x = image().double()
    torch.testing.assert_close(results(net, x), results(published, x), rtol=1e-9, atol=1e-11)
    optimizer.step()
    assert list(net.state_dict()) == keys
    assert [id(p) for p in net.parameters()] == tensors
    moved = [not torch.equal(a, b) for a, b in zip(net.parameters(), published.parameters(), strict=True)]
    assert all(moved)
    y = net.eval()(x)
    assert restore_cbam(net) == 8
    torch.testing.assert_close(net(x), y)


def test_a_converted_model_of_pytorchcv_computes_the_same(no_kernels):
    pytorchcv = pytest.importorskip("pytorchcv.model_provider")
    published = drawn(pytorchcv.get_model("cbam_resnet18", num_classes=7)).double().eval()
    published.features.final_pool = nn.AdaptiveAvgPool2d(1)  # for small images
    net = copy.deepcopy(published)
    report = convert_cbam(net)
    assert len(report.converted) == 8
    x = image().double()
    torch.testing.assert_close(results(net, x), results(published, x), rtol=1e-9, atol=1e-11)
