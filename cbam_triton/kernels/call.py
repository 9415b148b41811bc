"""What every launcher needs: the tensors of a call, its plan, and the launch itself."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layout import ACCESS_BYTES
from ..reference import gate
from ..variant import decoded, maps_of
from .config import Problem, Sizes
from .device import facts
from .plan import Override, Plan, plan, pool_slots


class Weights(NamedTuple):
    """Parameters of the layer, dense; fc1 None without channel attention, conv None without spatial attention."""

    fc1_weight: Tensor | None  # R C
    fc1_bias: Tensor | None  # R
    fc2_weight: Tensor | None  # C R; None also for an MLP of one layer
    fc2_bias: Tensor | None  # C
    conv_weight: Tensor | None  # 1 M K K; as many K as there are axes of pixels
    conv_bias: Tensor | None  # 1
    norm_weight: Tensor | None = None  # 1
    norm_bias: Tensor | None = None  # 1
    norm_mean: Tensor | None = None  # 1
    norm_var: Tensor | None = None  # 1
    norm_eps: float = 0.0
    variant: str = ""  # as `encoded`
    planes: int = 1  # of x (N C H W), one below the other: the depth of three-dimensional maps

    @property
    def dims(self) -> int:
        """Axes of pixels."""
        return 2 if self.conv_weight is None else self.conv_weight.ndim - 2


class Kept(NamedTuple):
    """What a forward leaves for its backward besides x; None for what its layer has not. Sums are in `accumulator`.

    Indices are in the smallest type that holds them, and those of ties the first.
    """

    gate: Tensor | None = None  # N C
    pools: Tensor | None = None  # N POOLS C: average, maximum (, 2-norm, logsumexp) over the pixels
    channel_argmax: Tensor | None = None  # N C: the pixel of each channel's maximum
    preactivation: Tensor | None = None  # N POOLS R: the MLP's hidden vectors before ReLU
    pool: Tensor | None = None  # N H W M: mean and maximum over the channels, in x's dtype
    spatial_argmax: Tensor | None = None  # N H W: the channel of each pixel's maximum
    z: Tensor | None = None  # N 1 H W: the convolution's output, before the norm; without a norm the gate


class Gradients(NamedTuple):
    """Gradients of a loss with respect to what the forward got; None for what is not asked for."""

    x: Tensor | None
    residual: Tensor | None
    fc1_weight: Tensor | None
    fc1_bias: Tensor | None
    fc2_weight: Tensor | None
    fc2_bias: Tensor | None
    conv_weight: Tensor | None
    conv_bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None


class Needed(NamedTuple):
    """Which gradients are asked for, in the order of `Gradients`."""

    x: bool = True
    residual: bool = False
    fc1_weight: bool = True
    fc1_bias: bool = True
    fc2_weight: bool = True
    fc2_bias: bool = True
    conv_weight: bool = True
    conv_bias: bool = True
    norm_weight: bool = True
    norm_bias: bool = True

    @property
    def mlp(self) -> bool:
        """Any of the MLP's."""
        return any(self[2:6])

    @property
    def conv(self) -> bool:
        """Any of the convolution's."""
        return any(self[6:8])


class Call(NamedTuple):
    """One call: what it reads and writes, and its plan."""

    x: Tensor
    y: Tensor | None
    weights: Weights
    plan: Plan
    residual: Tensor | None = None
    relu: bool = False
    kept: Kept = Kept()

    @property
    def training(self) -> bool:
        """Whether this is a backward, or a forward that keeps what one needs."""
        return self.kept.pools is not None or self.kept.pool is not None

    @property
    def arrangement(self) -> str:
        """`Variant.arrangement`."""
        return self.plan.constants["ARRANGEMENT"]

    @property
    def zeros_around(self) -> int:
        """What `maps.zeros_around` computes on the device."""
        return self.plan.problem.K // 2 * self.x.shape[3] if self.plan.problem.dims > 1 else 0

    @property
    def padded_size(self) -> int:
        """What `maps.padded_size` computes on the device."""
        return self.plan.problem.P + (self.weights.planes + 1) * self.zeros_around

    def empty(self, size: int) -> Tensor:
        """Scratch."""
        return self.x.new_empty(size, dtype=self.plan.acc)

    def zeros(self, size: int) -> Tensor:
        """Counters."""
        return self.x.new_zeros(size, dtype=torch.int32)

    def chunk_counters(self, scratch: Tensor) -> Tensor:
        """Those of the blocks of channels that are pooled in chunks; if none is, any pointer does."""
        return self.zeros(self.plan.problem.N * self.plan.blocks) if self.plan.partials else scratch.view(torch.int32)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums, gates and maps are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def places(x: Tensor, weights: Weights) -> Kept:
    """Memory for what a backward needs."""
    N, C, H, W = x.shape
    acc, device, variant = accumulator(x.dtype), x.device, decoded(weights.variant)
    gate = pools = channel_argmax = preactivation = pool = spatial_argmax = z = None
    if weights.fc1_weight is not None:
        gate = torch.empty((N, C), dtype=acc, device=device)
        slots = pool_slots(variant)
        pools = torch.empty((N, slots, C), dtype=acc, device=device)
        if "max" in variant.channel_pools:
            channel_argmax = torch.empty((N, C), dtype=_index_dtype(H * W), device=device)
        if weights.fc2_weight is not None:
            preactivation = torch.empty((N, slots, weights.fc1_weight.shape[0]), dtype=acc, device=device)
    if weights.conv_weight is not None:
        pool = torch.empty((N, H, W, maps_of(variant)), dtype=x.dtype, device=device)
        if "max" in variant.spatial_pools:
            spatial_argmax = torch.empty((N, H, W), dtype=_index_dtype(C), device=device)
        z = torch.empty((N, 1, H, W), dtype=acc, device=device)
    return Kept(gate, pools, channel_argmax, preactivation, pool, spatial_argmax, z)


def spatial_gate(z: Tensor, weights: Weights) -> Tensor:
    """The spatial gate from the logits, by the norm's statistics among the weights."""
    assert weights.norm_mean is not None
    assert weights.norm_var is not None
    one = torch.ones((), dtype=z.dtype, device=z.device)
    weight, bias = one if weights.norm_weight is None else weights.norm_weight, weights.norm_bias
    normal = (z - weights.norm_mean) * torch.rsqrt(weights.norm_var.to(z.dtype) + weights.norm_eps) * weight
    return gate(normal if bias is None else normal + bias, decoded(weights.variant))


def _index_dtype(size: int) -> torch.dtype:
    return torch.uint8 if size <= 1 << 8 else torch.int16 if size <= 1 << 15 else torch.int32


def plan_of(
    x: Tensor,
    weights: Weights,
    schedule: str,
    override: Override | None = None,
    backward: bool = False,
    address: int = 0,
) -> Plan:
    """The plan of a call; x must be one that `layout.merged` leaves alone. `address` is of another tensor like x."""
    return plan(
        x.shape,
        x.stride(),
        (x.data_ptr() | address) % ACCESS_BYTES,
        x.dtype,
        0 if weights.fc1_weight is None else weights.fc1_weight.shape[0],
        0 if weights.conv_weight is None else weights.conv_weight.shape[-1],
        schedule,
        facts(x.device),
        override,
        backward,
        weights.dims,
        weights.variant,
    )


def launch(
    call: Call, kernel: Any, stages: tuple[str, ...], tiles: Callable[[Problem, Sizes], int],
    *arguments: Any, **options: Any,
) -> None:  # fmt: skip
    """Launch `tiles` programs a sample with the block sizes of `stages`, of the plan's row or of the tuned one.

    Compile-time constants that the plan does not know are `options`.
    """
    prepared = call.plan.prepared
    key = (id(kernel), tiles, call.training)
    if key not in prepared:
        prepared[key] = call.plan.launcher(kernel, stages, tiles, call.training)
    on_grid, constants = prepared[key]
    if _elsewhere(call.x):
        with torch.cuda.device(call.x.device):
            on_grid(*arguments, **constants, **options)
    else:
        on_grid(*arguments, **constants, **options)


def launch_once(call: Call, kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Launch so many programs in all, of four warps each."""
    constants = {name: value for name, value in call.plan.constants.items() if name in kernel.arg_names}
    with torch.cuda.device(call.x.device) if _elsewhere(call.x) else contextlib.nullcontext():
        kernel[(programs,)](*arguments, **{**constants, "enable_fp_fusion": True, **options})


def _elsewhere(x: Tensor) -> bool:
    """Whether x is on a CUDA device that is not the current one."""
    return x.is_cuda and x.get_device() != torch.cuda.current_device()
