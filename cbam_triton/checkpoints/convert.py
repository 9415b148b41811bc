"""Checkpoints of every published CBAM, as parameters and options of this library's.

Read from the weights: channels, hidden width, layers and biases of the MLP, kernel size, dimensions, the convolution's
bias, the norm. What no key tells is implied by the format, one of `formats.FORMATS`, and may be overridden.
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from .formats import MAX_MEAN, MEAN_MAX, STATISTICS, Format, find_cbam, find_layers, recognise
from .given import check_state_dict, check_weights, checked_options, tensors_in

__all__ = ["Converted", "convert_state_dict", "find_cbam"]

_ORDERS = ("channel_first", "spatial_first", "parallel")


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

    `prefix` names the layer inside a model, as in "layer1.0.cbam"; `find_cbam` lists them. `channels` is checked with
    the weights, and needed where they do not tell. `options` describes the layer that the weights are from where it is
    not what its format implies and no key tells: activation, add_input, arrangement, channel_pools, dims, gate, light,
    spatial_pools. Tensors share storage with those given wherever a view will do; weights for [max, mean] are copied,
    flipped to [mean, max]. Values may be NumPy arrays.

    No state dict holds eps and momentum of a norm, and neither do the options: set them on the layer where they are not
    the defaults of `nn.BatchNorm2d`. The authors' code has momentum 0.01.

    Raises: ValueError for the keys of no known format, shapes that fit neither each other nor `channels`, and options
    that contradict the weights or do not exist; TypeError for values that are no tensors.

        converted = convert_state_dict(torch.load("model.pt"), prefix="layer1.0.cbam")
        layer = CBAM(**converted.options)
        layer.load_state_dict(converted.state_dict)
    """
    check_state_dict(state_dict, lambda one: bool(find_layers(one)))
    tensors = _inside(state_dict, prefix)
    form = recognise(tensors)
    if form.weight == "kernel":  # Keras: inputs before outputs, and both last
        tensors = {key: t.permute(-1, -2, *range(t.ndim - 2)) if t.ndim > 1 else t for key, t in tensors.items()}
    given = checked_options({} if options is None else options)
    if channels is not None:
        given["channels"] = channels
    told, state = dict[str, Any](), dict[str, Tensor]()
    channel, spatial = (form.key(layer) in tensors for layer in (form.fc1, form.conv))
    if channel:
        state |= _channel_part(form, tensors, told)
    if spatial:
        state |= _spatial_part(form, tensors, told, given)
    if not (channel and spatial):
        told["arrangement"] = "channel_only" if channel else "spatial_only"
    check_weights(state)
    merged = _merged(form, told, given)
    _warn_of_shared(form, told, given)
    return Converted(state, merged, form.name)


def _channel_part(form: Format, tensors: Mapping[str, Tensor], told: dict[str, Any]) -> dict[str, Tensor]:
    """The MLP's tensors by their new keys; what they tell goes into `told`."""
    key = form.key(form.fc1)
    first = tensors[key]
    R, C, *ones = first.shape if first.ndim > 1 else (0, 0)
    if C == 0 or len(ones) > 3 or any(one != 1 for one in ones):
        _refuse(key, first, "(R, C) or (R, C, 1, 1)", "pass the weight of the MLP's first layer")
    layers = [("channel.fc1", form.fc1, (R, C))]
    if form.fc2 is not None and form.key(form.fc2) in tensors:
        layers.append(("channel.fc2", form.fc2, (C, R)))
        told["hidden_channels"] = R
    elif R != C:
        _refuse(key, first, f"({C}, {C}), as it is the only layer", "add the second layer's weight")
    told |= {"channels": C, "mlp_layers": len(layers), "mlp_bias": f"{form.fc1}.bias" in tensors}
    if ones:
        told["dims"] = len(ones)
    state: dict[str, Tensor] = {}
    for name, source, shape in layers:
        state[f"{name}.weight"] = _of_shape(tensors, form.key(source), (*shape, *ones)).flatten(1)
        if told["mlp_bias"]:
            state[f"{name}.bias"] = _of_shape(tensors, f"{source}.bias", shape[:1])
    return state


def _spatial_part(
    form: Format, tensors: Mapping[str, Tensor], told: dict[str, Any], given: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The convolution's and the norm's tensors by their new keys; what they tell goes into `told`."""
    key = form.key(form.conv)
    weight = tensors[key]
    one, maps, *sides = weight.shape if weight.ndim > 2 else (0, 0, 0)
    dims, K = len(sides), sides[-1]
    if one != 1 or dims > 3 or K % 2 == 0 or any(side != K for side in sides):
        _refuse(key, weight, "(1, 2, K, K) with K odd", "pass that of the pooled maps' convolution")
    if told.setdefault("dims", dims) != dims:
        _refuse(key, weight, f"(1, {maps}{', K' * told['dims']}), as the MLP has it", "pass the weights of one layer")
    told |= {"kernel_size": K, "conv_bias": f"{form.conv}.bias" in tensors, "spatial_norm": None}
    pools = tuple(given.get("spatial_pools", form.pools))
    squeeze = form.squeeze if form.squeeze is not None and form.key(form.squeeze) in tensors else None
    if squeeze is not None:
        _agree("options['spatial_pools']", given.get("spatial_pools", ("conv",)), ("conv",))
        pools = ("conv",)
    elif maps == 1 and form.maps != 2 and "spatial_pools" not in given:
        told["light"] = True
        pools = ("half the sum",)
    if maps != len(pools):
        _refuse(key, weight, f"(1, {len(pools)}, K, K), for the maps {', '.join(pools)}", "name its maps in options")
    state = {"spatial.conv.weight": weight}
    if form.name != "cbam_triton" and pools == MAX_MEAN:
        state, pools = {"spatial.conv.weight": weight.flip(1)}, MEAN_MAX
    if not told.setdefault("light", False):
        told["spatial_pools"] = pools
    if told["conv_bias"]:
        state["spatial.conv.bias"] = _of_shape(tensors, f"{form.conv}.bias", (1,))
    if form.norm is not None and f"{form.norm}.weight" in tensors:
        told["spatial_norm"] = "batch"
        state |= {f"spatial.norm.{name}": _of_shape(tensors, f"{form.norm}.{name}", (1,)) for name in STATISTICS}
        # PyTorch before 0.4.1 saved no count.
        fresh = torch.zeros((), dtype=torch.long, device=weight.device)
        state["spatial.norm.num_batches_tracked"] = tensors.get(f"{form.norm}.num_batches_tracked", fresh)
    if squeeze is not None:
        descriptor = tensors[form.key(squeeze)]
        C = told.setdefault("channels", descriptor.shape[1] if descriptor.ndim > 1 else 0)
        state["spatial.squeeze.weight"] = _of_shape(tensors, form.key(squeeze), (1, C, *(1,) * dims))
        state["spatial.squeeze.bias"] = _of_shape(tensors, f"{squeeze}.bias", (1,))
    return state


def _merged(form: Format, told: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options of CBAM: what the weights tell, what the caller says, what the format implies, in this order."""
    if "channels" not in told | given:
        raise ValueError("channels must be given where a spatial attention is all there is: pass channels=, the C of x")
    for name in given.keys() & told.keys() - {"spatial_pools"}:
        _agree(name if name == "channels" else f"options[{name!r}]", given[name], told[name])
    if "arrangement" not in told and given.get("arrangement", "parallel") not in _ORDERS:
        raise ValueError(
            f"options['arrangement'] must be one of {', '.join(_ORDERS)}, as state_dict has both parts, got "
            f"{given['arrangement']!r}: leave one part out of state_dict"
        )
    implied = {"dims": 2, "arrangement": "channel_first", "gate": "sigmoid", "light": False, "add_input": False}
    if "mlp_layers" in told:
        implied["channel_pools"] = ("avg", "max")
    return implied | dict(form.options) | given | told


def _inside(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The layer's tensors, by their keys without the prefix."""
    tensors = tensors_in(state_dict, prefix)
    if prefix and not tensors:
        found = ", ".join(repr(name) for name in find_cbam(state_dict)) or "no name"
        raise ValueError(f"prefix must begin some keys, got {prefix!r}: the state dict has layers under {found}")
    return tensors


def _warn_of_shared(form: Format, told: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Says which options of a layer its keys leave open, although published layers with these keys differ in them."""
    taken = {"add_input": False, "spatial_pools": form.pools, "channel_pools": ("avg", "max"), **form.options}
    known = set(given) | (set() if "kernel_size" in told else {"spatial_pools"})
    left = [name for name in form.shared if name not in known]
    words = [f"{name} ({' or '.join(map(repr, form.shared[name]))}, taken as {taken[name]!r})" for name in left]
    if words:
        warnings.warn(
            f"the keys of the format {form.name!r} are those of layers that compute different things, and do not tell "
            f"{', '.join(words)}: look at the forward of your layer and pass options={{{left[0]!r}: ..., }}, or swap "
            "the layers of the live model by cbam_triton.models.replace_cbam",
            stacklevel=3,
        )


def _of_shape(tensors: Mapping[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensors[key].shape) != shape:
        _refuse(key, tensors[key], str(shape), "pass the weights of one layer")
    return tensors[key]


def _refuse(key: str, tensor: Tensor, expected: str, remedy: str) -> NoReturn:
    order = ", its axes in PyTorch's order" if key.endswith(".kernel") else ""
    raise ValueError(f"{key} must have shape {expected}{order}, got {tuple(tensor.shape)}: {remedy}")


def _agree(name: str, got: Any, told: Any) -> None:
    if got != told:
        raise ValueError(f"{name} must be {told!r}, as the weights have it, got {got!r}: leave it out, or pass others")
