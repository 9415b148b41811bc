"""The stages of the backward as launches: each by itself, and those of a wavefront at once."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ..schedules.staged_backward import (
    channel_gradient_kernel,
    input_gradient_kernel,
    logit_gradient_kernel,
    map_gradient_kernel,
    mlp_gradient_kernel,
)
from ..schedules.wavefront_backward import backward_wavefront
from ..schedules.weight_gradients import weight_gradients_kernel
from ..stages.packs import GradientScratch
from . import grid
from .launcher import launch, launch_once
from .tensors import Call, Gradients, Needed

_WEIGHTS = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "conv_weight", "conv_bias")
_TILE_N = 32  # samples at once, of the kernel that adds the weights' gradients
_TILE, _LARGE_TILE = (32, 16), (64, 32)  # channels and hidden units of a program there
_LARGE_LAYER = 1 << 17  # weights from which there are programs enough for the large one

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
    dy_strides: tuple[int, int, int]  # as N C P
    dy_aligned: bool
    dr: Tensor | None  # dy where y > 0, with ReLU
    dx: Tensor | None
    scratch: GradientScratch

    @property
    def d(self) -> tuple[Tensor, tuple[int, int, int], bool]:
        """The gradient of x g s, its strides, and whether they are aligned."""
        if self.dr is None:
            return self.dy, self.dy_strides, self.dy_aligned
        return self.dr, self.call.plan.y_strides, True


def logit_gradient(run: Backward) -> None:
    """dz, the gradient of the normed logits; with the spatial gate first by the gradients of the descriptors."""
    call, plan = run.call, run.call.plan
    first = plan.problem.spatial_first
    launch(
        call, logit_gradient_kernel, ("SPATIAL",), grid.spatial_tiles,
        call.x, run.dy, call.y, run.dr, call.parameters, call.saved,
        run.scratch if first else run.scratch._replace(ddescriptors=None),
        *plan.x_strides, *run.dy_strides, *plan.y_strides, *plan.sizes,
        first=not first, aligned=run.dy_aligned, BACKWARDS=first,
    )  # fmt: skip


def wavefront(run: Backward, begun: bool, logits: bool = True, rest: bool = True) -> None:
    """The stages up to the logits, the rest, or both. With `begun` the gradients of the descriptors are there."""
    call, plan, problem = run.call, run.call.plan, run.call.plan.problem
    scratch, dh = run.scratch, None
    if problem.R and not begun:
        partial, dh = _channel_scratch(call)
        scratch = scratch._replace(partial=partial)
    dy, dy_strides, aligned = (run.dy, run.dy_strides, run.dy_aligned) if logits else run.d
    y, dr = (call.y, run.dr) if logits else (None, None)
    launch(
        call, backward_wavefront, ("POOL", "MLP_T", "MLP_C", "SPATIAL", "MAP", "APPLY"),
        _BACKWARD_TILES[scratch.share is not None, logits, rest],
        call.x, dy, y, dr, run.dx if rest else None, call.parameters, call.saved, scratch, dh,
        call.zeros(1 + problem.N * (4 + plan.blocks)),
        *plan.x_strides, *dy_strides, *plan.y_strides, *plan.sizes, plan.lag, aligned=aligned, GIVEN=not logits,
    )  # fmt: skip


def staged(run: Backward, needed: Needed, given: bool, begun: bool) -> None:
    """What follows the gradient of the logits. With `begun` the gradients of the descriptors are there."""
    call, plan, problem = run.call, run.call.plan, run.call.plan.problem
    if problem.K and (needed.x or needed.mlp or needed.conv):
        launch(
            call, map_gradient_kernel, ("MAP",), _MAP_TILES[run.scratch.share is not None],
            call.parameters, call.saved, run.scratch, *plan.sizes, GIVEN=given,
        )  # fmt: skip
    if problem.R and not begun and (needed.x or needed.mlp):
        channel_gradient(run)
    if needed.x:
        d, d_strides, aligned = run.d
        launch(
            call, input_gradient_kernel, ("APPLY",), grid.apply_tiles,
            call.x, d, run.dx, call.saved, run.scratch,
            *plan.x_strides, *d_strides, *plan.y_strides, *plan.sizes, aligned=aligned, BACKWARDS=problem.R == 0,
        )  # fmt: skip


def channel_gradient(run: Backward) -> None:
    """Gradients of the channel gate, of the hidden layer and of the descriptors."""
    call, plan = run.call, run.call.plan
    d, d_strides, aligned = run.d
    partial, dh = _channel_scratch(call)
    launch(
        call, channel_gradient_kernel, ("POOL",), grid.pool_tiles,
        call.x, d, call.parameters, call.saved, run.scratch._replace(partial=partial), call.chunk_counters(dh), dh,
        *plan.x_strides, *d_strides, *plan.sizes, plan.blocks,
        first=plan.problem.spatial_first or not plan.problem.K, aligned=aligned,
        BACKWARDS=not plan.problem.spatial_first,
    )  # fmt: skip
    shares, blocks = (run.scratch.dq, 1) if call.parameters.fc2_weight is None else (dh, plan.blocks)
    launch(
        call, mlp_gradient_kernel, ("MLP",), grid.mlp_tiles,
        shares, call.parameters, call.saved, run.scratch, *plan.sizes, blocks,
    )  # fmt: skip


def _channel_scratch(call: Call) -> tuple[Tensor, Tensor]:
    """Sums of chunks, and shares of dh."""
    plan, problem = call.plan, call.plan.problem
    dh = call.empty(problem.N * plan.blocks * problem.R)
    # With one chunk a block nothing is partial: any pointer does.
    partial = call.empty(problem.N * plan.blocks * plan.partials) if plan.partials else dh
    return partial, dh


def weight_gradients(run: Backward, needed: Needed) -> Gradients:
    """Those of both layers of the MLP and of the convolution."""
    call, problem = run.call, run.call.plan.problem
    wanted = {name: getattr(call.parameters, name) for name in _WEIGHTS if getattr(needed, name)}
    found = Gradients(**{name: torch.empty_like(parameter) for name, parameter in wanted.items()})
    mlp, conv = needed.mlp, needed.conv
    if not (mlp or conv):
        return found
    N, C = problem.N, problem.C
    tile_c, tile_r = _LARGE_TILE if C * problem.R >= _LARGE_LAYER else _TILE
    tiles = (-(-C // tile_c) * -(-problem.R // tile_r) if mlp else 0) + (
        -(-(call.parameters.conv_weight.numel() + 1) // tile_c) if conv else 0  # pyright: ignore[reportOptionalMemberAccess]
    )
    shares = N * grid.tap_chunks(problem) if conv else 0
    launch_once(
        call, weight_gradients_kernel, tiles,
        call.saved, run.scratch, found, N, C, problem.R, shares,
        BLOCK_N=max(16, min(_TILE_N, 1 << (N - 1).bit_length())), BLOCK_C=tile_c, BLOCK_R=tile_r,
    )  # fmt: skip
    return found
