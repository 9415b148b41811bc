"""Readings: the term of what a module returns, off a trace of its forward."""

import re
from typing import Any

from torch import fx, nn
from torch.fx.node import map_arg

from .term_functions import FUNCTIONS, SETTINGS
from .terms import Term, X, unknown
from .traces import Tracer, Untraceable, operation

_AXES: dict[type, int] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
_VIEWS = ("contiguous", "expand_as", "flatten", "reshape", "squeeze", "unsqueeze", "view")


class _Tracer(Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return bool(m._parameters or m._buffers) or super().is_leaf_module(m, module_qualified_name)


def term_of(module: nn.Module) -> Term:
    """What the module returns for x, in the mode that it is in.

    Raises: Untraceable where its code does not run on a placeholder, or changes in place what it reads again.
    """
    graph = _Tracer().graph_of(module)
    ndim = max((_AXES.get(type(part), 0) for part in module.modules()), default=0) or 4
    values: dict[fx.Node, Any] = {}
    result = unknown("no value")
    for node in graph.nodes:
        values[node] = result = _value(node, values, module, ndim)
    return result if isinstance(result, Term) else unknown("another result than a tensor")


def _value(node: fx.Node, values: dict[fx.Node, Any], module: nn.Module, ndim: int) -> Any:
    if node.op == "placeholder":
        return unknown("a second argument") if values else X
    if node.op == "get_attr":
        return unknown(f"the tensor {node.target} outside of its layer")
    args: Any = map_arg(node.args, values.__getitem__)
    options: dict[str, Any] = dict(map_arg(node.kwargs, values.__getitem__))
    if node.op == "output":
        return args[0]
    if node.op == "call_module":
        layer: Any = module.get_submodule(str(node.target))
        if layer._parameters or layer._buffers:
            return Term("layer", (tuple(str(node.target).split(".")), *args))
        if type(layer) not in SETTINGS:
            return unknown(f"the module {type(layer).__name__}")
        name, changes = type(layer).__name__.lower(), getattr(layer, "inplace", False)
        args = (*args, *(getattr(layer, setting) for setting in SETTINGS[type(layer)]))
    else:
        name = operation(node)
        if name is None:
            return unknown(getattr(node.target, "__name__", "a function"))
        changes = options.pop("inplace", False) or (name.endswith("_") and not name.startswith("_"))
    if changes and not _may_change(node, values):
        raise Untraceable(f"its forward changes in place, by {name}, what may be read again")
    known = FUNCTIONS.get(re.sub(r"[123]d$", "", name).strip("_"))
    try:
        found = None if known is None else known(ndim, *args, **options)
    except (AttributeError, IndexError, TypeError, ValueError):  # arguments of a kind that the table does not know
        found = None
    return unknown(name) if found is None else found


def _may_change(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Whether nothing reads the changed value later, neither the caller nor through a view."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or values[source] == X or list(source.users)[-1] is not node:
        return False
    return not any(str(other.target).strip("_") in _VIEWS for other in (source, *list(source.users)[:-1]))
