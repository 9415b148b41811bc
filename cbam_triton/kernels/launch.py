"""Launchers: allocate, launch, return. What is launched is decided in `config` and kept in `plan`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layout import ACCESS_BYTES
from . import config as table
from .config import Problem, Sizes
from .device import facts
from .plan import Override, Plan, plan
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


class _Call(NamedTuple):
    """One call: what it reads and writes, and its plan."""

    x: Tensor
    y: Tensor | None
    weights: Weights
    plan: Plan

    def empty(self, size: int) -> Tensor:
        return torch.empty(size, dtype=self.plan.acc, device=self.x.device)

    def zeros(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int32, device=self.x.device)


def forward(x: Tensor, weights: Weights, schedule: str, override: Override | None = None) -> Tensor:
    """y = CBAM(x) for an x that `layout.merged` leaves alone, with x's memory format.

    Traffic: 2 passes over x (wavefront, samples in flight in L2) to 4 (staged, nothing in L2).
    """
    y = torch.empty_like(x)
    if y.numel() == 0:
        return y
    call = _Call(x, y, weights, plan_of(x, weights, schedule, override))
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
        weights = Weights(*weights[:6])
        call = _Call(x, None, weights, plan_of(x, weights, schedule, override))
        if call.plan.schedule == "wavefront":
            gate = _wavefront(call, z)
        else:
            gate, pool = _staged_pools(call)
            _spatial_logit(call, pool, z)
    if gate is None:
        gate = torch.empty(0 if weights.fc1_weight is None else N * C, dtype=acc, device=x.device)
    return gate.view(N, 0 if weights.fc1_weight is None else C), z


def apply_gates(x: Tensor, g: Tensor | None, z: Tensor | None, override: Override | None = None) -> Tensor:
    """y = x * g * sigmoid(z), with x's memory format. Traffic: 2 passes over x."""
    y = torch.empty_like(x)
    if y.numel() > 0:
        _apply(_Call(x, y, _NOTHING, plan_of(x, _NOTHING, "staged", override)), g, None, z, backwards=True)
    return y


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums, gates and maps are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def plan_of(x: Tensor, weights: Weights, schedule: str, override: Override | None = None) -> Plan:
    """The plan of a call; x must be one that `layout.merged` leaves alone."""
    return plan(
        x.shape,
        x.stride(),
        x.data_ptr() % ACCESS_BYTES,
        x.dtype,
        0 if weights.fc1_weight is None else weights.fc1_weight.shape[0],
        0 if weights.conv_weight is None else weights.conv_weight.shape[-1],
        schedule,
        facts(x.device),
        override,
    )


def _launch(
    call: _Call, kernel: Any, stages: tuple[str, ...], tiles: Callable[[Problem, Sizes], int],
    *arguments: Any, **options: Any,
) -> None:  # fmt: skip
    """Launch `tiles` programs a sample with the block sizes of `stages`, of the plan's row or of the tuned one.

    Compile-time constants that the plan does not know are `options`.
    """
    prepared = call.plan.prepared
    key = (id(kernel), tiles)
    if key not in prepared:
        prepared[key] = call.plan.launcher(kernel, stages, tiles)
    on_grid, constants = prepared[key]
    device = call.x.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            on_grid(*arguments, **constants, **options)
    else:
        on_grid(*arguments, **constants, **options)


def _pool_map(call: _Call) -> Tensor:
    N, _, H, W = call.x.shape
    return call.empty(N * (H + 2 * (call.plan.problem.K // 2)) * W * 2)


def _channel_scratch(call: _Call) -> tuple[Tensor, Tensor, Tensor]:
    """Partial pools, hidden partial sums and the gate."""
    problem, blocks = call.plan.problem, call.plan.blocks
    hidden = call.empty(problem.N * blocks * 2 * problem.R)
    # With one chunk a block nothing is partial: any pointer does.
    partial = call.empty(problem.N * blocks * 2 * call.plan.partials) if call.plan.partials else hidden
    if len(call.plan.rows) > 1:
        hidden.zero_()  # the row that is taken may have fewer blocks
    return partial, hidden, call.empty(problem.N * problem.C)


def _wavefront(call: _Call, z: Tensor | None) -> Tensor | None:
    N, C, H, W = call.x.shape
    problem = call.plan.problem
    partial = hidden = gate = pool = None
    if problem.R:
        partial, hidden, gate = _channel_scratch(call)
    if problem.K:
        pool = _pool_map(call)
    _launch(
        call, cbam_wavefront, ("POOL", "MLP_T", "MLP_C", "SPATIAL", "APPLY"),
        table.wavefront_tiles if z is None else table.wavefront_logit_tiles,
        call.x, *call.weights[:-1], partial, hidden, gate, pool, call.y, z, call.zeros(1 + N * (3 + call.plan.blocks)),
        *call.plan.strides, N, C, H, W, problem.R, call.plan.lag,
        NORM_EPS=call.weights.norm_eps,
    )  # fmt: skip
    return gate


def _staged_pools(call: _Call) -> tuple[Tensor | None, Tensor | None]:
    """The channel gate and the pooled maps, of the stages that there are."""
    problem, blocks, weights = call.plan.problem, call.plan.blocks, call.weights
    strides = call.plan.strides[:3]
    N, C, H, W = call.x.shape
    gate = pool = None
    if problem.R:
        partial, hidden, gate = _channel_scratch(call)
        _launch(
            call, channel_pool_kernel, ("POOL",), table.pool_tiles,
            call.x, weights.fc1_weight, partial, hidden, call.zeros(N * blocks), *strides,
            N, C, H * W, problem.R, blocks,
        )  # fmt: skip
        _launch(
            call, channel_mlp_kernel, ("MLP",), table.mlp_tiles,
            hidden, weights.fc1_bias, weights.fc2_weight, weights.fc2_bias, gate, N, C, problem.R, blocks,
        )  # fmt: skip
    if problem.K:
        pool = _pool_map(call)
        _launch(
            call, spatial_pool_kernel, ("SPATIAL",), table.spatial_tiles,
            call.x, gate, pool, *strides, N, C, H, W,
        )  # fmt: skip
    return gate, pool


def _spatial_logit(call: _Call, pool: Tensor | None, z: Tensor) -> None:
    N, _, H, W = call.x.shape
    _launch(
        call, spatial_logit_kernel, ("APPLY_P",), table.pixel_tiles,
        pool, call.weights.conv_weight, call.weights.conv_bias, z, N, H, W,
    )  # fmt: skip


def _apply(call: _Call, gate: Tensor | None, pool: Tensor | None, z: Tensor | None, backwards: bool) -> None:
    weights = call.weights
    _launch(
        call, apply_gates_kernel, ("APPLY",), table.apply_tiles,
        call.x, gate, pool, z, call.y, weights.conv_weight, weights.conv_bias, *weights[6:10],
        *call.plan.strides, *call.x.shape,
        NORM_EPS=weights.norm_eps, BACKWARDS=backwards,
    )  # fmt: skip
