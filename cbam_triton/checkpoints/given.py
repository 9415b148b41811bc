"""What callers pass: a state dict, or a whole checkpoint that holds one somewhere; and the options of a conversion."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..spec.variant import ChannelPool

_DEPTH = 3  # how far down in a checkpoint a state dict is looked for

# What a state dict does not tell, or not always, and the values that each may have.
UNTOLD: dict[str, tuple[Any, ...]] = {
    "activation": (None, "relu"),
    "add_input": (False, True),
    "arrangement": ("channel_first", "spatial_first", "parallel", "channel_only", "spatial_only"),
    "channel_pools": get_args(ChannelPool),
    "dims": (1, 2, 3),
    "gate": ("sigmoid", "hard_sigmoid"),
    "light": (False, True),
    "spatial_pools": ("mean", "max", "conv"),
}
_SEVERAL = ("channel_pools", "spatial_pools")


def check_state_dict(value: Any, holds_layer: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
    """The state dict that was passed.

    `holds_layer` says whether a state dict has a CBAM; it tells which of several in a checkpoint is meant.
    Raises: TypeError for anything else, which says where in it the state dict is.
    """
    if isinstance(value, nn.Module):
        raise _no_state_dict(value, "pass model.state_dict()")
    if isinstance(value, (str, bytes, os.PathLike)):
        raise _no_state_dict(value, "pass what torch.load(path) returns, or the state dict in it")
    if not isinstance(value, Mapping):
        raise _no_state_dict(value, "pass model.state_dict()")
    odd = [key for key in value if not isinstance(key, str)]
    if odd:
        raise _no_state_dict(value, "pass model.state_dict()", f"the key {odd[0]!r}")
    inner = list(_places(value, "checkpoint", _DEPTH))
    if inner and not holds_layer(value):
        meant = [place for place, found in inner if holds_layer(found)] or [place for place, _ in inner]
        raise _no_state_dict(value, f"the checkpoint has one at {' and at '.join(meant[:3])}: pass that")
    return value


def tensors_in(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The tensors of the layer at a prefix, by their keys without it; none where no key begins so."""
    if not isinstance(prefix, str):
        raise TypeError(
            f"prefix must be the layer's name in the model, a str, got {prefix!r}: find_cbam lists the names"
        )
    prefix = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
    inside = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    return {key: _tensor(f"{prefix}{key}", value) for key, value in inside.items()}


def checked_options(options: Any) -> dict[str, Any]:
    """The options of the layer that the weights are from."""
    if not isinstance(options, Mapping):
        raise TypeError(f"options must map names to values, got {type(options).__name__}: pass a dict")
    given = {}
    for name, value in options.items():
        if name not in UNTOLD:
            raise ValueError(
                f"options may hold {', '.join(UNTOLD)}, got {name!r}: leave it out, the weights tell the rest"
            )
        given[name] = tuple(value) if isinstance(value, list) else value
        if name in _SEVERAL:
            fine = isinstance(given[name], tuple) and len(given[name]) > 0
            fine = fine and all(isinstance(one, str) and one in UNTOLD[name] for one in given[name])
        else:
            fine = any(type(value) is type(known) and value == known for known in UNTOLD[name])
        if not fine:
            several = "a tuple of some of" if name in _SEVERAL else "one of"
            known = ", ".join(map(repr, UNTOLD[name]))
            raise ValueError(f"options[{name!r}] must be {several} {known}, got {value!r}: choose what the layer has")
    return given


def check_weights(state: Mapping[str, Tensor]) -> None:
    """All but the count of batches are real numbers with fractions."""
    for key, tensor in state.items():
        if not tensor.dtype.is_floating_point and not key.endswith("num_batches_tracked"):
            raise TypeError(
                f"the weights must have a floating-point dtype, got {tensor.dtype} for {key}: convert them, for "
                "instance with .float(), or dequantize them"
            )


def _tensor(key: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) and not hasattr(value, "__array__"):
        raise TypeError(f"state_dict must map keys to tensors, got {type(value).__name__} for {key!r}: leave it out")
    try:
        return torch.as_tensor(value)
    except TypeError:
        raise TypeError(
            f"state_dict must map keys to tensors, got an array of {getattr(value, 'dtype', 'objects')} for {key!r}: "
            "convert it to numbers"
        ) from None


def _places(value: Mapping[Any, Any], path: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The state dicts in a checkpoint, each by the expression that gives it."""
    for key, inner in value.items():
        here = f"{path}[{key!r}]"
        if isinstance(inner, nn.Module):
            yield f"{here}.state_dict()", inner.state_dict()
        elif isinstance(inner, Mapping) and depth > 0:
            if any(isinstance(k, str) and isinstance(v, Tensor) and v.ndim > 0 for k, v in inner.items()):
                yield here, {k: v for k, v in inner.items() if isinstance(k, str)}
            else:
                yield from _places(inner, here, depth - 1)


def _no_state_dict(value: Any, remedy: str, what: str | None = None) -> TypeError:
    keys = list(value)[:4] if isinstance(value, Mapping) else []
    of = f" with the keys {', '.join(map(repr, keys))}" if keys and what is None else ""
    return TypeError(f"state_dict must map keys to tensors, got {what or type(value).__name__}{of}: {remedy}")
