"""How two ways to compute the same thing are compared: the error rule, and interleaved timing on any device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import floor, isfinite, log2
from statistics import median, quantiles
from typing import NamedTuple

import torch
from torch import Tensor


class Agreement(NamedTuple):
    """Largest errors against fp64, this one's and eager's at the same dtype, and one ulp of the result's scale."""

    error: float
    eager_error: float
    ulp: float

    @property
    def ok(self) -> bool:
        """At most twice eager's own error plus one ulp; a NaN on one side only never agrees."""
        return self.error <= 2 * self.eager_error + self.ulp

    @property
    def ratio(self) -> float:
        """Error over eager's error; over one ulp where eager is exact."""
        return self.error / (self.eager_error or self.ulp)


def worst_error(got: Tensor, want: Tensor) -> float:
    """Largest |got - want| in fp64; infinite where one is NaN or infinite and the other is not the same."""
    return _distance(got, want).max().item() if want.numel() else 0.0


def _distance(got, want):
    got = got.double()
    distance = torch.where((got == want) | (got.isnan() & want.isnan()), 0.0, (got - want).abs())
    return distance.nan_to_num(nan=float("inf"))


def agreement(got: Tensor, eager: Tensor, want: Tensor) -> Agreement:
    """Compare a result and eager's, both of one dtype, with the fp64 result `want`."""
    scale = want.abs().max().item() if want.numel() else 0.0
    exponent = floor(log2(scale)) if scale > 0 and isfinite(scale) else 0
    ulp = torch.finfo(got.dtype).eps * 2.0**exponent
    return Agreement(worst_error(got, want), worst_error(eager, want), ulp)


def gradient_agreement(
    got: Mapping[str, Tensor],
    eager: Mapping[str, Tensor],
    want: Mapping[str, Tensor],
    eager_want: Mapping[str, Tensor] | None = None,
) -> Agreement:
    """The worst of comparisons of gradients by the first word of their names, such as `x`, `channel.` and `spatial.`.

    Errors are root mean squares, each tensor's on the scale of its largest exact value: an arg-max that rounding moves
    moves single values, and a parameter of one number is as near to the exact one as luck has it. Eager's are those
    from `eager_want`, if its exact gradients are others.
    """
    parts = dict.fromkeys(name.partition(".")[0] for name in want)
    found = []
    for part in parts:
        names = [name for name in want if name.partition(".")[0] == part]
        eps = max(torch.finfo(got[name].dtype).eps for name in names)
        own = _rms_error(eager, want if eager_want is None else eager_want, names)
        found.append(Agreement(_rms_error(got, want, names), own, eps))
    return max(found, key=lambda one: (not one.ok, one.ratio))


def _rms_error(got, want, names):
    scaled = [_distance(got[name], want[name]).flatten() / (want[name].abs().max().item() or 1.0) for name in names]
    return torch.cat(scaled).square().mean().sqrt().item()


class Timing(NamedTuple):
    """Seconds a call: the median of interleaved rounds and the distance of its quartiles."""

    median: float
    spread: float

    @property
    def noisy(self) -> bool:
        """Whether the quartiles lie more than a quarter of the median apart."""
        return self.spread > self.median / 4


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
