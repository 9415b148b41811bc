"""A real photograph, its feature maps at the sizes of a ResNet-50, and CBAM layers for them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import CBAM, settings

EXTRA = 'pip install "cbam-triton[demo]"'


class Stage(NamedTuple):
    """One of ResNet-50's four stages: channels and side of its square map."""

    name: str
    channels: int
    side: int


STAGES = (Stage("stage 1", 256, 56), Stage("stage 2", 512, 28), Stage("stage 3", 1024, 14), Stage("stage 4", 2048, 7))


class InputError(Exception):
    """What the user gave cannot be used; the message says what to do."""


def load_photograph(path: str | None) -> Tensor:
    """The image at `path`, or scikit-learn's sample photograph, as (3,H,W) float32 in [0, 1]."""
    if path is None:
        try:
            from sklearn.datasets import load_sample_image
        except ImportError:
            raise InputError(f"the sample photograph needs scikit-learn: {EXTRA}, or give --image FILE") from None
        pixels = load_sample_image("china.jpg")
    else:
        if not Path(path).is_file():
            raise InputError(f"--image: there is no file {path!r}; give the path of a photograph")
        try:
            from PIL import Image, UnidentifiedImageError
        except ImportError:
            raise InputError(f"reading {path!r} needs Pillow: {EXTRA}") from None
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"--image: {path!r} cannot be read as an image ({error}); give a JPEG or PNG") from None
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255


def square_views(photograph: Tensor, count: int, side: int = 448) -> Tensor:
    """`count` square views of a photograph, (count,3,side,side): the centre first, then fixed random windows."""
    _, height, width = photograph.shape
    shorter = min(height, width)
    windows = [((height - shorter) // 2, (width - shorter) // 2, shorter)]
    generator = torch.Generator().manual_seed(0)
    while len(windows) < count:
        size, top, left = torch.rand(3, generator=generator).tolist()
        window = max(1, int(shorter * (0.6 + 0.4 * size)))
        windows.append((int(top * (height - window)), int(left * (width - window)), window))
    views = [photograph[None, :, top : top + size, left : left + size] for top, left, size in windows]
    return torch.cat([F.interpolate(view, size=(side, side), mode="area") for view in views])


def feature_maps(views: Tensor, stage: Stage) -> Tensor:
    """ReLU of fixed 7x7 contrast filters over the views, (N,C,side,side) float32: half zeros, so ties are real."""
    generator = torch.Generator().manual_seed(stage.channels)
    weight = torch.randn(stage.channels, 3, 7, 7, generator=generator) * (2 / (3 * 7 * 7)) ** 0.5
    weight -= weight.mean((1, 2, 3), keepdim=True)
    small = F.interpolate(views, size=(2 * stage.side, 2 * stage.side), mode="area")
    small = (small - small.mean((2, 3), keepdim=True)) / (small.std((2, 3), keepdim=True) + 1e-6)
    return F.relu(F.conv2d(F.pad(small, (3, 3, 3, 3), mode="reflect"), weight, stride=2))


def make_layer(x: Tensor) -> CBAM:
    """A CBAM in eval mode for the map x (N,C,H,W): seeded weights, and the norm's statistics taken from x itself."""
    layer = CBAM(x.shape[1])
    norm = layer.spatial.norm
    assert isinstance(norm, nn.BatchNorm2d)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 25
            if not name.startswith("spatial.norm"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
        conv = layer.spatial.conv.weight
        distance = torch.arange(conv.shape[-1]) - conv.shape[-1] // 2
        # Round and mostly positive, so that the picture shows activity; its zero padding darkens the border.
        conv.mul_(3).add_(1).mul_(torch.exp(-(distance[:, None] ** 2 + distance**2) / 4))
        norm.weight.fill_(1.25)
        norm.bias.fill_(-0.25)
        momentum, norm.momentum = norm.momentum, 1.0
        with settings(backend="reference"):
            layer.train()(x.float().cpu())
        norm.momentum = momentum
    return layer.eval()
