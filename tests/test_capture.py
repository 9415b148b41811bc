"""A call after the first can be captured in a CUDA graph: the host waits for nothing and times nothing."""

import time

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from cbam_triton import CBAM, settings, tuning
from cbam_triton.kernels.launch.prepared import Launch

from .cases import SCHEDULES, normal
from .errors import assert_same

SHAPE = (2, 16, 6, 5)
ALLOCATE = {"empty", "empty_like", "empty_strided", "zeros", "zero_", "new_empty", "new_zeros", "new_empty_strided"}
SPLIT = {"split", "split_with_sizes", "unsafe_split"}
VIEW = {"as_strided", "alias", "detach", "view", "slice", "select", "permute"} | SPLIT


class Watch(TorchDispatchMode):
    """Collects the names of PyTorch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name().split(".")[0])
        return func(*args, **(kwargs or {}))


def small(device, training):
    torch.manual_seed(0)
    return nn.Sequential(CBAM(SHAPE[1], 4)).to(device).train(training)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("training", [False, True])
def test_a_call_after_the_first_only_allocates_and_launches(training, schedule, device, monkeypatch):
    model, launches = small(device, training), []
    model.requires_grad_(training)
    if training:  # a norm's running statistics are a few operators of PyTorch's
        model[0].spatial.norm.track_running_stats = False
        model[0].spatial.norm.running_mean = model[0].spatial.norm.running_var = None
    monkeypatch.setattr(Launch, "__call__", lambda self, arguments: launches.append(self))

    def step(x):
        y = model(x)
        if training:
            torch.autograd.grad(y, list(model.parameters()), torch.ones_like(y))

    with settings(backend="triton", schedule=schedule):
        step(normal(SHAPE, device=device))
        x, before = normal(SHAPE, seed=1, device=device), len(launches)

        def never(*arguments, **options):
            raise AssertionError("a warm call synchronised or read a clock")

        for owner, name in ((torch.cuda, "synchronize"), (time, "perf_counter"), (time, "time"), (time, "monotonic")):
            monkeypatch.setattr(owner, name, never)
        with Watch() as seen:
            step(x)
        monkeypatch.undo()
    assert len(launches) - before == before > 0
    foreign = {name.removeprefix("aten::") for name in seen.names if not name.startswith("cbam_triton::")}
    assert foreign - {"ones_like", "fill_"} <= ALLOCATE | VIEW


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures on a GPU")
@pytest.mark.parametrize("training", [False, True])
def test_a_captured_call_gives_the_bits_of_an_eager_one(training, device):
    model = small(device, training).eval()
    x = normal(SHAPE, device=device).requires_grad_(training)
    tuning.warmup(model, [SHAPE], training=training)

    def step():
        y = model(x)
        return [y, *(torch.autograd.grad(y.square().sum(), [x, *model.parameters()]) if training else ())]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.set_grad_enabled(training):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.set_grad_enabled(training), torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        with torch.no_grad():
            x.copy_(normal(SHAPE, seed=seed, device=device))
        graph.replay()
        with torch.set_grad_enabled(training):
            for found, expected in zip(captured, step(), strict=True):
                assert_same(found, expected)
