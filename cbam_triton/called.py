"""The gates with every child called as a module: what PyTorch computes, hooks and replaced children included.

It runs where a child's weights do not say all that the child does. Nothing is changed in place, since a hook may keep
what it was given.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import AttentionMaps
from .spec import reference
from .spec.children import is_hooked
from .spec.validation import check_epilogue, check_x
from .spec.variant import Variant


def cbam(layer: Any, x: Tensor, residual: Tensor | None) -> Tensor:
    """What a `CBAM` returns, with its children `channel` and `spatial` called.

    Raises: ValueError where a child does not return a map like x.
    """
    check_x(x)
    check_epilogue(x, residual, layer.activation)
    channel, spatial, arrangement = layer.channel, layer.spatial, layer.variant.arrangement
    y = x
    if arrangement == "parallel" and channel is not None and spatial is not None:
        if not hasattr(spatial, "variant"):
            raise ValueError(
                "arrangement 'parallel' needs a SpatialAttention as the child spatial, whose gate can multiply another "
                f"map, got {type(spatial).__name__}: assign one, or choose 'channel_first'"
            )
        y = spatial(x, _like(x, channel(x), "channel"))
    else:
        steps = [("channel", channel), ("spatial", spatial)]
        for name, child in reversed(steps) if arrangement == "spatial_first" else steps:
            y = y if child is None else _like(x, child(y), name)
    y = y if residual is None else y + residual
    return F.relu(y) if layer.activation == "relu" else y


def attention_maps(layer: Any, x: Tensor) -> AttentionMaps:
    """The gates of a `CBAM`, with the children of `channel` and `spatial` called; hooks on those two do not run.

    Raises: ValueError where one of these two has no gate to ask for.
    """
    channel, spatial, arrangement = layer.channel, layer.spatial, layer.variant.arrangement
    for name, part in (("channel", channel), ("spatial", spatial)):
        if not hasattr(part, "variant"):
            raise ValueError(
                f"attention_maps needs a gate of the child {name}, got {type(part).__name__}: assign one of ours"
            )
    if arrangement == "spatial_first":
        s = spatial_gate(x, spatial)
        g = channel_gate(reference.apply_spatial_gate(x, s), channel)
    else:
        g = channel_gate(x, channel)
        s = spatial_gate(x if arrangement == "parallel" else reference.apply_channel_gate(x, g), spatial)
    return AttentionMaps(g.to(x.dtype), s.to(x.dtype))


def channel_gate(x: Tensor, channel: Any) -> Tensor:
    """g (N, C) of a `ChannelAttention`; the MLP is called once for each pool.

    Raises: ValueError where the children do not return (N, C).
    """
    check_x(x)
    children: dict[str, Any] = channel._modules
    variant: Variant = channel.variant
    fc1, fc2 = children["fc1"], children["fc2"]
    logits = []
    for pool in reference.channel_pool(x, variant):
        z = called(fc1, pool, "fc1")
        logits.append(z if fc2 is None else called(fc2, F.relu(z), "fc2"))
        _check_shape(logits[-1], x.shape[:2], "fc1" if fc2 is None else "fc2")
    return reference.gate(sum(logits[1:], logits[0]), variant)


def spatial_gate(x: Tensor, spatial: Any) -> Tensor:
    """s (N, 1, *pixels) of a `SpatialAttention`.

    Raises: ValueError where the children do not return (N, 1, *pixels).
    """
    check_x(x)
    children: dict[str, Any] = spatial._modules
    variant: Variant = spatial.variant
    squeeze, norm = children["squeeze"], children["norm"]
    maps = reference.spatial_pool(x, variant) if squeeze is None else called(squeeze, x, "squeeze")
    z = called(children["conv"], maps, "conv")
    if norm is not None:
        z = called(norm, z, "norm")
    _check_shape(z, (x.shape[0], 1, *x.shape[2:]), "conv" if norm is None else "norm")
    return reference.gate(z, variant)


def called(child: nn.Module, z: Tensor, name: str) -> Tensor:
    """child(z), with z in the dtype of the child's parameters.

    Raises: ValueError for parameters that are not here: sharded or offloaded, and no hook brings them.
    """
    first = next((p for p in child.parameters() if p.is_floating_point()), None)
    if first is None:
        return child(z)
    if not is_hooked(child):
        _check_present(first, z, name)
    return child(z.to(first.dtype))


def _check_present(parameter: Tensor, z: Tensor, name: str) -> None:
    if type(parameter).__name__ == "DTensor" and type(z) is Tensor:  # not imported: that takes a while
        raise ValueError(
            f"the child {name} must have whole parameters when it is called, got a sharded one (DTensor): let a hook "
            "gather them, by fully_shard of the CBAM or of a module around it, or by parallelize_module of the child"
        )
    if parameter.is_meta and not z.is_meta:
        raise ValueError(
            f"the child {name} must have its parameters on x's device {z.device} when it is called, got them on meta: "
            "load them, or offload with a tool whose hooks bring them back, such as accelerate"
        )


def _like(x: Tensor, y: Any, name: str) -> Tensor:
    _check_shape(y, x.shape, name)
    return y


def _check_shape(found: Any, expected: Any, name: str) -> None:
    if not isinstance(found, Tensor) or found.shape != torch.Size(expected):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"the child {name} must return a tensor of shape {tuple(expected)}, got {got}: assign a module that does"
        )
