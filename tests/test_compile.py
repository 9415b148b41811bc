"""torch.compile: one graph, one compilation for every batch size, the same numbers as eager."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from cbam_triton import CBAM, settings

from .checkpoints.published import randomised


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend, training, memory_format", [
    ("auto", False, torch.channels_last), ("auto", True, torch.contiguous_format),
    ("reference", False, torch.contiguous_format), ("reference", True, torch.channels_last),
])  # fmt: skip
def test_one_graph_serves_every_batch_size(backend, training, memory_format, device):
    layer = randomised(CBAM(16)).to(device).train(training)
    twin = randomised(CBAM(16)).to(device).train(training)
    counter = CompileCounter()
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    with settings(backend=backend), torch.set_grad_enabled(training):
        for n in (2, 3, 5):
            x = torch.randn(n, 16, 3, 4, device=device).to(memory_format=memory_format)
            torch.testing.assert_close(compiled(x), twin(x))
    assert counter.frame_count == 1


def test_a_batch_size_seen_second_makes_the_graph_dynamic(device):
    layer = CBAM(16).to(device).eval()
    counter = CompileCounter()
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    with torch.no_grad():
        for n in (2, 3, 4):
            compiled(torch.randn(n, 16, 3, 4, device=device))
    assert counter.frame_count == 2


def test_a_changed_setting_compiles_anew(device):
    layer = CBAM(16).to(device).eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(2, 16, 6, 5, device=device)
    with torch.no_grad():
        for backend in ("auto", "reference", "auto", "reference"):
            with settings(backend=backend):
                compiled(x)
    assert counter.frame_count == 2


def test_attention_maps_compile_in_one_graph(device):
    layer = randomised(CBAM(16)).to(device).eval()
    x = torch.randn(2, 16, 6, 5, device=device)
    with torch.no_grad():
        maps = torch.compile(layer.attention_maps, backend="eager", fullgraph=True)(x)
        for found, expected in zip(maps, layer.attention_maps(x), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # Inductor's own
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_compiled_training_has_no_nan_in_any_gradient(dtype):
    layer = randomised(CBAM(16)).to(dtype)
    twin = randomised(CBAM(16)).double()
    x = torch.randn(2, 16, 6, 5, generator=torch.Generator().manual_seed(0)).relu().to(dtype).requires_grad_()
    y = x.detach().double().requires_grad_()
    with settings(backend="reference"):
        torch.compile(layer, fullgraph=True)(x).sum().backward()
        twin(y).sum().backward()
    scale = y.grad.square().mean().sqrt().item()
    assert (x.grad.double() - y.grad).square().mean().sqrt().item() < 30 * torch.finfo(dtype).eps * scale
    assert all(p.grad.isfinite().all() for p in layer.parameters())
