"""The linear and convolutional children of a layer: whether their weights say all that they do, or a call is needed.

The kernels read weights. A child with hooks, with another forward, with another class or with sharded parameters
computes something else than its weights say, so it must be called.
"""

from typing import Any

from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# Plain layers, with the stride and the dilation of convolutions.
_ONES: dict[type[nn.Module], tuple[int, ...]] = {
    nn.Linear: (),
    nn.Conv1d: (1,),
    nn.Conv2d: (1, 1),
    nn.Conv3d: (1, 1, 1),
}
# Kernel sizes, with the padding that keeps the size of a map.
_HALVES = {(size,) * dims: (size // 2,) * dims for size in range(1, 64, 2) for dims in (1, 2, 3)}


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of this module does more than its class's forward, or something else."""
    state = module.__dict__  # an attribute of a module costs twice as much, on the path of every call
    if state["_forward_hooks"] or state["_forward_pre_hooks"] or "forward" in state:
        return True
    if (_global_forward_hooks or _global_forward_pre_hooks) and _all_are_hooked():
        return True
    return bool(state["_backward_hooks"] or state["_backward_pre_hooks"])


def _all_are_hooked() -> bool:
    """Whether hooks of all modules may change what a child computes; PyTorch's own and ours only watch."""
    hooks = [*_global_forward_hooks.values(), *_global_forward_pre_hooks.values()]
    watching = ("torch", __name__.split(".")[0])
    return not all(str(getattr(hook, "__module__", "")).split(".")[0] in watching for hook in hooks)


def weights_of(layer: nn.Module) -> tuple[Any, Any] | None:
    """Weight and bias of a plain linear or convolutional layer; None for one that must be called.

    A convolution is plain if it keeps the size of its map and pads it with zeros.
    """
    kind = type(layer)
    plain = kind in _ONES
    if not plain:
        kind = _plain_base(kind)
        if kind is None:
            return None
    state = layer.__dict__
    if state["_forward_hooks"] or state["_forward_pre_hooks"] or "forward" in state:  # `is_hooked`, at half its time
        return None
    if (_global_forward_hooks or _global_forward_pre_hooks) and _all_are_hooked():
        return None
    if state["_backward_hooks"] or state["_backward_pre_hooks"]:
        return None
    ones = _ONES[kind]
    if ones and not (
        "_conv_forward" not in state
        and state["stride"] == state["dilation"] == ones
        and (half := _HALVES.get(state["kernel_size"])) is not None
        and state["padding"] in (half, "same")
        and state["padding_mode"] == "zeros"
    ):
        return None
    own = state["_parameters"]
    if plain and "weight" in own and "bias" in own:
        weight, bias = own["weight"], own["bias"]
    else:
        weight, bias = layer.weight, layer.bias  # a subclass, such as a parametrized one, or a replica of DataParallel
    if type(weight) is not nn.Parameter and is_traceable_wrapper_subclass(weight):
        return None
    return weight, bias


def mlp_of(children: dict[str, Any]) -> tuple[Any, Any, Any, Any] | None:
    """Weight and bias of `fc1` and `fc2`, None for those of an `fc2` that is left out; None if one must be called."""
    fc2 = children["fc2"]
    first = weights_of(children["fc1"])
    second = (None, None) if fc2 is None else weights_of(fc2)
    return None if first is None or second is None else first + second


def why_called(layer: nn.Module) -> str | None:
    """Why `weights_of` returns None for this layer, for people to read; None if it returns weights."""
    if weights_of(layer) is not None:
        return None
    if _plain_base(type(layer)) is None:
        return f"{type(layer).__name__} computes something else"
    if is_hooked(layer):
        return "forward replaced" if "forward" in layer.__dict__ else "hooks"
    if "_conv_forward" in layer.__dict__:
        return "forward replaced"
    if is_traceable_wrapper_subclass(layer.weight):
        return f"weight is a {type(layer.weight).__name__}"
    return "another stride, dilation or padding"


def _plain_base(kind: Any) -> type[nn.Module] | None:
    """The plain class whose forward this one has; parametrizations, for one, make subclasses without their own."""
    for base in _ONES:
        if issubclass(kind, base):
            names = ("__call__", "_wrapped_call_impl", "_call_impl", "forward", "_conv_forward")
            return base if all(getattr(kind, name, None) is getattr(base, name, None) for name in names) else None
    return None
