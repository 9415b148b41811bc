"""Checkpoints of every published CBAM, as parameters and options of this library's.

Read from the weights: channels, hidden width, layers and biases of the MLP, kernel size, dimensions, the convolution's
bias, the norm. What no key tells is implied by the format, one of `checkpoint_formats.FORMATS`, and may be overridden.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from .checkpoint_formats import Format, find_cbam, recognise

__all__ = ["Converted", "convert_state_dict", "find_cbam"]

# Options that a state dict cannot tell, or not every one.
_UNTOLD = ("activation", "add_input", "arrangement", "channel_pools", "dims", "gate", "light", "spatial_pools")
_BOTH = ("channel_first", "spatial_first", "parallel")


class Converted(NamedTuple):
    """`state_dict`, with this library's keys, is what CBAM(**options) takes; `format` says where it came from."""

    state_dict: dict[str, Tensor]
    options: dict[str, Any]
    format: str


def convert_state_dict(
    state_dict: Mapping[str, Any],
    *,
    channels: int | None = None,
    prefix: str = "",
    options: Mapping[str, Any] | None = None,
) -> Converted:
    """Any published CBAM's state dict as this library's, with the options of the CBAM that takes it.

    `prefix` names the layer inside a model, as in "layer1.0.cbam"; `find_cbam` lists them. `channels` is checked against
    the weights, and needed where they do not tell. `options` describes the layer that the weights are from where it is
    not what its format implies and no key tells: activation, add_input, arrangement, channel_pools, dims, gate, light,
    spatial_pools. Tensors share storage with those given wherever a view will do; weights for [max, mean] are copied,
    flipped to [mean, max]. Values may be NumPy arrays.

    No state dict holds eps and momentum of a norm, and neither do the options: set them on the layer where they are not
    the defaults of `nn.BatchNorm2d`. The authors' code has momentum 0.01.

    Raises: ValueError for the keys of no known format, shapes that fit neither each other nor `channels`, and options
    that contradict the weights or do not exist; TypeError for values that are no tensors.
    """
    tensors = _tensors(state_dict, prefix)
    given = _checked(options or {})
    form = recognise(tensors)
    if form.weight == "kernel":  # inputs before outputs, both last
        tensors = {key: t.permute(-1, -2, *range(t.ndim - 2)) if t.ndim > 1 else t for key, t in tensors.items()}
    state, told = dict[str, Tensor](), dict[str, Any]()
    implied = {"dims": 2, "arrangement": "channel_first", "gate": "sigmoid", "light": False, "add_input": False}
    implied |= form.options
    has_channel, has_spatial = (form.key(layer) in tensors for layer in (form.fc1, form.conv))
    if has_channel:
        state |= _channel_part(form, tensors, told)
        implied.setdefault("channel_pools", ("avg", "max"))
    if has_spatial:
        state |= _spatial_part(form, tensors, told, given)
    if not (has_channel and has_spatial):
        told["arrangement"] = "channel_only" if has_channel else "spatial_only"
    elif given.get("arrangement", "parallel") not in _BOTH:
        raise ValueError(
            f"options['arrangement'] must be one of {', '.join(_BOTH)}, as state_dict has both parts, got "
            f"{given['arrangement']!r}: leave the keys of the other part out of state_dict"
        )
    if channels is None and "channels" not in told:
        raise ValueError("channels must be given, as a spatial attention alone does not tell it: pass channels=, x's C")
    if channels is not None:
        _agree("channels", channels, told.setdefault("channels", channels))
    for name in given.keys() & told.keys():
        _agree(f"options[{name!r}]", given[name], told[name])
    merged = implied | given | told
    if merged["light"] and "channel_pools" not in given:  # its two pools are fixed
        merged.pop("channel_pools", None)
    return Converted(state, merged, form.name)


def _channel_part(form: Format, tensors: Mapping[str, Tensor], told: dict[str, Any]) -> dict[str, Tensor]:
    key = form.key(form.fc1)
    fc1 = tensors[key]
    if fc1.ndim < 2 or fc1.numel() != fc1.shape[0] * fc1.shape[1] or fc1.numel() == 0:
        _refuse(key, fc1, "(R, C) or (R, C, 1, 1), R and C at least 1", "it is the first layer of the MLP")
    R, C = fc1.shape[:2]
    layers = [("channel.fc1", form.fc1, (R, C))]
    if form.fc2 is None or form.key(form.fc2) not in tensors:
        if R != C:
            _refuse(key, fc1, f"({C}, {C}), being the only layer", "the MLP's second layer may be missing")
    else:
        layers.append(("channel.fc2", form.fc2, (C, R)))
        told["hidden_channels"] = R
    told |= {"channels": C, "mlp_layers": len(layers), "mlp_bias": f"{form.fc1}.bias" in tensors}
    if fc1.ndim > 2:
        told["dims"] = fc1.ndim - 2
    state: dict[str, Tensor] = {}
    for name, source, shape in layers:
        key = form.key(source)
        weight = tensors[key]
        if tuple(weight.shape) != (*shape, *fc1.shape[2:]):
            expected = str((*shape, *fc1.shape[2:]))
            _refuse(key, weight, f"{expected}, as {form.key(form.fc1)} is {tuple(fc1.shape)}", "C -> R -> C")
        state[f"{name}.weight"] = weight.flatten(1)
        if told["mlp_bias"]:
            state[f"{name}.bias"] = _of_shape(tensors, f"{source}.bias", shape[:1])
    return state


def _spatial_part(
    form: Format, tensors: Mapping[str, Tensor], told: dict[str, Any], given: dict[str, Any]
) -> dict[str, Tensor]:
    key = form.key(form.conv)
    weight = tensors[key]
    K = weight.shape[-1] if weight.ndim else 0
    if not 3 <= weight.ndim <= 5 or weight.shape[0] != 1 or K % 2 == 0 or any(k != K for k in weight.shape[2:]):
        _refuse(key, weight, "(1, 2, K, K), K odd", "one map, and as many K as x has dimensions after N and C")
    _agree(f"the dimensions of {key}", weight.ndim - 2, told.setdefault("dims", weight.ndim - 2))
    told |= {"kernel_size": K, "conv_bias": f"{form.conv}.bias" in tensors, "spatial_norm": None}
    state: dict[str, Tensor] = {}
    pools = given.pop("spatial_pools", None if form.maps == 1 else form.pools)
    ...
    if form.squeeze is not None and form.key(form.squeeze) in tensors:
        ...
    return state
