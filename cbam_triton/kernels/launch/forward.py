"""The forward: allocate, launch, return. What is launched is decided in `plan`."""

import torch
from torch import Tensor

from ...spec.variant import encoded
from ..schedules.staged import (
    apply_gates_kernel,
    channel_mlp_kernel,
    channel_pool_kernel,
    spatial_logit_kernel,
    spatial_pool_kernel,
)
from ..schedules.wavefront import cbam_wavefront
from ..stages.packs import Saved, Scratch
from . import grid
from .launcher import launch
from .layout import output_like
from .statistics import mean_and_variance
from .tensors import Call, Weights, accumulator, places, plan_of, spatial_gate

_NOTHING = Weights(None, None, None, None, None, None)


def forward(
    x: Tensor,
    weights: Weights,
    schedule: str,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """y = act(CBAM(x) + residual) for an x that `layout.merged` leaves alone, with x's memory format.

    A residual has y's strides. Traffic: 2 passes over x (wavefront, samples in flight in L2) to 4 (staged, nothing in
    L2), and 1 for a residual.
    """
    y = output_like(x)
    if y.numel() > 0:
        _run(Call(x, y, weights.parameters, plan_of(x, weights, schedule), residual, relu))
    return y


def forward_saved(
    x: Tensor,
    weights: Weights,
    schedule: str,
    residual: Tensor | None = None,
    relu: bool = False,
    batch_norm: bool = False,
    group: str | None = None,
) -> tuple[Tensor, Saved, tuple[Tensor | None, ...]]:
    """What `forward` computes, what its backward needs, and the batch's statistics of the logits.

    With `batch_norm` the logits are normalised by their mean and variance (1,), and one more pass reads x. With the
    name of a process group these are of all its processes' batches, and their number (1,) is the third; every process
    of the group must call. What there is not is None.
    """
    y = output_like(x)
    saved = places(x, weights)
    statistics = (None, None, None)
    if y.numel() == 0:
        if group is not None and saved.z is not None:
            statistics = mean_and_variance(saved.z, group)
    else:
        plan = plan_of(x, weights, schedule)
        call = Call(x, y, weights.parameters, plan, residual, relu, saved)
        if batch_norm and plan.variant.arrangement == "spatial_first":
            statistics = _parted(call, weights, schedule, group)
        elif batch_norm:
            assert saved.z is not None
            _run(call._replace(y=None))
            statistics = mean, var, _ = mean_and_variance(saved.z, group)
            call = call._replace(parameters=call.parameters._replace(norm_mean=mean, norm_var=var))
            _apply(call, Scratch(gate=saved.gate), saved.z, backwards=True)
        else:
            _run(call)
    return y, saved, statistics


def gates(x: Tensor, weights: Weights, schedule: str) -> tuple[Tensor, Tensor]:
    """g (N, C) after the sigmoid, (N, 0) without channel attention, and z (N, 1, H, W) before norm and sigmoid.

    Traffic: 1 pass over x (wavefront) or 2 (staged).
    """
    N, C, H, W = x.shape
    acc = accumulator(x.dtype)
    gate = torch.empty((N, 0 if weights.fc1_weight is None else C), dtype=acc, device=x.device)
    z = torch.empty((N, 1, H, W), dtype=acc, device=x.device)
    if z.numel() > 0:
        weights = weights._replace(norm_weight=None, norm_bias=None, norm_mean=None, norm_var=None)
        plan = plan_of(x, weights, schedule)
        _run(Call(x, None, weights.parameters, plan, saved=Saved(gate=gate, z=z)))
    return gate, z


def apply_gates(
    x: Tensor,
    g: Tensor | None,
    z: Tensor | None,
    residual: Tensor | None = None,
    relu: bool = False,
    variant: str = "",
) -> Tensor:
    """y = act(x * g * gate(z) + residual), with x's memory format. Traffic: 2 passes over x, 1 for a residual."""
    y = output_like(x)
    if y.numel() > 0:
        nothing = _NOTHING._replace(variant=variant)
        call = Call(x, y, nothing.parameters, plan_of(x, nothing, "staged"), residual, relu)
        _apply(call, Scratch(gate=g), z, backwards=True, first=True)
    return y


def _run(call: Call, s: Tensor | None = None) -> None:
    """All stages; without a y, those up to the logits, which are not to be had with the spatial gate first.

    Where channel attention is all there is, it may be of x s.
    """
    problem, z = call.plan.problem, call.saved.z
    if s is None and problem.spatial_first:
        s, z = _gate_map(call)
    scratch = Scratch(*_channel_scratch(call), _padded_maps(call), s)
    if call.plan.schedule == "wavefront":
        _wavefront(call, scratch, z)
    elif problem.spatial_first:
        _spatial_pool(call, scratch, backwards=False)
        _spatial_logit(call, scratch, z)
        _channel_gate(call, scratch, backwards=True)
        _apply(call, scratch._replace(maps=None), None, backwards=False)
    else:
        if problem.R:
            _channel_gate(call, scratch, backwards=s is not None)
        if problem.K:
            _spatial_pool(call, scratch, backwards=problem.R > 0)
        if call.y is None:
            _spatial_logit(call, scratch, z)
        else:
            _apply(call, scratch, z, backwards=not problem.R if problem.K else s is None)


def _parted(call: Call, weights: Weights, schedule: str, group: str | None) -> tuple[Tensor | None, ...]:
    """Both gates, the spatial one first, parted by the statistics of the logits, which are returned."""
    saved = call.saved
    assert saved.z is not None
    alone = encoded(call.plan.variant._replace(arrangement="channel_first"))
    spatial = _NOTHING._replace(
        conv_weight=weights.conv_weight, conv_bias=weights.conv_bias, variant=alone, planes=weights.planes
    )
    plan = plan_of(call.x, spatial, schedule)
    of_spatial = Saved(maps=saved.maps, spatial_argmax=saved.spatial_argmax, z=saved.z)
    _run(Call(call.x, None, spatial.parameters, plan, saved=of_spatial))
    statistics = mean, var, _ = mean_and_variance(saved.z, group)
    s = spatial_gate(saved.z, weights._replace(norm_mean=mean, norm_var=var))
    channel = weights._replace(
        conv_weight=None, conv_bias=None, norm_weight=None, norm_bias=None, norm_mean=None, norm_var=None,
        norm_eps=0.0, variant=alone, planes=1,
    )  # fmt: skip
    plan = plan_of(call.x, channel, schedule)
    of_channel = saved._replace(maps=None, spatial_argmax=None, z=None)
    _run(Call(call.x, call.y, channel.parameters, plan, call.residual, call.relu, of_channel), s)
    return statistics


def _gate_map(call: Call) -> tuple[Tensor | None, Tensor | None]:
    """Memory for s (N, P), made before the channel gate, and for z if it is saved besides."""
    saved = call.saved.z
    if call.parameters.norm_mean is None and saved is not None:
        return saved, None
    return call.empty(call.plan.problem.N * call.plan.problem.P), saved


def _padded_maps(call: Call) -> Tensor | None:
    problem, plan = call.plan.problem, call.plan
    return call.empty(problem.N * plan.maps.padded * plan.form.MAPS) if problem.K else None


def _channel_scratch(call: Call) -> tuple[Tensor | None, Tensor | None]:
    """Sums of chunks, and the channel gate; None without channel attention."""
    problem, plan = call.plan.problem, call.plan
    if not problem.R:
        return None, None
    # With one chunk a block nothing is partial: any pointer does.
    partials = problem.N * plan.blocks * (problem.slots + 1) * plan.partials
    gate = call.saved.gate
    gate = call.empty(problem.N * problem.C) if gate is None else gate
    return call.empty(partials) if partials else gate, gate


def _hidden(call: Call) -> Tensor:
    """Memory for shares of the hidden layer."""
    problem, plan = call.plan.problem, call.plan
    return call.empty(problem.N * plan.blocks * problem.slots * problem.R)


def _wavefront(call: Call, scratch: Scratch, z: Tensor | None) -> None:
    plan = call.plan
    launch(
        call, cbam_wavefront, ("POOL", "MLP_T", "MLP_C", "SPATIAL", "APPLY"),
        grid.wavefront_logit_tiles if call.y is None else grid.wavefront_tiles,
        call.x, call.residual, call.y, call.parameters, call.saved._replace(z=z), scratch,
        _hidden(call) if plan.problem.R else None, call.zeros(1 + plan.problem.N * (4 + plan.blocks)),
        *plan.x_strides, *plan.y_strides, *plan.sizes, plan.lag, RELU=call.relu,
    )  # fmt: skip


def _channel_gate(call: Call, scratch: Scratch, backwards: bool) -> None:
    """The channel gate of x, or of x s."""
    plan, hidden = call.plan, _hidden(call)
    launch(
        call, channel_pool_kernel, ("POOL",), grid.pool_tiles,
        call.x, call.parameters, call.saved, scratch, hidden, call.chunk_counters(hidden),
        *plan.x_strides, *plan.sizes, plan.blocks, first=not backwards, BACKWARDS=backwards,
    )  # fmt: skip
    launch(
        call, channel_mlp_kernel, ("MLP",), grid.mlp_tiles,
        hidden, call.parameters, call.saved, scratch, *plan.sizes, plan.blocks,
    )  # fmt: skip


def _spatial_pool(call: Call, scratch: Scratch, backwards: bool) -> None:
    """The maps of x, or of x g."""
    launch(
        call, spatial_pool_kernel, ("SPATIAL",), grid.spatial_tiles,
        call.x, call.saved, scratch, *call.plan.x_strides, *call.plan.sizes, first=not backwards, BACKWARDS=backwards,
    )  # fmt: skip


def _spatial_logit(call: Call, scratch: Scratch, z: Tensor | None) -> None:
    launch(
        call, spatial_logit_kernel, ("APPLY_P",), grid.pixel_tiles,
        call.parameters, Saved(z=z), scratch, *call.plan.sizes,
    )  # fmt: skip


def _apply(call: Call, scratch: Scratch, z: Tensor | None, backwards: bool, first: bool = False) -> None:
    launch(
        call, apply_gates_kernel, ("APPLY",), grid.apply_tiles,
        call.x, call.residual, call.y, call.parameters, Saved(z=z), scratch,
        *call.plan.x_strides, *call.plan.y_strides, *call.plan.sizes, first=first, RELU=call.relu, BACKWARDS=backwards,
    )  # fmt: skip
