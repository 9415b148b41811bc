"""Blocks that multiply by the gates of their children, each in another way."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .idioms import (
    COMBINED,
    C,
    ChannelPart,
    ConvNorm,
    R,
    Residual,
    SpatialPart,
    channel_gate,
    linear_mlp,
    spatial_conv,
    spatial_gate,
)


class Block(nn.Module):
    """A convolution, gates, and a forward that is a function of (block, x)."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **children: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, padding=1)
        self.ca, self.sa = channel_gate(), spatial_gate()
        self.act = nn.ReLU()
        self.scale = nn.Parameter(torch.ones(C))
        self.register_buffer("shift", torch.ones(C, 1, 1))
        self.table = torch.full((1,), 0.5, dtype=torch.float64)  # neither parameter nor buffer
        self.function = forward
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def combined(name: str) -> Callable[[Any, Tensor], Tensor]:
    return lambda self, x: F.relu(x + COMBINED[name](self.ca, self.sa, self.conv(x)))


def gates_first(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return y * (self.ca(y) * self.sa(y))


def in_place(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y *= self.ca(y)
    gate = self.sa(y)
    y *= gate
    y -= x
    return torch.relu_(y)


def scaled(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y = y * self.ca(y)
    y = y * self.sa(y)
    return x + y * self.scale.view(1, -1, 1, 1) * self.table - self.shift.exp()


def reshaped(self: Any, x: Tensor) -> Tensor:
    n, c = x.shape[:2]
    n *= 1
    y = self.conv(x)
    y = y * self.ca(y)
    return (y * self.sa(y)).view(n, c, -1).transpose(1, 2)


def twice(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y = self.ca(y) * y
    y = self.sa(y) * y
    y = self.act(y) + x
    y = self.more["channel"](y) * y
    return F.relu(self.more["spatial"](y) * y, inplace=True)


def only_channel(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return torch.mul(y, self.ca(y)) + x


def only_spatial(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.act(y.mul(self.sa(y)))


def broadcast(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y = y * self.ca(y)
    y = y * self.sa(y)
    y += x.mean((2, 3), keepdim=True)
    return self.act(y)


def two_branches(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return y * self.ca(y) + y * self.sa(y)


def added_to_another(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    z = x + 1
    same = z
    z += y * self.ca(y)
    return z + 2 * same


def sum_read_twice(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y = y * self.ca(y)
    y = y * self.sa(y) + x
    return y + F.relu(y)


def product_read(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    first = y * self.ca(y)
    return first * self.sa(first) + first.mean()


def other_things(self: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    y = self.conv(x)
    y = y * self.ca(y)
    return F.max_pool2d(y * self.sa(y), 2), {"x": x}


def more() -> nn.ModuleDict:
    return nn.ModuleDict({
        "channel": ChannelPart(linear_mlp(C, R), "functions"),
        "spatial": SpatialPart(ConvNorm(spatial_conv(5), nn.BatchNorm2d(1)), "amax", True, False),
    })  # fmt: skip


class Listing(Residual):
    """Takes a map or a list of maps."""

    def forward(self, x: Any) -> Tensor:
        x = torch.cat([x] if isinstance(x, Tensor) else x, 1)
        y = self.first(x)
        return self.who(y) * y


# With the calls of the library that each makes: the arrangement or the only gate, "+" a residual, "r" a ReLU.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "basic": (lambda: Residual(C), ["channel_first+r"]),
    "with a projection": (lambda: Residual(C, 8, 2), ["channel_first+r"]),
    "channel first": (lambda: Block(combined("channel first")), ["channel_first+r"]),
    "spatial first": (lambda: Block(combined("spatial first")), ["spatial_first+r"]),
    "parallel": (lambda: Block(combined("parallel")), ["parallel+r"]),
    "in place": (lambda: Block(combined("in place")), ["channel_first+r"]),
    "gates multiplied first": (lambda: Block(gates_first), ["parallel"]),
    "everything in place": (lambda: Block(in_place), ["channel_first"]),
    "a scale after it": (lambda: Block(scaled), ["channel_first"]),
    "sizes": (lambda: Block(reshaped), ["channel_first"]),
    "two pairs": (lambda: Block(twice, more=more()), ["channel_firstr", "channel_firstr"]),
    "channel alone": (lambda: Block(only_channel), ["channel+"]),
    "spatial alone": (lambda: Block(only_spatial), ["spatialr"]),
    "another shape added": (lambda: Block(broadcast), ["channel_first"]),
    "two branches": (lambda: Block(two_branches), ["channel", "spatial+"]),
    "added to another": (lambda: Block(added_to_another), ["channel"]),
    "a sum read twice": (lambda: Block(sum_read_twice), ["channel_first+"]),
    "a product read between": (lambda: Block(product_read), ["channel", "spatial"]),
    "a question for a type": (lambda: Listing(C), ["channel"]),
    "several results": (lambda: Block(other_things), ["channel_first"]),
}
