"""The tensors of a call: parameters, what a backward needs, gradients; and the plan for them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec.reference import gate
from ...spec.variant import decoded, maps_of
from ..stages.descriptors import slots_of
from ..stages.packs import Parameters, Saved
from .hardware import facts
from .layout import ACCESS_BYTES
from .plan import Plan, plan, pool_bits


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

    @property
    def parameters(self) -> Parameters:
        """The tensors, as the kernels take them."""
        return Parameters(
            self.fc1_weight, self.fc1_bias, self.fc2_weight, self.fc2_bias, self.conv_weight, self.conv_bias,
            self.norm_weight, self.norm_bias, self.norm_mean, self.norm_var,
        )  # fmt: skip


class Gradients(NamedTuple):
    """Gradients of a loss with respect to what the forward got; None for what is not asked for."""

    x: Tensor | None = None
    residual: Tensor | None = None
    fc1_weight: Tensor | None = None
    fc1_bias: Tensor | None = None
    fc2_weight: Tensor | None = None
    fc2_bias: Tensor | None = None
    conv_weight: Tensor | None = None
    conv_bias: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None


LISTENERS: list[Callable[[Plan, Tensor], None]] = []  # told of every plan that is asked for, and of its x
PARAMETERS = tuple(name for name in Gradients._fields if name in Weights._fields)


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
        return self.fc1_weight or self.fc1_bias or self.fc2_weight or self.fc2_bias

    @property
    def conv(self) -> bool:
        """Any of the convolution's."""
        return self.conv_weight or self.conv_bias

    @property
    def norm(self) -> bool:
        """Any of the norm's."""
        return self.norm_weight or self.norm_bias

    def there(self, weights: Weights) -> "Needed":
        """Without the parameters that the layer does not have."""
        return self._replace(**{name: False for name in PARAMETERS if getattr(weights, name) is None})


class Call(NamedTuple):
    """One call: what it reads and writes, and its plan."""

    x: Tensor
    y: Tensor | None
    parameters: Parameters
    plan: Plan
    residual: Tensor | None = None
    relu: bool = False
    saved: Saved = Saved()

    @property
    def training(self) -> bool:
        """Whether this is a backward, or a forward that saves what one needs."""
        return self.saved.descriptors is not None or self.saved.maps is not None

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


def places(x: Tensor, weights: Weights) -> Saved:
    """Memory for what a backward needs."""
    N, C, H, W = x.shape
    acc, device, variant = accumulator(x.dtype), x.device, decoded(weights.variant)
    gate = descriptors = channel_argmax = preactivation = maps = spatial_argmax = z = None
    if weights.fc1_weight is not None:
        gate = torch.empty((N, C), dtype=acc, device=device)
        slots = slots_of(pool_bits(variant))
        descriptors = torch.empty((N, slots, C), dtype=acc, device=device)
        if "max" in variant.channel_pools:
            channel_argmax = torch.empty((N, C), dtype=_index_dtype(H * W), device=device)
        if weights.fc2_weight is not None:
            preactivation = torch.empty((N, slots, weights.fc1_weight.shape[0]), dtype=acc, device=device)
    if weights.conv_weight is not None:
        maps = torch.empty((N, H, W, maps_of(variant)), dtype=x.dtype, device=device)
        if "max" in variant.spatial_pools:
            spatial_argmax = torch.empty((N, H, W), dtype=_index_dtype(C), device=device)
        z = torch.empty((N, 1, H, W), dtype=acc, device=device)
    return Saved(gate, descriptors, channel_argmax, preactivation, maps, spatial_argmax, z)


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
    backward: bool = False,
    address: int = 0,
    wide: bool = False,
) -> Plan:
    """The plan of a call; x must be one that `layout.merged` leaves alone.

    `address` is that of another tensor like x; `wide` says that one of x's shape needs offsets of 64 bits.
    """
    found = plan(
        x.shape,
        x.stride(),
        (x.data_ptr() | address) % ACCESS_BYTES,
        x.dtype,
        0 if weights.fc1_weight is None else weights.fc1_weight.shape[0],
        0 if weights.conv_weight is None else weights.conv_weight.shape[-1],
        schedule,
        facts(x.device),
        backward,
        weights.dims,
        weights.variant,
        weights.planes,
        weights.norm_eps,
        wide,
    )
    for listen in LISTENERS:
        listen(found, x)
    return found
