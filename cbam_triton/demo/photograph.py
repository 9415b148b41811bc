"""A real photograph, its feature maps at the sizes of a ResNet-50, and CBAM layers for them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import CBAM, settings
from .options import EXTRA, InputError


class Stage(NamedTuple):
    """One of ResNet-50's four stages: channels and side of its square map."""

    name: str
    channels: int
    side: int


STAGES = (Stage("stage 1", 256, 56), Stage("stage 2", 512, 28), Stage("stage 3", 1024, 14), Stage("stage 4", 2048, 7))


def load_photograph(path: str | None) -> Tensor:
    """The image at `path`, or scikit-learn's sample photograph, as (3,H,W) float32 in [0, 1].

    Pictures of any mode are read: grey, 16 bits, palettes, CMYK. Transparent pixels are white, and a camera's note of
    how it was held is followed.

    Raises: InputError for a file that is not there or is no picture.
    """
    if path is not None:
        return _read(path)
    try:
        from sklearn.datasets import load_sample_image
    except ImportError:
        raise InputError(f"the sample photograph needs scikit-learn: {EXTRA}, or give --image FILE") from None
    return torch.from_numpy(np.array(load_sample_image("china.jpg"))).permute(2, 0, 1).float() / 255


def _read(path: str) -> Tensor:
    try:
        from PIL import Image
    except ImportError:
        raise InputError(f"reading {path!r} needs Pillow: {EXTRA}") from None
    name = path if len(path) <= 80 else f"{path[:77]}..."
    try:
        if not Path(path).is_file():
            raise InputError(f"--image: there is no file {name!r}; give the path of a photograph")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's words on a camera's damaged notes
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                pixels = _pixels(image)
    except InputError:
        raise
    except Exception as error:  # Pillow has an exception of its own for every format's damage
        said = " ".join(str(error).replace(path, name).split())[:120]
        raise InputError(f"--image: {name!r} cannot be read as an image ({said}); give a JPEG or PNG") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _pixels(image: Any) -> np.ndarray:
    """(H,W,3) float32 in [0, 1]."""
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode[0] in "IF":  # 16 or 32 bits of grey, which convert("RGB") would cut off at 255
        return np.repeat(_grey(np.asarray(upright).astype(np.float32), upright.mode)[..., None], 3, axis=2)
    if "transparency" in upright.info or upright.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return np.asarray(upright.convert("RGB")).astype(np.float32) / 255


def _grey(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values in [0, 1]: integers as parts of 16 bits, floats of the least of 1, 255 and 65535 that holds them."""
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0).clip(0)
    largest = float(values.max())
    limits = (65535.0,) if mode[0] == "I" else (1.0, 255.0, 65535.0)
    return values / next((limit for limit in limits if largest <= limit), largest)


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
