"""U-Nets as people write them: small, with the skip connections in a block, in the network, or in a chain."""

import torch
import torch.nn.functional as F
from torch import nn

from .networks import shaken


def double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Double(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = double(inputs, outputs)

    def forward(self, x):
        return self.body(x)


class Up(nn.Module):
    """A decoder block of two inputs."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, inputs // 2, 2, 2)
        self.conv = Double(inputs, outputs)

    def forward(self, low, skip):
        low = self.up(low)
        rows = skip.size(2) - low.size(2)
        low = F.pad(low, [0, 0, rows // 2, rows - rows // 2])
        return self.conv(torch.cat([skip, low], dim=1))


class UNetOfBlocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inc = Double(3, 4)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), Double(4, 8))
        self.up1 = Up(8, 4)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        high = self.inc(x)
        return self.out(self.up1(self.down1(high), high))


class UNetInOneForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.dec1 = double(3, 4), double(4, 8), double(12, 4)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x):
        high = self.enc1(x)
        return self.dec1(torch.cat((self.up(self.enc2(F.max_pool2d(high, 2))), high), 1))


class Skip(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return torch.cat([x, self.inner(x)], 1)


def unet_of_chains() -> nn.Sequential:
    bottom = nn.Sequential(nn.MaxPool2d(2), double(4, 8), nn.Upsample(scale_factor=2))
    return nn.Sequential(double(3, 4), Skip(bottom), double(12, 4), nn.Conv2d(4, 2, 1))


# Name, network, what gets a layer, what gets one besides with `decoder`.
UNETS = {
    "blocks": (lambda: shaken(UNetOfBlocks()), {"inc", "down1"}, {"up1"}),
    "one forward": (lambda: shaken(UNetInOneForward()), {"enc1", "enc2"}, {"dec1"}),
    "chains": (lambda: shaken(unet_of_chains()), {"0", "1.inner.1"}, {"2"}),
}
