"""Traces of the forwards of others: what their Python code does to placeholders, refused where a trace would lie."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

# `x += y` by the name of the method that does the same.
_IN_PLACE = {"iadd": "add_", "imul": "mul_", "isub": "sub_", "itruediv": "div_"}

# Where PyTorch's own functions come from; one of the same name from elsewhere may be any.
_HOMES = ("torch", "_operator", "builtins")


class Untraceable(Exception):
    """No graph can be read off the code of a module; the message says why."""


def operation(node: fx.Node) -> str | None:
    """The name of PyTorch's function or method that a node calls, None for anything else."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return None
    name = getattr(node.target, "__name__", "")
    home = str(getattr(node.target, "__module__", None) or "torch").split(".")[0]
    return _IN_PLACE.get(name, name) if home in _HOMES else None


def in_both_modes(module: nn.Module, read: Callable[[nn.Module], Any]) -> tuple[Any, Any]:
    """What is read off the module's code in training and in eval mode; its attributes stay what they are.

    Raises: Untraceable, also for code that keeps something in an attribute.
    """
    before = [(part, dict(vars(part))) for part in module.modules()]
    found, kept = [], set()
    try:
        for training in (True, False):
            for part, _ in before:
                part.training = training
            found.append(read(module))
    finally:
        for part, own in before:
            after = vars(part)
            kept |= {name for name in after | own if after.get(name, before) is not own.get(name, before)}
            after.clear()
            after.update(own)
    kept -= {"training"}
    if kept:
        raise Untraceable(f"its forward sets {', '.join(sorted(kept))}, which a converted one would not")
    return found[0], found[1]


class Tracer(fx.Tracer):
    """Traces to a graph in which what is in place stays in place, and in which no value but Python's own is fixed."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        # These are not Python's, and in PyTorch 2.6 refuse a placeholder for a size.
        super().__init__(autowrap_functions=(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d))
        self._autowrap_search.append(F)

    def graph_of(self, module: nn.Module) -> fx.Graph:
        """The graph of the module's forward, in the mode that it is in.

        Raises: Untraceable where the code does not run on placeholders, or does what a graph cannot say.
        """
        self._depth = _autocast_depth()
        try:
            with _OnlyPlaceholders():
                return self.trace(module)
        except Exception as error:  # whatever the code of others raises
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            reason = str(error) if isinstance(error, Untraceable) else reason
            raise Untraceable(f"its forward cannot be traced: {reason}") from error

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _autocast_depth() != self._depth:
            raise Untraceable("it sets autocast for a part of itself")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and a not in self.tensor_attrs:
            raise Untraceable("it uses a tensor that is no attribute of it")
        return super().create_arg(a)


class _Proxy(fx.Proxy):
    """A placeholder on which `x *= y` is not taken for `x = x * y`."""


class _OnlyPlaceholders(TorchFunctionMode):
    """Refuses to compute without a placeholder, also to switch gradients off: a graph would hold only the result."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name != "__get__" and not any(issubclass(kind, fx.Proxy) for kind in types):
            raise Untraceable(f"it calls {name} on something else than what it is given")
        return func(*args, **(kwargs or {}))


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in _IN_PLACE:
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


def _autocast_depth() -> int:
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth
