"""One process or several, as torchrun starts them: who this one is, on which device, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cbam_triton.demo.options import InputError, device_of


class Processes(NamedTuple):
    """This process among `count`: its number, 0 for the one that writes, and its device."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over the processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def gathered(self, value: Any) -> list[Any]:
        """What each process gave, in their order, in every process."""
        if self.count == 1:
            return [value]
        found = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def share_buffers(self, *modules: nn.Module | None) -> None:
        """Statistics of norms become those of the first process everywhere: it measures and saves with them."""
        if self.count > 1:
            for module in modules:
                for buffer in module.buffers() if module is not None else ():
                    dist.broadcast(buffer, 0)


def rank() -> int:
    """The number of this process by torchrun's variable, before any group is made."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def started(name: str | None) -> Iterator[Processes]:
    """The group of the processes that torchrun started, gloo on CPUs and NCCL on CUDA; none for a single process.

    Raises: InputError for a device that is not there.
    """
    count, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    device = device_of(name)
    if device.type != "cpu":
        if count > 1 and local >= torch.accelerator.device_count():
            raise InputError(
                f"process {local} of this machine has no {device.type} device of its own, there are "
                f"{torch.accelerator.device_count()}: start fewer by --nproc-per-node, or give --device cpu"
            )
        device = torch.device(device.type, local) if count > 1 or device.index is None else device
        torch.accelerator.set_device_index(device.index)
    if count > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo" if device.type == "cpu" else None)
    try:
        yield Processes(rank(), count, device)
    finally:
        if count > 1:
            dist.destroy_process_group()
