"""CBAM as modules: parameters and configuration; `dispatch` does the rest.

The children hold parameters under the usual keys. The kernels read these parameters; the forward methods, and so the
hooks, of `fc1`, `fc2`, `conv` and of CBAM's own two children are not called. A norm that is not folded is called.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .checkpoints import convert_state_dict
from .dispatch import Activation, AttentionMaps, gates, refined
from .parameters import linear, mlp_of, weights_of
from .variant import DEFAULT, Arrangement, ChannelPool, Gate, SpatialPool, Variant, checked_variant, maps_of

SpatialNorm = Literal["batch"] | None
Layers = Literal["channel_first", "spatial_first", "parallel", "channel_only", "spatial_only"]

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class _Layer(nn.Module):
    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles instead."""
        from .scripting import scriptable

        return scriptable(self)


class ChannelAttention(_Layer):
    """x * g, with g (N, C) = gate(sum of MLP(pool)) over the pixels of x (N, C, *pixels).

    `hidden_channels` is the MLP's width R, max(1, channels // reduction) if None; 0 leaves the biases alone.
    `mlp_layers` is 2, or 1 for a single layer without ReLU; `mlp_bias` gives each layer a bias. `channel_pools` are
    some of "avg", "max", "lp", "lse"; `gate` is "sigmoid" or "hard_sigmoid"; `light` halves the sum of average and
    maximum.
    Keys: fc1.weight (R, C), fc1.bias (R,), fc2.weight (C, R), fc2.bias (C,); of one layer fc1.weight (C, C), fc1.bias.

    Raises: ValueError for a size below 1, and for an unknown option.
    Source: arXiv 1807.06521, section 3.
    """

    def __init__(
        self,
        channels: int,
        reduction: float = 16,
        *,
        hidden_channels: int | None = None,
        mlp_bias: bool = True,
        mlp_layers: Literal[1, 2] = 2,
        channel_pools: tuple[ChannelPool, ...] = DEFAULT.channel_pools,
        gate: Gate = DEFAULT.gate,
        light: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}: pass the C of x (N, C, H, W)")
        if reduction <= 0:
            raise ValueError(f"reduction must be positive, got {reduction}: the paper's is 16")
        if mlp_layers not in (1, 2):
            raise ValueError(f"mlp_layers must be 1 or 2, got {mlp_layers}: the paper's is 2")
        self.variant = checked_variant(channel_pools, gate=gate, light=light)
        if mlp_layers == 1:
            if hidden_channels is not None:
                raise ValueError(f"an MLP of one layer has no hidden_channels, got {hidden_channels}: leave them out")
            self.fc1 = nn.Linear(channels, channels, mlp_bias, device, dtype)
            self.register_module("fc2", None)
            return
        if hidden_channels is None:
            hidden_channels = max(1, int(channels // reduction))
        if hidden_channels < 0:
            raise ValueError(f"hidden_channels must be at least 0, got {hidden_channels}: pass a width or None")
        self.fc1 = linear(channels, hidden_channels, mlp_bias, device, dtype)
        self.fc2: nn.Linear | None = linear(hidden_channels, channels, mlp_bias, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return refined(x, mlp_of(self), None, variant=self.variant)

    def extra_repr(self) -> str:
        hidden = ", mlp_layers=1" if self.fc2 is None else f", hidden_channels={self.fc1.out_features}"
        return f"{self.fc1.in_features}{hidden}{_options(self.variant)}"


class SpatialAttention(_Layer):
    """x * s, with s (N, 1, *pixels) = gate(norm(conv(pools))) over the channels of x (N, C, *pixels).

    `kernel_size` K is odd; `spatial_norm` is "batch" for a batch norm of one channel, or None. The child `norm` may be
    replaced by any module on (N, 1, *pixels). `dims` is the number of axes of pixels. `spatial_pools` are some of
    "mean" and "max", in the order of the convolution's input channels, or ("conv",): a learnt 1x1 convolution of
    `channels` channels, `squeeze`, which runs by plain PyTorch. `gate` is "sigmoid" or "hard_sigmoid"; `light` halves
    the sum of both maps.
    Keys: conv.weight (1, M, K, K), conv.bias (1,), norm.*, squeeze.weight (1, C, 1, 1), squeeze.bias (1,).

    Raises: ValueError for an even or non-positive K and an unknown option.
    Source: arXiv 1807.06521, section 3; the 1x1 convolution, its table 2.
    """

    def __init__(
        self,
        kernel_size: int = 7,
        *,
        dims: Literal[1, 2, 3] = 2,
        channels: int | None = None,
        conv_bias: bool = False,
        spatial_norm: SpatialNorm = "batch",
        spatial_pools: tuple[SpatialPool | Literal["conv"], ...] = DEFAULT.spatial_pools,
        gate: Gate = DEFAULT.gate,
        light: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}: the paper's is 7")
        if spatial_norm not in ("batch", None):
            raise ValueError(
                f"spatial_norm must be 'batch' or None, got {spatial_norm!r}: assign any other norm to the child `norm`"
            )
        if dims not in _CONVOLUTIONS:
            raise ValueError(f"dims must be 1, 2 or 3, got {dims}: the number of axes of x after (N, C)")
        squeezed = tuple(spatial_pools) == ("conv",)
        if squeezed and (channels is None or light):
            raise ValueError(
                f"spatial_pools ('conv',) needs channels, and no light, got channels={channels}, light={light}: pass "
                "the C of x"
            )
        self.variant = checked_variant(
            spatial_pools=DEFAULT.spatial_pools if squeezed else spatial_pools, gate=gate, light=light
        )
        convolution: Any = _CONVOLUTIONS[dims]
        maps, padding = 1 if squeezed else maps_of(self.variant), kernel_size // 2
        self.conv: Any = convolution(maps, 1, kernel_size, padding=padding, bias=conv_bias, device=device, dtype=dtype)
        self.norm: nn.Module | None
        self.register_module("norm", _BATCH_NORMS[dims](1, device=device, dtype=dtype) if spatial_norm else None)
        self.squeeze: nn.Module | None
        squeeze = convolution(channels, 1, 1, device=device, dtype=dtype) if squeezed else None
        self.register_module("squeeze", squeeze)

    def forward(self, x: Tensor) -> Tensor:
        weights = weights_of(self.conv)
        return refined(x, None, *weights, self.norm, variant=self.variant, descriptor=self.squeeze)

    def extra_repr(self) -> str:
        return f"kernel_size={self.conv.kernel_size[0]}{_options(self.variant)}"


class CBAM(_Layer):
    """The convolutional block attention module on x (N, C, *pixels): channel attention, then spatial attention.

    `reduction`, `hidden_channels`, `mlp_bias`, `mlp_layers` and `channel_pools` are those of `ChannelAttention`, the
    child `channel`; `dims`, `kernel_size`, `conv_bias`, `spatial_norm` and `spatial_pools` those of `SpatialAttention`,
    the child `spatial`; `gate` and `light` are both's. `arrangement` is "channel_first", "spatial_first" (the channel
    gate is of what the spatial one leaves), "parallel" (both gates are of x), "channel_only" or "spatial_only", which
    leave the other child out. With `add_input` the layer is x + cbam(x). With `activation="relu"` it ends a residual
    block: `layer(x, residual=identity)` is relu(cbam(x) + identity), in the pass that writes.
    The output has x's shape, dtype and memory format.

    Raises: ValueError for sizes and options that the children refuse, and for another arrangement or activation.
    Source: arXiv 1807.06521, equation 1; the arrangements, its table 3.
    """

    def __init__(
        self,
        channels: int,
        reduction: float = 16,
        *,
        dims: Literal[1, 2, 3] = 2,
        hidden_channels: int | None = None,
        kernel_size: int = 7,
        mlp_bias: bool = True,
        mlp_layers: Literal[1, 2] = 2,
        conv_bias: bool = False,
        spatial_norm: SpatialNorm = "batch",
        channel_pools: tuple[ChannelPool, ...] = DEFAULT.channel_pools,
        spatial_pools: tuple[SpatialPool | Literal["conv"], ...] = DEFAULT.spatial_pools,
        arrangement: Layers = "channel_first",
        gate: Gate = DEFAULT.gate,
        light: bool = False,
        add_input: bool = False,
        activation: Activation = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in (None, "relu"):
            raise ValueError(f"activation must be 'relu' or None, got {activation!r}: apply any other to the result")
        if arrangement not in get_args(Layers):
            known = ", ".join(get_args(Layers))
            raise ValueError(f"arrangement must be one of {known}, got {arrangement!r}: choose one of these")
        self.activation: Activation = activation
        self.add_input = add_input
        self.channel: Any  # ChannelAttention or None
        self.spatial: Any  # SpatialAttention or None
        self.register_module("channel", None)
        self.register_module("spatial", None)
        made: Any = {"gate": gate, "light": light, "device": device, "dtype": dtype}
        if arrangement != "spatial_only":
            self.channel = ChannelAttention(
                channels, reduction, hidden_channels=hidden_channels, mlp_bias=mlp_bias, mlp_layers=mlp_layers,
                channel_pools=channel_pools, **made,
            )  # fmt: skip
        if arrangement != "channel_only":
            self.spatial = SpatialAttention(
                kernel_size, dims=dims, channels=channels, conv_bias=conv_bias, spatial_norm=spatial_norm,
                spatial_pools=spatial_pools, **made,
            )  # fmt: skip
        self.variant = self._variant(arrangement)

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Any],
        *,
        prefix: str = "",
        options: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "CBAM":
        """The layer with the weights of any published CBAM; the arguments are those of `convert_state_dict`.

        `device` and `dtype` are the weights' own if None. The layer is in training mode, as a new one is.

        Raises: ValueError and TypeError as `convert_state_dict` does.
        """
        converted = convert_state_dict(state_dict, prefix=prefix, options=options)
        weight = next(iter(converted.state_dict.values()))
        layer = cls(**converted.options, device=device or weight.device, dtype=dtype or weight.dtype)
        layer.load_state_dict(converted.state_dict)
        return layer

    def _variant(self, arrangement: Layers) -> Variant:
        both = self.channel is not None and self.spatial is not None
        parts = [part.variant for part in (self.channel, self.spatial) if part is not None]
        order: Arrangement = arrangement if both else "channel_first"  # pyright: ignore[reportAssignmentType]
        return checked_variant(parts[0].channel_pools, parts[-1].spatial_pools, order, parts[0].gate, parts[0].light)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        mlp, conv, norm, descriptor = self._parts()
        if self.add_input:
            residual = x if residual is None else residual + x
        return refined(x, mlp, *conv, norm, residual, self.activation, self.variant, descriptor)

    def attention_maps(self, x: Tensor) -> AttentionMaps:
        """Both gates that `forward` applies to x: `.channel` (N, C) and `.spatial` (N, 1, *pixels), in x's dtype.

        Raises: ValueError for a layer with one gate.
        """
        mlp, conv, norm, descriptor = self._parts()
        if mlp is None or conv[0] is None:
            raise ValueError("attention_maps needs both gates, got a layer with one: divide its output by x instead")
        return gates(x, mlp, *conv, norm, self.variant, descriptor)

    def extra_repr(self) -> str:
        words = [part.extra_repr() for part in (self.channel, self.spatial) if part is not None]
        if self.variant.arrangement != "channel_first":
            words.append(f"arrangement={self.variant.arrangement!r}")
        if self.add_input:
            words.append("add_input=True")
        if self.activation is not None:
            words.append(f"activation={self.activation!r}")
        return ", ".join(words)

    def _parts(self) -> tuple[Any, tuple[Any, Any], Any, Any]:
        children: dict[str, Any] = self._modules
        channel, spatial = children["channel"], children["spatial"]
        mlp = None if channel is None else mlp_of(channel)
        if spatial is None:
            return mlp, (None, None), None, None
        own = spatial._modules
        return mlp, weights_of(own["conv"]), own["norm"], own["squeeze"]


def _options(variant: Variant) -> str:
    """The fields of a variant that are not the default's, as keyword arguments; a CBAM's arrangement is its own."""
    changed = [name for name in variant._fields if getattr(variant, name) != getattr(DEFAULT, name)]
    return "".join(f", {name}={getattr(variant, name)!r}" for name in changed)
