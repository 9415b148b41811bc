"""What a module ends with, and so how many channels it leaves: its layers in the order in which it calls them."""

import re
from typing import Any

from torch import nn

from .steps import ACTIVATIONS, DROPS, RELU, Function, Step, Unreadable, child, read

_ACTIVATION = re.compile("relu|elu|silu|swish|mish|softplus", re.IGNORECASE)
_Layer = nn.Module | Function | str  # a layer, a function, or `RELU`


def width_after(module: nn.Module, steps: tuple[Step, ...]) -> int | None:
    """C of what these steps of a module leave; None where they do not end as a convolutional chain does.

    It ends with a convolution, a norm, or an activation of either. Layers that only drop values may follow.
    """
    return _width_at_end(_layers_after(module, steps))


def ends_with_norm(module: nn.Module, steps: tuple[Step, ...]) -> bool:
    """Whether the last of these steps is a norm, with no activation after it."""
    layers = _without_drops(_layers_after(module, steps))
    return bool(layers) and is_norm(layers[-1]) and type(getattr(layers[-1], "act", None)) in (nn.Identity, type(None))


def stage_width(module: nn.Module) -> int | None:
    """C of what a chain of layers leaves, None for anything else.

    One of the layers is a convolution of more than single pixels, and a norm or an activation ends the chain.
    """
    layers = _without_drops(layers_of(module))
    unknown = any(isinstance(layer, nn.Module) and _is_unknown(layer) for layer in layers)
    convolutions: list[Any] = [layer for layer in layers if is_convolution(layer)]
    gathers = any({*layer.kernel_size} != {1} for layer in convolutions)
    if unknown or not gathers or is_convolution(layers[-1]):
        return None
    return _width_at_end(layers)


def layers_of(module: nn.Module) -> list[_Layer]:
    """The layers of a module in the order in which it calls them; a part that does more than that is one layer."""
    if is_chain(module):
        return [layer for part in module.children() for layer in layers_of(part)]
    if not _is_unknown(module):
        return [module]
    try:
        reading = read(module, training=False)
    except Unreadable:
        return [module]
    nodes, source = reading.chain(reading.result)
    if source is not reading.x or len(nodes) != len(reading.graph.nodes) - 2:  # the input and the output
        return [module]
    return _layers_after(module, reading.steps(nodes))


def _is_unknown(module: nn.Module) -> bool:
    """Whether it has children and is no layer by itself."""
    own = next(module.parameters(recurse=False), None) is not None
    return not own and not is_norm(module) and next(module.children(), None) is not None


def _layers_after(module: nn.Module, steps: tuple[Step, ...]) -> list[_Layer]:
    found: list[_Layer] = []
    for step in steps:
        found += [step] if isinstance(step, Function) or step == RELU else layers_of(child(module, step))
    return found


def is_chain(module: nn.Module) -> bool:
    """Whether it calls its children one after another, as `nn.Sequential` and its subclasses do."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def is_convolution(layer: Any) -> bool:
    return isinstance(layer, nn.modules.conv._ConvNd)


def is_norm(layer: Any) -> bool:
    """Whether this is a norm, of PyTorch or another library, with or without an activation inside."""
    named = isinstance(layer, nn.Module) and "Norm" in type(layer).__name__
    return named and not any(is_convolution(part) for part in layer.modules())


def is_activation(layer: Any) -> bool:
    if isinstance(layer, Function):
        return layer.name in ACTIVATIONS
    if not isinstance(layer, nn.Module):
        return layer == RELU
    return next(layer.children(), None) is None and bool(_ACTIVATION.search(type(layer).__name__))


def drops(layer: Any) -> bool:
    """Whether a layer only drops parts of its input in training, or nothing."""
    if isinstance(layer, Function):
        return layer.name in DROPS
    if isinstance(layer, (nn.Identity, nn.modules.dropout._DropoutNd)):
        return True
    if isinstance(layer, nn.Module) and is_chain(layer):
        return all(map(drops, layer.children()))
    return type(layer).__name__ in ("DropPath", "StochasticDepth")


def last_convolution(module: nn.Module) -> Any:
    """The last convolution that a module holds."""
    return [layer for layer in module.modules() if is_convolution(layer)][-1]


def _width_at_end(layers: list[_Layer]) -> int | None:
    layers = _without_drops(layers)
    if layers and is_activation(layers[-1]):
        layers = _without_drops(layers[:-1])
    last: Any = layers[-1] if layers else None
    if is_norm(last):
        return norm_width(last)
    return last.out_channels if is_convolution(last) else None


def _without_drops(layers: list[_Layer]) -> list[_Layer]:
    end = len(layers)
    while end and drops(layers[end - 1]):
        end -= 1
    return layers[:end]


def norm_width(norm: Any) -> int:
    """C of a norm on (N, C, *)."""
    for name in ("num_features", "num_channels"):
        if isinstance(width := getattr(norm, name, None), int):
            return width
    return norm.weight.shape[0]  # torchvision's FrozenBatchNorm2d and norms of layers have only this
