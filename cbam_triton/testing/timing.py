"""Interleaved timing on any device, and torch.compile where it may fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles
from typing import NamedTuple

import torch
from torch import Tensor


class Timing(NamedTuple):
    """Seconds a call: the median of interleaved rounds and the distance of its quartiles."""

    median: float
    spread: float

    @property
    def noisy(self) -> bool:
        """Whether the quartiles lie more than a quarter of the median apart."""
        return self.spread > self.median / 4

    def over(self, other: Timing) -> float | None:
        """How many times as long the other takes; no number where either is noisy."""
        return None if self.noisy or other.noisy else other.median / self.median


def interleaved(
    calls: Mapping[str, Callable[[], object]], device: torch.device, *, seconds: float, most_rounds: int = 200
) -> dict[str, Timing]:
    """Time every call once a round, round after round, so that ratios belong to one run.

    At least five rounds, then as many as fit in `seconds`. On an accelerator a buffer larger than L2 is overwritten
    before every call and events are read after the last.
    """
    once = _on_host if device.type == "cpu" else _on_accelerator(device)
    for call in calls.values():
        call()
    rounds: dict[str, list] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while len(next(iter(rounds.values()))) < 5 or time.perf_counter() < end:
        for name, call in calls.items():
            rounds[name].append(once(call))
        if len(next(iter(rounds.values()))) >= most_rounds:
            break
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
    return {name: _timing([read() for read in reads]) for name, reads in rounds.items()}


def _timing(seconds: list[float]) -> Timing:
    first, _, third = quantiles(seconds, n=4)
    return Timing(median(seconds), third - first)


def _on_host(call):
    begin = time.perf_counter()
    call()
    took = time.perf_counter() - begin
    return lambda: took


def _on_accelerator(device):
    module = torch.get_device_module(device)
    flush = torch.empty(256 << 20, dtype=torch.int8, device=device)

    def once(call):
        begin, end = module.Event(enable_timing=True), module.Event(enable_timing=True)
        flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return lambda: begin.elapsed_time(end) / 1e3

    return once


class CompileFailed(Exception):
    """torch.compile could not compile or run the module here; the message is one line."""


def compiled(module: torch.nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """`torch.compile(module)`, compiled for x by one call, and by its backward pass where the result needs one."""
    torch.compiler.reset()
    function = torch.compile(module, fullgraph=True)
    try:
        y = function(x)
        if y.requires_grad:
            torch.autograd.grad(y, [tensor for tensor in (x, *module.parameters()) if tensor.requires_grad], y)
    except Exception as error:  # Whatever the machine's compiler raises: none of it may end the caller's table.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CompileFailed(f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]) from error
    return function
