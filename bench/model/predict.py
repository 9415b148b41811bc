"""`python -m bench predict`: the time of the staged schedule's launches on a GPU that is not here.

A launch takes as long as the slowest of four things would alone, and some of the others on top: bytes through DRAM,
bytes through L2, instructions, and what one program after another waits for. Nothing is fitted to times.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from cbam_triton.demo.options import InputError
from cbam_triton.kernels.launch import hardware as kernel_device
from cbam_triton.kernels.launch.plan import Plan

from .. import codegen
from ..run import LAYOUTS, parse_shapes
from .code import Code, Part, code_of
from .devices import REGISTERS, SCHEDULERS, Gpu, gpu, shipped

SUMMARY = "Predicted time and limiter of each launch of the staged schedule, from compiled code; no GPU needed."
DTYPES = ("float16", "bfloat16")  # of x; accesses of other widths are not told apart in the code
STEPS = ("forward", "training")
START_CYCLES, BARRIER_CYCLES, SHUFFLE_CYCLES, DEPENDENT_CYCLES = 150, 30, 24, 3
_NORM = 3  # how the four add up: 1 is one after another, infinity is all at once
LIMITERS = {"dram": "DRAM", "l2": "L2", "issue": "instructions", "latency": "waiting"}
# Passes over x that a kernel reads and writes: x, its gradient and y count alike.
PASSES = {
    "channel_pool_kernel": (1, 0), "spatial_pool_kernel": (1, 0), "apply_gates_kernel": (1, 1),
    "logit_gradient_kernel": (2, 0), "channel_gradient_kernel": (2, 0), "input_gradient_kernel": (2, 1),
}  # fmt: skip


class Work(NamedTuple):
    """What a launch has to do, on whatever GPU of its architecture."""

    kernel: str
    programs: int
    trips: tuple[int, ...]  # of each loop of the code
    dram_bytes: float
    passed: float  # bytes of x and tensors like it, read and written; 0 where a kernel touches none
    code: Code


class Prediction(NamedTuple):
    """Microseconds of a launch: the estimate; all four at once, and one after another; the four; programs an SM."""

    kernel: str
    us: float
    low: float
    high: float
    terms: dict[str, float]
    programs: int
    resident: int

    @property
    def limiter(self) -> str:
        """The largest term in words."""
        return LIMITERS[max(self.terms, key=lambda name: self.terms[name])]


def resident(code: Code, device: Gpu) -> int:
    """Programs that an SM holds, by threads and registers; at least one."""
    threads = 32 * code.warps
    registers = -(-code.registers // 8) * 8 * threads
    return max(1, min(device.threads // threads, REGISTERS // registers, 32))


def predicted(work: Work, device: Gpu) -> Prediction:
    """The time of a launch on a GPU."""
    code, cycle = work.code, 1e-3 / device.clock_ghz  # microseconds
    total = code.outside
    for part, trips in zip(code.loops, work.trips, strict=True):
        total += Part(*(trips * value for value in part))
    held, threads = resident(code, device), 32 * code.warps
    requested = work.passed or work.programs * threads * total.load_bytes
    fresh = min(1.0, work.dram_bytes / max(1.0, requested))
    load_us = 1e-3 * (fresh * device.dram_ns + (1 - fresh) * device.l2_ns)
    chain = cycle * (
        START_CYCLES
        + BARRIER_CYCLES * total.barriers
        + SHUFFLE_CYCLES * total.shuffles
        + DEPENDENT_CYCLES * total.instructions
    )
    waves = max(1.0, work.programs / (device.sms * held))
    terms = {
        "dram": 1e-3 * work.dram_bytes / device.dram_gbs,
        "l2": 1e-3 * requested / device.l2_gbs,
        "issue": cycle * work.programs * code.warps * total.instructions / (device.sms * SCHEDULERS),
        "latency": waves * (chain + load_us * total.loads),
    }
    values = terms.values()
    us = sum(value**_NORM for value in values) ** (1 / _NORM)
    return Prediction(work.kernel, us, max(values), sum(values), terms, work.programs, held)


def trips_of(kernel: str, plan: Plan, code: Code) -> tuple[int, ...]:
    """How often each loop runs: the one that loads most walks over x, the others over hidden units or shares."""
    problem, tiles = plan.problem, plan.candidate.tiles
    blocks = plan.blocks
    over_x = {
        "channel_pool_kernel": min(problem.P, tiles.POOL_SPLIT) // tiles.POOL_P,
        "channel_gradient_kernel": min(problem.P, tiles.POOL_SPLIT) // tiles.POOL_P,
        "spatial_pool_kernel": -(-problem.C // tiles.SPATIAL_C),
        "logit_gradient_kernel": -(-problem.C // tiles.SPATIAL_C),
        "apply_gates_kernel": -(-min(problem.C, tiles.APPLY_SPLIT) // tiles.APPLY_C),
        "input_gradient_kernel": -(-min(problem.C, tiles.APPLY_SPLIT) // tiles.APPLY_C),
        "channel_mlp_kernel": -(-blocks // tiles.MLP_T),
        "mlp_gradient_kernel": -(-blocks // tiles.MLP_T),
        "weight_gradients_kernel": -(-problem.N // 16),
    }
    others = {
        "channel_pool_kernel": -(-problem.R // tiles.POOL_R),
        "channel_gradient_kernel": -(-problem.R // tiles.POOL_R),
    }
    if not code.loops:
        return ()
    main = max(range(len(code.loops)), key=lambda i: code.loops[i].load_bytes)
    return tuple((over_x if i == main else others).get(kernel, 1) for i in range(len(code.loops)))


def works(
    shape: tuple[int, int, int, int],
    dtype: str,
    layout: str,
    step: str,
    device: Gpu,
    schedule: str = "staged",
    parameters: torch.dtype = torch.float32,
) -> list[Work]:
    """What the library would launch there for an x (N, C, H, W), compiled. `schedule` may be a candidate's JSON."""
    from cbam_triton.kernels.launch import tensors

    plans: list[Plan] = []
    mode = "inference" if step == "forward" else "training"

    def noted(plan: Plan, x: torch.Tensor) -> None:
        del x
        plans.append(plan)

    with patch.object(tensors, "LISTENERS", [noted]):
        launches = codegen.launches(
            shape, getattr(torch, dtype), layout, schedule, device.architecture, mode, device.facts, parameters
        )
    size = float(torch.Size(shape).numel() * getattr(torch, dtype).itemsize)
    found, held, seen = [], device.held, False
    for launch in launches:
        name = launch.kernel.__name__
        plan = plans[0] if name in _FORWARD else plans[-1]
        if plan.schedule != "staged":
            raise InputError("the wavefront is not predicted, its stages wait for one another: use staged")
        warps = launch.options.get("num_warps", 4)
        code = code_of(codegen.compile_for(launch.kernel, launch.arguments, launch.options, device.architecture), warps)
        reads, writes = PASSES.get(name, (0, 0))
        # Every launch walks the other way: it begins with what L2 still holds of the one before.
        from_dram = reads * size - (min(size, held) if seen and reads else 0.0)
        seen |= reads > 0
        work = Work(
            name, launch.programs, trips_of(name, plan, code), from_dram + writes * size, (reads + writes) * size, code
        )
        found.append(work)
    return found


_FORWARD = {"channel_pool_kernel", "channel_mlp_kernel", "spatial_pool_kernel", "apply_gates_kernel"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench predict`."""
    parser.add_argument("--device", nargs="+", default=list(shipped()), help="names, or device files (default: all)")
    parser.add_argument("--shapes", nargs="+", default=["resnet50"], help="as for bench run (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--layout", nargs="+", choices=tuple(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--step", choices=STEPS, default="forward", help="training: forward and backward")
    parser.add_argument("--config", help="a candidate's JSON instead of the default tiles")


def main(arguments: argparse.Namespace) -> int:
    """Print a line for each launch."""
    if kernel_device.interpreted():
        raise InputError("the interpreter compiles nothing: unset TRITON_INTERPRET")
    if (why := kernel_device.why_no_triton()) is not None:
        raise InputError(why)
    devices = [gpu(name) for name in arguments.device]
    shapes = [shape for name in arguments.shapes for shape in parse_shapes(name, 32)]
    for device, shape, layout in itertools.product(devices, shapes, arguments.layout):
        try:
            todo = works(shape, arguments.dtype, layout, arguments.step, device, arguments.config or "staged")
        except ValueError as error:
            raise InputError(f"--config: {error}") from None
        print(f"\n{device.name}, {'x'.join(map(str, shape))} {arguments.dtype} {layout}, predicted")
        print("\n".join(table([predicted(work, device) for work in todo], device)), flush=True)
    return 0


def table(found: Sequence[Prediction], device: Gpu) -> list[str]:
    """The lines of one call."""
    lines = [f"  {'kernel':<24}{'us':>7} {'interval':>15}  {'limiter':<13}{'programs':>8} {'an SM':>6}"]
    for one in found:
        interval = f"{one.low:.1f} to {one.high:.1f}"
        lines.append(
            f"  {one.kernel:<24}{one.us:>7.1f} {interval:>15}  {one.limiter:<13}{one.programs:>8} {one.resident:>6}"
        )
    gaps = device.launch_us * (len(found) - 1)
    low, high = (sum(getattr(one, name) for one in found) + gaps for name in ("low", "high"))
    whole = f"{low:.1f} to {high:.1f}"
    lines.append(f"  {'with gaps of launches':<24}{sum(one.us for one in found) + gaps:>7.1f} {whole:>15}")
    return lines


def total_us(found: Sequence[Prediction], device: Gpu) -> float:
    """Microseconds of all launches, with the gaps between them."""
    return sum(one.us for one in found) + device.launch_us * (len(found) - 1)


__all__: list[Any] = ["Prediction", "Work", "predicted", "total_us", "works"]
