"""The stages of the backward as launches: each by itself, and those of a wavefront at once."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from . import grid
from .call import Call, Needed, launch, launch_once
from .staged_backward import (
    channel_gradient_kernel,
    input_gradient_kernel,
    logit_gradient_kernel,
    map_gradient_kernel,
    mlp_gradient_kernel,
)
from .wavefront_backward import backward_wavefront
from .weight_gradients import weight_gradients_kernel

_TILE_N, _TILE_C, _TILE_R = 8, 32, 16  # of the kernel that adds the weights' gradients

_MAP_TILES = {taps: functools.partial(grid.map_tiles, taps=taps) for taps in (True, False)}
_BACKWARD_TILES = {
    (taps, logits, rest): functools.partial(grid.backward_tiles, taps=taps, logits=logits, rest=rest)
    for taps in (True, False)
    for logits in (True, False)
    for rest in (True, False)
}


class Backward(NamedTuple):
    """One backward: the forward's call, the gradient as the kernels read it, and what passes between stages."""

    call: Call
    dy: Tensor
    dy_strides: tuple[int, ...]
    dy_aligned: bool
    dr: Tensor | None  # dy where y > 0, with ReLU
    dx: Tensor | None
    s: Tensor | None  # N P
    dmaps: Tensor | None  # N 2 P
    dz: Tensor | None  # N gradient_size
    share: Tensor | None  # N chunks share_size
    dq: Tensor | None  # N C
    hidden: Tensor | None  # N POOLS+1 R

    @property
    def d(self) -> tuple[Tensor, tuple[int, ...], bool]:
        """What x * g * s gets, its strides, and whether they are aligned."""
        if self.dr is None:
            return self.dy, self.dy_strides, self.dy_aligned
        return self.dr, self.call.plan.strides[3:], True


def gradient_lead(call: Call) -> int:
    """What `maps.gradient_lead` computes on the device."""
    return -(-call.zeros_around // 8) * 8


def gradient_size(call: Call) -> int:
    """What `maps.gradient_size` computes on the device."""
    return -(-(gradient_lead(call) - call.zeros_around + call.padded_size) // 8) * 8


def share_size(call: Call) -> int:
    """What `spatial_gate.share_size` computes on the device."""
    conv_weight = call.weights.conv_weight
    assert conv_weight is not None
    return conv_weight.shape[1] * call.plan.problem.tap_rows * call.plan.constants["BLOCK_K"] + 8


def logit_gradient(run: Backward, dpools: Tensor | None) -> None:
    """dz, the gradient of the normed logits; with the spatial gate first by `dpools`, which are there then."""
    call = run.call
    pools, argmax = (None, None) if dpools is None else (call.kept.pools, call.kept.channel_argmax)
    launch(
        call, logit_gradient_kernel, ("SPATIAL",), grid.spatial_tiles,
        call.x, run.dy, call.y, run.dr, call.kept.gate, pools, dpools, argmax, call.kept.z, run.dz, *call.weights[6:10],
        *call.plan.strides[:3], *run.dy_strides, *call.plan.strides[3:], *call.x.shape, call.weights.planes,
        NORM_EPS=call.weights.norm_eps, DY_ALIGNED=run.dy_aligned, BACKWARDS=dpools is not None,
    )  # fmt: skip


def wavefront(run: Backward, dpools: Tensor | None, logits: bool = True, rest: bool = True) -> Tensor | None:
    """The stages up to the logits, the rest, or both; returns the gradients of the pooled channels."""
    call, kept, plan = run.call, run.call.kept, run.call.plan
    problem, (N, C, H, W) = plan.problem, run.call.x.shape
    partial = dh = None
    if problem.R and dpools is None:
        partial, dh, dpools = _channel_scratch(run)
    dy, dy_strides, aligned = (run.dy, run.dy_strides, run.dy_aligned) if logits else run.d
    y, dr = (call.y, run.dr) if logits else (None, None)
    launch(
        call, backward_wavefront, ("POOL", "MLP_T", "MLP_C", "SPATIAL", "MAP", "APPLY"),
        _BACKWARD_TILES[run.share is not None, logits, rest],
        call.x, dy, y, dr, kept.gate, kept.pools, kept.channel_argmax, kept.preactivation,
        kept.pool, kept.spatial_argmax, kept.z,
        call.weights.fc1_weight, call.weights.fc2_weight, call.weights.conv_weight, *call.weights[6:10],
        run.dz, partial, dh, dpools, run.dmaps, run.s, run.dq, run.hidden, run.share, run.dx if rest else None,
        call.zeros(1 + N * (4 + plan.blocks)),
        *plan.strides[:3], *dy_strides, *plan.strides[3:], N, C, H, W, call.weights.planes, problem.R, plan.lag,
        NORM_EPS=call.weights.norm_eps, GIVEN=not logits, DY_ALIGNED=aligned,
    )  # fmt: skip
    return dpools


def staged(run: Backward, needed: Needed, given: bool, dpools: Tensor | None) -> None:
    """What follows the gradient of the logits; with the spatial gate first `dpools` are there."""
    call, kept, weights, problem = run.call, run.call.kept, run.call.weights, run.call.plan.problem
    N, C, H, W = call.x.shape
    d, d_strides, aligned = run.d
    if problem.K and (needed.x or needed.mlp or needed.conv):
        launch(
            call, map_gradient_kernel, ("MAP",), _MAP_TILES[run.share is not None],
            run.dz, kept.z, kept.pool, weights.conv_weight, *weights[6:10], run.s, run.dmaps, run.share,
            N, C, H, W, weights.planes,
            NORM_EPS=weights.norm_eps, GIVEN=given,
        )  # fmt: skip
    if problem.R and dpools is None and (needed.x or needed.mlp):
        dpools = channel_gradient(run)
    if needed.x:
        launch(
            call, input_gradient_kernel, ("APPLY",), grid.apply_tiles,
            call.x, d, run.dx, run.s, run.dmaps, kept.spatial_argmax,
            kept.gate, kept.pools, dpools, kept.channel_argmax,
            *call.plan.strides[:3], *d_strides, *call.plan.strides[3:], N, C, problem.P,
            D_ALIGNED=aligned, BACKWARDS=problem.R == 0,
        )  # fmt: skip


def channel_gradient(run: Backward) -> Tensor:
    """Gradients of the pooled channels."""
    call, kept, weights, plan = run.call, run.call.kept, run.call.weights, run.call.plan
    N, C, P, R = plan.problem.N, plan.problem.C, plan.problem.P, plan.problem.R
    first = call.arrangement == "spatial_first"
    d, d_strides, aligned = run.d
    partial, dh, dpools = _channel_scratch(run)
    launch(
        call, channel_gradient_kernel, ("POOL",), grid.pool_tiles,
        call.x, d, run.s, None if first else run.dmaps, kept.spatial_argmax, kept.gate, weights.fc2_weight,
        partial, call.chunk_counters(dh), run.dq, dh,
        *plan.strides[:3], *d_strides, N, C, P, R, plan.blocks, D_ALIGNED=aligned, BACKWARDS=not first,
    )  # fmt: skip
    shares, blocks = (run.dq, 1) if weights.fc2_weight is None else (dh, plan.blocks)
    launch(
        call, mlp_gradient_kernel, ("MLP",), grid.mlp_tiles,
        shares, kept.preactivation, kept.pools, weights.fc1_weight, run.hidden, dpools, N, C, P, R, blocks,
    )  # fmt: skip
    return dpools


def _channel_scratch(run: Backward) -> tuple[Tensor, Tensor, Tensor]:
    """Partial sums of dq, shares of dh, and the gradients of the pooled channels."""
    call, plan, problem = run.call, run.call.plan, run.call.plan.problem
    dh = call.empty(problem.N * plan.blocks * problem.R)
    # With one chunk a block nothing is partial: any pointer does.
    partial = call.empty(problem.N * plan.blocks * plan.partials) if plan.partials else dh
    if len(plan.rows) > 1:
        dh.zero_()  # the row that is taken may have fewer blocks
    return partial, dh, call.empty(problem.N * plan.problem.pools * problem.C)


def weight_gradients(run: Backward, needed: Needed) -> list[Tensor | None]:
    """Those of both layers of the MLP and of the convolution, in the order of `Gradients`."""
    call, problem = run.call, run.call.plan.problem
    found = [
        torch.empty_like(parameter) if wanted and parameter is not None else None
        for parameter, wanted in zip(call.weights[:6], needed[2:8], strict=True)
    ]
    mlp, conv = needed.mlp, needed.conv
    if not (mlp or conv):
        return found
    N, C, _, _ = call.x.shape
    tiles = (-(-C // _TILE_C) * -(-problem.R // _TILE_R) if mlp else 0) + (
        -(-(call.weights.conv_weight.numel() + 1) // _TILE_C) if conv else 0  # pyright: ignore[reportOptionalMemberAccess]
    )
    shares = N * grid.tap_chunks(problem) if conv else 0
    launch_once(
        call, weight_gradients_kernel, tiles,
        run.dq if mlp else None, run.hidden if mlp else None, call.kept.pools if mlp else None,
        run.share if conv else None, *found, N, C, problem.R, shares,
        BLOCK_N=min(_TILE_N, 1 << (N - 1).bit_length()), BLOCK_C=_TILE_C, BLOCK_R=_TILE_R,
    )  # fmt: skip
    return found
