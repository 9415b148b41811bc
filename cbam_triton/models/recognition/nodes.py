"""The steps of a trace by the names that PyTorch's users know."""

import re
from typing import Any

import torch
from torch import fx

# `x += y` by the name of the method that does the same.
IN_PLACE = {"iadd": "add_", "imul": "mul_", "isub": "sub_", "itruediv": "div_"}
_LIMITING = ("clamp", "clip", "hardtanh", "clamp_min")


def operation(node: fx.Node) -> str | None:
    """The name of the function or method of PyTorch's (or einops') that a node calls, None for anything else."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return None
    name = getattr(node.target, "__name__", "")
    # One of the same name from elsewhere may be any.
    home = str(getattr(node.target, "__module__", None) or "torch").split(".")[0]
    if home == "einops":
        return f"einops.{name}"
    return IN_PLACE.get(name, name) if home in ("torch", "_operator", "builtins", "math") else None


def name_of(node: fx.Node) -> str | None:
    """The function that a node calls, without the marks for a number of axes and for a change in place."""
    name = operation(node)
    return None if name is None else re.sub(r"_?[123]d$", "", name.strip("_")).strip("_")


def has_dtype(node: fx.Node) -> bool:
    """Whether the step is given a dtype that is written in the code."""
    return any(isinstance(value, torch.dtype) for value in (*node.args, *node.kwargs.values()))


def limits_of(node: fx.Node) -> tuple[Any, Any] | None:
    """(lower, upper) of a step that limits values to a range, None for any other step."""
    name = name_of(node)
    if name not in _LIMITING:
        return None
    names = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    low, high = (node.args[i + 1] if len(node.args) > i + 1 else node.kwargs.get(key) for i, key in enumerate(names))
    return low, high


def words_for(node: fx.Node) -> str:
    """What the user calls this step: the layer that does it, or the function."""
    name = operation(node) or getattr(node.target, "__name__", str(node.target))
    if name in ("getattr", "getattribute"):
        name = f".{node.args[1]}"
    elif has_dtype(node):
        name = f"{name} with a dtype"
    elif limits_of(node) is not None:
        name = f"{name} with limits {limits_of(node)}"
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return name
    path, kind = stack[-1]
    if str(getattr(kind, "__module__", "")).startswith("torch.nn."):
        return f"{kind.__name__} ({path})"
    return f"{name} in {path} ({getattr(kind, '__name__', kind)})" if path else name
