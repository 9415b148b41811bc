"""What the launches of the staged schedule have to do: programs, trips of their loops, bytes beyond L2."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..kernels.launch.plan import Plan
from .code import Code

# Passes over x that a kernel reads and writes: x, its gradient and y count alike.
PASSES = {
    "channel_pool_kernel": (1, 0), "spatial_pool_kernel": (1, 0), "apply_gates_kernel": (1, 1),
    "logit_gradient_kernel": (2, 0), "channel_gradient_kernel": (2, 0), "input_gradient_kernel": (2, 1),
}  # fmt: skip


class Launched(NamedTuple):
    """A launch that was compiled: the kernel's name, its programs, the plan that it is of."""

    kernel: str
    programs: int
    plan: Plan
    code: Code


class Work(NamedTuple):
    """What a launch has to do, on whatever GPU of its architecture."""

    kernel: str
    programs: int
    trips: tuple[int, ...]  # of each loop of the code
    dram_bytes: float
    passed: float  # bytes of x and tensors like it, read and written; 0 where a kernel touches none
    code: Code


def trips_of(kernel: str, plan: Plan, code: Code) -> tuple[int, ...]:
    """How often each loop runs: the one that loads most walks over x, the others over hidden units or shares.

    The MLP's kernels add up shares first, and walk over channels then.
    """
    problem, tiles = plan.problem, plan.candidate.tiles
    blocks = plan.blocks
    over_x = {
        "channel_pool_kernel": min(problem.P, tiles.POOL_SPLIT) // tiles.POOL_P,
        "channel_gradient_kernel": min(problem.P, tiles.POOL_SPLIT) // tiles.POOL_P,
        "spatial_pool_kernel": -(-problem.C // tiles.SPATIAL_C),
        "logit_gradient_kernel": -(-problem.C // tiles.SPATIAL_C),
        "apply_gates_kernel": -(-min(problem.C, tiles.APPLY_SPLIT) // tiles.APPLY_C),
        "input_gradient_kernel": -(-min(problem.C, tiles.APPLY_SPLIT) // tiles.APPLY_C),
        "norm_sums_kernel": -(-problem.N * problem.P // (1024 * plan.norm_programs)),
        "weight_gradients_kernel": -(-problem.N // 16),
    }
    others = {
        "channel_pool_kernel": -(-problem.R // tiles.POOL_R),
        "channel_gradient_kernel": -(-problem.R // tiles.POOL_R),
    }
    if not code.loops:
        return ()
    if kernel in ("channel_mlp_kernel", "mlp_gradient_kernel") and len(code.loops) == 2:
        return -(-blocks // tiles.MLP_T), -(-min(problem.C, tiles.MLP_SPLIT) // tiles.MLP_C)
    main = _main_loop(code)
    return tuple((over_x if i == main else others).get(kernel, 1) for i in range(len(code.loops)))


def main_loop_trips(kernel: str, plan: Plan, code: Code) -> int | None:
    """How often the loop that loads most runs; None without loops."""
    trips = trips_of(kernel, plan, code)
    return trips[_main_loop(code)] if trips else None


def _main_loop(code: Code) -> int:
    return max(range(len(code.loops)), key=lambda i: code.loops[i].load_bytes)


def works(launches: Iterable[Launched], x_bytes: float, l2_bytes: float) -> list[Work]:
    """What launches one after another have to do, with an L2 of so many bytes that is cold before the first.

    Raises: ValueError for a wavefront, whose stages wait for one another.
    """
    found, seen = [], False
    for kernel, programs, plan, code in launches:
        if plan.schedule != "staged":
            raise ValueError("the wavefront is not predicted, its stages wait for one another: use staged")
        reads, writes = PASSES.get(kernel, (0, 0))
        # Every launch walks the other way: it begins with what L2 still holds of the one before.
        from_dram = reads * x_bytes - (min(x_bytes, l2_bytes) if seen and reads else 0.0)
        seen |= reads > 0
        moved = from_dram + writes * x_bytes
        found.append(Work(kernel, programs, trips_of(kernel, plan, code), moved, (reads + writes) * x_bytes, code))
    return found
