"""Both attention modules of CBAM: the children of a `CBAM`, and layers of their own."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import called
from .dispatch import refined
from .spec import reference
from .spec.children import mlp_of, weights_of, why_called
from .spec.layer import NO_MLP, Layer
from .spec.tracing_state import leaf
from .spec.validation import check_like
from .spec.values import check_bool, check_integer, check_place, check_reduction, described
from .spec.variant import DEFAULT, ChannelPool, Gate, SpatialPool, Variant, checked_variant, maps_of

SpatialNorm = Literal["batch"] | None

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Attention(nn.Module):
    """A layer of this library, as other tools meet it."""

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuses: the forward of a layer chooses a backend, which TorchScript's compiler does not follow."""
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__name__}: use torch.export, torch.onnx.export "
            "or torch.jit.trace"
        )


class ChannelAttention(Attention):
    """x * g, with g (N, C) = gate(sum of MLP(pool)) over the pixels of x (N, C, *pixels).

    `hidden_channels` is the MLP's width R, max(1, channels // reduction) if None; 0 leaves the biases alone.
    `mlp_layers` is 2, or 1 for a single layer without ReLU; `mlp_bias` gives each layer a bias. `channel_pools` are
    some of "avg", "max", "lp", "lse"; `gate` is "sigmoid" or "hard_sigmoid"; `light` halves the sum of average and
    maximum.
    Keys: fc1.weight (R, C), fc1.bias (R,), fc2.weight (C, R), fc2.bias (C,); of one layer fc1.weight (C, C), fc1.bias.

    Shapes: x (N, C, *pixels) with one to three axes of pixels, in float16, bfloat16, float32 or float64; y like x.
    Traffic: 2 to 3 passes over x.
    Raises: ValueError for a size below 1 and an unknown option, TypeError for arguments of other types.
    Source: arXiv 1807.06521, section 3.

    >>> ChannelAttention(32, reduction=8)(torch.randn(2, 32, 7, 7)).shape
    torch.Size([2, 32, 7, 7])
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
        check_integer("channels", channels, 1, "pass the C of x (N, C, H, W)")
        check_reduction(reduction)
        check_bool("mlp_bias", mlp_bias)
        check_place(device, dtype)
        if type(mlp_layers) is not int or mlp_layers not in (1, 2):
            raise ValueError(f"mlp_layers must be 1 or 2, got {described(mlp_layers)}: the paper's is 2")
        self.variant = checked_variant(channel_pools, gate=gate, light=light)
        if mlp_layers == 1:
            if hidden_channels is not None:
                raise ValueError(f"an MLP of one layer has no hidden_channels, got {hidden_channels}: leave them out")
            self.fc1 = nn.Linear(channels, channels, mlp_bias, device, dtype)
            self.register_module("fc2", None)
            return
        if hidden_channels is None:
            hidden_channels = max(1, int(channels // reduction))
        check_integer("hidden_channels", hidden_channels, 0, "pass a width or None")
        self.fc1 = _linear(channels, hidden_channels, mlp_bias, device, dtype)
        self.fc2: nn.Linear | None = _linear(hidden_channels, channels, mlp_bias, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor and (node := leaf(self, x)) is not None:
            return node
        mlp = mlp_of(self._modules)
        if mlp is None:
            return reference.apply_channel_gate(x, called.channel_gate(x, self))
        return refined(x, Layer(mlp, variant=self.variant))

    def extra_repr(self) -> str:
        width = getattr(self.fc1, "out_features", "?")
        hidden = ", mlp_layers=1" if self.fc2 is None else f", hidden_channels={width}"
        return f"{getattr(self.fc1, 'in_features', '?')}{hidden}{_options(self.variant)}{_called(self, 'fc1', 'fc2')}"


class SpatialAttention(Attention):
    """x * s, with s (N, 1, *pixels) = gate(norm(conv(pools))) over the channels of x (N, C, *pixels).

    `kernel_size` K is odd; `spatial_norm` is "batch" for a batch norm of one channel, or None. The child `norm` may be
    replaced by any module on (N, 1, *pixels). `dims` is the number of axes of pixels. `spatial_pools` are some of
    "mean" and "max", in the order of the convolution's input channels, or ("conv",): a learnt 1x1 convolution of
    `channels` channels, `squeeze`, which runs by plain PyTorch. `gate` is "sigmoid" or "hard_sigmoid"; `light` halves
    the sum of both maps.
    Keys: conv.weight (1, M, K, K), conv.bias (1,), norm.*, squeeze.weight (1, C, 1, 1), squeeze.bias (1,).

    Shapes: x (N, C, *pixels) with `dims` axes of pixels, in float16, bfloat16, float32 or float64; y like x.
    Traffic: 2 to 3 passes over x.
    Raises: ValueError for an even or non-positive K and an unknown option, TypeError for arguments of other types.
    Source: arXiv 1807.06521, section 3; the 1x1 convolution, its table 2.

    >>> SpatialAttention(3, dims=3)(torch.randn(2, 32, 4, 7, 7)).shape
    torch.Size([2, 32, 4, 7, 7])
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
        _check_convolution(kernel_size, dims, spatial_norm)
        check_bool("conv_bias", conv_bias)
        check_place(device, dtype)
        squeezed = isinstance(spatial_pools, (tuple, list)) and list(spatial_pools) == ["conv"]
        self.variant = checked_variant(
            spatial_pools=DEFAULT.spatial_pools if squeezed else spatial_pools, gate=gate, light=light
        )
        if squeezed:
            check_integer("channels", channels, 1, "spatial_pools ('conv',) needs the C of x (N, C, H, W)")
            if light:
                raise ValueError("spatial_pools ('conv',) make one map, got light=True: leave light out")
        convolution: Any = _CONVOLUTIONS[dims]
        maps, padding = 1 if squeezed else maps_of(self.variant), kernel_size // 2
        self.conv: Any = convolution(maps, 1, kernel_size, padding=padding, bias=conv_bias, device=device, dtype=dtype)
        self.norm: nn.Module | None
        self.register_module("norm", _BATCH_NORMS[dims](1, device=device, dtype=dtype) if spatial_norm else None)
        self.squeeze: nn.Module | None
        squeeze = convolution(channels, 1, 1, device=device, dtype=dtype) if squeezed else None
        self.register_module("squeeze", squeeze)

    def forward(self, x: Tensor, scaled: Tensor | None = None) -> Tensor:
        """scaled * s, with s the gate of x; `scaled`, a tensor of x's shape, is x itself if None."""
        if type(x) is not Tensor:
            if (node := leaf(self, x, scaled)) is not None:
                return node
            scaled = scaled if isinstance(scaled, Tensor) else None  # traced by itself, it has its default
        children: dict[str, Any] = self._modules
        weights = weights_of(children["conv"])
        if weights is None or scaled is not None:
            if scaled is not None:
                check_like("scaled", scaled, x)
            s = called.spatial_gate(x, self)
            return reference.apply_spatial_gate(x if scaled is None else scaled, s)
        return refined(x, Layer(NO_MLP, weights, children["norm"], self.variant, children["squeeze"]))

    def extra_repr(self) -> str:
        size = getattr(self.conv, "kernel_size", "?")
        return f"kernel_size={size[0]}{_options(self.variant)}{_called(self, 'conv')}"


def _check_convolution(kernel_size: Any, dims: Any, spatial_norm: Any) -> None:
    if type(kernel_size) is not int:
        check_integer("kernel_size", kernel_size, 1, "pass one odd number for all axes, the paper's is 7")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}: the paper's is 7")
    if spatial_norm is not None and (not isinstance(spatial_norm, str) or spatial_norm != "batch"):
        raise ValueError(
            f"spatial_norm must be 'batch' or None, got {spatial_norm!r}: assign any other norm to the child `norm`"
        )
    if type(dims) is not int or dims not in _CONVOLUTIONS:
        raise ValueError(f"dims must be 1, 2 or 3, got {described(dims)}: the number of axes of x after (N, C)")


def _options(variant: Variant) -> str:
    """The fields of a variant that are not the default's, as keyword arguments; a CBAM's arrangement is its own."""
    changed = [name for name in variant._fields if getattr(variant, name) != getattr(DEFAULT, name)]
    return "".join(f", {name}={getattr(variant, name)!r}" for name in changed)


def _called(layer: nn.Module, *names: str) -> str:
    """The children that are called instead of read, with the reason."""
    reasons = {name: why_called(layer._modules[name]) for name in names if layer._modules[name] is not None}  # pyright: ignore[reportArgumentType]
    words = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    return f", called=({'; '.join(words)})" if words else ""


def _linear(inputs: int, outputs: int, bias: bool, device: Any, dtype: Any) -> nn.Linear:
    """nn.Linear of any width, also of width zero."""
    if inputs > 0 and outputs > 0:
        return nn.Linear(inputs, outputs, bias, device, dtype)
    # PyTorch warns when it initialises an empty tensor.
    layer = nn.Linear(max(1, inputs), max(1, outputs), bias, device, dtype)
    layer.in_features, layer.out_features = inputs, outputs
    layer.weight = nn.Parameter(layer.weight.new_empty(outputs, inputs))
    if bias:
        layer.bias = nn.Parameter(layer.bias.new_zeros(outputs))
    return layer
