"""CBAM in the idioms in which people write it: ways to pool, to lay out the MLP, to multiply and to combine."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _whole(x: Tensor) -> Any:
    return (x.size(2), x.size(3))


def _flat(x: Tensor) -> Tensor:
    n, c = x.shape[0], x.shape[1]
    return x.view(n, c, -1)


def _logsumexp(x: Tensor) -> Tensor:
    flat = x.view(x.size(0), x.size(1), -1)
    peak, _ = torch.max(flat, dim=2, keepdim=True)
    return peak + (flat - peak).exp().sum(dim=2, keepdim=True).log()


# Each gives (N, C) in some shape for the MLP.
POOLS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "functions": (lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: F.adaptive_max_pool2d(x, (1, 1))),
    "windows": (
        lambda x: F.avg_pool2d(x, _whole(x), stride=_whole(x)),
        lambda x: F.max_pool2d(x, x.size()[2:], x.size()[2:]),
    ),
    "methods": (lambda x: x.mean((2, 3), keepdim=True), lambda x: x.amax([-1, -2], keepdim=True)),
    "flat": (
        lambda x: _flat(x).mean(-1).unsqueeze(-1).unsqueeze(-1),
        lambda x: torch.flatten(x, 2).max(2)[0].view(x.size(0), x.size(1), 1, 1),
    ),
    "modules": (nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d((1, 1))),
    "volume": (lambda x: F.adaptive_avg_pool3d(x, 1), lambda x: torch.amax(x, (2, 3, 4), keepdim=True)),
    "three": (
        lambda x: F.avg_pool2d(x, _whole(x)),
        lambda x: F.lp_pool2d(x, 2, _whole(x), stride=_whole(x)),
        lambda x: _logsumexp(x).unsqueeze(-1),
    ),
    "average": (lambda x: F.adaptive_avg_pool2d(x, 1),),
}
# Each gives (N, 1, ...), the mean and the maximum.
MAPS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "keepdim": (lambda x: torch.mean(x, dim=1, keepdim=True), lambda x: torch.max(x, dim=1, keepdim=True)[0]),
    "unsqueeze": (lambda x: torch.mean(x, 1).unsqueeze(1), lambda x: torch.max(x, 1)[0].unsqueeze(1)),
    "amax": (lambda x: x.mean(dim=1, keepdim=True), lambda x: x.amax(dim=1, keepdim=True)),
    "values": (lambda x: x.mean(1, True), lambda x: x.max(1).values.unsqueeze(1)),
}


class ConvNorm(nn.Module):
    """A convolution with its norm, as a block of its own."""

    def __init__(self, conv: nn.Module, bn: nn.Module | None = None, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.bn, self.activation = conv, bn, activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        return x if self.activation is None else self.activation(x)


class ChannelPart(nn.Module):
    """The channel gate (N, C, 1, ...), or x times it; `mlp` and `pools` are as it is written."""

    def __init__(self, mlp: nn.Module, pools: str, multiplies: bool = False, light: bool = False) -> None:
        super().__init__()
        self.mlp, self.multiplies, self.light = mlp, multiplies, light
        self.pools = pools
        self.modules_of_pools = nn.ModuleList(POOLS[pools] if pools == "modules" else ())

    def forward(self, x: Tensor) -> Tensor:
        descriptors = [pool(x) for pool in self.modules_of_pools or POOLS[self.pools]]
        logits = None
        if self.light:
            logits = self.mlp(0.5 * descriptors[0] + descriptors[1] * 0.5)
        for descriptor in () if self.light else descriptors:
            branch = self.mlp(descriptor)
            logits = branch if logits is None else logits + branch
        gate = F.sigmoid(logits)
        if isinstance(self.mlp[-1], nn.Linear):
            gate = gate.unsqueeze(2).unsqueeze(3).expand_as(x)
        return x * gate if self.multiplies else gate


class SpatialPart(nn.Module):
    """The spatial gate (N, 1, ...), or x times it, by `conv`, on the maps in their order."""

    def __init__(self, conv: nn.Module, maps: str, max_first: bool, multiplies: bool, light: bool = False) -> None:
        super().__init__()
        self.conv, self.maps, self.max_first, self.multiplies, self.light = conv, maps, max_first, multiplies, light
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        mean, peak = (pool(x) for pool in MAPS[self.maps])
        stacked = torch.cat((peak, mean) if self.max_first else [mean, peak], dim=1)
        pooled = (mean + peak) / 2 if self.light else stacked
        gate = self.sigmoid(self.conv(pooled))
        return gate * x if self.multiplies else gate


class AttentionLayer(nn.Module):
    """Both parts, combined by a function of (channel part, spatial part, x)."""

    def __init__(self, channel: nn.Module, spatial: nn.Module, combine: Callable[..., Tensor]) -> None:
        super().__init__()
        self.ca, self.sa, self.combine = channel, spatial, combine

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(self.ca, self.sa, x)


def _in_turn(ca: Any, sa: Any, x: Tensor) -> Tensor:
    return sa(ca(x))


def _channel_first(ca: Any, sa: Any, x: Tensor) -> Tensor:
    out = ca(x) * x
    return out * sa(out)


def _in_place(ca: Any, sa: Any, x: Tensor) -> Tensor:
    out = x * ca(x)
    gate = sa(out)
    out *= gate
    return out


def _added(ca: Any, sa: Any, x: Tensor) -> Tensor:
    return x + _channel_first(ca, sa, x)


def _spatial_first(ca: Any, sa: Any, x: Tensor) -> Tensor:
    out = torch.mul(sa(x), x)
    return ca(out) * out


def _parallel(ca: Any, sa: Any, x: Tensor) -> Tensor:
    return x * ca(x) * sa(x)


COMBINED = {
    "in turn": _in_turn,
    "channel first": _channel_first,
    "in place": _in_place,
    "added": _added,
    "spatial first": _spatial_first,
    "parallel": _parallel,
}


def linear_mlp(C: int, R: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(C, R), nn.ReLU(), nn.Linear(R, C))


def conv_mlp(C: int, R: int, bias: bool = False, convolution: Any = nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution(C, R, 1, bias=bias), nn.ReLU(True), convolution(R, C, 1, bias=bias))


def spatial_conv(K: int, bias: bool = False, maps: int = 2, convolution: Any = nn.Conv2d) -> Any:
    return convolution(maps, 1, K, padding=K // 2, bias=bias)


C, R = 6, 2


def layer(
    mlp: nn.Module | None = None,
    pools: str = "functions",
    conv: nn.Module | None = None,
    maps: str = "keepdim",
    combine: str = "channel first",
    max_first: bool = False,
    light: bool = False,
) -> AttentionLayer:
    """A layer of six channels, of which the arguments name what is written otherwise."""
    multiplies = combine == "in turn"
    channel = ChannelPart(mlp or conv_mlp(C, R), pools, multiplies, light)
    spatial = SpatialPart(conv or spatial_conv(3), maps, max_first, multiplies, light)
    return AttentionLayer(channel, spatial, COMBINED[combine])


def _bn(dims: int = 2) -> nn.Module:
    return {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](1, momentum=0.01)


# After whom each is written like.
FORMS: dict[str, Callable[[], nn.Module]] = {
    "Jongchan": lambda: layer(
        linear_mlp(C, R), "windows", ConvNorm(spatial_conv(7), _bn()), "unsqueeze", "in turn", True
    ),
    "Jongchan, other pools": lambda: layer(
        linear_mlp(C, R), "three", ConvNorm(spatial_conv(3), _bn()), "unsqueeze", "in turn", True
    ),
    "timm": lambda: layer(conv_mlp(C, R), "methods", ConvNorm(spatial_conv(7), _bn()), "amax", "in turn"),
    "timm, light": lambda: layer(
        conv_mlp(C, R), "methods", ConvNorm(spatial_conv(3, maps=1), _bn()), "amax", "in turn", light=True
    ),
    "ultralytics": lambda: layer(nn.Sequential(nn.Conv2d(C, C, 1)), "average", combine="in turn"),
    "External-Attention": lambda: layer(
        conv_mlp(C, R), "modules", spatial_conv(5, True), combine="added", max_first=True
    ),
    "luuuyi, bubbliiiing, YOLO": lambda: layer(conv_mlp(C, R), "modules", spatial_conv(7)),
    "MMYOLO": lambda: layer(
        nn.Sequential(ConvNorm(nn.Conv2d(C, R, 1), activation=nn.ReLU()), ConvNorm(nn.Conv2d(R, C, 1))),
        conv=ConvNorm(spatial_conv(3, True)),
    ),
    "STCN": lambda: layer(linear_mlp(C, R), "flat", spatial_conv(3, True), "values", "in turn", True),
    "volume": lambda: layer(
        conv_mlp(C, R, convolution=nn.Conv3d), "volume", nn.Sequential(spatial_conv(3, convolution=nn.Conv3d), _bn(3))
    ),
    "in place": lambda: layer(maps="values", combine="in place"),
    "spatial first": lambda: layer(conv=nn.Sequential(spatial_conv(3), _bn()), combine="spatial first"),
    "parallel": lambda: layer(conv=nn.Sequential(spatial_conv(3), nn.GroupNorm(1, 1)), combine="parallel"),
}


def channel_gate(channels: int = C) -> nn.Module:
    return ChannelPart(conv_mlp(channels, R), "modules")


def spatial_gate() -> nn.Module:
    return SpatialPart(spatial_conv(3), "keepdim", False, False)


class Residual(nn.Module):
    """As the basic block of a ResNet with two gates before the addition."""

    def __init__(self, inputs: int, outputs: int = C, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.who = channel_gate(outputs)
        self.where = spatial_gate()
        self.stride = stride
        self.shortcut = None
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out = self.act(self.norm1(self.first(x)))
        out = self.norm2(self.second(out))
        out = self.who(out) * out
        out = self.where(out) * out
        if self.shortcut is not None:
            residual = self.shortcut(x)
        out += residual
        return self.act(out)


TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64, with every parameter and statistic drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.double().state_dict().items():
        if tensor.is_floating_point():
            fresh = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(fresh.abs() + 0.5 if name.endswith("running_var") else 0.5 * fresh)
    return model


def input_of(name: str = "", seed: int = 1) -> Tensor:
    shape = (2, C, 3, 4, 5) if name == "volume" else (2, C, 4, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def results(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """The output of a call, the gradients of a loss of it, and the statistics after it."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    (y * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **gradients, **{k: b.clone() for k, b in model.named_buffers()}}
