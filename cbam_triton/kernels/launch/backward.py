"""The backward's launchers: from dy to the gradients of x, of the residual and of every parameter."""

import torch
from torch import Tensor

from ...spec.variant import decoded
from ..stages.packs import GradientScratch, Saved
from . import grid
from .backward_stages import Backward, channel_gradient, logit_gradient, staged, wavefront, weight_gradients
from .layout import even_strides, merged, needs_wide_offsets, output_like
from .norm_gradient import norm_gradient
from .plan import Plan
from .statistics import over_batch
from .tensors import PARAMETERS, Call, Gradients, Needed, Weights, accumulator, plan_of, spatial_gate


def backward(
    x: Tensor,
    dy: Tensor,
    y: Tensor | None,
    weights: Weights,
    saved: Saved,
    needed: Needed,
    schedule: str,
    batch_norm: bool = False,
    group: str | None = None,
) -> Gradients:
    """Gradients from dy, for an x that `layout.merged` leaves alone and what its forward saved.

    y is the forward's output where it ended in a ReLU, else None. With `batch_norm` the norm's statistics are those of
    this batch and depend on x; with the name of a process group they are of its processes' batches, and each of these
    must call. dy may have any strides by which pixels are evenly spaced, also 0; others are copied.
    Traffic: 3 passes over x (wavefront) to 7 (staged, nothing in L2), 2 more for a ReLU; with `batch_norm` 5 at least.
    """
    if x.numel() == 0:
        if group is not None:
            over_batch(x.new_zeros(2, dtype=accumulator(x.dtype)), 0, group)
        return _zeros(x, dy, weights, needed)
    spatial_first = decoded(weights.variant).arrangement == "spatial_first"
    if y is not None and (weights.conv_weight is None or spatial_first):  # then the first stage does not make dr
        dy, y = torch.where(y <= 0, 0, dy), None
    needed = needed.there(weights)
    dy, strides = _evenly_spaced(dy)
    wide = needs_wide_offsets(x.shape[1], x.shape[2] * x.shape[3], *strides[1:])
    plan = plan_of(x, weights, schedule, True, 0 if y is None else y.data_ptr(), wide)
    run = _prepared(Call(x, y, weights.parameters, plan, saved=saved), weights, dy, strides, needed)
    dnorm = Gradients()
    in_one = plan.schedule == "wavefront" and needed.x
    begun = False
    if plan.problem.K and (batch_norm or not in_one):
        begun = spatial_first
        if spatial_first and in_one:
            wavefront(run, begun=False, rest=False)
        else:
            if spatial_first:
                channel_gradient(run)
            logit_gradient(run)
        if batch_norm or needed.norm:
            dnorm = norm_gradient(run, needed, batch_norm, group)
    if in_one:
        wavefront(run, begun, logits=not batch_norm)
        if plan.problem.K and not batch_norm and needed.norm:
            dnorm = norm_gradient(run, needed, False, None)
    else:
        staged(run, needed, batch_norm, begun)
    residual = None
    if needed.residual:
        residual = run.dr if run.dr is not None else dy
    of_norm = {"norm_weight": dnorm.norm_weight, "norm_bias": dnorm.norm_bias}
    return weight_gradients(run, needed)._replace(x=run.dx, residual=residual, **of_norm)


def _zeros(x: Tensor, dy: Tensor, weights: Weights, needed: Needed) -> Gradients:
    like = {"x": x, "residual": dy, **{name: getattr(weights, name) for name in PARAMETERS}}
    wanted = needed.there(weights)
    return Gradients(**{name: torch.zeros_like(tensor) for name, tensor in like.items() if getattr(wanted, name)})


def _evenly_spaced(dy: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """dy, or a dense copy whose pixels are evenly spaced, and its strides as N C P."""
    strides = even_strides(dy)
    if strides is None:
        dy = merged(dy)
        strides = even_strides(dy)
    assert strides is not None
    return dy, strides


def _prepared(call: Call, weights: Weights, dy: Tensor, strides: tuple[int, int, int], needed: Needed) -> Backward:
    x, plan, problem = call.x, call.plan, call.plan.problem
    N, C, H, W = x.shape
    s = dmaps = dz = share = dq = hidden = ddescriptors = None
    if problem.K:
        s = _gate_map(call, weights)
        dmaps = call.empty(N * 2 * H * W)
        dz = call.empty(N * plan.maps.gradient)
        if needed.conv:
            share = call.empty(N * grid.tap_chunks(problem) * plan.form.SHARE)
    if problem.R:
        dq, hidden = call.empty(N * C), call.empty(N * (problem.slots + 1) * problem.R)
        ddescriptors = call.empty(N * problem.slots * C)
    dr = None if call.y is None else output_like(x)
    dx = output_like(x) if needed.x else None
    scratch = GradientScratch(None, ddescriptors, dmaps, s, dz, dq, hidden, share)
    return Backward(call, dy, strides, _aligned(dy, strides, plan), dr, dx, scratch)


def _gate_map(call: Call, weights: Weights) -> Tensor | None:
    """The spatial gate (N, P), or memory for it where the map gradient makes it."""
    z = call.saved.z
    if z is None or weights.norm_mean is None or weights.norm_var is None:
        return z
    if not call.plan.problem.spatial_first:
        return call.empty(z.numel())
    return spatial_gate(z, weights)


def _aligned(dy: Tensor, strides: tuple[int, int, int], plan: Plan) -> bool:
    """Whether dy can be read as x is: the same unit stride, and as wide."""
    vec = plan.problem.vec
    unit, other = (strides[1], strides[2]) if plan.problem.channels_last else (strides[2], strides[1])
    at_once = dy.data_ptr() % (vec * dy.element_size()) == 0
    return unit == 1 and other % vec == 0 and (strides[0] % vec == 0 or dy.shape[0] == 1) and at_once
