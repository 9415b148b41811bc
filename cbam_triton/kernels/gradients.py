"""The backward's launchers: from dy to the gradients of x, of the residual and of every parameter."""

import torch
from torch import Tensor

from ..layout import even_strides, merged, output_like
from ..variant import decoded
from . import grid
from .call import Call, Gradients, Kept, Needed, Weights, plan_of, spatial_gate
from .launch_backward import (
    Backward,
    channel_gradient,
    gradient_lead,
    gradient_size,
    logit_gradient,
    share_size,
    staged,
    wavefront,
    weight_gradients,
)
from .plan import Override, Plan


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
            dpools = wavefront(run, None, rest=False)
        else:
            dpools = channel_gradient(run) if spatial_first else None
            logit_gradient(run, dpools)
        if batch_norm or any(needed[8:]):
            dnorm = _norm_gradient(run, batch_norm)
    if in_one:
        wavefront(run, dpools, logits=not batch_norm)
        if plan.problem.K and not batch_norm and any(needed[8:]):
            dnorm = _norm_gradient(run, False)
    else:
        staged(run, needed, batch_norm, dpools)
    residual = None
    if needed.residual:
        residual = run.dr if run.dr is not None else dy
    parameters = weight_gradients(run, needed)
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


def _prepared(call: Call, dy: Tensor, needed: Needed) -> Backward:
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
        dz = call.empty(N * gradient_size(call))
        if needed.conv:
            share = call.empty(N * grid.tap_chunks(problem) * share_size(call))
    if problem.R:
        dq, hidden = call.empty(N * C), call.empty(N * (plan.problem.pools + 1) * problem.R)
    aligned = _aligned(dy, strides, plan)
    dx = output_like(x) if needed.x else None
    return Backward(call, dy, strides, aligned, dr, dx, s, dmaps, dz, share, dq, hidden)


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


def _norm_gradient(run: Backward, batch_norm: bool) -> tuple[Tensor, Tensor]:
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
    strides = (gradient_size(call), plane + call.zeros_around, 1)
    return dz.as_strided((call.x.shape[0], planes, plane), strides, gradient_lead(call))
