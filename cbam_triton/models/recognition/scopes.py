"""The files of a module's code while it is traced: `isinstance` and the functions of einops know placeholders there.

Python gives a placeholder no type and einops refuses it. Both are looked up among the names of the file that calls
them; there they stand for a moment as functions that give everything but placeholders to the originals.
"""

import builtins
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import Tensor, fx, nn

_EINOPS = ("reduce", "rearrange", "repeat", "einsum")
_LIBRARIES = (__name__.split(".")[0], "torch", "builtins", "numpy", "einops", "typing")  # not the user's code
_DEPTH = 3  # files that are reached through the functions of files


class AsksForType(Exception):
    """The code asks for the type of a value that it computes."""


@contextmanager
def placeholders_known(module: nn.Module) -> Iterator[None]:
    """Within it the code of the module and of its children may ask for types and call einops."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    einops = sys.modules.get("einops")  # who uses it has imported it
    known = {id(function): _recorded(function) for name in _EINOPS if (function := getattr(einops, name, None))}
    try:
        for scope in [*_scopes(module), *([vars(einops)] if einops else [])]:
            for name, value in list(scope.items()) if known else ():
                if id(value) in known:
                    before.append((scope, name, value))
                    scope[name] = known[id(value)]
            if "isinstance" not in scope:
                before.append((scope, "isinstance", None))
                scope["isinstance"] = _isinstance
        yield
    finally:
        for scope, name, value in before:
            if value is None:
                scope.pop(name, None)
            else:
                scope[name] = value


def _scopes(module: nn.Module) -> list[dict[str, Any]]:
    """The names of every file with code of the module's, or with a function that such a file knows."""
    todo: list[tuple[Any, int]] = []
    for part in module.modules():
        todo += [(getattr(type(part), "forward", None), 0), *((value, 0) for value in vars(part).values())]
    found: dict[int, dict[str, Any]] = {}
    while todo:
        function, depth = todo.pop()
        scope = _globals(function)
        if scope is None or id(scope) in found or str(scope.get("__name__")).split(".")[0] in _LIBRARIES:
            continue
        found[id(scope)] = scope
        if depth < _DEPTH:
            todo += [(value, depth + 1) for value in list(scope.values())]
    return list(found.values())


def _globals(function: Any) -> dict[str, Any] | None:
    if not builtins.isinstance(function, FunctionType):
        return None
    return inspect.unwrap(function).__globals__


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which becomes a step of the trace where it is given a placeholder."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        values = [each for arg in args for each in (arg if builtins.isinstance(arg, (list, tuple)) else (arg,))]
        proxy = next((value for value in values if builtins.isinstance(value, fx.Proxy)), None)
        if proxy is None:
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    return wrapper


def _isinstance(value: Any, kind: Any) -> bool:
    if not builtins.isinstance(value, fx.Proxy):
        return builtins.isinstance(value, kind)
    if value.node.op != "placeholder":
        raise AsksForType("it asks for the type of a value that it computes")
    return issubclass(Tensor, kind)
