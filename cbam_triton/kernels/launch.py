"""Launchers: allocate, compute the grid, launch, return. What is launched is decided in `config` and `plan`."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..layout import PixelStrides, access_width, output_like, pixel_strides, sample_span
from . import config as table
from .config import Config, Problem
from .device import facts
from .plan import Plan, custom, plan, tuned
from .staged import (
    apply_gates_kernel,
    channel_mlp_kernel,
    channel_pool_kernel,
    spatial_logit_kernel,
    spatial_pool_kernel,
)
from .wavefront import cbam_wavefront


class Weights(NamedTuple):
    """Parameters of the layer, dense; fc1 None without channel attention, conv None without spatial attention."""

    fc1_weight: Tensor | None  # R C
    fc1_bias: Tensor | None  # R
    fc2_weight: Tensor | None  # C R
    fc2_bias: Tensor | None  # C
    conv_weight: Tensor | None  # 1 2 K K
    conv_bias: Tensor | None  # 1
    norm_weight: Tensor | None = None  # 1
    norm_bias: Tensor | None = None  # 1
    norm_mean: Tensor | None = None  # 1
    norm_var: Tensor | None = None  # 1
    norm_eps: float = 0.0


_NOTHING = Weights(None, None, None, None, None, None)


class Override(NamedTuple):
    """What a caller wants instead of the plan: block sizes, samples between stages."""

    row: Config
    lag: int = 1


class _Call(NamedTuple):
    """One call: tensors with their strides, sizes and plan."""

    x: Tensor
    y: Tensor | None
    strides: tuple[int, ...]  # of x, then of y, as N C P
    H: int
    W: int
    weights: Weights
    problem: Problem
    plan: Plan
    acc: torch.dtype

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.acc, device=self.x.device)

    def zeros(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int32, device=self.x.device)


def forward(x: Tensor, weights: Weights, schedule: str, override: Override | None = None) -> Tensor:
    """y = CBAM(x), with x's memory format.

    Traffic: 2 passes over x (wavefront, samples in flight in L2) to 4 (staged, nothing in L2).
    """
    y = output_like(x)
    if y.numel() == 0:
        return y
    call = _call(x, y, weights, schedule, override)
    if call.plan.schedule == "wavefront":
        _wavefront(call, None)
    else:
        gate, pool = _staged_pools(call)
        _apply(call, gate, pool, None, backwards=gate is None or pool is None)
    return y


def gates(x: Tensor, weights: Weights, schedule: str, override: Override | None = None) -> tuple[Tensor, Tensor]:
    """g (N, C) after the sigmoid, (N, 0) without channel attention, and z (N, 1, H, W) before norm and sigmoid.

    Traffic: 1 pass over x (wavefront) or 2 (staged).
    """
    N, C, H, W = x.shape
    acc = accumulator(x.dtype)
    gate = None
    z = torch.empty((N, 1, H, W), dtype=acc, device=x.device)
    if z.numel() > 0:
        call = _call(x, None, Weights(*weights[:6]), schedule, override)
        if call.plan.schedule == "wavefront":
            gate = _wavefront(call, z)
        else:
            gate, pool = _staged_pools(call)
            _spatial_logit(call, pool, z)
    if gate is None:
        gate = torch.empty((N, 0 if weights.fc1_weight is None else C), dtype=acc, device=x.device)
    return gate, z


def apply_gates(x: Tensor, g: Tensor | None, z: Tensor | None, override: Override | None = None) -> Tensor:
    """y = x * g * sigmoid(z), with x's memory format. Traffic: 2 passes over x."""
    y = output_like(x)
    if y.numel() > 0:
        _apply(_call(x, y, _NOTHING, "staged", override), g, None, z, backwards=True)
    return y


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums, gates and maps are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def problem_of(x: Tensor, weights: Weights, y: Tensor | None = None) -> Problem:
    """What the launch configuration of a call depends on; x must be one that `layout.merged` leaves alone."""
    return _problem(x, _strides(x), weights, y, None if y is None else _strides(y))


def _problem(x: Tensor, x_strides: PixelStrides, weights: Weights, y: Tensor | None, y_strides: Any) -> Problem:
    N, C, H, W = x.shape
    tensors = ((x, x_strides),) if y is None else ((x, x_strides), (y, y_strides))
    return Problem(
        N,
        C,
        H * W,
        0 if weights.fc1_weight is None else weights.fc1_weight.shape[0],
        0 if weights.conv_weight is None else weights.conv_weight.shape[-1],
        x.element_size(),
        access_width(C, H * W, *tensors),
        x_strides.channels_last,
    )


def _strides(x: Tensor) -> PixelStrides:
    strides = pixel_strides(x)
    assert strides is not None
    return strides


def _call(x: Tensor, y: Tensor | None, weights: Weights, schedule: str, override: Override | None) -> _Call:
    x_strides = _strides(x)
    y_strides = x_strides if y is None else _strides(y)
    problem = _problem(x, x_strides, weights, y, y_strides)
    span = max(sample_span(problem.C, problem.P, x_strides), sample_span(problem.C, problem.P, y_strides))
    wide = span >= 1 << 30
    if override is None:
        chosen = plan(problem, x.dtype, wide, schedule, facts(x.device))
    else:
        chosen = custom(problem, x.dtype, wide, schedule, (override.row,), override.lag)
    strides = (*x_strides[:3], *y_strides[:3])
    return _Call(x, y, strides, x.shape[2], x.shape[3], weights, problem, chosen, accumulator(x.dtype))


def _launch(
    call: _Call, kernel: Any, stages: tuple[str, ...], tiles: Callable[[Problem, Mapping[str, int]], int],
    *arguments: Any, **constants: Any,
) -> None:  # fmt: skip
    """Launch `tiles` programs a sample with the block sizes of `stages`, of the plan's row or of the tuned one."""
    rows = call.plan.rows
    device = call.x.device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        if len(rows) == 1:
            sizes = rows[0].constants(*stages)
            programs = call.problem.N * tiles(call.problem, sizes)
            kernel[(programs,)](*arguments, **constants, **sizes, num_warps=rows[0].num_warps)
        else:
            kernel = tuned(kernel, rows, *stages)
            kernel[lambda sizes: (call.problem.N * tiles(call.problem, sizes),)](*arguments, **constants)


def _pool_map(call: _Call) -> Tensor:
    return call.empty(call.problem.N, call.H + 2 * (call.problem.K // 2), call.W, 2)


def _channel_scratch(call: _Call) -> tuple[Tensor, Tensor, Tensor]:
    """Partial pools, hidden partial sums and the gate."""
    problem, blocks = call.problem, call.plan.blocks
    partial = call.empty(problem.N, blocks, 2 * call.plan.partials)
    hidden = call.empty(problem.N, blocks, 2, problem.R)
    if len(call.plan.rows) > 1:
        hidden.zero_()  # the row that is taken may have fewer blocks
    return partial, hidden, call.empty(problem.N, problem.C)


def _wavefront(call: _Call, z: Tensor | None) -> Tensor | None:
    problem = call.problem
    partial = hidden = gate = pool = None
    if problem.R:
        partial, hidden, gate = _channel_scratch(call)
    if problem.K:
        pool = _pool_map(call)
    counters = call.zeros(1 + problem.N * (3 + call.plan.blocks))
    logits = z is not None
    _launch(
        call, cbam_wavefront, ("POOL", "MLP_T", "MLP_C", "SPATIAL", "APPLY"),
        lambda problem, sizes: table.wavefront_tiles(problem, sizes, logits),
        call.x, *call.weights[:-1], partial, hidden, gate, pool, call.y, z, counters,
        *call.strides, problem.N, problem.C, call.H, call.W, problem.R, call.plan.lag,
        NORM_EPS=call.weights.norm_eps, BLOCK_R=triton.next_power_of_2(max(1, problem.R)),
        **call.plan.convolution, **call.plan.constants,
    )  # fmt: skip
    return gate


def _staged_pools(call: _Call) -> tuple[Tensor | None, Tensor | None]:
    """The channel gate and the pooled maps, of the stages that there are."""
    problem, weights, constants = call.problem, call.weights, call.plan.constants
    gate = pool = None
    if problem.R:
        partial, hidden, gate = _channel_scratch(call)
        _launch(
            call, channel_pool_kernel, ("POOL",), table.pool_tiles,
            call.x, weights.fc1_weight, partial, hidden, call.zeros(problem.N * call.plan.blocks), *call.strides[:3],
            problem.N, problem.C, problem.P, problem.R, call.plan.blocks, **constants,
        )  # fmt: skip
        _launch(
            call, channel_mlp_kernel, ("MLP",), table.mlp_tiles,
            hidden, weights.fc1_bias, weights.fc2_weight, weights.fc2_bias, gate,
            problem.N, problem.C, problem.R, call.plan.blocks,
            BLOCK_R=triton.next_power_of_2(problem.R), ACC=constants["ACC"], enable_fp_fusion=True,
        )  # fmt: skip
    if problem.K:
        pool = _pool_map(call)
        _launch(
            call, spatial_pool_kernel, ("SPATIAL",), table.spatial_tiles,
            call.x, gate, pool, *call.strides[:3], problem.N, problem.C, call.H, call.W, K=problem.K, **constants,
        )  # fmt: skip
    return gate, pool


def _spatial_logit(call: _Call, pool: Tensor | None, z: Tensor) -> None:
    _launch(
        call, spatial_logit_kernel, ("APPLY_P",), table.pixel_tiles,
        pool, call.weights.conv_weight, call.weights.conv_bias, z, call.problem.N, call.H, call.W,
        **call.plan.convolution, ACC=call.plan.constants["ACC"], enable_fp_fusion=True,
    )  # fmt: skip


def _apply(call: _Call, gate: Tensor | None, pool: Tensor | None, z: Tensor | None, backwards: bool) -> None:
    weights = call.weights
    _launch(
        call, apply_gates_kernel, ("APPLY",), table.apply_tiles,
        call.x, gate, pool, z, call.y, weights.conv_weight, weights.conv_bias, *weights[6:10],
        *call.strides, call.problem.N, call.problem.C, call.H, call.W,
        NORM_EPS=weights.norm_eps, BACKWARDS=backwards, **call.plan.convolution, **call.plan.constants,
    )  # fmt: skip
