"""Data parallel training: two processes on halves of a batch end where one process on the whole batch ends.

PyTorch's SyncBatchNorm refuses tensors of a CPU as soon as there is a process group, so a norm of this file's own, a
subclass of `nn.BatchNorm2d` that adds up its statistics over the processes, stands for it and for any norm of users.
"""

import copy
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cbam_triton import CBAM, settings

from .cases import normal, of_interpreted_exp
from .errors import assert_same
from .published import randomised

PROCESSES = 2
# Backend of the library, norm of the spatial gate; which of them must run in kernels.
CASES = {("reference", "none"): False, ("triton", "none"): True, ("triton", "synced"): False}

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


class Net(nn.Module):
    """A convolution, CBAM and a linear layer, in float64; `gradient` names what the layer's gradient is computed by."""

    def __init__(self, norm, synced, device):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3)
        self.attention = randomised(CBAM(8, 2, kernel_size=3, spatial_norm=None if norm == "none" else "batch"))
        if norm == "synced" and synced:
            state = self.attention.spatial.norm.state_dict()
            self.attention.spatial.norm = SyncedBatchNorm(1)
            self.attention.spatial.norm.load_state_dict(state)
        self.linear = nn.Linear(8, 4)
        for layer in (self.conv, self.linear):
            for parameter in layer.parameters():
                parameter.data.normal_(std=0.3, generator=generator)
        self.to(device, torch.float64)

    def forward(self, images):
        refined = self.attention(self.conv(images))
        self.gradient = type(refined.grad_fn).__name__
        return self.linear(F.relu(refined).mean((2, 3)))


def trained(net, model, part):
    """`net`'s state after three steps of `model`, which is or wraps it, on `part` of a batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    device = next(net.parameters()).device
    for step in range(3):
        images = normal((4, 3, 6, 7), dtype=torch.float64, device=device, seed=step)[part]
        labels = torch.tensor([1, 3, 0, 2], device=device)[part]
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return {name: tensor.cpu() for name, tensor in net.state_dict().items()}


def one_of_two(rank, folder, device):
    """What one process does: train every case on its half of the batch and leave the results in a file."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES, timeout=timedelta(seconds=60))
    half = slice(2 * rank, 2 * rank + 2)
    results = {}
    for backend, norm in CASES:
        net = Net(norm, True, device)
        with settings(backend=backend):
            results[backend, norm] = trained(net, DistributedDataParallel(net), half), net.gradient
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
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_two_processes_end_where_one_ends(case, of_two_processes, device):
    net = Net(case[1], False, device)
    start = copy.deepcopy(net.state_dict())
    with settings(backend="reference"):
        expected = trained(net, net, slice(None))
    for state, gradient in (results[case] for results in of_two_processes):
        assert ("cbam_training" in gradient) == CASES[case]
        torch.testing.assert_close(state, expected, rtol=1e-11, atol=1e-13)
    assert_same(of_two_processes[0][case][0], of_two_processes[1][case][0])
    for name, before in start.items():
        moved = (expected[name] - before.cpu()).abs().max()
        assert moved > 1e-4, f"{name} did not learn: the test would see nothing"


@of_interpreted_exp
def test_sync_batch_norm_trains_by_the_reference_and_not_by_kernels(device):
    layer = randomised(CBAM(8, 2, kernel_size=3)).to(device, torch.float64)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    x = normal((2, 8, 4, 5), dtype=torch.float64, device=device)
    with settings(backend="triton"):
        y, expected = synced(x), layer(x)
    assert "cbam_training" not in type(y.grad_fn).__name__
    assert "cbam_training" in type(expected.grad_fn).__name__
    torch.testing.assert_close(y, expected)
    dy = normal(x.shape, dtype=torch.float64, device=device, seed=1)
    found = torch.autograd.grad(y, list(synced.parameters()), dy)
    torch.testing.assert_close(found, torch.autograd.grad(expected, list(layer.parameters()), dy))
    torch.testing.assert_close(synced.state_dict(), layer.state_dict())
