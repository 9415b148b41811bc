"""The backward's launchers: from dy to the gradients of x, of the residual and of every parameter."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ..layout import even_strides, merged, output_like
from ..variant import decoded
from . import grid
from .call import Call, Gradients, Kept, Needed, Weights, launch, launch_once, plan_of, spatial_gate
from .plan import Override, Plan
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


class _Backward(NamedTuple):
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


def backward(
    x: Tensor,
    dy: Tensor,
    y: Tensor | None,
    weights: Weights,
    kept: Kept,
    needed: Needed,
    schedule: str,
    override: Override | None = None,
    batch_norm: bool = False,
) -> Gradients:
    """Gradients from dy, for an x that `layout.merged` leaves alone and what its forward kept.

    y is the forward's output where it ended in a ReLU, else None. With `batch_norm` the norm's statistics are those of
    this batch and depend on x. dy may have any strides by which pixels are evenly spaced, also 0; others are copied.
    Traffic: 3 passes over x (wavefront) to 7 (staged, nothing in L2), 2 more for a ReLU; with `batch_norm` 5 at least.
    """
    if x.numel() == 0:
        return _zeros(x, dy, weights, needed)
    spatial_first = decoded(weights.variant).arrangement == "spatial_first"
    if y is not None and (weights.conv_weight is None or spatial_first):  # then the first stage does not make dr
        dy, y = torch.where(y <= 0, 0, dy), None
    there = (parameter is not None for parameter in weights[:8])
    needed = Needed(*needed[:2], *(wanted and has for wanted, has in zip(needed[2:], there, strict=True)))
    plan = plan_of(x, weights, schedule, override, True, 0 if y is None else y.data_ptr())
    run = _prepared(Call(x, y, weights, plan, kept=kept), dy, needed)
    dnorm = (None, None)
    in_one = plan.schedule == "wavefront" and needed.x
    dpools = None
    if plan.problem.K and (batch_norm or not in_one):
        if spatial_first and in_one:
            dpools = _wavefront(run, None, rest=False)
        else:
            dpools = _channel_gradient(run) if spatial_first else None
            _logit_gradient(run, dpools)
        if batch_norm or any(needed[8:]):
            dnorm = _norm_gradient(run, batch_norm)
    if in_one:
        _wavefront(run, dpools, logits=not batch_norm)
        if plan.problem.K and not batch_norm and any(needed[8:]):
            dnorm = _norm_gradient(run, False)
    else:
        _staged(run, needed, batch_norm, dpools)
    residual = None
    if needed.residual:
        residual = run.dr if run.dr is not None else dy
    parameters = _weight_gradients(run, needed)
    norm = [
        total.to(parameter.dtype) if wanted and total is not None and parameter is not None else None
        for total, parameter, wanted in zip(dnorm, weights[6:8], needed[8:], strict=True)
    ]
    return Gradients(run.dx, residual, *parameters, *norm)


def _zeros(x: Tensor, dy: Tensor, weights: Weights, needed: Needed) -> Gradients:
    like = (x, dy, *weights[:8])
    return Gradients(
        *(
            torch.zeros_like(tensor) if wanted and tensor is not None else None
            for tensor, wanted in zip(like, needed, strict=True)
        )
    )


def _prepared(call: Call, dy: Tensor, needed: Needed) -> _Backward:
    x, plan = call.x, call.plan
    N, C, H, W = x.shape
    problem = plan.problem
    strides = even_strides(dy)
    if strides is None:
        dy = merged(dy)
        strides = even_strides(dy)
    assert strides is not None
    dr = None if call.y is None else output_like(x)
    s = dmaps = dz = share = dq = hidden = None
    if problem.K:
        s = _gate_map(call)
        dmaps = call.empty(N * 2 * H * W)
        dz = call.empty(N * _gradient_size(call))
        if needed.conv:
            share = call.empty(N * grid.tap_chunks(problem) * _share_size(call))
    if problem.R:
        dq, hidden = call.empty(N * C), call.empty(N * (plan.pools + 1) * problem.R)
    aligned = _aligned(dy, strides, plan)
    dx = output_like(x) if needed.x else None
    return _Backward(call, dy, strides, aligned, dr, dx, s, dmaps, dz, share, dq, hidden)


def _gate_map(call: Call) -> Tensor | None:
    """The spatial gate (N, P), or memory for it where the map gradient makes it."""
    weights, z = call.weights, call.kept.z
    if z is None or weights.norm_mean is None or weights.norm_var is None:
        return z
    if call.arrangement != "spatial_first":
        return call.empty(z.numel())
    return spatial_gate(z, weights)


def _aligned(dy: Tensor, strides: tuple[int, int, int], plan: Plan) -> bool:
    """Whether dy can be read as x is: the same unit stride, and as wide."""
    vec = plan.problem.vec
    unit, other = (strides[1], strides[2]) if plan.problem.channels_last else (strides[2], strides[1])
    at_once = dy.data_ptr() % (vec * dy.element_size()) == 0
    return unit == 1 and other % vec == 0 and (strides[0] % vec == 0 or dy.shape[0] == 1) and at_once


def _gradient_lead(call: Call) -> int:
    """What `maps.gradient_lead` computes on the device."""
    return -(-call.zeros_around // 8) * 8


def _gradient_size(call: Call) -> int:
    """What `maps.gradient_size` computes on the device."""
    return -(-(_gradient_lead(call) - call.zeros_around + call.padded_size) // 8) * 8


def _share_size(call: Call) -> int:
    """What `spatial_gate.share_size` computes on the device."""
    conv_weight = call.weights.conv_weight
    assert conv_weight is not None
    return conv_weight.shape[1] * call.plan.problem.tap_rows * call.plan.constants["BLOCK_K"] + 8


def _logit_gradient(run: _Backward, dpools: Tensor | None) -> None:
    call = run.call
    pools, argmax = (None, None) if dpools is None else (call.kept.pools, call.kept.channel_argmax)
    launch(
        call, logit_gradient_kernel, ("SPATIAL",), grid.spatial_tiles,
        call.x, run.dy, call.y, run.dr, call.kept.gate, pools, dpools, argmax, call.kept.z, run.dz, *call.weights[6:10],
        *call.plan.strides[:3], *run.dy_strides, *call.plan.strides[3:], *call.x.shape, call.weights.planes,
        NORM_EPS=call.weights.norm_eps, DY_ALIGNED=run.dy_aligned, BACKWARDS=dpools is not None,
    )  # fmt: skip


def _norm_gradient(run: _Backward, batch_norm: bool) -> tuple[Tensor, Tensor]:
    """Gradients of the norm's weight and bias; with `batch_norm` dz becomes the gradient of what is normed."""
    weights, z = run.call.weights, run.call.kept.z
    assert z is not None
    assert run.dz is not None
    assert weights.norm_mean is not None
    assert weights.norm_var is not None
    dz = _without_zeros(run.call, run.dz)
    z = z.view(dz.shape)
    slope = torch.rsqrt(weights.norm_var.to(z.dtype) + weights.norm_eps)
    normal = (z - weights.norm_mean.to(z.dtype)) * slope
    dweight = (dz * normal).sum().view(1)
    dbias = dz.sum().view(1)
    if batch_norm:
        if weights.norm_weight is not None:
            slope = slope * weights.norm_weight.to(z.dtype)
        dz.sub_((dbias + normal * dweight) / z.numel()).mul_(slope)
    return dweight, dbias


def _without_zeros(call: Call, dz: Tensor) -> Tensor:
    """The pixels of dz, N planes pixels, as a view."""
    planes = call.weights.planes
    plane = call.plan.problem.P // planes
    strides = (_gradient_size(call), plane + call.zeros_around, 1)
    return dz.as_strided((call.x.shape[0], planes, plane), strides, _gradient_lead(call))


def _wavefront(run: _Backward, dpools: Tensor | None, logits: bool = True, rest: bool = True) -> Tensor | None:
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


def _staged(run: _Backward, needed: Needed, given: bool, dpools: Tensor | None) -> None:
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
        dpools = _channel_gradient(run)
    if needed.x:
        launch(
            call, input_gradient_kernel, ("APPLY",), grid.apply_tiles,
            call.x, d, run.dx, run.s, run.dmaps, kept.spatial_argmax,
            kept.gate, kept.pools, dpools, kept.channel_argmax,
            *call.plan.strides[:3], *d_strides, *call.plan.strides[3:], N, C, problem.P,
            D_ALIGNED=aligned, BACKWARDS=problem.R == 0,
        )  # fmt: skip


def _channel_gradient(run: _Backward) -> Tensor:
    """Gradients of the pooled channels."""
    call, kept, weights, plan = run.call, run.call.kept, run.call.weights, run.call.plan
    N, C, P, R = plan.problem.N, plan.problem.C, plan.problem.P, plan.problem.R
    first = call.arrangement == "spatial_first"
    d, d_strides, aligned = run.d
    partial, dh, dpools = _channel_scratch(run)
    launch(
        call, channel_gradient_kernel, ("POOL",), grid.pool_tiles,
        call.x, d, run.s, None if first else run.dmaps, kept.spatial_argmax, kept.gate, weights.fc2_weight,
        partial, call.chunk_counters(), run.dq, dh,
        *plan.strides[:3], *d_strides, N, C, P, R, plan.blocks, D_ALIGNED=aligned, BACKWARDS=not first,
    )  # fmt: skip
    shares, blocks = (run.dq, 1) if weights.fc2_weight is None else (dh, plan.blocks)
    launch(
        call, mlp_gradient_kernel, ("MLP",), grid.mlp_tiles,
        shares, kept.preactivation, kept.pools, weights.fc1_weight, run.hidden, dpools, N, C, P, R, blocks,
    )  # fmt: skip
    return dpools


def _channel_scratch(run: _Backward) -> tuple[Tensor, Tensor, Tensor]:
    """Partial sums of dq, shares of dh, and the gradients of the pooled channels."""
    call, plan, problem = run.call, run.call.plan, run.call.plan.problem
    dh = call.empty(problem.N * plan.blocks * problem.R)
    # With one chunk a block nothing is partial: any pointer does.
    partial = call.empty(problem.N * plan.blocks * plan.partials) if plan.partials else dh
    if len(plan.rows) > 1:
        dh.zero_()  # the row that is taken may have fewer blocks
    return partial, dh, call.empty(problem.N * plan.pools * problem.C)


def _weight_gradients(run: _Backward, needed: Needed) -> list[Tensor | None]:
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
