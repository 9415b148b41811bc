"""Layers that begin almost as the identity."""

import pytest
import torch

from cbam_triton import CBAM, insert_cbam

from .networks import Basic, models, small

pytestmark = pytest.mark.usefixtures("reference")


@pytest.mark.parametrize("build, options", [
    (models.resnet18, {}),
    (small, {"light": True}),
    (small, {"channel_pools": ("avg",), "arrangement": "parallel"}),
    (small, {"gate": "hard_sigmoid"}),
    (small, {"spatial_norm": None, "conv_bias": True}),
])  # fmt: skip
def test_a_gentle_layer_changes_a_network_by_less_than_a_percent_and_learns(build, options):
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        model(torch.rand(8, 3, 48, 48))  # statistics that fit the weights, as trained ones do
        x = torch.rand(2, 3, 48, 48)
        expected = model.eval()(x)
        insert_cbam(model, reduction=2, gentle=True, **options)
        found = model(x)
    assert 0 < (found - expected).norm() < 0.01 * expected.norm()
    model.train()(x).square().sum().backward()
    for module in model.modules():
        if isinstance(module, CBAM):
            last = [module.channel.fc2, module.spatial.norm or module.spatial.conv]
            assert all(p.grad.abs().max() > 0 for layer in last for p in layer.parameters())


@pytest.mark.parametrize("options", [
    {}, {"light": True}, {"channel_pools": ("max",)}, {"channel_pools": ("avg", "max", "lp")}, {"gate": "hard_sigmoid"},
    {"mlp_bias": True, "spatial_norm": None, "conv_bias": True},
])  # fmt: skip
def test_gentle_gates_are_nearly_one_whatever_the_map(options):
    block = Basic(16, 16).eval()
    insert_cbam(block, gentle=True, **options)
    with torch.no_grad():
        maps = block.cbam.attention_maps(10 * torch.randn(2, 16, 5, 5))
    for found in maps:
        torch.testing.assert_close(found, torch.full_like(found, 1 - 1 / 3000), rtol=0, atol=5e-6)


@pytest.mark.parametrize("options, remedy", [
    ({"mlp_bias": False}, "mlp_bias=True"), ({"spatial_norm": None}, 'spatial_norm="batch" or conv_bias=True'),
])  # fmt: skip
def test_a_gate_without_bias_cannot_begin_gently(options, remedy):
    model = small()
    before = set(model.state_dict())
    with pytest.raises(ValueError, match=f"gentle needs a bias on each gate, .*{remedy}"):
        insert_cbam(model, gentle=True, **options)
    assert set(model.state_dict()) == before
    assert type(model.layer1[0]) is Basic
