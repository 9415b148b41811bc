"""Ways out of eager mode: export, ONNX, TorchScript, ahead-of-time compilation; and modules without memory."""

import io

import pytest
import torch
from torch import nn

from cbam_triton import CBAM, ChannelAttention, SpatialAttention, insert_cbam, settings

from .checkpoints.published import published_cbam, randomised
from .errors import assert_same

# torch.export.load of PyTorch 2.9 says so of its own memory.
pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")

# Layer options, and the size of the map they are exported for.
LAYERS = [
    ({}, (6, 5)),
    ({"arrangement": "parallel", "light": True, "gate": "hard_sigmoid"}, (6, 5)),
    ({"dims": 3, "kernel_size": 3}, (4, 6, 5)),
]
IDS = ("default", "variant", "volumes")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def layer_of(options: dict) -> CBAM:
    return randomised(CBAM(16, **options)).eval()


def any_size(pixels: tuple[int, ...]) -> tuple[dict]:
    """Dynamic shapes: the batch and every axis of pixels."""
    axes = {i + 2: torch.export.Dim(f"side{i}", min=2, max=64) for i in range(len(pixels))}
    return ({0: torch.export.Dim("batch", min=1, max=64), **axes},)


def inputs(pixels: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    """What to export with, and what to run."""
    generator = torch.Generator().manual_seed(seed)
    other = [side + 3 for side in pixels]
    return [torch.randn(2, 16, *pixels, generator=generator), torch.randn(5, 16, *other, generator=generator)]


@pytest.mark.parametrize("options, pixels", LAYERS, ids=IDS)
@pytest.mark.parametrize("gradient", [False, True])
def test_an_exported_layer_is_plain_aten_of_any_batch_and_size(options, pixels, gradient):
    layer, (x, other) = layer_of(options), inputs(pixels)
    with torch.set_grad_enabled(gradient):
        program = torch.export.export(layer, (x,), dynamic_shapes=any_size(pixels))
    targets = [node.target for node in program.run_decompositions().graph.nodes if node.op == "call_function"]
    operators = [target for target in targets if isinstance(target, torch._ops.OpOverload)]
    assert operators
    assert {target.namespace for target in operators} == {"aten"}
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    with torch.no_grad(), settings(backend="reference"):
        assert_same(torch.export.load(file).module()(other), layer(other))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_strict_export_is_plain_aten_and_a_compilation_is_not(backend, device):
    if backend == "triton":
        pytest.importorskip("triton")
    layer, x = layer_of({}).to(device), inputs((6, 5))[0].to(device)
    graphs = []

    def keep(graph, _):
        graphs.append(graph.graph)
        return graph

    with torch.no_grad(), settings(backend=backend):
        graphs.append(torch.export.export(layer, (x,), strict=True).graph)
        torch.compile(layer, backend=keep, fullgraph=True)(x)
    ours = [any("cbam_triton" in str(node.target) for node in graph.nodes) for graph in graphs]
    assert ours == [False, backend == "triton"]


def test_an_exported_network_is_plain_aten():
    resnet = pytest.importorskip("torchvision.models.resnet")
    network = nn.Sequential(resnet.BasicBlock(16, 16), resnet.BasicBlock(16, 16)).eval()
    insert_cbam(network)
    x, other = inputs((6, 5))
    with torch.no_grad(), settings(backend="reference"):
        program = torch.export.export(network, (x,), dynamic_shapes=any_size((6, 5)))
        torch.testing.assert_close(program.module()(other), network(other))
    assert not [node for node in program.graph.nodes if "cbam_triton" in str(node.target)]


@pytest.mark.parametrize("options, pixels", LAYERS, ids=IDS)
def test_onnx_has_standard_operators_and_equal_values(options, pixels, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    layer, (x, other) = layer_of(options), inputs(pixels)
    program = torch.onnx.export(layer, (x,), dynamo=True, dynamic_shapes=any_size(pixels), verbose=False)
    assert {node.domain for node in program.model.graph} == {""}
    program.save(tmp_path / "cbam.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "cbam.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    with torch.no_grad(), settings(backend="reference"):
        torch.testing.assert_close(torch.from_numpy(found), layer(other))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("layer", [CBAM(8), ChannelAttention(8), nn.Sequential(SpatialAttention())])
def test_scripting_is_refused_with_the_ways_that_work(layer):
    with pytest.raises(TypeError, match=r"^torch.jit.script cannot compile .*: use torch.export"):
        torch.jit.script(layer)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")  # of the checks of x
@pytest.mark.parametrize("options, pixels", LAYERS, ids=IDS)
def test_a_traced_layer_serves_any_batch_and_size(options, pixels):
    layer, (x, other) = layer_of(options), inputs(pixels)
    with torch.no_grad(), settings(backend="reference"):
        traced = torch.jit.trace(layer, (x,))
        torch.testing.assert_close(traced(other), layer(other))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # Inductor's own
def test_ahead_of_time_compilation_gives_equal_values(tmp_path):
    layer, (x, other) = layer_of({}), inputs((6, 5))
    with torch.no_grad(), settings(backend="reference"):
        program = torch.export.export(layer, (x,), dynamic_shapes=any_size((6, 5)))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "cbam.pt2"))
        compiled = torch._inductor.aoti_load_package(path)
        torch.testing.assert_close(compiled(other), layer(other))


def test_a_saved_module_loads_as_it_was():
    layer = layer_of(LAYERS[1][0])
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    x = inputs((6, 5))[0]
    with torch.no_grad():
        assert_same(loaded(x), layer(x))


def test_memory_given_later_is_filled_by_each_layers_own_initialisation():
    # As FSDP does it: a module on the meta device, memory for it, then `reset_parameters` of whatever owns parameters.
    with torch.device("meta"):
        layer = CBAM(16, conv_bias=True)
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            tensor.fill_(7)
    for module in layer.modules():
        if list(module.parameters(recurse=False)) or list(module.buffers(recurse=False)):
            module.reset_parameters()
    assert not [name for name, tensor in layer.state_dict().items() if (tensor == 7).any()]
    x = inputs((6, 5))[0]
    layer.eval()
    with torch.no_grad(), settings(backend="reference"):
        torch.testing.assert_close(layer(x), published_cbam(layer, x))


def test_initialisation_can_be_skipped():
    layer = nn.utils.skip_init(CBAM, 16, kernel_size=3)
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {"cpu"}
    layer.load_state_dict(randomised(CBAM(16, kernel_size=3)).state_dict())
    x = inputs((6, 5))[0]
    with torch.no_grad(), settings(backend="reference"):
        torch.testing.assert_close(layer.eval()(x), published_cbam(layer, x))
