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


def over_batch(sums: tuple[Tensor, Tensor], size: int, group: str | None) -> tuple[Tensor, Tensor]:
    """Sums (1,) over the `size` logits of this process as averages over all that the statistics are of."""
    if group is None:
        return sums[0] / size, sums[1] / size
    total = torch.cat((*sums, torch.full_like(sums[0], size)))
    dist.all_reduce(total, group=_group(group))
    first, second, count = total.split(1)
    return first / count, second / count


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
