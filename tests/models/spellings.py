"""Gates of CBAM in the words of many people: functions of (module, x), to be followed; and some that compute else.

`Written` is a CBAM whose gates are such functions. Its children are `mlp` and `conv`, the layers with parameters, and
pools, gates and norms as modules.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C, R = 6, 2


class Written(nn.Module):
    """x times a channel gate, times a spatial gate of that."""

    def __init__(self, channel: Any = None, spatial: Any = None, linear: bool = False, norm: bool = False) -> None:
        super().__init__()
        up, down = (nn.Linear(C, R), nn.Linear(R, C)) if linear else (nn.Conv2d(C, R, 1), nn.Conv2d(R, C, 1))
        self.mlp, self.conv = nn.Sequential(up, nn.ReLU(), down), nn.Conv2d(2, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1) if norm else nn.Identity()
        self.avg, self.max, self.sigmoid = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1), nn.Sigmoid()
        self.channel, self.spatial = channel or channel_gate, spatial or spatial_gate

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.channel(self, x)
        return x * self.spatial(self, x)


def channel_gate(m: Any, x: Tensor) -> Tensor:
    return torch.sigmoid(both(m, m.avg(x), m.max(x)))


def both(m: Any, avg: Tensor, peak: Tensor) -> Tensor:
    return m.mlp(avg) + m.mlp(peak)


def vectors(m: Any, avg: Tensor, peak: Tensor) -> Tensor:
    return torch.sigmoid(both(m, avg, peak)).view(avg.size(0), -1, 1, 1)


def spatial_gate(m: Any, x: Tensor) -> Tensor:
    return torch.sigmoid(m.norm(m.conv(maps(x))))


def maps(x: Tensor) -> Tensor:
    return torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)


def _whole(x: Tensor) -> tuple[int, int]:
    return (x.size(2), x.size(3))


def _stacked(m: Any, x: Tensor) -> Tensor:
    return torch.sigmoid(torch.stack([m.mlp(m.avg(x)), m.mlp(m.max(x))]).sum(0))


def _in_one_batch(m: Any, x: Tensor) -> Tensor:
    return torch.sigmoid(m.mlp(torch.cat([m.avg(x), m.max(x)], 0)).view(2, x.size(0), -1, 1, 1).sum(0))


def _chunks(m: Any, x: Tensor) -> Tensor:
    avg, peak = m.mlp(torch.cat((m.avg(x), m.max(x)))).chunk(2, dim=0)
    return (avg + peak).sigmoid()


def _loop(m: Any, x: Tensor) -> Tensor:
    total = 0
    for pool in (m.avg, m.max):
        total = total + m.mlp(pool(x))
    return m.sigmoid(total)


def _unpacked(m: Any, x: Tensor) -> Tensor:
    b, c, _, _ = x.size()
    avg = F.adaptive_avg_pool2d(x, 1).view(b, c)
    peak = F.adaptive_max_pool2d(x, 1).view(b, c)
    return torch.sigmoid(m.mlp(avg) + m.mlp(peak)).view(b, c, 1, 1)


def _channels_last(m: Any, x: Tensor) -> Tensor:
    y = x.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.sigmoid(m.mlp(y.mean(1)) + m.mlp(y.max(1)[0]))[:, :, None, None]


def _summed(m: Any, x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    return vectors(m, x.sum((2, 3)) / (h * w), x.flatten(2).max(dim=-1).values)


def _by_exp(m: Any, x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-(m.mlp(m.avg(x)) + m.mlp(m.max(x)))))


# A function for the channel gate, and whether the MLP is of linear layers.
CHANNEL: dict[str, tuple[Callable[[Any, Tensor], Tensor], bool]] = {
    "stack and sum": (_stacked, False),
    "one batch": (_in_one_batch, False),
    "chunks": (_chunks, False),
    "a loop": (_loop, False),
    "unpacked sizes": (_unpacked, True),
    "channels last": (_channels_last, True),
    "a sum by the number of pixels": (_summed, True),
    "the sigmoid by hand": (_by_exp, False),
    "a sigmoid made in forward": (lambda m, x: nn.Sigmoid()(both(m, m.avg(x), m.max(x))), False),
    "pools made in forward": (
        lambda m, x: torch.sigmoid(both(m, nn.AvgPool2d(_whole(x))(x), nn.MaxPool2d(_whole(x))(x))),
        False,
    ),
    "a slice of a Sequential": (
        lambda m, x: torch.sigmoid(sum(m.mlp[2](m.mlp[:2](pool(x))) for pool in (m.avg, m.max))),
        False,
    ),
    "a maximum in two steps": (lambda m, x: vectors(m, x.mean((2, 3)), x.max(2)[0].max(2)[0]), True),
    "a mean in two steps": (lambda m, x: vectors(m, x.mean(3).mean(2), x.amax(-1).amax(-1)), True),
    "negative axes": (
        lambda m, x: torch.sigmoid(both(m, x.mean((-2, -1), True), x.amax((-1, -2), keepdim=True))),
        False,
    ),
    "names of NumPy": (lambda m, x: vectors(m, torch.mean(x, axis=(2, 3)), torch.amax(x, dim=(2, 3))), True),
    "expand of a size": (lambda m, x: channel_gate(m, x).expand(x.size()), False),
    "expand of numbers": (lambda m, x: channel_gate(m, x).expand(-1, -1, x.shape[2], x.shape[3]), False),
    "expand_as": (lambda m, x: channel_gate(m, x).expand_as(x), False),
    "repeat": (lambda m, x: channel_gate(m, x).repeat(1, 1, x.size(2), x.size(3)), False),
    "axes of None": (lambda m, x: torch.sigmoid(both(m, x.mean((2, 3)), x.amax((2, 3))))[:, :, None, None], True),
    "axes by dots": (lambda m, x: torch.sigmoid(both(m, x.mean((2, 3)), x.amax((2, 3))))[..., None, None], True),
    "unsqueeze": (lambda m, x: torch.sigmoid(both(m, x.mean((2, 3)), x.amax((2, 3)))).unsqueeze(2).unsqueeze(3), True),
    "squeeze by axes": (lambda m, x: vectors(m, m.avg(x).squeeze(-1).squeeze(-1), m.max(x).flatten(1)), True),
    "by keyword": (
        lambda m, x: torch.sigmoid(input=both(m, m.avg(input=x), torch.amax(input=x, dim=(2, 3), keepdim=True))),
        False,
    ),
    "in place": (lambda m, x: m.mlp(m.avg(x)).add_(m.mlp(m.max(x))).sigmoid_(), False),
    "ReLU by keyword": (
        lambda m, x: torch.sigmoid(sum(m.mlp[2](torch.relu_(input=m.mlp[0](pool(x)))) for pool in (m.avg, m.max))),
        False,
    ),
    "type_as": (lambda m, x: channel_gate(m, x).type_as(x), False),
    "to the dtype of x": (lambda m, x: channel_gate(m, x).to(x.dtype), False),
}  # fmt: skip


def _assigned(m: Any, x: Tensor) -> Tensor:
    avg = torch.mean(x, dim=1, keepdim=True, out=None)
    peak, _ = torch.max(x, dim=1, keepdim=True, out=None)
    return torch.sigmoid(m.norm(m.conv(torch.cat([avg, peak], dim=1))))


def _normed(m: Any, z: Tensor) -> Tensor:
    return torch.sigmoid(m.norm(m.conv(z)))


SPATIAL: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "out=None": _assigned,
    "stack": lambda m, x: _normed(m, torch.stack([x.mean(1), x.amax(1)], 1)),
    "axes of None": lambda m, x: _normed(m, torch.cat([x.mean(1)[:, None], x.max(1)[0][:, None]], 1)),
    "a negative axis": lambda m, x: _normed(m, torch.cat((x.mean(-3, True), x.max(dim=-3, keepdim=True)[0]), -3)),
    "a sum by the number of channels": lambda m, x: _normed(
        m, torch.cat([x.sum(1, keepdim=True) / x.size(1), torch.max(x, 1)[0].unsqueeze(1)], 1)
    ),
    "channels moved": lambda m, x: _normed(
        m, torch.cat([x.movedim(1, -1).mean(-1, True), x.movedim(1, -1).amax(-1, True)], -1).permute(0, 3, 1, 2)
    ),
    "view": lambda m, x: spatial_gate(m, x).view(x.size(0), 1, x.size(2), x.size(3)),
    "repeat": lambda m, x: spatial_gate(m, x).repeat(1, x.size(1), 1, 1),
    "expand": lambda m, x: spatial_gate(m, x).expand(-1, x.shape[1], -1, -1),
    "by keyword": lambda m, x: torch.sigmoid(m.norm(input=m.conv(input=maps(x)))),
    "squeezed and back": lambda m, x: spatial_gate(m, x).squeeze(1).unsqueeze(1),
    "a sigmoid made in forward": lambda m, x: nn.Sigmoid()(m.norm(m.conv(maps(x)))),
    "concat": lambda m, x: _normed(m, torch.concat((x.amax(1, True), x.mean(1, True)), axis=1)),
    "ReLU of nothing": lambda m, x: spatial_gate(m, x).contiguous().clone(),
}


def with_mean(m: Any, x: Tensor, mean: Tensor) -> Tensor:
    return torch.sigmoid(both(m, mean, m.max(x)))


def with_maximum(m: Any, x: Tensor, maximum: Tensor) -> Tensor:
    return torch.sigmoid(both(m, m.avg(x), maximum))


# What computes something else on some map. Never taken for a CBAM.
OTHER_CHANNEL: dict[str, tuple[Callable[[Any, Tensor], Tensor], bool]] = {
    "a divisor": (lambda m, x: with_mean(m, x, F.avg_pool2d(x, _whole(x), divisor_override=1)), False),
    "a padded window": (lambda m, x: with_mean(m, x, F.avg_pool2d(x, _whole(x), padding=1)), False),
    "a padded window of sixteen": (
        lambda m, x: with_mean(m, x, F.avg_pool2d(x, 16, padding=8, ceil_mode=True, count_include_pad=False)), False,
    ),
    "a dilated window": (
        lambda m, x: with_maximum(m, x, F.max_pool2d(x, tuple((s + 1) // 2 for s in _whole(x)), dilation=2)), False,
    ),
    "a window of sixteen": (
        lambda m, x: with_maximum(m, x, F.max_pool2d(x, 16, padding=8, ceil_mode=True)[:, :, :1, :1]), False,
    ),
    "a corner": (lambda m, x: with_mean(m, x, x[:, :, :30, :30].mean((2, 3), True)), False),
    "four windows": (lambda m, x: with_mean(m, x, F.adaptive_avg_pool2d(x, 2).mean((2, 3), True)), False),
    "the indices": (
        lambda m, x: with_maximum(m, x, F.max_pool2d(x, _whole(x), return_indices=True)[1].to(x.dtype)), False,
    ),
    "the sum": (lambda m, x: vectors(m, x.sum((2, 3)), x.amax((2, 3))), True),
    "the maximum of magnitudes": (lambda m, x: vectors(m, x.mean((2, 3)), (x * x).amax((2, 3)).sqrt()), True),
    "rows for channels": (lambda m, x: vectors(m, x.mean((2, 3)), x.amax((2, 3))).view(x.size(0), 1, C, 1), True),
    "columns for channels": (lambda m, x: vectors(m, x.mean((2, 3)), x.amax((2, 3))).view(x.size(0), 1, 1, C), True),
    "weighted branches": (lambda m, x: torch.sigmoid(0.5 * m.mlp(m.avg(x)) + m.mlp(m.max(x))), False),
    "the larger branch": (lambda m, x: torch.sigmoid(torch.maximum(m.mlp(m.avg(x)), m.mlp(m.max(x)))), False),
    "the product of gates": (lambda m, x: torch.sigmoid(m.mlp(m.avg(x))) * torch.sigmoid(m.mlp(m.max(x))), False),
    "ReLU6 inside": (lambda m, x: torch.sigmoid(sum(m.mlp[2](F.relu6(m.mlp[0](p(x)))) for p in (m.avg, m.max))), False),
    "no ReLU": (lambda m, x: torch.sigmoid(sum(m.mlp[2](m.mlp[0](p(x))) for p in (m.avg, m.max))), False),
    "a temperature": (lambda m, x: torch.sigmoid(both(m, m.avg(x), m.max(x)) / 2), False),
    "twice the sigmoid": (lambda m, x: 2 * channel_gate(m, x), False),
    "one more than the gate": (lambda m, x: 1 + channel_gate(m, x), False),
    "a clamped gate": (lambda m, x: channel_gate(m, x).clamp(1e-6, 1 - 1e-6), False),
    "a detached gate": (lambda m, x: channel_gate(m, x).detach(), False),
    "a gate in half precision": (lambda m, x: channel_gate(m, x).half().double(), False),
    "the batch's own mean": (lambda m, x: vectors(m, x.mean((0, 2, 3)).expand(x.size(0), -1), x.amax((2, 3))), True),
    "channels in reverse": (lambda m, x: channel_gate(m, x).flip(1), False),
    "channels rolled": (lambda m, x: vectors(m, x.mean((2, 3)).roll(1, 1), x.amax((2, 3))), True),
    "a softmax": (lambda m, x: both(m, m.avg(x), m.max(x)).softmax(1), False),
    "a dropout": (lambda m, x: F.dropout(channel_gate(m, x), 0.1), False),
    "noise": (lambda m, x: channel_gate(m, x) + torch.rand_like(x), False),
}  # fmt: skip
OTHER_SPATIAL: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "the minimum": lambda m, x: _normed(m, torch.cat([x.mean(1, True), x.amin(1, True)], 1)),
    "the first channel": lambda m, x: _normed(m, torch.cat([x.mean(1, True), x[:, :1]], 1)),
    "half of the channels": lambda m, x: _normed(m, torch.cat([x[:, : C // 2].mean(1, True), x.amax(1, True)], 1)),
    "the mean twice": lambda m, x: _normed(m, torch.cat([x.mean(1, True), x.mean(1, True)], 1)),
    "maps turned": lambda m, x: _normed(m, maps(x).transpose(2, 3)).transpose(2, 3),
    "maps mirrored": lambda m, x: _normed(m, maps(x).flip(-1)),
    "a gate mirrored": lambda m, x: spatial_gate(m, x).flip(-1),
    "a smoothed gate": lambda m, x: F.avg_pool2d(spatial_gate(m, x), 3, 1, 1),
    "a residual gate": lambda m, x: spatial_gate(m, x) + 1,
    "maps of ReLU": lambda m, x: _normed(m, maps(x.relu())),
    "the convolution twice": lambda m, x: torch.sigmoid(m.conv(maps(x)) + m.conv(maps(x))),
    "the norm twice": lambda m, x: torch.sigmoid(m.norm(m.norm(m.conv(maps(x))))),
}
