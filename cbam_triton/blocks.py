"""Residual blocks, found by what their forward does: the steps of the main path and of the shortcut, from a trace."""

import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

RELU = "relu()"  # the step of a functional ReLU; no child can have this name

_RELU_FUNCTIONS: tuple[Any, ...] = (F.relu, torch.relu, torch.relu_, "relu", "relu_")
_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_STAGE_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)


class Block(NamedTuple):
    """The steps of a block's forward, each the name of a child or `RELU`.

    `main` ends with the last norm; `between` comes after it and before the addition; `shortcut` is None where nothing
    is added; `tail` comes after the addition.
    """

    main: tuple[str, ...]
    between: tuple[str, ...]
    shortcut: tuple[str, ...] | None
    tail: tuple[str, ...]


class _Unknown(Exception):
    """Why a module that adds a shortcut is not a block; says what was found."""


def find_blocks(model: nn.Module, where: Callable[[str], bool]) -> dict[str, Block]:
    """The residual blocks of a model that `where` allows, by name, innermost only.

    Raises: ValueError for a residual block that computes something else than a chain, a shortcut and an activation.
    """
    found: dict[str, Block] = {}
    for name, module in reversed(list(model.named_modules())):  # children come before their parents
        inside = any(other.startswith(f"{name}." if name else "") for other in found)
        if inside or not where(name) or not _may_be_block(module):
            continue
        try:
            block = _block(module)
        except _Unknown as unknown:
            raise ValueError(
                f"block {name!r} ({type(module).__name__}) {unknown}: leave it out with where=lambda name: ..., or "
                "call CBAM in its forward yourself"
            ) from None
        if block is not None:
            found[name] = block
    return dict(reversed(found.items()))


def find_stage_ends(model: nn.Module, where: Callable[[str], bool]) -> Iterator[tuple[str, nn.Sequential, int]]:
    """(name, chain, index) of every ReLU before a pooling, in chains of nothing but what a VGG's features are."""
    for prefix, chain in model.named_modules():
        if type(chain) is not nn.Sequential or not all(isinstance(layer, _STAGE_LAYERS) for layer in chain):
            continue
        names = list(chain._modules)
        for i in range(1, len(chain) - 1):
            name = f"{prefix}.{names[i]}" if prefix else names[i]
            if type(chain[i]) is nn.ReLU and type(chain[i + 1]) is nn.MaxPool2d and where(name):
                yield name, chain, i


def last_convolution(module: nn.Module) -> Any:
    """The last convolution that a module holds."""
    return [layer for layer in module.modules() if _is_convolution(layer)][-1]


def norm_width(norm: nn.Module) -> int:
    """C of a norm on (N, C, *)."""
    while isinstance(norm, nn.Sequential):
        norm = norm[-1]
    for name in ("num_features", "num_channels"):
        if isinstance(width := getattr(norm, name, None), int):
            return width
    weight: Any = norm.weight  # torchvision's FrozenBatchNorm2d has only this
    return weight.shape[0]


def run(module: nn.Module, steps: tuple[str, ...], x: Tensor) -> Tensor:
    """x after these steps of the module."""
    for step in steps:
        x = F.relu(x) if step == RELU else module._modules[step](x)  # pyright: ignore[reportOptionalCall]
    return x


def _may_be_block(module: nn.Module) -> bool:
    if type(module).__module__.startswith("torch.nn.") or isinstance(module, nn.Sequential):
        return False
    layers = list(module.modules())
    return sum(_is_convolution(layer) for layer in layers) > 1 and any(_is_norm(layer) for layer in layers)


def _block(module: nn.Module) -> Block | None:
    if "cbam" in module._modules:
        raise _Unknown("has a child `cbam` already, expected none")
    if "forward" in vars(module):
        raise _Unknown("has a forward of its own on the instance, expected that of its class")
    graph = _graph(module)
    if graph is None:
        return None
    x = next(node for node in graph.nodes if node.op == "placeholder")
    tail, last = _walk(next(node.args[0] for node in graph.nodes if node.op == "output"))
    added = _operands(last)
    if added is None:
        return _checked(module, tail, None, ()) if last is x and _adds_no_shortcut(module) else None
    (one, source), (other, other_source) = map(_walk, added)
    if x not in (source, other_source):
        return None
    others = len(graph.nodes) - len(one) - len(other) - len(tail)
    if source is not other_source or others != 3:  # x, the addition, the output
        raise _Unknown("computes more than layers one after another and a shortcut")
    if _count(module, one) < _count(module, other):
        one, other = other, one
    if _count(module, one) == _count(module, other):
        raise _Unknown("has as many convolutions on either side of its addition, expected fewer in the shortcut")
    return _checked(module, one, other, tail)


def _graph(module: nn.Module) -> fx.Graph | None:
    """The trace of a module of one input, None if it has more or cannot be traced."""
    like_resnet = {"conv1", "bn1", "conv2"} <= module._modules.keys()
    try:
        graph, training = (_traced(module, mode) for mode in (False, True))
    except Exception as error:  # whatever foreign code raises when it is given no real tensor
        if like_resnet:
            raise _Unknown(f"cannot be traced ({error}), expected layers and a shortcut") from None
        return None
    inputs = sum(node.op == "placeholder" for node in graph.nodes)
    if inputs != 1:
        if like_resnet:
            raise _Unknown(f"takes {inputs} inputs, expected one")
        return None
    if str(graph) != str(training):
        raise _Unknown("calls other layers in training than in eval mode, expected the same")
    return graph


def _checked(
    module: nn.Module, steps: tuple[str, ...], shortcut: tuple[str, ...] | None, tail: tuple[str, ...]
) -> Block | None:
    end = len(steps)
    while end and steps[end - 1] != RELU and _drops(module._modules[steps[end - 1]]):
        end -= 1
    if not end or steps[end - 1] == RELU or not _is_norm(module._modules[steps[end - 1]]):
        if shortcut is None:
            return None
        last = "nothing" if not end else steps[end - 1]
        what = "" if last in ("nothing", RELU) else f" ({type(module._modules[last]).__name__})"
        raise _Unknown(f"has {last!r}{what} before its addition, expected a norm")
    between = [name for name in steps[end:] if type(module._modules[name]) is not nn.Identity]
    return Block(steps[:end], tuple(between), shortcut, tail)


class _Children(fx.Tracer):
    """Traces one forward: every child is a step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _traced(module: nn.Module, training: bool) -> fx.Graph:
    before, module.training = module.training, training
    try:
        return _Children().trace(module)
    finally:
        module.training = before


def _walk(node: Any) -> tuple[tuple[str, ...], Any]:
    """The steps that lead to a node, and the node that they begin with."""
    steps: list[str] = []
    while (step := _step(node)) is not None:
        steps.append(step)
        node = node.args[0]
    return tuple(reversed(steps)), node


def _step(node: Any) -> str | None:
    if not isinstance(node, fx.Node) or len(node.args) != 1:
        return None
    if node.op == "call_module" and not node.kwargs and "." not in str(node.target):
        return str(node.target)
    is_relu = node.op in ("call_function", "call_method") and node.target in _RELU_FUNCTIONS
    return RELU if is_relu and set(node.kwargs) <= {"inplace"} else None


def _operands(node: Any) -> tuple[Any, ...] | None:
    if not isinstance(node, fx.Node) or node.target not in _ADDITIONS or node.kwargs or len(node.args) != 2:
        return None
    return node.args


def _adds_no_shortcut(module: nn.Module) -> bool:
    """Whether this is an inverted residual block whose stride or width leaves no shortcut: both libraries say so."""
    return any(getattr(module, name, None) is False for name in ("use_res_connect", "has_skip", "apply_residual"))


def _count(module: nn.Module, steps: tuple[str, ...]) -> int:
    children: list[Any] = [module._modules[step] for step in steps if step != RELU]
    return sum(_is_convolution(layer) for child in children for layer in child.modules())


def _drops(module: Any) -> bool:
    """Whether a layer only drops parts of its input in training, or nothing."""
    known = isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd))
    return known or type(module).__name__ in ("DropPath", "StochasticDepth")


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def _is_norm(module: Any) -> bool:
    while isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    # timm has norms with an activation inside, which its last ones leave out, and convolutions with a norm inside.
    plain = isinstance(getattr(module, "act", None), (nn.Identity, type(None)))
    return "Norm" in type(module).__name__ and plain and not any(_is_convolution(layer) for layer in module.modules())
