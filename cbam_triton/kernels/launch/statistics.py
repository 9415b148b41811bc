"""Statistics of the logits: those of this process's batch, or of the batches of all processes of a group.

An exchange is one all-reduce. Every process of the group takes part in it, also one whose batch is empty.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def mean_and_variance(z: Tensor, group: str | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean and biased variance (1,) of all logits; with a group also how many there are, (1,).

    Each process puts its count, mean and variance into a row of a table. The rows are added up as Chan, Golub and
    LeVeque do (1983): a difference of sums of squares would lose the variance of logits far from zero.
    """
    if group is None:
        var, mean = torch.var_mean(z.view(1, -1), 1, correction=0)
        return mean, var, None
    processes = _group(group)
    table = z.new_zeros((dist.get_world_size(processes), 3))
    if z.numel() > 0:
        var, mean = torch.var_mean(z, correction=0)
        table[dist.get_rank(processes)] = torch.stack((torch.full_like(mean, z.numel()), mean, var))
    dist.all_reduce(table, group=processes)
    counts, means, variances = table.unbind(1)
    count = counts.sum(0, keepdim=True)
    mean = (counts * means).sum(0, keepdim=True) / count
    var = (counts * (variances + (means - mean).square())).sum(0, keepdim=True) / count
    return mean, var, count


def over_batch(sums: Tensor, size: int, group: str) -> Tensor:
    """Two sums (2,) over the `size` logits of this process as averages over all that the statistics are of."""
    total = torch.cat((sums, sums.new_full((1,), size)))
    dist.all_reduce(total, group=_group(group))
    return total[:2] / total[2]


def total(tensor: Tensor, group: str) -> Tensor:
    """The sum over all processes, with a gradient of any order: it is the sum of theirs."""
    return _Total.apply(tensor, group)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: str) -> Tensor:
        ctx.group = group
        added = tensor.clone()
        dist.all_reduce(added, group=_group(group))
        return added

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return total(gradient, ctx.group), None


def _group(name: str) -> dist.ProcessGroup:
    # Operators take names of groups; those of PyTorch find the group in the same way.
    resolve: Any = dist.distributed_c10d._resolve_process_group  # pyright: ignore[reportPrivateImportUsage]
    return resolve(name)
