"""CBAM as modules: parameters and configuration; `dispatch` does the rest.

The children hold parameters under the usual keys, and the kernels read these parameters. A child that computes
something else than its parameters say is called instead: one with hooks, with another forward, class or padding, or
with sharded parameters. So is a norm that the kernels do not know. `extra_repr` lists these children.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx

from . import called
from .attention import Attention, ChannelAttention, SpatialAttention, SpatialNorm
from .checkpoints.convert import convert_state_dict
from .dispatch import Activation, AttentionMaps, gates, refined
from .spec.children import is_hooked, mlp_of, weights_of
from .spec.layer import NO_CONV, NO_MLP, Layer
from .spec.tracing_state import leaf
from .spec.validation import check_epilogue
from .spec.values import check_bool, check_integer, check_reduction, check_word
from .spec.variant import DEFAULT, Arrangement, ChannelPool, Gate, SpatialPool, Variant, checked_variant

__all__ = ["CBAM", "ChannelAttention", "SpatialAttention"]

Layers = Literal["channel_first", "spatial_first", "parallel", "channel_only", "spatial_only"]

fx.wrap("_added")  # the residual of a layer that is traced by itself is known at its calls only

_ATTENTIONS: dict[str, Any] = {"channel": ChannelAttention, "spatial": SpatialAttention}


class CBAM(Attention):
    """The convolutional block attention module on x (N, C, *pixels): channel attention, then spatial attention.

    `reduction`, `hidden_channels`, `mlp_bias`, `mlp_layers` and `channel_pools` are those of `ChannelAttention`, the
    child `channel`; `dims`, `kernel_size`, `conv_bias`, `spatial_norm` and `spatial_pools` those of `SpatialAttention`,
    the child `spatial`; `gate` and `light` are both's. `arrangement` is "channel_first", "spatial_first" (the channel
    gate is of what the spatial one leaves), "parallel" (both gates are of x), "channel_only" or "spatial_only", which
    leave the other child out. With `add_input` the layer is x + cbam(x). With `activation="relu"` it ends a residual
    block: `layer(x, residual=identity)` is relu(cbam(x) + identity), in the pass that writes.
    Shapes: x (N, C, *pixels) with `dims` axes of pixels, in float16, bfloat16, float32 or float64; y has x's shape,
    dtype and memory format, and so has a residual.
    Traffic: 2 passes over x (wavefront), 3 with a norm that is not folded, to 4 (staged); 1 more for a residual.
    Raises: ValueError for sizes and options that the children refuse, and for another arrangement or activation;
    TypeError for arguments of other types.
    Source: arXiv 1807.06521, equation 1; the arrangements, its table 3.

    >>> layer, x = CBAM(32, reduction=8), torch.randn(2, 32, 7, 7)
    >>> layer(x).shape
    torch.Size([2, 32, 7, 7])
    >>> CBAM(32, reduction=8, activation="relu")(x, residual=x).min() >= 0
    tensor(True)
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
        if activation is not None and (not isinstance(activation, str) or activation != "relu"):
            raise ValueError(f"activation must be 'relu' or None, got {activation!r}: apply any other to the result")
        check_word("arrangement", arrangement, get_args(Layers))
        check_integer("channels", channels, 1, "pass the C of x (N, C, H, W)")
        check_reduction(reduction)
        check_bool("add_input", add_input)
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
        if type(x) is not Tensor and (node := leaf(self, x, residual)) is not None:
            return node
        if self.add_input:
            residual = _added(x, residual, self.activation)
        layer = self._layer()
        if layer is None:
            return called.cbam(self, x, residual)
        return refined(x, layer, residual, self.activation)

    def attention_maps(self, x: Tensor) -> AttentionMaps:
        """Both gates that `forward` applies to x: `.channel` (N, C) and `.spatial` (N, 1, *pixels), in x's dtype.

        Raises: ValueError for a layer with one gate.

        >>> CBAM(32).attention_maps(torch.randn(2, 32, 7, 7)).spatial.shape
        torch.Size([2, 1, 7, 7])
        """
        if self.channel is None or self.spatial is None:
            raise ValueError("attention_maps needs both gates, got a layer with one: divide its output by x instead")
        layer = self._layer()
        return called.attention_maps(self, x) if layer is None else gates(x, layer)

    def extra_repr(self) -> str:
        children = {name: child for name, child in self._modules.items() if child is not None}
        words = [child.extra_repr() for child in children.values()]
        if self.variant.arrangement != "channel_first":
            words.append(f"arrangement={self.variant.arrangement!r}")
        if self.add_input:
            words.append("add_input=True")
        if self.activation is not None:
            words.append(f"activation={self.activation!r}")
        reasons = {name: self._why_called(name) for name in children if name in _ATTENTIONS}
        words += [f"called=({name}: {reason})" for name, reason in reasons.items() if reason]
        return ", ".join(filter(None, words))

    def _layer(self) -> Layer | None:
        """What this layer computes with; None if a child must be called."""
        state = self.__dict__  # an attribute of a module costs twice as much, on the path of every call
        children, variant = state["_modules"], state["variant"]
        channel, spatial = children["channel"], children["spatial"]
        mlp, conv, norm, descriptor = NO_MLP, NO_CONV, None, None
        if channel is not None:
            own = channel.__dict__
            plain = type(channel) is ChannelAttention and own["variant"] == variant and not is_hooked(channel)
            if not plain and self._why_called("channel"):
                return None
            mlp = mlp_of(own["_modules"])
            if mlp is None:
                return None
        if spatial is not None:
            own = spatial.__dict__
            plain = type(spatial) is SpatialAttention and own["variant"] == variant and not is_hooked(spatial)
            if not plain and self._why_called("spatial"):
                return None
            own = own["_modules"]
            conv, norm, descriptor = weights_of(own["conv"]), own["norm"], own["squeeze"]
            if conv is None:
                return None
        return Layer(mlp, conv, norm, variant, descriptor)

    def _why_called(self, name: str) -> str | None:
        """Why the child must be called, or None."""
        child: Any = self._modules[name]
        kind = _ATTENTIONS[name]
        if type(child) is not kind and (not isinstance(child, kind) or type(child).forward is not kind.forward):
            return f"{type(child).__name__} computes something else"
        if is_hooked(child):
            return "hooks" if "forward" not in child.__dict__ else "forward replaced"
        if child.variant != self.variant and not _agree(child, self.variant):
            return "options of its own"
        return None


def _agree(child: Any, variant: Variant) -> bool:
    """Whether the child has the options that a CBAM of this variant gives it."""
    own: Variant = child.variant
    pools = "channel_pools" if isinstance(child, ChannelAttention) else "spatial_pools"
    return all(getattr(own, name) == getattr(variant, name) for name in (pools, "gate", "light"))


def _added(x: Tensor, residual: Tensor | None, activation: Activation) -> Tensor:
    """residual + x."""
    if residual is None:
        return x
    check_epilogue(x, residual, activation)
    return residual + x
