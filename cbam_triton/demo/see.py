"""`python -m cbam_triton see`: the gates of a model, given as a file or as code, on pictures."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import convert_cbam, viz
from .options import InputError
from .photograph import load_photograph

# What ImageNet's pictures are normalised with by nearly every network that was trained on them.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def see(
    model: str,
    images: Sequence[str],
    size: int,
    device: torch.device,
    layers: Sequence[str] | None,
    trust: bool,
    output: str | os.PathLike[str],
) -> str:
    """Draw the gates of the model's CBAMs on the images; a line for each layer.

    Raises: InputError for a model or an image that cannot be used.
    """
    pixels = torch.stack([_squared(load_photograph(path), size) for path in images])
    network = load_model(model, trust).to(device).eval()
    gates = _gates(network, pixels.to(device))
    unknown = [name for name in layers or () if name not in gates]
    if unknown:
        raise InputError(f"--layers: {model} has no CBAM {unknown[0]!r}; it has {', '.join(gates)}")
    viz.draw(pixels, gates, output, layers=layers)
    return "\n".join(_line(name, gates[name]) for name in layers or gates)


def load_model(name: str, trust: bool) -> nn.Module:
    """The module that a file holds, or that `module:callable` returns.

    Raises: InputError where there is none.
    """
    if Path(name).exists() or ":" not in name:
        return _from_file(name, trust)
    path, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(path)
        for part in attribute.split("."):
            found = getattr(found, part)
        found = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # the user's own code runs here
        raise InputError(f"MODEL: {name} gives no model ({type(error).__name__}: {str(error)[:120]})") from error
    finally:
        sys.path.pop(0)
    if not isinstance(found, nn.Module):
        raise InputError(f"MODEL: {name} returns a {type(found).__name__}; give a callable that returns a module")
    return found


def _from_file(name: str, trust: bool) -> nn.Module:
    way = "give module:callable that makes the model and loads its weights"
    try:
        found = torch.load(name, map_location="cpu", weights_only=not trust)
    except FileNotFoundError:
        raise InputError(f"MODEL: there is no file {name!r}; {way}, or a file of torch.save(model)") from None
    except pickle.UnpicklingError:
        raise InputError(f"MODEL: {name!r} is no file of torch.save, or holds code; if you trust it: --trust") from None
    except Exception as error:  # as many kinds as there are files that torch.save did not write
        raise InputError(f"MODEL: {name!r} cannot be loaded ({type(error).__name__}: {str(error)[:120]})") from None
    if not isinstance(found, nn.Module) or isinstance(found, torch.jit.ScriptModule):
        raise InputError(f"MODEL: {name!r} holds a {type(found).__name__}, not a module; {way}")
    return found


def _squared(image: Tensor, size: int) -> Tensor:
    """The centre of the image, (3,size,size)."""
    side = min(image.shape[1:])
    top, left = ((length - side) // 2 for length in image.shape[1:])
    square = image[:, top : top + side, left : left + side]
    return F.interpolate(square[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]


@torch.no_grad()
def _gates(network: nn.Module, pixels: Tensor) -> viz.Recording:
    """What the network's CBAMs apply to the pixels; they are converted where they are not this library's."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is not None and first.in_channels == 1:
        x = pixels.mean(1, keepdim=True)
    else:
        x = (pixels - pixels.new_tensor(_MEAN)[:, None, None]) / pixels.new_tensor(_STD)[:, None, None]
    dtype = next((parameter.dtype for parameter in network.parameters()), x.dtype)
    try:
        gates = _recorded(network, x.to(dtype))
        if not gates:
            convert_cbam(network)
            gates = _recorded(network, x.to(dtype))
    except Exception as error:  # the user's own model runs here
        raise InputError(f"MODEL fails on {tuple(x.shape)} ({type(error).__name__}: {str(error)[:120]})") from error
    if not gates:
        raise InputError("MODEL has no CBAM that convert_cbam knows; its report says why: print(convert_cbam(model))")
    return gates


def _recorded(network: nn.Module, x: Tensor) -> viz.Recording:
    with viz.record(network) as gates:
        network(x)
    return gates


def _line(name: str, gates: viz.Gates) -> str:
    words = [
        f"{kind} {gate.min():.2f} to {gate.max():.2f}, mean {gate.mean():.2f}"
        for kind, gate in zip(gates._fields, gates, strict=True)
        if gate is not None
    ]
    return f"{name or 'the model'}: {'; '.join(words)}"
