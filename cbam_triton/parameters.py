"""Parameters of linear and convolutional layers: made for any width, and read on the path of every call."""

from typing import Any

from torch import nn


def linear(inputs: int, outputs: int, bias: bool, device: Any, dtype: Any) -> nn.Linear:
    """nn.Linear, of any width, also of none."""
    if inputs > 0 and outputs > 0:
        return nn.Linear(inputs, outputs, bias, device, dtype)
    # PyTorch warns of an initialisation of nothing.
    layer = nn.Linear(max(1, inputs), max(1, outputs), bias, device, dtype)
    layer.in_features, layer.out_features = inputs, outputs
    layer.weight = nn.Parameter(layer.weight.new_empty(outputs, inputs))
    if bias:
        layer.bias = nn.Parameter(layer.bias.new_zeros(outputs))
    return layer


def mlp_of(channel: nn.Module) -> tuple[Any, Any, Any, Any]:
    """Weight and bias of both layers; None for what there is not."""
    children: dict[str, Any] = channel._modules
    first, second = children["fc1"], children["fc2"]
    return (*weights_of(first), None, None) if second is None else (*weights_of(first), *weights_of(second))


def weights_of(layer: nn.Module) -> tuple[Any, Any]:
    """Weight and bias of a layer."""
    own: dict[str, Any] = layer._parameters
    if "weight" in own and "bias" in own:  # a fifth of the time of layer.weight, on the path of every call
        return own["weight"], own["bias"]
    return layer.weight, layer.bias  # computed ones: parametrized, pruned
