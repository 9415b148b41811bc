"""Autograd around the kernels: determinism, launches, compiled forward and backward, autocast, checkpointing."""

import copy
import sys
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.checkpoint import checkpoint

from cbam_triton import CBAM, settings
from cbam_triton.testing.published import jongchan_like, timm_like

pytest.importorskip("triton")

from cbam_triton.kernels.launch import backward as gradients
from cbam_triton.kernels.launch import launcher

from .cases import FORMATS, both_formats, both_schedules, normal, of_interpreted_exp
from .checkpoints.published import randomised
from .errors import assert_as_good_as_eager, assert_gradients_as_good_as_eager, assert_same

pytestmark = [
    of_interpreted_exp,
    pytest.mark.filterwarnings("ignore:`torch.jit.script"),  # Inductor's own
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # compiled autograd's own
]


@pytest.fixture(autouse=True)
def _kernels():
    with settings(backend="triton"):
        yield


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def block(device, C=8, **options):
    """CBAM at the end of a residual block, its input and its residual."""
    module = randomised(CBAM(C, 2, kernel_size=3, activation="relu", **options)).to(device)
    x, residual = (normal((2, C, 4, 5), device=device, seed=seed).requires_grad_() for seed in (0, 1))
    return module, x, residual


def by_sum_of_squares(module, *inputs):
    """Output, and gradients of its sum of squares with respect to the inputs and all parameters."""
    y = module(*inputs)
    return y, torch.autograd.grad(y.float().square().sum(), [*inputs, *module.parameters()])


@both_schedules
@pytest.mark.parametrize("spatial_norm", [None, "batch"])
@pytest.mark.usefixtures("deterministic")
def test_deterministic_algorithms_give_the_same_bits_twice(spatial_norm, schedule, device):
    module, x, residual = block(device, spatial_norm=spatial_norm)
    with settings(schedule=schedule):
        first = by_sum_of_squares(copy.deepcopy(module), x, residual)
        assert_same(by_sum_of_squares(module, x, residual), first)
    assert all(gradient.isfinite().all() for gradient in first[1])


ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class Calls(TorchDispatchMode):
    """Names of the operators that PyTorch runs in this mode, and of the kernels that are launched in it."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.operators, self.kernels = Counter(), []
        for name in ("launch", "launch_once"):
            original = getattr(launcher, name)
            for module in [module for key, module in sys.modules.items() if key.startswith("cbam_triton.kernels.")]:
                if getattr(module, name, None) is original:
                    monkeypatch.setattr(module, name, self._recording(original))

    def _recording(self, launch):
        def recording(call, kernel, *arguments, **options):
            self.kernels.append(kernel.fn.__name__)
            with _disable_current_modes():  # the interpreter copies tensors
                launch(call, kernel, *arguments, **options)

        return recording

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operators[function.overloadpacket.__name__] += 1
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("relu", [False, True])
def test_a_backward_without_norm_is_one_memset_and_two_kernels(relu, monkeypatch, device):
    module, x, residual = block(device, spatial_norm=None)
    module.activation = "relu" if relu else None
    seen = Calls(monkeypatch)
    inside = gradients.backward

    def watched(*arguments, **options):
        seen.kernels.clear()
        with seen:
            return inside(*arguments, **options)

    monkeypatch.setattr(gradients, "backward", watched)
    with settings(schedule="wavefront"):
        by_sum_of_squares(module, x, *([residual] if relu else []))
    assert seen.kernels == ["backward_wavefront", "weight_gradients_kernel"]
    work = seen.operators - Counter(dict.fromkeys(ALLOCATIONS, 1 << 20))
    assert work.pop("new_zeros") == 1
    assert work.total() <= 4, f"small operators besides the kernels: {dict(work)}"


NCHW, CHANNELS_LAST = FORMATS
INDUCTOR = pytest.param("inductor", marks=pytest.mark.slow)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_compiled_autograd_gives_the_gradients_of_eager(backend, device):
    module, x, residual = block(device)
    _, expected = by_sum_of_squares(module, x, residual)
    leaves = [x, residual, *module.parameters()]
    loss = module(x, residual).square().sum()
    with compiled_autograd._enable(torch.compile(backend=backend, fullgraph=True)):
        loss.backward()
    assert counters["compiled_autograd"]["captures"] == 1
    assert_same([leaf.grad for leaf in leaves], expected)


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_step_with_its_backward_gives_the_gradients_of_eager(device):
    module, x, residual = block(device)
    _, expected = by_sum_of_squares(module, x, residual)

    def step():
        module(x, residual).square().sum().backward()

    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(step, backend="aot_eager")()
    assert counters["compiled_autograd"]["captures"] == 1
    assert_same([leaf.grad for leaf in (x, residual, *module.parameters())], expected)


class Graphs:
    """A compiler of graphs that keeps those of the forward and of the backward and what the forward returned."""

    def __init__(self):
        self.forward = self.backward = None
        self.inputs, self.outputs = [], []
        self.compiler = aot_autograd(
            fw_compiler=self._forward, bw_compiler=self._backward, partition_fn=min_cut_rematerialization_partition
        )

    def _forward(self, graph, example_inputs):
        self.forward = graph

        def run(inputs):
            self.inputs, self.outputs = list(inputs), graph(*inputs)
            return self.outputs

        run._boxed_call = True
        return run

    def _backward(self, graph, example_inputs):
        self.backward = graph

        def run(inputs):
            return graph(*inputs)

        run._boxed_call = True
        return run

    def saved_beyond(self, y):
        """Tensors that the forward returned and that share no memory with y or with its inputs."""
        known = {tensor.untyped_storage().data_ptr() for tensor in (*self.inputs, y) if isinstance(tensor, Tensor)}
        tensors = [tensor for tensor in self.outputs if isinstance(tensor, Tensor)]
        return [tensor for tensor in tensors if tensor.untyped_storage().data_ptr() not in known]


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    "options, memory_format",
    [
        ({"spatial_norm": None}, NCHW),
        ({"activation": "relu"}, CHANNELS_LAST),
        ({"arrangement": "spatial_first", "channel_pools": ("avg", "lse")}, NCHW),
    ],
    ids=str,
)
def test_a_compiled_graph_saves_x_and_little_else(options, memory_format, device):
    module, relu = CBAM(64, **options).to(device), "activation" in options
    x, residual = (normal((1, 64, 12, 12), memory_format=memory_format, device=device, seed=seed) for seed in (0, 1))
    inputs = [tensor.requires_grad_() for tensor in ((x, residual) if relu else (x,))]
    graphs = Graphs()
    y, found = by_sum_of_squares(torch.compile(module, backend=graphs.compiler, fullgraph=True), *inputs)
    assert found[0].stride() == x.stride()
    assert 0 < sum(tensor.nbytes for tensor in graphs.saved_beyond(y)) < 0.1 * x.nbytes
    for graph in (graphs.forward, graphs.backward):
        names = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        assert sum(count for name, count in names.items() if "cbam_triton" in name) == 1
        assert not [name for name in names if "clone" in name or "copy" in name or "convert_element_type" in name]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@both_formats
def test_inductor_trains_through_the_kernels(memory_format, device):
    module, x, residual = block(device)
    x, residual = (tensor.detach().to(memory_format=memory_format).requires_grad_() for tensor in (x, residual))
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True)
    y, found = by_sum_of_squares(compiled, x, residual)
    right, expected = by_sum_of_squares(module, x, residual)
    assert_same(y, right)
    assert y.stride() == x.stride()
    torch.testing.assert_close(found, expected)  # Inductor adds up the loss in an order of its own
    assert found[0].stride() == x.stride()


def with_convolution_flipped(gradients):
    """The published form's gradients in the layout of ours: the convolution's inputs change places."""
    x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, conv_weight, *norm = gradients
    return [x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, conv_weight.flip(1), *norm]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_under_autocast_the_layer_is_as_good_as_eager(backend, dtype, training, device):
    module = randomised(CBAM(32, 4)).to(device).train(training)
    x = normal((2, 32, 6, 5), dtype=dtype, device=device).requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    published, timm = jongchan_like(module), timm_like(module)
    exact, right = by_sum_of_squares(copy.deepcopy(published).double(), exact_x)
    with torch.autocast(device, dtype=torch.bfloat16), settings(backend=backend):
        y, found = by_sum_of_squares(module, x)
        eager, theirs = by_sum_of_squares(published, x)
        assert y.dtype == timm(x).dtype == dtype
    assert_as_good_as_eager(y, eager, exact)
    right, theirs = (with_convolution_flipped(gradients) for gradients in (right, theirs))
    assert_gradients_as_good_as_eager(found, theirs, right)


def test_kernels_ignore_autocast(device):
    module, x, residual = block(device)
    expected = by_sum_of_squares(module, x, residual)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert_same(by_sum_of_squares(module, x, residual), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("spatial_norm", [None, "batch"])
def test_checkpointing_a_residual_block_computes_the_same(spatial_norm, use_reentrant, device):
    module, x, residual = block(device, spatial_norm=spatial_norm)
    dy = normal(x.shape, device=device, seed=2)
    leaves = [x, residual, *module.parameters()]
    y = module(x, residual)
    expected = torch.autograd.grad(y, leaves, dy)
    again = checkpoint(module, x, residual, use_reentrant=use_reentrant)
    torch.testing.assert_close(again, y)  # the reentrant one's first forward is that of inference
    again.backward(dy)
    assert_same([leaf.grad for leaf in leaves], expected)
