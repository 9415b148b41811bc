"""Plans: everything about a launch that does not depend on values, worked out once for a shape and kept."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..layout import access_width, output_like, pixel_strides, sample_span
from ..variant import Variant, decoded
from . import config as table
from . import grid
from .config import Config, Problem, Sizes
from .device import DeviceFacts, interpreted, is_nvidia
from .tiles import AVERAGE, HALF, LOGSUMEXP, MAXIMUM, NORM

# Whether a first call of a class times the table; never in the interpreter, which has no clock worth asking.
AUTOTUNE = os.environ.get("CBAM_TRITON_AUTOTUNE") == "1" and not interpreted()


_POOL_BITS = {"avg": AVERAGE.value, "max": MAXIMUM.value, "lp": NORM.value, "lse": LOGSUMEXP.value}


class Override(NamedTuple):
    """What a caller wants instead of the table: block sizes, samples between stages of the wavefront."""

    row: Config
    lag: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """One schedule for one problem. The first of `rows` runs, or autotuning finds which."""

    problem: Problem
    schedule: str
    rows: tuple[Config, ...]
    lag: int
    strides: tuple[int, ...]  # of x, then of y, as N C P
    blocks: int  # of channels, the most of any row
    partials: int  # chunks * POOL_C of a block, the most of any row; 0 if all have one chunk
    acc: torch.dtype  # of scratch and gates
    constants: dict[str, Any]  # constexprs, each for the kernels that have it
    prepared: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def launcher(
        self,
        kernel: Any,
        stages: tuple[str, ...],
        tiles: Callable[[Problem, Sizes], int],
        training: bool,
    ) -> tuple[Any, dict[str, Any]]:
        """The kernel on its grid of `tiles` programs a sample, and what it takes by keyword."""
        constants = {name: value for name, value in self.constants.items() if name in kernel.arg_names}
        constants["enable_fp_fusion"] = True
        limit = table.registers(self.problem, self.schedule, training)
        if limit and is_nvidia():
            constants["maxnreg"] = limit
        row, *others = self.rows
        if others:
            programs = lambda sizes: (self.problem.N * tiles(self.problem, sizes),)  # noqa: E731
            return _tuned(kernel, self.rows, stages)[programs], constants
        sizes = row.constants(*stages)
        constants |= {**sizes, "num_warps": row.num_warps}
        return kernel[(self.problem.N * tiles(self.problem, sizes),)], constants


def pool_slots(variant: Variant) -> int:
    """Places for the descriptors of a channel."""
    return 4 if {"lp", "lse"} & set(variant.channel_pools) else 2


@functools.lru_cache(maxsize=8192)
def plan(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    address: int,
    dtype: torch.dtype,
    R: int,
    K: int,
    schedule: str,
    device: DeviceFacts,
    override: Override | None = None,
    backward: bool = False,
    dims: int = 2,
    variant: str = "",
) -> Plan:
    """The plan for an x of this shape, strides, address (modulo the widest access) and dtype.

    R is the hidden width, 0 without channel attention, K the kernel size over `dims` axes, 0 without spatial attention;
    `variant` is an `encoded` one. The schedule "auto" is chosen here.
    """
    form = decoded(variant)
    x = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    x_strides, y_strides = pixel_strides(x), pixel_strides(output_like(x))
    assert x_strides is not None, f"layout.merged was not asked about strides {strides}"
    assert y_strides is not None
    N, C, H, W = shape
    vec = access_width(C, H * W, x.element_size(), address, x_strides, y_strides)
    problem = Problem(
        N,
        C,
        H * W,
        R,
        K,
        x.element_size(),
        vec,
        x_strides.channels_last,
        backward,
        dims,
        form.arrangement == "spatial_first",
        pool_slots(form),
    )
    if schedule == "auto":
        schedule, _ = table.choose_schedule(problem, device)
    if override is None:
        rows = table.configs(schedule, problem)
        rows, lag = rows if AUTOTUNE else rows[:1], grid.lag(problem, rows[0], device)
    else:
        rows, lag = (override.row,), override.lag
    grids = [grid.pool_grid(problem, row) for row in rows]
    span = max(sample_span(C, H * W, x_strides), sample_span(C, H * W, y_strides))
    return Plan(
        problem,
        schedule,
        rows,
        lag,
        (*x_strides[:3], *y_strides[:3]),
        max(blocks for blocks, _ in grids),
        max(chunks * row.POOL_C if chunks > 1 else 0 for (_, chunks), row in zip(grids, rows, strict=True)),
        torch.float64 if dtype == torch.float64 else torch.float32,
        {
            "VEC": vec,
            "CHANNELS_LAST": x_strides.channels_last,
            "INDEX": tl.int64 if span >= 1 << 30 else tl.int32,
            "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
            "K": K,
            "DIMS": dims,
            "CHANNEL_POOLS": sum(_POOL_BITS[name] for name in form.channel_pools) + (HALF.value if form.light else 0),
            "SPATIAL_POOLS": "half" if form.light else "+".join(sorted(form.spatial_pools, reverse=True)),
            "ARRANGEMENT": form.arrangement,
            "HARD": form.gate == "hard_sigmoid",
            "BLOCK_K": triton.next_power_of_2(max(1, K)),
            "BLOCK_R": triton.next_power_of_2(max(1, R)),
            "TAP_SPLIT": grid.TAP_SPLIT,
        },
    )


@functools.cache
def _tuned(kernel: Any, rows: tuple[Config, ...], stages: tuple[str, ...]) -> Any:
    # The rows are those of a class, so one class is timed once.
    configs = [triton.Config(row.constants(*stages), num_warps=row.num_warps) for row in rows]
    counts = "counters_ptr" in kernel.arg_names
    zeroed = [name for name in ("counters_ptr", "hidden_ptr", "dh_ptr") if counts and name in kernel.arg_names]
    return triton.autotune(configs, key=[], reset_to_zero=zeroed or None)(kernel)
