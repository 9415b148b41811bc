"""`python -m bench device`: a GPU's own ceilings, as the device file that `predict` takes.

DRAM's bandwidth is that of a copy, L2's that of reading; a partitioned L2 is not told apart into near and far. Times
are medians of launches by events on the GPU. Each number is the difference of two lengths of the same work, so what a
launch costs is in none of them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cbam_triton.demo.options import InputError, device_of, folder_of
from cbam_triton.kernels.launch import hardware, tables
from cbam_triton.prediction.devices import Gpu

SUMMARY = "Measure a GPU: bandwidth and latency of DRAM and L2, what L2 holds, the gap between launches, an atomic."
_LINE = 128  # bytes


class Sizes(NamedTuple):
    """How much is read and how long chains are; less for a test."""

    dram: int = 1 << 30  # bytes that no cache holds
    dram_lines: int = 1 << 21  # of a chain through DRAM
    l2_lines: int = 1 << 13  # and through L2
    steps: int = 1 << 12
    launches: int = 100
    rounds: int = 256  # over what L2 holds: milliseconds, where a launch costs microseconds


@triton.jit(do_not_specialize=["SIZE", "ROUNDS"])
def read_kernel(x_ptr, out_ptr, SIZE, ROUNDS, BLOCK: tl.constexpr):
    """The sum of a vector, read so many times."""
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(ROUNDS):
        for begin in range(tl.program_id(0) * BLOCK, SIZE, tl.num_programs(0) * BLOCK):
            i = begin + tl.arange(0, BLOCK)
            total += tl.load(x_ptr + i, mask=i < SIZE, other=0.0, cache_modifier=".cg")
    tl.store(out_ptr + tl.program_id(0), tl.sum(total, 0))


@triton.jit(do_not_specialize=["STEPS"])
def chase_kernel(next_ptr, place_ptr, STEPS):
    """A chain of loads, each at the place that the one before gave, from where the launch before ended."""
    i = tl.load(place_ptr)
    for _ in range(STEPS):
        i = tl.load(next_ptr + i, cache_modifier=".cg")
    tl.store(place_ptr, i)


@triton.jit(do_not_specialize=["STEPS"])
def atomic_kernel(counter_ptr, STEPS):
    """A chain of atomic additions to one word, each at an address that depends on the one before."""
    before = tl.atomic_add(counter_ptr, 1)
    for _ in range(STEPS):
        before = tl.atomic_add(counter_ptr + (before < 0).to(tl.int32), 1)


@triton.jit
def empty_kernel(counter_ptr):
    """A launch that does nothing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench device`."""
    parser.add_argument("--device", default=None, help="torch device (default: the GPU)")
    parser.add_argument("--out", type=Path, default=Path("device.json"), help="default: %(default)s")


def main(arguments: argparse.Namespace) -> int:
    """Measure, print a line for each number, write the device file."""
    device = device_of(arguments.device)
    if device.type == "cpu":
        raise InputError("needs a GPU, and there is none here: a device file may also be written by hand")
    if hardware.interpreted():
        raise InputError("the interpreter's times say nothing of a GPU: unset TRITON_INTERPRET")
    folder_of(str(arguments.out.parent), (arguments.out.name,), option="--out")
    with torch.get_device_module(device).device(device):  # Triton launches on the current one
        found = measured(device, facts_of(device), Sizes())
    print(f"{found['name']}, torch {torch.__version__}, triton {triton.__version__}, measured")
    print("\n".join(f"  {name:<14}{value}" for name, value in found.items() if name != "name"))
    row = {name: value for name, value in found.items() if name in Gpu._fields}
    tables.write_whole(arguments.out, json.dumps(row, indent=1) + "\n")
    print(f"Wrote {arguments.out}.")
    return 0


def facts_of(device: torch.device) -> dict[str, Any]:
    """What the driver says of a GPU: name, architecture, SMs, their clock, their threads, MiB of L2."""
    from triton.runtime import driver

    known = torch.cuda.get_device_properties(device)
    clock = driver.active.utils.get_device_properties(torch.get_device_module(device).current_device())[
        "sm_clock_rate"
    ]  # kHz
    amd = getattr(known, "gcnArchName", "").partition(":")[0]
    return {
        "name": known.name,
        "architecture": amd if torch.version.hip else f"sm_{known.major}{known.minor}",
        "sms": known.multi_processor_count,
        "clock_ghz": round(clock * 1e-6, 3),
        "l2_mib": hardware.facts(device).l2_bytes / (1 << 20),
        "threads": known.max_threads_per_multi_processor,
    }


def measured(device: torch.device, facts: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """The facts, and what is measured: GB/s, ns, the share of L2 that holds what is read again, us."""
    l2_bytes = int(facts["l2_mib"] * (1 << 20))
    read = read_gbs(device, facts["sms"], sizes.dram, 1)
    l2 = read_gbs(device, facts["sms"], min(l2_bytes // 4, sizes.dram), sizes.rounds)
    shares = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    speeds = [read_gbs(device, facts["sms"], min(int(share * l2_bytes), sizes.dram), sizes.rounds) for share in shares]
    held = [share for share, speed in zip(shares, speeds, strict=True) if speed > (l2 + read) / 2]
    counter = torch.zeros(1, dtype=torch.int32, device=device)

    gap = _gap(lambda: empty_kernel[(1,)](counter), device, sizes.launches)
    graph = _gap(lambda: empty_kernel[(1,)](counter), device, sizes.launches, captured=True)
    return {
        **facts,
        "dram_gbs": max(round(copy_gbs(device, sizes.dram), 1), 0.1),
        "read_gbs": round(read, 1),
        "l2_gbs": max(round(l2, 1), 0.1),
        "l2_share": max(held, default=shares[0]),
        "l2_ns": round(_chain_ns(device, sizes.l2_lines, sizes.steps), 1),
        "dram_ns": round(_chain_ns(device, sizes.dram_lines, sizes.steps), 1),
        "launch_us": round(max(graph, 0.01), 2),
        "stream_us": round(gap, 2),
        "atomic_ns": round(
            _slope(lambda steps: atomic_kernel[(1,)](counter, steps, num_warps=1), device, sizes.steps), 1
        ),
    }


def copy_gbs(device: torch.device, size: int) -> float:
    """GB/s of PyTorch's copy of so many bytes, read and written."""
    x = torch.ones(max(1024, size // 4), device=device)
    out = torch.empty_like(x)

    def copies(count: int) -> None:
        for _ in range(count):
            out.copy_(x)

    return 2 * x.nbytes / _slope(copies, device, 2)


def read_gbs(device: torch.device, sms: int, size: int, rounds: int) -> float:
    """GB/s of reading so many bytes over and over."""
    x = torch.ones(max(1024, size // 4), device=device)
    out = torch.empty(8 * sms, device=device)
    return x.nbytes / _slope(lambda n: read_kernel[(8 * sms,)](x, out, x.numel(), n, BLOCK=1024), device, rounds)


def _chain_ns(device: torch.device, lines: int, steps: int) -> float:
    """Nanoseconds of a load in a chain through so many lines of 128 bytes.

    All lines are walked once, then each launch goes on where the one before ended: what it meets was read longest ago.
    """
    ring = cycle(lines).to(device)
    place = torch.zeros(1, dtype=torch.int32, device=device)
    chase_kernel[(1,)](ring, place, lines, num_warps=1)
    return _slope(lambda n: chase_kernel[(1,)](ring, place, n, num_warps=1), device, steps)


def cycle(lines: int) -> Tensor:
    """int32, one element a line: at each the place of the next, through all lines in a seeded order and back."""
    order = torch.randperm(lines, generator=torch.Generator().manual_seed(0), dtype=torch.int64) * (_LINE // 4)
    ring = torch.zeros(lines * (_LINE // 4), dtype=torch.int32)
    ring[order] = order.roll(-1).to(torch.int32)
    return ring


def _slope(launch: Callable[[int], Any], device: torch.device, steps: int) -> float:
    """Nanoseconds a step: the difference of launches of `steps` and of twice as many."""
    short, long = (_seconds(lambda n=n: launch(n), device) for n in (steps, 2 * steps))
    return max(1e9 * (long - short) / steps, 0.1)


def _gap(launch: Callable[[], Any], device: torch.device, launches: int, captured: bool = False) -> float:
    """Microseconds from one launch to the next, on a stream or in a CUDA graph."""

    def many(count: int) -> Callable[[], Any]:
        def run() -> None:
            for _ in range(count):
                launch()

        if not captured or device.type != "cuda":
            return run
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    short, long = (_seconds(many(count), device) for count in (launches, 2 * launches))
    return 1e6 * (long - short) / launches


def _seconds(call: Callable[[], Any], device: torch.device, rounds: int = 7) -> float:
    """Median seconds of a call on the device."""
    call()
    times = []
    for _ in range(rounds):
        if device.type == "cpu":
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
            continue
        module = torch.get_device_module(device)
        start, end = module.Event(enable_timing=True), module.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)
