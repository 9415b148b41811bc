"""The layers as TorchScript takes them: `torch.jit.script` puts them in the place of those of `nn`.

In Python they compute what their parents do. Compiled, they compute `reference`, typed anew without what TorchScript's
compiler lacks.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # pyright: ignore[reportPrivateImportUsage]

from .nn import CBAM, ChannelAttention, SpatialAttention
from .variant import Variant


class ScriptableChannelAttention(ChannelAttention):
    """`ChannelAttention` that `torch.jit.script` compiles."""

    pools: list[str]

    def forward(self, x: Tensor) -> Tensor:
        if is_scripting():
            g = self.gate(x).to(x.dtype)
            return x * g.view(list(g.shape) + [1] * (x.dim() - 2))
        else:  # noqa: RET505 - what follows an `if` is compiled, an `else` is not
            return super().forward(x)

    def gate(self, x: Tensor) -> Tensor:
        pools = [_channel_pool(x, name) for name in self.pools]
        if self.light:
            pools = [0.5 * pools[0] + 0.5 * pools[1]]
        hidden = [_linear(pool, self.fc1.weight, self.fc1.bias, 1) for pool in pools]
        if self.fc2 is not None:
            total = torch.stack([F.relu(z) for z in hidden]).sum(0)
            logits = _linear(total, self.fc2.weight, self.fc2.bias, len(hidden))
        else:
            logits = torch.stack(hidden).sum(0)
        return F.hardsigmoid(logits) if self.hard else torch.sigmoid(logits)


class ScriptableSpatialAttention(SpatialAttention):
    """`SpatialAttention` that `torch.jit.script` compiles."""

    pools: list[str]

    def forward(self, x: Tensor) -> Tensor:
        if is_scripting():
            return x * self.gate(x).to(x.dtype)
        else:  # noqa: RET505
            return super().forward(x)

    def gate(self, x: Tensor) -> Tensor:
        if self.squeeze is not None:
            maps = self.squeeze(x)
        else:
            pools = [_spatial_pool(x, name) for name in self.pools]
            maps = 0.5 * pools[0] + 0.5 * pools[1] if self.light else torch.cat(pools, 1)
        z = _convolved(maps, self.conv.weight, self.conv.bias)
        if self.norm is not None:
            z = self.norm(z.to(self.conv.weight.dtype))
        return F.hardsigmoid(z) if self.hard else torch.sigmoid(z)


class ScriptableCBAM(CBAM):
    """`CBAM` that `torch.jit.script` compiles."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if is_scripting():
            y = self.gated(x)
            if self.add_input:
                residual = x if residual is None else residual + x
            y = y if residual is None else y + residual
            return F.relu(y) if self.relu else y
        else:  # noqa: RET505
            return super().forward(x, residual)

    def gated(self, x: Tensor) -> Tensor:
        y = x
        if self.spatial is not None and self.arrangement == "spatial_first":
            y = self.spatial(y)
        if self.channel is not None:
            y = self.channel(y)
        if self.spatial is not None and self.arrangement == "channel_first":
            y = self.spatial(y)
        if self.spatial is not None and self.arrangement == "parallel":
            y = y * self.spatial.gate(x).to(x.dtype)
        return y


def scriptable(layer: nn.Module) -> nn.Module:
    """A layer of `nn` in a form that TorchScript takes, with the same parameters and children."""
    kind, options = _form(layer)
    made = object.__new__(kind)
    made.__dict__ = {**vars(layer), "_modules": dict(layer._modules), **options}
    return made


def _form(layer: nn.Module) -> tuple[type[nn.Module], dict[str, Any]]:
    variant: Any = layer.variant
    assert isinstance(variant, Variant)
    shared = {"light": variant.light, "hard": variant.gate == "hard_sigmoid"}
    if isinstance(layer, ChannelAttention):
        return ScriptableChannelAttention, {**shared, "pools": list(variant.channel_pools)}
    if isinstance(layer, SpatialAttention):
        return ScriptableSpatialAttention, {**shared, "pools": list(variant.spatial_pools)}
    assert isinstance(layer, CBAM)
    return ScriptableCBAM, {"arrangement": variant.arrangement, "relu": layer.activation == "relu"}


def _channel_pool(x: Tensor, name: str) -> Tensor:
    pixels = x.flatten(2)
    if name == "avg":
        return pixels.mean(2)
    if name == "max":
        return pixels.max(2)[0]
    if name == "lp":
        return torch.linalg.vector_norm(pixels, 2.0, [2])
    wide = pixels.to(torch.promote_types(x.dtype, torch.float32))
    return torch.logsumexp(wide, [2]).to(x.dtype)


def _spatial_pool(x: Tensor, name: str) -> Tensor:
    return x.mean(1, keepdim=True) if name == "mean" else x.max(1, keepdim=True)[0]


def _linear(a: Tensor, weight: Tensor, bias: Tensor | None, passes: int) -> Tensor:
    """a of one pass, or the sum of some, through a layer, whose bias then counts as often."""
    dtype = torch.promote_types(a.dtype, weight.dtype)
    y = F.linear(a.to(dtype), weight.to(dtype))
    return y if bias is None else y + passes * bias.to(dtype)


def _convolved(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = torch.promote_types(maps.dtype, weight.dtype)
    maps, weight, padding = maps.to(dtype), weight.to(dtype), weight.size(-1) // 2
    bias = None if bias is None else bias.to(dtype)
    if weight.dim() == 3:
        return F.conv1d(maps, weight, bias, padding=padding)
    if weight.dim() == 4:
        return F.conv2d(maps, weight, bias, padding=padding)
    return F.conv3d(maps, weight, bias, padding=padding)
