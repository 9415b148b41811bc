"""CBAM as modules: parameters and configuration; `functional` does the rest.

The children hold parameters under the usual keys. The kernels read these parameters; the forward methods, and so the
hooks, of `fc1`, `fc2`, `conv` and of CBAM's own two children are not called. A norm that is not folded is called.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import functional
from .functional import Activation, AttentionMaps

SpatialNorm = Literal["batch"] | None


class ChannelAttention(nn.Module):
    """x * g, with g (N, C) = sigmoid(MLP(avg) + MLP(max)) over the pixels of x.

    `hidden_channels` is the MLP's width R, max(1, channels // reduction) if None; `mlp_bias` gives both layers a bias.
    Keys: fc1.weight (R, C), fc1.bias (R,), fc2.weight (C, R), fc2.bias (C,).

    Raises: ValueError for a size below 1.
    Source: arXiv 1807.06521, section 3.
    """

    def __init__(
        self,
        channels: int,
        reduction: float = 16,
        *,
        hidden_channels: int | None = None,
        mlp_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}: pass the C of x (N, C, H, W)")
        if reduction <= 0:
            raise ValueError(f"reduction must be positive, got {reduction}: the paper's is 16")
        if hidden_channels is None:
            hidden_channels = max(1, int(channels // reduction))
        if hidden_channels < 1:
            raise ValueError(f"hidden_channels must be at least 1, got {hidden_channels}: pass a width or None")
        self.fc1 = nn.Linear(channels, hidden_channels, mlp_bias, device, dtype)
        self.fc2 = nn.Linear(hidden_channels, channels, mlp_bias, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return functional.channel_attention(x, *_weights(self.fc1), *_weights(self.fc2))

    def extra_repr(self) -> str:
        return f"{self.fc1.in_features}, hidden_channels={self.fc1.out_features}"


class SpatialAttention(nn.Module):
    """x * s, with s (N, 1, H, W) = sigmoid(norm(conv([mean; max]))) over the channels of x.

    `kernel_size` K is odd; `spatial_norm` is "batch" for an `nn.BatchNorm2d(1)`, or None. The child `norm` may be
    replaced by any module on (N, 1, H, W).
    Keys: conv.weight (1, 2, K, K), conv.bias (1,), norm.*.

    Raises: ValueError for an even or non-positive K and an unknown norm.
    Source: arXiv 1807.06521, section 3.
    """

    def __init__(
        self,
        kernel_size: int = 7,
        *,
        conv_bias: bool = False,
        spatial_norm: SpatialNorm = "batch",
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
        padding = kernel_size // 2
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=padding, bias=conv_bias, device=device, dtype=dtype)
        self.norm: nn.Module | None
        self.register_module("norm", nn.BatchNorm2d(1, device=device, dtype=dtype) if spatial_norm else None)

    def forward(self, x: Tensor) -> Tensor:
        return functional.spatial_attention(x, *_weights(self.conv), norm=self.norm)

    def extra_repr(self) -> str:
        return f"kernel_size={self.conv.kernel_size[0]}"


class CBAM(nn.Module):
    """The convolutional block attention module: channel attention, then spatial attention, on x (N, C, H, W).

    `reduction`, `hidden_channels` and `mlp_bias` are those of `ChannelAttention`, the child `channel`; `kernel_size`,
    `conv_bias` and `spatial_norm` those of `SpatialAttention`, the child `spatial`. With `activation="relu"` the layer
    ends a residual block: `layer(x, residual=identity)` is relu(cbam(x) + identity), in the pass that writes.
    The output has x's shape, dtype and memory format.

    Raises: ValueError for sizes and norms that the children refuse, and for another activation.
    Source: arXiv 1807.06521, equation 1.
    """

    def __init__(
        self,
        channels: int,
        reduction: float = 16,
        *,
        hidden_channels: int | None = None,
        kernel_size: int = 7,
        mlp_bias: bool = True,
        conv_bias: bool = False,
        spatial_norm: SpatialNorm = "batch",
        activation: Activation = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in (None, "relu"):
            raise ValueError(f"activation must be 'relu' or None, got {activation!r}: apply any other to the result")
        self.activation: Activation = activation
        self.channel = ChannelAttention(
            channels, reduction, hidden_channels=hidden_channels, mlp_bias=mlp_bias, device=device, dtype=dtype
        )
        self.spatial = SpatialAttention(
            kernel_size, conv_bias=conv_bias, spatial_norm=spatial_norm, device=device, dtype=dtype
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        parameters, norm = self._parts()
        return functional.cbam(x, *parameters, norm=norm, residual=residual, activation=self.activation)

    def attention_maps(self, x: Tensor) -> AttentionMaps:
        """Both gates that `forward` applies to x: `.channel` (N, C) and `.spatial` (N, 1, H, W), in x's dtype."""
        parameters, norm = self._parts()
        return functional.attention_maps(x, *parameters, norm=norm)

    def extra_repr(self) -> str:
        fc1, conv = self.channel.fc1, self.spatial.conv
        sizes = f"{fc1.in_features}, hidden_channels={fc1.out_features}, kernel_size={conv.kernel_size[0]}"
        return sizes if self.activation is None else f"{sizes}, activation={self.activation!r}"

    def _parts(self) -> tuple[tuple[Any, ...], nn.Module | None]:
        children: dict[str, Any] = self._modules
        channel, spatial = children["channel"]._modules, children["spatial"]._modules
        return (*_weights(channel["fc1"]), *_weights(channel["fc2"]), *_weights(spatial["conv"])), spatial["norm"]


def _weights(layer: nn.Module) -> tuple[Any, Any]:
    own = layer._parameters
    if "weight" in own and "bias" in own:  # a fifth of the time of layer.weight, on the path of every call
        return own["weight"], own["bias"]
    return layer.weight, layer.bias  # computed ones: parametrized, pruned
