"""How far the layers with parameters in a module are those of a CBAM: what is worth a trace."""

from torch import nn

from .layers import gathers_maps, is_layer, is_linear, is_norm

MOST_LAYERS = 5  # with parameters: a CBAM has two to four


def may_be_cbam(layers: list[nn.Module]) -> bool:
    """Whether these can be the layers of a CBAM or of one of its gates."""
    spatial, others = _sorted(layers)
    if len(layers) > MOST_LAYERS or len(spatial) > 1 or len(others) > 2 or not all(map(is_linear, others)):
        return False
    return bool(spatial or others)


def may_be_gate(module: nn.Module) -> bool:
    """Whether its layers are those of one gate."""
    layers = layers_in(module)
    spatial, others = _sorted(layers)
    return may_be_cbam(layers) and layers[0] is not module and not (spatial and others)


def is_container(module: nn.Module) -> bool:
    """Whether it has no forward, as nn.ModuleList."""
    return getattr(type(module), "forward", None) is nn.Module.forward and "forward" not in vars(module)


def layers_in(module: nn.Module, seen: set[int] | None = None) -> list[nn.Module]:
    """The layers with tensors of their own in it, each once, itself among them; a few more than enough."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return []
    seen.add(id(module))
    if is_layer(module):
        return [module]
    found: list[nn.Module] = []
    for child in module._modules.values():  # which no class overrides
        if child is not None and len(found) <= MOST_LAYERS:
            found += layers_in(child, seen)
    return found


def pools_maps(layers: list[nn.Module]) -> bool:
    """Whether one of these is a convolution from two maps to one, which hardly anything but a CBAM has."""
    return any(gathers_maps(layer) and getattr(layer, "in_channels", 0) == 2 for layer in layers)


def _sorted(layers: list[nn.Module]) -> tuple[list[nn.Module], list[nn.Module]]:
    """(what could be the convolution of the pooled maps, what is neither that nor a norm)."""
    spatial = [layer for layer in layers if gathers_maps(layer)]
    return spatial, [layer for layer in layers if not (gathers_maps(layer) or is_norm(layer))]
