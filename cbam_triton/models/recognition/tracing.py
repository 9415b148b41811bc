"""Traces of the forwards of others: what their Python code does to placeholders, refused where a trace would lie."""

import functools
import inspect
import linecache
import operator
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.overrides import TorchFunctionMode

from .layers import has_own_tensors, is_layer
from .nodes import IN_PLACE, words_for
from .scopes import AsksForType, placeholders_known

_PROXIES = re.compile(r"proxy|proxies|symbolic|traced|node", re.IGNORECASE)
_OWN_CODE = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class Untraceable(Exception):
    """No graph can be read off the code of a module; the message says why.

    `nodes` are the steps of the trace, if it came to its end all the same.
    """

    nodes: Sequence[fx.Node] = ()


def in_both_modes(module: nn.Module, read: Callable[[nn.Module], fx.Graph]) -> fx.Graph:
    """The graph that is read off the module's code in training and in eval mode; its attributes stay what they are.

    Raises: Untraceable, also for code that keeps something in an attribute or that differs between the modes.
    """
    before = [(part, dict(vars(part)), _contents(part)) for part in module.modules()]
    found, kept = [], set()
    try:
        for training in (True, False):
            for part, _, _ in before:
                part.training = training
            found.append(read(module))
    finally:
        for part, own, contents in before:
            kept |= _restored(part, own, contents)
    kept -= {"training"}
    why = ""
    if kept:
        why = f"its forward sets {', '.join(sorted(kept))}, which a converted one would not"
    elif str(found[0]) != str(found[1]):
        why = f"its forward does another thing in training than in eval mode{_first_difference(*found)}"
    if why:
        error = Untraceable(why)
        error.nodes = list(found[1].nodes)
        raise error
    return found[0]


def _contents(module: nn.Module) -> dict[str, Any]:
    """What the lists, dicts and sets among the module's attributes hold."""
    return {name: value.copy() for name, value in vars(module).items() if isinstance(value, (list, dict, set))}


def _restored(module: nn.Module, own: dict[str, Any], contents: dict[str, Any]) -> set[str]:
    """The attributes that differ from those before, which they are made again."""
    after = vars(module)
    changed = {name for name in after | own if after.get(name, module) is not own.get(name, module)}
    after.clear()
    after.update(own)
    for name, before in contents.items():
        value = own[name]
        same = len(value) == len(before) and all(map(operator.is_, _flat(value), _flat(before)))
        if not same:
            changed.add(name)
            value.clear()
            value.extend(before) if isinstance(value, list) else value.update(before)
    return changed


def _flat(values: Any) -> list[Any]:
    return [each for item in values.items() for each in item] if isinstance(values, dict) else list(values)


def _first_difference(training: fx.Graph, other: fx.Graph) -> str:
    pairs = zip(training.nodes, other.nodes, strict=False)
    first = next((node for node, twin in pairs if node.format_node() != twin.format_node()), None)
    return "" if first is None or first.op not in ("call_function", "call_method") else f": {words_for(first)}"


class Tracer(fx.Tracer):
    """Traces to a graph in which a change in place stays one, and in which no value but Python's own is fixed.

    Layers are steps; with `whole_children` every child is one step. Arguments that have a default keep it.
    """

    proxy_buffer_attributes = True

    def __init__(self, whole_children: bool = False) -> None:
        # The pools are not written in Python, and refuse a placeholder for a size.
        super().__init__(autowrap_functions=(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d))
        self._autowrap_search.append(F)
        self._whole_children = whole_children

    def graph_of(self, module: nn.Module) -> fx.Graph:
        """The graph of the module's forward, in the mode that it is in.

        Raises: Untraceable where the code does not run on placeholders, or does what a graph cannot say.
        """
        self._depth = _autocast_depth()
        try:
            with _OnlyPlaceholders(), placeholders_known(module):
                return self.trace(module)
        except Exception as error:  # whatever the code of others raises
            raise Untraceable(f"its forward cannot be followed{_place(error)}: {_reason(error)}") from error

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._whole_children or is_layer(m)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        _, *parameters = inspect.signature(root_fn).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in parameters if p.kind in kinds and p.default is p.empty]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if type(m).__module__.startswith("einops.layers.") and type(m).__name__ in ("Reduce", "Rearrange"):
            layer: Any = m
            function = getattr(sys.modules["einops"], type(m).__name__.lower())
            options = (layer.pattern, layer.reduction) if hasattr(layer, "reduction") else (layer.pattern,)
            return self.create_proxy("call_function", function, (*args, *options), dict(layer.axes_lengths))
        if m in (self.submodule_paths or {}):
            drops_nothing = isinstance(m, nn.modules.dropout._DropoutNd) and m.p == 0 and not self._whole_children
            own_forward = functools.partial(type(m).forward, m)  # no hooks, which are not for placeholders
            return args[0] if drops_nothing and args else super().call_module(m, own_forward, args, kwargs)
        if has_own_tensors(m):
            raise Untraceable(f"it calls a layer with parameters, {type(m).__name__}, that is no child of the module")
        return type(m).forward(
            m, *args, **kwargs
        )  # made in forward, such as nn.Sigmoid()(z), or a slice of a Sequential

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


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in IN_PLACE:
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _OnlyPlaceholders(TorchFunctionMode):
    """Refuses to compute without a placeholder, also to switch gradients off: a graph would hold only the result."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name == "_set_grad_enabled":
            raise Untraceable("it switches gradients off or on for a part of itself")
        if name != "__get__" and not any(issubclass(kind, fx.Proxy) for kind in types):
            raise Untraceable(f"it calls {name} on something else than the map")
        return func(*args, **(kwargs or {}))


def _autocast_depth() -> int:
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth


def _place(error: Exception) -> str:
    """Where in the user's code an error was raised: file, line and its text."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_OWN_CODE, "<"))]
    if not own:
        return ""
    code = (own[-1].line or linecache.getline(own[-1].filename, own[-1].lineno or 0)).strip()
    return f" past line {own[-1].lineno} of {Path(own[-1].filename).name}" + (f", `{code[:80]}`" if code else "")


def _reason(error: Exception) -> str:
    words = (str(error).splitlines() or [""])[0]
    if isinstance(error, (Untraceable, AsksForType)):
        return words
    if isinstance(error, TraceError) or _PROXIES.search(words) or "fx" in words:
        return "what it does there depends on the values, the sizes or the type of a tensor"
    return f"{type(error).__name__}: {words}".rstrip(": ")
