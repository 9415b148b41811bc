"""How far the layers with parameters in a module are those of a CBAM: what is worth a trace."""

import re
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .recognise import is_norm

MOST_LAYERS = 5  # with parameters: a CBAM has two to four
_PART = re.compile("att|cbam|channel|gate|spatial", re.IGNORECASE)


def likeness(kind: str, name: str, layers: list[nn.Module]) -> str | None:
    """Whether these are the layers of a CBAM: "whole", "part", "named" after it, or None."""
    if not 1 <= len(layers) <= MOST_LAYERS:
        return None
    if "cbam" in kind.lower():
        return "named"
    spatial, others = _sorted(layers)
    if len(spatial) > 1 or any(not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) for layer in others):
        return None
    if spatial and 1 <= len(others) <= 2:
        return "whole"
    is_part = (spatial and not others) or len(others) == 2
    return "part" if is_part and _PART.search(f"{kind} {name.rpartition('.')[2]}") else None


def is_container(module: nn.Module) -> bool:
    """Whether it has no forward, as nn.ModuleList."""
    return getattr(type(module), "forward", None) is nn.Module.forward and "forward" not in vars(module)


def may_be_gate(module: nn.Module) -> bool:
    """Whether its layers are those of one gate, whatever its name."""
    layers = layers_in(module)
    if not 1 <= len(layers) <= 2 or layers[0] is module:
        return False
    spatial, others = _sorted(layers)
    if spatial:
        return len(spatial) == 1 and not others
    return len(others) == len(layers) and all(_is_linear(layer) for layer in layers)


def layers_in(module: nn.Module) -> list[nn.Module]:
    """The modules with parameters or buffers of their own in it, itself among them; a few more than enough."""
    own = (*module._parameters.values(), *module._buffers.values())
    found = [module] if any(tensor is not None for tensor in own) or is_parametrized(module) else []
    for key, child in module.named_children():
        if key != "parametrizations" and len(found) <= MOST_LAYERS:
            found += layers_in(child)
    return found


def _sorted(layers: list[nn.Module]) -> tuple[list[nn.Module], list[nn.Module]]:
    """(what could be the convolution of the pooled maps, what is neither that nor a norm)."""
    spatial = [layer for layer in layers if _gathers_maps(layer)]
    return spatial, [layer for layer in layers if not (_gathers_maps(layer) or is_norm(layer))]


def _gathers_maps(layer: Any) -> bool:
    convolution = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return convolution and layer.out_channels == 1 and layer.in_channels <= 2 and layer.kernel_size[0] > 1


def _is_linear(layer: Any) -> bool:
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return set(layer.kernel_size) == {1}
    return isinstance(layer, nn.Linear)
