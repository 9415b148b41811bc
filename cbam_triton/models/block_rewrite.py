"""A block's forward with its pairs as calls of the library: the code of the changed graph, on the block's own children.

What the forward reads of the block besides its children, parameters and buffers is what it was when it was traced.
"""

import importlib
from types import ModuleType
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..spec.children import is_hooked
from ..spec.layer import Layer
from .apply_cbam import fits, layer_of, run_layer
from .recognition.plan import Plan
from .steps import RELU
from .unchanged import Part, is_unchanged


class Pair(NamedTuple):
    """A map `x` times its gates, up to `last`: the product, or the sum or the ReLU that only its value goes into.

    `steps` become one call; `sizes` are steps on the way that no gate goes into, and stay if anything else reads them.
    """

    plan: Plan
    x: fx.Node
    steps: frozenset[fx.Node]
    last: fx.Node
    sizes: frozenset[fx.Node]
    residual: fx.Node | None = None
    in_place: bool = False
    relu: str | None = None  # the path of a module, or RELU


class Code(NamedTuple):
    """The source of a forward and what its names mean; all of it can be pickled."""

    source: str
    names: dict[str, Any]
    modules: dict[str, str]
    inputs: int


class Program:
    """A forward made of code, plans and what their gates were made of; copies and pickles make the function anew."""

    def __init__(self, code: Code, plans: tuple[Plan, ...], seen: tuple[Part, ...]) -> None:
        self.code, self.plans, self.seen = code, plans, seen
        scope = {**code.names, **{name: importlib.import_module(path) for name, path in code.modules.items()}}
        exec(compile(code.source, "<a forward with pairs>", "exec"), scope)
        self.function = scope["forward"]

    def __reduce__(self) -> tuple[Any, ...]:
        return Program, (self.code, self.plans, self.seen)


def rewritten(graph: fx.Graph, pairs: list[Pair], seen: tuple[Part, ...]) -> Program:
    """The program of the graph with each pair as one call; the pairs in the reverse of their order in it."""
    nodes = list(graph.nodes)
    for i, pair in enumerate(pairs):
        with graph.inserting_before(nodes[0]):
            layers = graph.placeholder(f"cbam_pair_{i}")
        with graph.inserting_before(pair.last):
            call = graph.call_function(_refined, (layers, pair.x, pair.residual, pair.in_place, pair.relu))
        pair.last.replace_all_uses_with(call)
        for node in reversed(nodes):
            if node in pair.steps or (node in pair.sizes and not node.users):
                graph.erase_node(node)
        nodes = [node for node in nodes if not node._erased]
    python = graph.python_code("self")
    modules = {name: value.__name__ for name, value in python.globals.items() if isinstance(value, ModuleType)}
    names = {name: value for name, value in python.globals.items() if name not in modules}
    inputs = sum(node.op == "placeholder" for node in nodes)
    return Program(Code(python.src, names, modules, inputs), tuple(pair.plan for pair in pairs), seen)


def run_program(module: nn.Module, program: Program, memory: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """The block's forward by its program; its own where the call or a gate is another than was traced."""
    tensors = all(isinstance(argument, (Tensor, fx.Proxy)) for argument in args)
    if tensors and not kwargs and len(args) == program.code.inputs and is_unchanged(module, program.seen, memory):
        found = [layer_of(module, plan) for plan in program.plans]
        if None not in found:
            pairs = ((module, plan, layer) for plan, layer in zip(program.plans, found, strict=True))
            return program.function(module, *pairs, *args)
    return type(module).forward(module, *args, **kwargs)


def runs_program(module: nn.Module) -> bool:
    return vars(module)["forward"].func is run_program


def _refined(found: tuple[nn.Module, Plan, Layer], x: Any, residual: Any, in_place: bool, relu: str | None) -> Any:
    """x by its gates, plus the residual, through the ReLU: in one pass where they are what the library can add."""
    module, plan, layer = found
    if not fits(plan, x):
        C = "any" if plan.channels is None else plan.channels
        raise ValueError(
            f"the gates of this {type(module).__name__} were converted for maps of {plan.axes} axes and {C} channels, "
            f"got one of shape {tuple(x.shape)}: call restore_cbam for other maps"
        )
    after = F.relu if relu == RELU else None if relu is None else module.get_submodule(relu)
    if _fits(residual, x) and (not isinstance(after, nn.Module) or _is_plain(after)):
        return run_layer(layer, plan, x, residual, None if after is None else "relu")
    y = run_layer(layer, plan, x)
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
    return type(relu) is nn.ReLU and not is_hooked(relu)
