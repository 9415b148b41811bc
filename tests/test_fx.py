"""Graphs of torch.fx: a layer is one node of its network's graph, and traces by itself."""

import copy
import pickle

import pytest
import torch
from torch import fx, nn

import cbam_triton.timm
from cbam_triton import CBAM, ChannelAttention, SpatialAttention, convert_cbam, insert_cbam, settings

from .checkpoints.published import randomised
from .errors import assert_same

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


def converted() -> nn.Module:
    layer = pytest.importorskip("timm.layers.cbam").CbamModule(16)
    assert convert_cbam(layer).converted
    return layer


LAYERS = {
    "default": lambda: CBAM(16, 4),
    "variant": lambda: CBAM(16, 4, arrangement="parallel", spatial_pools=("conv",), add_input=True),
    "channel attention": lambda: ChannelAttention(16, 4),
    "spatial attention": lambda: SpatialAttention(),
    "timm's arguments": lambda: cbam_triton.timm.CbamModule(16),
    "converted": converted,
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def map_of(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (2, 16, 3, 4), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def reference():
    """A node that is a module is called as ever: whatever computes it shows."""
    with settings(backend="reference"):
        yield


def assert_follows(graph: fx.GraphModule, model: nn.Module, x: torch.Tensor) -> None:
    """The graph computes the model, so do its copies, and it sees the parameters change and learn."""
    with torch.no_grad():
        for copied in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
            torch.testing.assert_close(copied(x), model(x))
        for parameter in model.parameters():
            parameter.mul_(1.5)
        torch.testing.assert_close(graph(x), model(x))
    graph(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@layers
@pytest.mark.usefixtures("reference")
def test_a_layer_is_one_node_of_its_networks_graph(make):
    network = nn.Sequential(nn.Conv2d(16, 16, 1), randomised(make())).eval()
    graph = fx.symbolic_trace(network)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1"]
    assert_follows(graph, network, map_of())


@layers
def test_a_layer_traces_by_itself(make):
    layer = randomised(make()).eval()
    assert_follows(fx.symbolic_trace(layer), layer, map_of())


class WithMaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cbam = randomised(CBAM(16, 4))

    def forward(self, x):
        maps = self.cbam.attention_maps(x)
        return self.cbam(x, residual=x) * maps.spatial + maps.channel[:, :, None, None]


def test_maps_and_residuals_are_traced():
    model = WithMaps().eval()
    assert_follows(fx.symbolic_trace(model), model, map_of())


@pytest.mark.usefixtures("reference")
def test_features_are_extracted_by_a_layers_name():
    torchvision = pytest.importorskip("torchvision")
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    network = torchvision.models.resnet18().eval()
    insert_cbam(network)
    assert "layer1.0.cbam" in get_graph_node_names(network)[1]
    features = create_feature_extractor(network, ["layer1.0.cbam", "fc"])
    x, seen = map_of(1, 3, 32, 32), []
    network.layer1[0].cbam.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        expected = network(x)
        found = features(x)
    assert_same(found["fc"], expected)
    assert_same(found["layer1.0.cbam"], seen[0])


@layers
@pytest.mark.usefixtures("reference")
def test_quantisation_leaves_a_layer_as_it_is(make):
    quantize_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qconfig_mapping

    network = nn.Sequential(nn.Conv2d(16, 16, 1), randomised(make())).eval()
    expected, x = copy.deepcopy(network), map_of()
    with torch.no_grad():
        prepared = quantize_fx.prepare_fx(network, get_default_qconfig_mapping(), (x,))
        torch.testing.assert_close(prepared(x), expected(x))
        y = quantize_fx.convert_fx(prepared)(x)
    assert (y - expected(x)).abs().max() < 0.1 * expected(x).abs().max()
