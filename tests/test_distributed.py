"""Data parallel training: two processes on parts of a batch end where one process on the whole batch ends.

PyTorch's SyncBatchNorm refuses tensors of a CPU as soon as there is a process group; the kernels take them. A norm of
this file's own, a subclass of `nn.BatchNorm2d` that adds up its statistics over the processes, stands for any norm of
users that communicates.
"""

import copy
import os
from datetime import timedelta
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cbam_triton import CBAM, settings, tuning
from cbam_triton.kernels.launch import tables
from cbam_triton.spec.norms import asked, group_of

from .cases import normal, of_interpreted_exp
from .checkpoints.published import randomised
from .errors import assert_same
from .interpreter import patch_once_a_kernel

PROCESSES, SAMPLES = 2, 4


class Case(NamedTuple):
    """How the processes train: norm of the spatial gate, samples of the first process, whether in kernels."""

    norm: str | None
    first: int = 2
    kernels: bool = True
    options: dict = {}  # noqa: RUF012, of the layer
    compiled: bool = False
    momentum: float | None = 0.1
    affine: bool = True


CASES = {
    "no norm, reference": Case(None, kernels=False),
    "no norm": Case(None),
    "a user's norm": Case("user", kernels=False),
    "synced, parts that differ, cumulative": Case("synced", first=1, momentum=None),
    "synced, one part empty, not affine, ReLU": Case("synced", 0, affine=False, options={"activation": "relu"}),
    "synced, spatial first": Case("synced", first=3, options={"arrangement": "spatial_first"}),
    "synced, compiled": Case("synced", compiled=True),
}

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this PyTorch has no gloo: no processes on a CPU"
)


class _Total(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, tensor):
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _Total.forward(ctx, gradient)


class SyncedBatchNorm(nn.BatchNorm2d):
    """A batch norm of one channel by the statistics of all processes together."""

    def forward(self, z):
        if not self.training:
            return super().forward(z)
        count = z.numel() * dist.get_world_size()
        mean = _Total.apply(z.mean()) / dist.get_world_size()
        var = _Total.apply((z - mean).square().sum()) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        return (z - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias


def with_norm(layer, case, synced):
    """The layer with the case's norm, over the processes or plain."""
    if case.norm is None:
        return layer
    state = layer.spatial.norm.state_dict() if case.affine else {}
    norm = SyncedBatchNorm if synced and case.norm == "user" else nn.BatchNorm2d
    layer.spatial.norm = norm(1, momentum=case.momentum, affine=case.affine)
    layer.spatial.norm.load_state_dict(state, strict=case.affine)
    return layer


class Net(nn.Module):
    """A convolution, CBAM and a linear layer, in float64; `gradient` names what the layer's gradient is computed by."""

    def __init__(self, case, synced, device):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        norm = None if case.norm is None else "batch"
        layer = randomised(CBAM(8, 2, kernel_size=3, spatial_norm=norm, **case.options))
        self.attention = with_norm(layer, case, synced)
        self.linear = nn.Linear(8, 4)
        for layer in (self.conv, self.linear):
            for parameter in layer.parameters():
                parameter.data.normal_(std=0.3, generator=generator)
        self.to(device, torch.float64)

    def forward(self, images):
        refined = self.attention(self.conv(images))
        self.gradient = type(refined.grad_fn).__name__
        return self.linear(F.relu(refined).mean((2, 3)))


def trained(net, model, part, processes=1):
    """`net`'s state after two steps of `model`, which is or wraps it, on `part` of a batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    device = next(net.parameters()).device
    for step in range(2):
        images = normal((SAMPLES, 3, 6, 7), dtype=torch.float64, device=device, seed=step)[part]
        labels = torch.tensor([1, 3, 0, 2], device=device)[part]
        optimizer.zero_grad()
        # DistributedDataParallel takes the mean of the processes' gradients.
        (F.cross_entropy(model(images), labels, reduction="sum") * (processes / SAMPLES)).backward()
        optimizer.step()
    return {name: tensor.cpu() for name, tensor in net.state_dict().items()}


def of_penalty(layer, x):
    """Gradients of a function of the gradient of x."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    return torch.autograd.grad(first.sin().sum(), x)[0].detach()


def far_from_zero(layer):
    """The layer with logits around 4096, whose squares hide the variance from float32."""
    with torch.no_grad():
        layer.spatial.conv.bias.fill_(4096.0)
    return layer


def small(device, synced, dtype=torch.float64, **options):
    """A layer whose norm is plain or synced."""
    layer = randomised(CBAM(8, 2, kernel_size=3, **options)).to(device, dtype)
    return nn.SyncBatchNorm.convert_sync_batchnorm(layer) if synced else layer


def one_of_two(rank, folder, device):
    """What one process does: train every case on its part of the batch and leave the results in a file."""
    torch.set_num_threads(1)
    if os.environ.get("TRITON_INTERPRET") == "1":
        patch_once_a_kernel()
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60))
    alone = [dist.new_group([of]) for of in range(PROCESSES)]
    results = {}
    for name, case in CASES.items():
        net = Net(case, True, device)
        if case.compiled:
            net.attention.compile(backend="aot_eager", fullgraph=True)
        model = DistributedDataParallel(net)
        if case.norm == "synced":  # after the wrapper, which refuses it on a CPU
            nn.SyncBatchNorm.convert_sync_batchnorm(net)
        part = slice(0, case.first) if rank == 0 else slice(case.first, SAMPLES)
        with settings(backend="reference" if name.endswith("reference") else "triton"):
            results[name] = trained(net, model, part, PROCESSES), net.gradient
    half = slice(2 * rank, 2 * rank + 2)
    with settings(backend="triton"):
        results["second"] = of_penalty(small(device, True), normal((4, 8, 4, 5), dtype=torch.float64)[half].to(device))
        far = far_from_zero(small(device, True, torch.float32, conv_bias=True))
        far(normal((4, 8, 4, 5))[half].to(device))
        results["far"] = far.spatial.norm.running_var.cpu()
        norm = nn.SyncBatchNorm(1, process_group=alone[rank])
        results["alone"] = asked(norm, torch.zeros(1, 8, 2, 2))[0], group_of(norm)
    tables.use(tables.Table("any", {}, f"the table of {rank}"))
    tuning.sync()
    used = tables.used()
    results["table"] = None if used is None else used.name
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory, device):
    """Each process's results of every case, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(one_of_two, (folder, device), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@needs_gloo
@of_interpreted_exp
@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_where_one_ends(name, of_two_processes, device):
    case = CASES[name]
    net = Net(case, False, device)
    start = copy.deepcopy(net.state_dict())
    with settings(backend="reference"):
        expected = trained(net, net, slice(None))
    for state, gradient in (results[name] for results in of_two_processes):
        assert case.compiled or ("cbam_training" in gradient) == case.kernels
        torch.testing.assert_close(state, expected, rtol=1e-11, atol=1e-13)
    assert_same(of_two_processes[0][name][0], of_two_processes[1][name][0])
    for key, before in start.items():
        moved = (expected[key] - before.cpu()).abs().max()
        assert moved > 1e-4, f"{key} did not learn: the test would see nothing"


@needs_gloo
def test_a_gradient_of_the_gradient_passes_the_synced_norm(of_two_processes, device):
    with settings(backend="reference"):
        expected = of_penalty(small(device, False), normal((4, 8, 4, 5), dtype=torch.float64).to(device)).cpu()
    found = torch.cat([results["second"].cpu() for results in of_two_processes])
    torch.testing.assert_close(found, expected)


@needs_gloo
def test_the_variance_of_logits_far_from_zero_is_exchanged_without_loss(of_two_processes, device):
    layer = far_from_zero(small(device, False, torch.float32, conv_bias=True))
    with settings(backend="reference"):
        layer(normal((4, 8, 4, 5)).to(device))
    for results in of_two_processes:
        torch.testing.assert_close(results["far"], layer.spatial.norm.running_var.cpu(), rtol=1e-3, atol=0.0)


@needs_gloo
def test_a_synced_norm_of_a_group_of_one_is_a_plain_batch_norm(of_two_processes):
    assert [results["alone"] for results in of_two_processes] == [("batch", None)] * PROCESSES


@of_interpreted_exp
def test_without_processes_a_synced_norm_trains_in_the_kernels_as_a_plain_one(device):
    layer = randomised(CBAM(8, 2, kernel_size=3)).to(device, torch.float64)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    x = normal((2, 8, 4, 5), dtype=torch.float64, device=device)
    with settings(backend="triton"):
        y = synced(x)
    with settings(backend="reference"):
        expected = layer(x)
    assert "cbam_training" in type(y.grad_fn).__name__
    torch.testing.assert_close(y, expected)
    dy = normal(x.shape, dtype=torch.float64, device=device, seed=1)
    found = torch.autograd.grad(y, list(synced.parameters()), dy)
    torch.testing.assert_close(found, torch.autograd.grad(expected, list(layer.parameters()), dy))
    torch.testing.assert_close(synced.state_dict(), layer.state_dict())


@needs_gloo
@of_interpreted_exp
def test_all_processes_use_the_table_of_the_first(of_two_processes):
    assert [results["table"] for results in of_two_processes] == ["the table of 0"] * PROCESSES
