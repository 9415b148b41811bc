"""A forward as steps, one after another: each is a child or a function, read off a trace and run again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, fx, nn

from .recognition.nodes import operation

RELU = "relu()"  # the step of a functional ReLU; no child can have this name

ACTIVATIONS = ("celu", "elu", "gelu", "hardswish", "leaky_relu", "mish", "relu6", "selu", "silu", "softplus")
DROPS = ("alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout")


class Function(NamedTuple):
    """A function of PyTorch as a step, with its arguments after x; `follows_mode` passes `training` at each call."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    follows_mode: bool

    @property
    def name(self) -> str:
        return self.function.__name__.strip("_")


Step = str | Function  # the path of a child, `RELU`, or another function


class Unreadable(Exception):
    """No steps can be read off the code of a module; the message says why."""


class Reading(NamedTuple):
    """The trace of a module, in one mode; x is its first input."""

    graph: fx.Graph
    x: fx.Node
    result: Any
    training: bool

    def chain(self, node: Any) -> tuple[list[fx.Node], Any]:
        """The steps that lead to a node, each of the one before, and the node that the first is of."""
        nodes: list[fx.Node] = []
        while self.step(node) is not None:
            nodes.append(node)
            node = node.args[0]
        return nodes[::-1], node

    def steps(self, nodes: list[fx.Node]) -> tuple[Step, ...]:
        found = [self.step(node) for node in nodes]
        return tuple(step for step in found if step is not None)

    def step(self, node: Any) -> Step | None:
        if not isinstance(node, fx.Node) or not node.args or len(node.all_input_nodes) != 1:
            return None
        if node.args[0] is not node.all_input_nodes[0]:
            return None
        if node.op == "call_module":
            return str(node.target) if len(node.args) == 1 and not node.kwargs else None
        name = (operation(node) or "").strip("_")
        if name == "relu" and len(node.args) == 1 and set(node.kwargs) <= {"inplace"}:
            return RELU
        if name not in (*ACTIVATIONS, *DROPS):
            return None
        options = dict(node.kwargs)
        follows = name in DROPS and options.get("training") is self.training
        if follows:
            del options["training"]
        function: Any = getattr(Tensor, node.target) if isinstance(node.target, str) else node.target
        return Function(function, tuple(node.args[1:]), options, follows)


def read(module: nn.Module, training: bool, several: bool = False) -> Reading:
    """The trace of the module's forward with every child as one step.

    Raises: Unreadable for a forward that does not run on placeholders, or has several inputs unless these are allowed.
    """
    before, module.training = module.training, training
    try:
        graph = _Children().trace(module)
    except Unreadable:
        raise
    except Exception as error:  # whatever foreign code raises when it is given no real tensor
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise Unreadable(f"cannot be traced ({reason})") from None
    finally:
        module.training = before
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if not inputs or (len(inputs) > 1 and not several):
        raise Unreadable(f"takes {len(inputs)} inputs, expected one")
    result = next(node.args[0] for node in graph.nodes if node.op == "output")
    return Reading(graph, inputs[0], result, training)


def run(module: nn.Module, steps: tuple[Step, ...], x: Tensor) -> Tensor:
    """x after these steps of the module."""
    for step in steps:
        if isinstance(step, Function):
            mode = {"training": module.training} if step.follows_mode else {}
            x = step.function(x, *step.arguments, **step.options, **mode)
        else:
            x = F.relu(x) if step == RELU else child(module, step)(x)
    return x


def child(module: nn.Module, path: str) -> Any:
    found = module._modules.get(path)
    return module.get_submodule(path) if found is None else found


class _Children(fx.Tracer):
    """Traces one forward: every child is a step; a layer that the forward makes is part of its code."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            self.path_of_module(m)
        except NameError:
            if next(m.parameters(), None) is not None:
                raise Unreadable(
                    f"makes a layer with weights ({type(m).__name__}) at each call, expected layers that are children"
                ) from None
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)
