"""The forward's launchers: allocate, launch, return. What is launched is decided in `config` and kept in `plan`."""

import torch
from torch import Tensor

from ..variant import decoded, encoded
from . import grid
from .call import Call, Kept, Weights, accumulator, launch, places, plan_of, spatial_gate
from .plan import Override
from .staged import (
    apply_gates_kernel,
    channel_mlp_kernel,
    channel_pool_kernel,
    spatial_logit_kernel,
    spatial_pool_kernel,
)
from .wavefront import cbam_wavefront

_NOTHING = Weights(None, None, None, None, None, None)


def forward(
    x: Tensor,
    weights: Weights,
    schedule: str,
    override: Override | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """y = act(CBAM(x) + residual) for an x that `layout.merged` leaves alone, with x's memory format.

    A residual has y's strides. Traffic: 2 passes over x (wavefront, samples in flight in L2) to 4 (staged, nothing in
    L2), and 1 for a residual.
    """
    y = torch.empty_like(x)
    if y.numel() > 0:
        _run(Call(x, y, weights, plan_of(x, weights, schedule, override), residual, relu))
    return y


def forward_kept(
    x: Tensor,
    weights: Weights,
    schedule: str,
    override: Override | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    batch_norm: bool = False,
) -> tuple[Tensor, Kept, Tensor | None, Tensor | None]:
    """What `forward` computes, with what its backward needs, and the batch's mean and variance (1,) of the logits.

    With `batch_norm` these statistics normalise the logits, and one more pass reads x; without it they are None.
    """
    y = torch.empty_like(x)
    kept = places(x, weights)
    mean = var = None
    if y.numel() > 0:
        call = Call(x, y, weights, plan_of(x, weights, schedule, override), residual, relu, kept)
        if batch_norm and call.arrangement == "spatial_first":
            mean, var = _parted(call, schedule, override)
        elif batch_norm:
            assert kept.z is not None
            _run(call._replace(y=None))
            var, mean = torch.var_mean(kept.z.view(1, -1), 1, correction=0)
            call = call._replace(weights=weights._replace(norm_mean=mean, norm_var=var))
            _apply(call, kept.gate, None, kept.z, None, backwards=True)
        else:
            _run(call)
    return y, kept, mean, var


def gates(x: Tensor, weights: Weights, schedule: str, override: Override | None = None) -> tuple[Tensor, Tensor]:
    """g (N, C) after the sigmoid, (N, 0) without channel attention, and z (N, 1, H, W) before norm and sigmoid.

    Traffic: 1 pass over x (wavefront) or 2 (staged).
    """
    N, C, H, W = x.shape
    acc = accumulator(x.dtype)
    gate = torch.empty((N, 0 if weights.fc1_weight is None else C), dtype=acc, device=x.device)
    z = torch.empty((N, 1, H, W), dtype=acc, device=x.device)
    if z.numel() > 0:
        weights = weights._replace(norm_weight=None, norm_bias=None, norm_mean=None, norm_var=None)
        kept = Kept(gate=gate, z=z)
        _run(Call(x, None, weights, plan_of(x, weights, schedule, override), kept=kept))
    return gate, z


def apply_gates(
    x: Tensor,
    g: Tensor | None,
    z: Tensor | None,
    override: Override | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    variant: str = "",
) -> Tensor:
    """y = act(x * g * gate(z) + residual), with x's memory format. Traffic: 2 passes over x, 1 for a residual."""
    y = torch.empty_like(x)
    if y.numel() > 0:
        nothing = _NOTHING._replace(variant=variant)
        plan = plan_of(x, nothing, "staged", override)
        _apply(Call(x, y, nothing, plan, residual, relu), g, None, z, None, backwards=True)
    return y


def _run(call: Call, s: Tensor | None = None) -> None:
    """All stages; without a y, those up to the logits, which are not to be had with the spatial gate first.

    Where channel attention is all there is, it may be of x * s.
    """
    problem, kept = call.plan.problem, call.kept
    if call.plan.schedule == "wavefront":
        _wavefront(call, s)
    elif call.arrangement == "spatial_first":
        pool, s, z = _spatial_pool(call, None, backwards=False), *_gate_map(call)
        _spatial_logit(call, pool, z, s)
        _apply(call, _channel_gate(call, s, backwards=True), None, None, s, backwards=False)
    else:
        gate = _channel_gate(call, s, backwards=s is not None) if problem.R else None
        if not problem.K:
            _apply(call, gate, None, None, s, backwards=s is None)
            return
        pooled_by = None if call.arrangement == "parallel" else gate
        pool = _spatial_pool(call, pooled_by, backwards=gate is not None)
        if call.y is None:
            _spatial_logit(call, pool, kept.z, None)
        else:
            _apply(call, gate, pool, kept.z, None, backwards=gate is None)


def _parted(call: Call, schedule: str, override: Override | None) -> tuple[Tensor, Tensor]:
    """Both gates, the spatial one first, parted by the mean and variance of the logits, which are returned."""
    kept, weights = call.kept, call.weights
    assert kept.z is not None
    alone = encoded(decoded(weights.variant)._replace(arrangement="channel_first"))
    spatial = _NOTHING._replace(
        conv_weight=weights.conv_weight, conv_bias=weights.conv_bias, variant=alone, planes=weights.planes
    )
    plan = plan_of(call.x, spatial, schedule, override)
    _run(Call(call.x, None, spatial, plan, kept=Kept(pool=kept.pool, spatial_argmax=kept.spatial_argmax, z=kept.z)))
    var, mean = torch.var_mean(kept.z.view(1, -1), 1, correction=0)
    s = spatial_gate(kept.z, weights._replace(norm_mean=mean, norm_var=var))
    channel = Weights(*weights[:4], None, None, variant=alone)
    plan = plan_of(call.x, channel, schedule, override)
    kept = kept._replace(pool=None, spatial_argmax=None, z=None)
    _run(Call(call.x, call.y, channel, plan, call.residual, call.relu, kept), s)
    return mean, var


def _gate_map(call: Call) -> tuple[Tensor | None, Tensor | None]:
    """Memory for s (N, P) where it is made before the channel gate, and for z if it is kept besides."""
    if call.arrangement != "spatial_first":
        return None, call.kept.z
    if call.weights.norm_mean is None and call.kept.z is not None:
        return call.kept.z, None
    return call.empty(call.plan.problem.N * call.plan.problem.P), call.kept.z


def _pool_map(call: Call) -> Tensor:
    maps = 2 if call.plan.constants["SPATIAL_POOLS"] == "mean+max" else 1
    return call.empty(call.plan.problem.N * call.padded_size * maps)


def _channel_scratch(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Partial pools, hidden partial sums and the gate."""
    problem, blocks = call.plan.problem, call.plan.blocks
    hidden = call.empty(problem.N * blocks * problem.pools * problem.R)
    # With one chunk a block nothing is partial: any pointer does.
    partials = problem.N * blocks * (problem.pools + 1) * call.plan.partials
    partial = call.empty(partials) if partials else hidden
    if len(call.plan.rows) > 1:
        hidden.zero_()  # the row that is taken may have fewer blocks
    gate = call.kept.gate
    return partial, hidden, call.empty(problem.N * problem.C) if gate is None else gate


def _wavefront(call: Call, s: Tensor | None) -> None:
    problem, kept = call.plan.problem, call.kept
    partial = hidden = gate = pool = None
    z = None
    if s is None:
        s, z = _gate_map(call)
    if problem.R:
        partial, hidden, gate = _channel_scratch(call)
    if problem.K:
        pool = _pool_map(call)
    launch(
        call, cbam_wavefront, ("POOL", "MLP_T", "MLP_C", "SPATIAL", "APPLY"),
        grid.wavefront_logit_tiles if call.y is None else grid.wavefront_tiles,
        call.x, call.residual, *call.weights[:10], partial, hidden, gate, pool, s, call.y,
        z, kept.pools, kept.channel_argmax, kept.preactivation, kept.pool, kept.spatial_argmax,
        call.zeros(1 + problem.N * (4 + call.plan.blocks)),
        *call.plan.strides, *call.x.shape, call.weights.planes, problem.R, call.plan.lag,
        NORM_EPS=call.weights.norm_eps, RELU=call.relu,
    )  # fmt: skip


def _channel_gate(call: Call, s: Tensor | None, backwards: bool) -> Tensor:
    """The channel gate of x, or of x * s."""
    problem, blocks, weights, kept = call.plan.problem, call.plan.blocks, call.weights, call.kept
    N, C, R = problem.N, problem.C, problem.R
    partial, hidden, gate = _channel_scratch(call)
    launch(
        call, channel_pool_kernel, ("POOL",), grid.pool_tiles,
        call.x, s, weights.fc1_weight, partial, hidden, kept.pools, kept.channel_argmax, call.chunk_counters(hidden),
        *call.plan.strides[:3], N, C, problem.P, R, blocks, BACKWARDS=backwards,
    )  # fmt: skip
    launch(
        call, channel_mlp_kernel, ("MLP",), grid.mlp_tiles,
        hidden, weights.fc1_bias, weights.fc2_weight, weights.fc2_bias, gate, kept.preactivation, N, C, R, blocks,
    )  # fmt: skip
    return gate


def _spatial_pool(call: Call, gate: Tensor | None, backwards: bool) -> Tensor:
    """The pooled maps of x, or of x * gate."""
    pool = _pool_map(call)
    launch(
        call, spatial_pool_kernel, ("SPATIAL",), grid.spatial_tiles,
        call.x, gate, pool, call.kept.pool, call.kept.spatial_argmax,
        *call.plan.strides[:3], *call.x.shape, call.weights.planes, BACKWARDS=backwards,
    )  # fmt: skip
    return pool


def _spatial_logit(call: Call, pool: Tensor, z: Tensor | None, s: Tensor | None) -> None:
    N, _, H, W = call.x.shape
    weights = call.weights
    launch(
        call, spatial_logit_kernel, ("APPLY_P",), grid.pixel_tiles,
        pool, weights.conv_weight, weights.conv_bias, *weights[6:10], z, s, N, H, W, weights.planes,
        NORM_EPS=weights.norm_eps,
    )  # fmt: skip


def _apply(
    call: Call, gate: Tensor | None, pool: Tensor | None, z: Tensor | None, s: Tensor | None, backwards: bool
) -> None:
    weights = call.weights
    launch(
        call, apply_gates_kernel, ("APPLY",), grid.apply_tiles,
        call.x, call.residual, gate, pool, z, s, call.y, weights.conv_weight, weights.conv_bias, *weights[6:10],
        *call.plan.strides, *call.x.shape, weights.planes,
        NORM_EPS=weights.norm_eps, RELU=call.relu, BACKWARDS=backwards,
    )  # fmt: skip
