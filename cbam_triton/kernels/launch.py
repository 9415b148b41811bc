"""Launchers: allocate, compute the grid, launch, return. What is launched is decided in `config`."""

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..layout import PixelStrides, access_width, output_like, pixel_strides, sample_span
from . import config as table
from .config import Config, Problem
from .device import facts, interpreted
from .staged import (
    apply_gates_kernel,
    channel_mlp_kernel,
    channel_pool_kernel,
    spatial_logit_kernel,
    spatial_pool_kernel,
)
from .wavefront import cbam_wavefront

AUTOTUNE = "CBAM_TRITON_AUTOTUNE"


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


class _Call(NamedTuple):
    """One call: tensors with their strides, sizes, and what the kernels are compiled for."""

    x: Tensor
    y: Tensor | None
    x_strides: PixelStrides
    y_strides: PixelStrides
    H: int
    W: int
    problem: Problem
    acc: torch.dtype
    common: dict[str, Any]  # VEC, CHANNELS_LAST, INDEX, ACC


def forward(x: Tensor, weights: Weights, schedule: str, config: Config | None = None, lag: int | None = None) -> Tensor:
    """y = CBAM(x), with x's memory format. `config` and `lag` override the table.

    Traffic: 2 passes over x (wavefront, samples in flight in L2) to 4 (staged, nothing in L2).
    """
    y = output_like(x)
    if y.numel() == 0:
        return y
    call = _call(x, y, weights)
    if _resolve(schedule, call) == "wavefront":
        _wavefront(call, weights, None, config, lag)
    else:
        gate, pool = _staged_pools(call, weights, config)
        _apply(call, weights, gate, pool, None, config, backwards=gate is None or pool is None)
    return y


def gates(
    x: Tensor, weights: Weights, schedule: str, config: Config | None = None, lag: int | None = None
) -> tuple[Tensor, Tensor]:
    """g (N, C) after the sigmoid, empty without channel attention, and z (N, 1, H, W) before norm and sigmoid.

    Traffic: 1 pass over x (wavefront) or 2 (staged).
    """
    N, C, H, W = x.shape
    acc = accumulator(x.dtype)
    z = torch.empty((N, 1, H, W), dtype=acc, device=x.device)
    if x.numel() == 0:
        return torch.empty((N, C if weights.fc1_weight is not None else 0), dtype=acc, device=x.device), z
    weights = Weights(*weights[:6])
    call = _call(x, None, weights)
    if _resolve(schedule, call) == "wavefront":
        gate = _wavefront(call, weights, z, config, lag)
    else:
        gate, pool = _staged_pools(call, weights, config)
        _spatial_logit(call, weights, pool, z, config)
    return torch.empty((N, 0), dtype=acc, device=x.device) if gate is None else gate, z


def apply_gates(x: Tensor, g: Tensor | None, z: Tensor | None, config: Config | None = None) -> Tensor:
    """y = x * g * sigmoid(z), with x's memory format. Traffic: 2 passes over x."""
    y = output_like(x)
    if y.numel() > 0:
        nothing = Weights(None, None, None, None, None, None)
        _apply(_call(x, y, nothing), nothing, g, None, z, config, backwards=True)
    return y


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums, gates and maps are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def problem_of(x: Tensor, weights: Weights, y: Tensor | None = None) -> Problem:
    """What the launch configuration of a call depends on."""
    N, C, H, W = x.shape
    strides = pixel_strides(x)
    assert strides is not None
    both = [(x, strides)]
    if y is not None:
        y_strides = pixel_strides(y)
        assert y_strides is not None
        both.append((y, y_strides))
    return Problem(
        N,
        C,
        H * W,
        0 if weights.fc1_weight is None else weights.fc1_weight.shape[0],
        0 if weights.conv_weight is None else weights.conv_weight.shape[-1],
        x.element_size(),
        access_width(C, H * W, *both),
        strides.channels_last,
    )


def _call(x: Tensor, y: Tensor | None, weights: Weights) -> _Call:
    problem = problem_of(x, weights, y)
    x_strides = pixel_strides(x)
    y_strides = x_strides if y is None else pixel_strides(y)
    assert x_strides is not None and y_strides is not None
    span = max(sample_span(problem.C, problem.P, x_strides), sample_span(problem.C, problem.P, y_strides))
    acc = accumulator(x.dtype)
    common = {
        "VEC": problem.vec,
        "CHANNELS_LAST": problem.channels_last,
        "INDEX": tl.int64 if span >= 1 << 30 else tl.int32,
        "ACC": tl.float64 if acc == torch.float64 else tl.float32,
    }
    return _Call(x, y, x_strides, y_strides, x.shape[2], x.shape[3], problem, acc, common)


def _resolve(schedule: str, call: _Call) -> str:
    if schedule == "auto":
        schedule, _ = table.choose_schedule(call.problem, facts(call.x.device))
    return schedule


def _empty(call: _Call, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=call.acc, device=call.x.device)


def _pool_map(call: _Call) -> Tensor:
    problem = call.problem
    return _empty(call, problem.N, call.H + 2 * (problem.K // 2), call.W, 2)


def _conv_constants(problem: Problem) -> dict[str, int]:
    return {"K": problem.K, "BLOCK_K": triton.next_power_of_2(max(1, problem.K))}


def _wavefront(call: _Call, weights: Weights, z: Tensor | None, config: Config | None, lag: int | None) -> Tensor | None:
    problem = call.problem
    device = facts(call.x.device)
    config = config or table.configs("wavefront", problem)[0]
    lag = table.lag(problem, config, device) if lag is None else lag
    blocks, chunks = table.pool_grid(problem, config)
    partial = hidden = gate = pool = None
    if problem.R:
        partial = _empty(call, problem.N, blocks, chunks, 2, config.POOL_C)
        hidden = _empty(call, problem.N, blocks, 2, problem.R)
        gate = _empty(call, problem.N, problem.C)
    if problem.K:
        pool = _pool_map(call)
    counters = torch.zeros(1 + problem.N * (3 + blocks), dtype=torch.int32, device=call.x.device)
    programs = problem.N * sum(table.tiles(problem, config, logits=z is not None))
    with _on(call.x.device):
        cbam_wavefront[(programs,)](
            call.x, *weights[:-1], partial, hidden, gate, pool, call.y, z, counters,
            *call.x_strides[:3], *call.y_strides[:3],
            problem.N, problem.C, call.H, call.W, problem.R, lag,
            NORM_EPS=weights.norm_eps, BLOCK_R=triton.next_power_of_2(max(1, problem.R)),
            **_conv_constants(problem), **call.common, **config.constants("POOL", "MLP", "SPATIAL", "APPLY"),
            enable_fp_fusion=True,
        )  # fmt: skip
    return gate


def _staged_pools(call: _Call, weights: Weights, config: Config | None) -> tuple[Tensor | None, Tensor | None]:
    problem = call.problem
    config = config or table.configs("staged", problem)[0]
    gate = pool = None
    with _on(call.x.device):
        if problem.R:
            blocks, chunks = table.pool_grid(problem, config)
            partial = _empty(call, problem.N, blocks, chunks, 2, config.POOL_C)
            hidden = _empty(call, problem.N, blocks, 2, problem.R)
            gate = _empty(call, problem.N, problem.C)
            counters = torch.zeros(problem.N * blocks, dtype=torch.int32, device=call.x.device)
            channel_pool_kernel[(problem.N * blocks * chunks,)](
                call.x, weights.fc1_weight, partial, hidden, counters, *call.x_strides[:3],
                problem.N, problem.C, problem.P, problem.R,
                **call.common, **config.constants("POOL"), enable_fp_fusion=True,
            )  # fmt: skip
            channel_mlp_kernel[(problem.N * triton.cdiv(problem.C, config.MLP_C),)](
                hidden, weights.fc1_bias, weights.fc2_weight, weights.fc2_bias, gate,
                problem.N, problem.C, problem.R, blocks,
                BLOCK_R=triton.next_power_of_2(problem.R), ACC=call.common["ACC"], **config.constants("MLP"),
                enable_fp_fusion=True,
            )  # fmt: skip
        if problem.K:
            pool = _pool_map(call)
            spatial_pool_kernel[(problem.N * triton.cdiv(problem.P, config.SPATIAL_P),)](
                call.x, gate, pool, *call.x_strides[:3], problem.N, problem.C, call.H, call.W, K=problem.K,
                **call.common, **config.constants("SPATIAL"), enable_fp_fusion=True,
            )  # fmt: skip
    return gate, pool


def _spatial_logit(call: _Call, weights: Weights, pool: Tensor | None, z: Tensor, config: Config | None) -> None:
    problem = call.problem
    config = config or table.configs("staged", problem)[0]
    with _on(call.x.device):
        spatial_logit_kernel[(problem.N * triton.cdiv(problem.P, config.APPLY_P),)](
            pool, weights.conv_weight, weights.conv_bias, z, problem.N, call.H, call.W,
            **_conv_constants(problem), ACC=call.common["ACC"], APPLY_P=config.APPLY_P, num_warps=config.num_warps,
            enable_fp_fusion=True,
        )  # fmt: skip


def _apply(
    call: _Call, weights: Weights, gate: Tensor | None, pool: Tensor | None, z: Tensor | None, config: Config | None,
    backwards: bool,
) -> None:  # fmt: skip
    problem = call.problem
    config = config or table.configs("staged", problem)[0]
    programs = problem.N * table.tiles(problem, config)[2]
    with _on(call.x.device):
        apply_gates_kernel[(programs,)](
            call.x, gate, pool, z, call.y, weights.conv_weight, weights.conv_bias, *weights[6:10],
            *call.x_strides[:3], *call.y_strides[:3], problem.N, problem.C, call.H, call.W,
            NORM_EPS=weights.norm_eps, **_conv_constants(problem), **call.common, **config.constants("APPLY"),
            BACKWARDS=backwards, enable_fp_fusion=True,
        )  # fmt: skip


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
