"""Clocks: how the default and a candidate take turns, and what a second is.

`events` and `graph` time a GPU, with L2 overwritten before each call or as the call before left it. `interpreter` takes
the CPU time of Triton's interpreter: it says nothing of a GPU. `stub` launches nothing that it times: a formula of the
candidate with seeded noise, to try the lab itself.
"""

from __future__ import annotations

import math
import random
import time
import zlib
from collections.abc import Callable
from typing import Any

import torch

from cbam_triton.kernels.launch import grid
from cbam_triton.kernels.launch.candidate import Candidate
from cbam_triton.kernels.launch.problem import Problem

CLOCKS = ("events", "graph", "interpreter", "stub")
CACHES = ("cold", "warm")
_REPLAYS = 10  # calls in a graph

Reading = Callable[[], float]  # seconds of one call


def race(one: Reading, other: Reading, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of both, round by round, each first in every second round."""
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            times[which].append((one, other)[which]())
    return times


def reading(clock: str, cache: str, device: torch.device, call: Callable[[], Any]) -> Reading:
    """Seconds of one call by a clock that runs calls."""
    call()
    if clock == "interpreter":
        return lambda: _cpu_seconds(call)
    module = torch.get_device_module(device)
    flush = torch.empty(256 << 20, dtype=torch.int8, device=device) if cache == "cold" else None
    repeat, run = 1, call
    if clock == "graph":
        graph = torch.cuda.CUDAGraph()
        repeat = 1 if cache == "cold" else _REPLAYS
        with torch.cuda.graph(graph):
            for _ in range(repeat):
                call()
        run = graph.replay

    def once() -> float:
        begin, end = module.Event(enable_timing=True), module.Event(enable_timing=True)
        if flush is not None:
            flush.zero_()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeat

    return once


def stub(candidate: Candidate, problem: Problem, seed: int) -> Reading:
    """A made-up GPU of 100 SMs: waves of programs, and bytes in flight; 2 % of noise."""
    sizes, warps = candidate.tiles._asdict(), candidate.tiles.num_warps
    slots = 100 * max(1, 32 // warps)
    stages = (grid.pool_tiles(problem, sizes), grid.spatial_tiles(problem, sizes), grid.apply_tiles(problem, sizes))
    values = problem.N * problem.C * problem.P
    seconds = 2e-6 * len(stages) if candidate.schedule == "staged" else 8e-6
    for tiles in stages:
        programs = max(1, problem.N * tiles)
        in_flight = min(1.0, min(programs, slots) * warps / 1600)
        seconds += math.ceil(programs / slots) * 4e-7 + values * problem.itemsize / (2e12 * in_flight)
    noise = random.Random(zlib.crc32(f"{candidate} {seed}".encode()))
    return lambda: seconds * noise.gauss(1.0, 0.02)


def _cpu_seconds(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin
