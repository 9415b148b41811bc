"""The operators: schema, fake and registration by PyTorch's own checker; one compiled graph for every batch size."""

import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from cbam_triton import CBAM, ops, settings
from cbam_triton.kernels.launch import forward as launch
from cbam_triton.kernels.stages.packs import Parameters

from .cases import CONV, FORMATS, MLP, SCHEDULES, assert_refined, both_formats, eager_gates, layer, normal, picked
from .errors import assert_same

CHANNELS = 8


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _x(memory_format, device, N=2, dtype=torch.float32):
    return normal((N, CHANNELS, 3, 5), dtype=dtype, memory_format=memory_format, device=device)


@both_formats
@pytest.mark.parametrize("R, K, norm", [(4, 3, "affine"), (4, 3, None), (4, 0, None), (0, 3, None)])
def test_cbam_passes_the_operator_check(R, K, norm, memory_format, device):
    weights = layer(CHANNELS, R, K, norm=norm, device=device)
    torch.library.opcheck(ops.cbam, (_x(memory_format, device), *weights.parameters, weights.norm_eps, "wavefront"))


@both_formats
@pytest.mark.parametrize("R", [4, 0])
def test_gates_pass_the_operator_check(R, memory_format, device):
    weights = layer(CHANNELS, R, device=device)
    x = _x(memory_format, device, dtype=torch.float16)
    torch.library.opcheck(ops.gates, (x, *picked(weights, MLP + CONV), "staged"))


@both_formats
@pytest.mark.parametrize("parts", ["gz", "g", "z"])
def test_apply_gates_passes_the_operator_check(parts, memory_format, device):
    g = normal((2, CHANNELS), device=device) if "g" in parts else None
    z = normal((2, 1, 3, 5), device=device) if "z" in parts else None
    torch.library.opcheck(ops.apply_gates, (_x(memory_format, device), g, z))


def test_the_operator_check_sees_no_batch_and_a_view(device):
    weights = layer(CHANNELS, device=device)
    empty = torch.empty(0, CHANNELS, 3, 5, device=device)
    torch.library.opcheck(ops.cbam, (empty, *weights.parameters, weights.norm_eps, "staged"))
    torch.library.opcheck(ops.gates, (empty, *picked(weights, MLP + CONV), "staged"))
    crop = normal((3, 2 * CHANNELS, 5, 7), device=device)[::2, CHANNELS:, 1:-1, 1:-1]
    torch.library.opcheck(ops.cbam, (crop, *weights.parameters, weights.norm_eps, "staged"))


@pytest.mark.parametrize("name, first", [("cbam", 1), ("gates", 1), ("cbam_training", 2), ("cbam_backward", 3)])
def test_the_parameters_of_operators_are_the_fields_of_the_weights(name, first):
    arguments = getattr(torch.ops.cbam_triton, name).default._schema.arguments[first:]
    names = [argument.name for argument in arguments]
    fields = MLP + CONV if name == "gates" else (*Parameters._fields, "norm_eps")
    assert tuple(names[: len(fields)]) == fields
    assert names[-2:] == ["variant", "planes"]


def test_operators_refuse_a_gradient(device):
    x = _x(torch.contiguous_format, device).requires_grad_()
    weights = layer(CHANNELS, device=device)
    with pytest.raises(RuntimeError, match="cbam_triton::cbam has no gradient"):
        ops.cbam(x, *weights.parameters, weights.norm_eps, "staged")
    with torch.no_grad():
        assert not ops.cbam(x, *weights.parameters, weights.norm_eps, "staged").requires_grad


def _two_steps(weights, schedule):
    """The layer with a norm between its kernels: all three operators in one graph."""
    gates = picked(weights, MLP + CONV)
    every = (*weights.parameters, weights.norm_eps)

    def run(x):
        g, z = ops.gates(x, *gates, schedule)
        return ops.apply_gates(x, g, z - z.mean()), ops.cbam(x, *every, schedule)

    return run


def _check_graph(found, x, weights):
    g, z = eager_gates(x, weights)
    torch.testing.assert_close(found[0], x * g[:, :, None, None] * torch.sigmoid(z - z.mean()))
    assert_refined(found[1], x, weights)
    for y in found:
        assert y.stride() == x.stride()


@pytest.mark.parametrize("schedule, memory_format", list(zip(SCHEDULES, FORMATS, strict=True)))
def test_one_dynamic_graph_of_operators_serves_every_batch_size(schedule, memory_format, device):
    weights = layer(CHANNELS, device=device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(_two_steps(weights, schedule), backend=counter, fullgraph=True, dynamic=True)
    compiled_at_first = 0
    for N in (6, 7, 9):  # no other size is any of these: Dynamo takes equal sizes for one
        x = _x(memory_format, device, N)
        _check_graph(compiled(x), x, weights)
        compiled_at_first = counter.frame_count if N == 6 else compiled_at_first  # twice: Dynamo restarts for norm_eps
    assert counter.frame_count == compiled_at_first <= 2


@both_formats
def test_a_static_graph_of_operators_is_compiled_once_for_each_shape(memory_format, device):
    weights = layer(CHANNELS, device=device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(_two_steps(weights, "staged"), backend=counter, fullgraph=True, dynamic=False)
    for N in (2, 3, 2):
        x = _x(memory_format, device, N)
        _check_graph(compiled(x), x, weights)
    assert counter.frame_count == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # Inductor's own
@both_formats
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor_hands_x_to_the_kernels_in_its_own_layout(dynamic, memory_format, device, monkeypatch):
    seen = []
    forward = launch.forward

    def recording(x, *arguments):
        seen.append(x.stride())
        return forward(x, *arguments)

    monkeypatch.setattr(launch, "forward", recording)
    weights = layer(CHANNELS, device=device)
    compiled = torch.compile(
        lambda x: torch.relu(ops.cbam(x * 2, *weights.parameters, weights.norm_eps, "staged")),
        fullgraph=True,
        dynamic=dynamic,
    )
    for N in (2, 3):
        x = _x(memory_format, device, N)
        y = compiled(x)
        assert seen[-1] == x.stride() == y.stride()
        assert_same(y, torch.relu(ops.cbam(x * 2, *weights.parameters, weights.norm_eps, "staged")))


class Watching(TorchDispatchMode):
    """Notes the operators of the library."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "cbam_triton":
            self.names.append(operator.name())
        return operator(*args, **kwargs or {})


def test_the_dispatcher_is_passed_over_where_nobody_watches(device, monkeypatch):
    module, x = CBAM(CHANNELS, 2, kernel_size=3).to(device).eval(), _x(torch.contiguous_format, device)
    with torch.no_grad(), settings(backend="triton"):
        with Watching() as watching:
            expected = module(x)
        assert watching.names == ["cbam_triton::cbam"]
        with torch.profiler.profile() as profiled:
            assert_same(module(x), expected)
        assert "cbam_triton::cbam" in {event.name for event in profiled.events()}
        monkeypatch.setattr(ops, "cbam", lambda *_: pytest.fail("the dispatcher was asked"))
        assert_same(module(x), expected)


def test_operators_can_be_defined_again_as_notebooks_that_reload_do():
    code = "import importlib, cbam_triton.ops as ops; importlib.reload(ops); print(ops.cbam, ops.cbam_training)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
