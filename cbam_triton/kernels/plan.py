"""Plans: everything about a launch that depends on sizes, dtype, layout and device, worked out once and kept."""

import functools
import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import config as table
from .config import Config, Problem
from .device import DeviceFacts, interpreted

AUTOTUNE = "CBAM_TRITON_AUTOTUNE"


class Plan(NamedTuple):
    """One schedule for one problem. The first row of `rows` runs, or autotuning finds which."""

    schedule: str
    rows: tuple[Config, ...]
    lag: int
    blocks: int  # of channels, the most of any row
    partials: int  # chunks * POOL_C of a block, the most of any row
    constants: dict[str, Any]  # constexprs that all kernels take
    convolution: dict[str, Any]  # those of the kernels with a convolution

    @property
    def row(self) -> Config:
        return self.rows[0]


def plan(problem: Problem, dtype: torch.dtype, wide: bool, schedule: str, device: DeviceFacts) -> Plan:
    """The plan of a call: `wide` says that offsets inside a sample need 64 bits, "auto" leaves the schedule open."""
    return _plan(problem, dtype, wide, schedule, device, os.environ.get(AUTOTUNE) == "1" and not interpreted())


@functools.lru_cache(maxsize=4096)
def _plan(problem: Problem, dtype: torch.dtype, wide: bool, schedule: str, device: DeviceFacts, autotune: bool) -> Plan:
    if schedule == "auto":
        schedule, _ = table.choose_schedule(problem, device)
    rows = table.configs(schedule, problem)
    return custom(problem, dtype, wide, schedule, rows if autotune else rows[:1], table.lag(problem, rows[0], device))


def custom(problem: Problem, dtype: torch.dtype, wide: bool, schedule: str, rows: tuple[Config, ...], lag: int) -> Plan:
    """A plan with given rows and lag."""
    grids = [table.pool_grid(problem, row) for row in rows]
    return Plan(
        schedule,
        rows,
        lag,
        max(blocks for blocks, _ in grids),
        max(chunks * row.POOL_C for (_, chunks), row in zip(grids, rows, strict=True)),
        {
            "VEC": problem.vec,
            "CHANNELS_LAST": problem.channels_last,
            "INDEX": tl.int64 if wide else tl.int32,
            "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
            "enable_fp_fusion": True,
        },
        {"K": problem.K, "BLOCK_K": triton.next_power_of_2(max(1, problem.K))},
    )


@functools.cache
def tuned(kernel: Any, rows: tuple[Config, ...], *stages: str) -> Any:
    """The kernel, autotuned over the rows; `rows` are those of a class, so one class is timed once."""
    configs = [triton.Config(row.constants(*stages), num_warps=row.num_warps) for row in rows]
    zeroed = [name for name in ("counters_ptr", "hidden_ptr") if "counters_ptr" in kernel.arg_names]
    return triton.autotune(configs, key=[], reset_to_zero=zeroed or None)(kernel)
