"""A block's forward with its pairs as calls of the library: the code of the changed graph, on the block's own children.

What the forward reads of the block besides its children, parameters and buffers is what it was when it was traced.
"""

import importlib
from types import ModuleType
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, fx, nn

from .blocks import RELU
from .planned import run_plan
from .recognise import HOOKS, Plan


class Pair(NamedTuple):
    """A map `x` times its gates, up to `last`: the product, or the sum or the ReLU that only its value goes into."""

    plan: Plan
    x: fx.Node
    steps: frozenset[fx.Node]
    last: fx.Node
    residual: fx.Node | None = None
    in_place: bool = False
    relu: str | None = None  # the path of a module, or RELU


class Program:
    """The source of a forward and what its names mean; copies and pickles make the function anew."""

    def __init__(self, source: str, names: dict[str, Any], modules: dict[str, str], plans: Any, inputs: int) -> None:
        self.plans, self.inputs = plans, inputs
        self._arguments = (source, names, modules, plans, inputs)
        scope = {**names, **{name: importlib.import_module(path) for name, path in modules.items()}}
        exec(compile(source, "<a forward with pairs>", "exec"), scope)
        self.function = scope["forward"]

    def __reduce__(self) -> tuple[Any, ...]:
        return Program, self._arguments


def rewritten(graph: fx.Graph, pairs: list[Pair]) -> Program:
    """The program of the graph with each pair as one call; the pairs in the reverse of their order in it."""
    nodes = list(graph.nodes)
    for i, pair in enumerate(pairs):
        with graph.inserting_before(nodes[0]):
            layers = graph.placeholder(f"cbam_pair_{i}")
        with graph.inserting_before(pair.last):
            call = graph.call_function(_refined, (layers, pair.x, pair.residual, pair.in_place, pair.relu))
        pair.last.replace_all_uses_with(call)
        for node in reversed(nodes):
            if node in pair.steps:
                graph.erase_node(node)
    code = graph.python_code("self")
    modules = {name: value.__name__ for name, value in code.globals.items() if isinstance(value, ModuleType)}
    names = {name: value for name, value in code.globals.items() if name not in modules}
    inputs = sum(node.op == "placeholder" for node in nodes)
    return Program(code.src, names, modules, tuple(pair.plan for pair in pairs), inputs)


def run_program(module: nn.Module, program: Program, *args: Any, **kwargs: Any) -> Any:
    """The block's forward by its program; called otherwise than was traced, its own."""
    tensors = all(isinstance(argument, (Tensor, fx.Proxy)) for argument in args)
    if kwargs or len(args) != program.inputs or not tensors:
        return type(module).forward(module, *args, **kwargs)
    return program.function(module, *((module, plan) for plan in program.plans), *args)


def runs_program(module: nn.Module) -> bool:
    return vars(module)["forward"].func is run_program


def _refined(layers: tuple[nn.Module, Plan], x: Any, residual: Any, in_place: bool, relu: str | None) -> Any:
    """x by its gates, plus the residual, through the ReLU: in one pass where they are what the library can add."""
    module, plan = layers
    after = F.relu if relu == RELU else None if relu is None else module.get_submodule(relu)
    if _fits(residual, x) and (not isinstance(after, nn.Module) or _is_plain(after)):
        return run_plan(module, plan, x, residual, None if after is None else "relu")
    y = run_plan(module, plan, x)
    if residual is not None:
        y = y.add_(residual) if in_place else y + residual
    return y if after is None else after(y)


def _fits(residual: Any, x: Any) -> bool:
    if residual is None:
        return True
    tensors = isinstance(x, Tensor) and isinstance(residual, Tensor)
    return tensors and (residual.shape, residual.dtype, residual.device) == (x.shape, x.dtype, x.device)


def _is_plain(relu: nn.Module) -> bool:
    """Whether this is still a ReLU that does nothing else; asked at each call, as hooks come and go."""
    return type(relu) is nn.ReLU and "forward" not in relu.__dict__ and not any(getattr(relu, hooks) for hooks in HOOKS)
