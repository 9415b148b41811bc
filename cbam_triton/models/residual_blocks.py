"""Residual blocks, found by what their forward does: the steps of the main path and of the shortcut, from a trace."""

import dis
import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from ..attention import Attention
from .layer_ends import drops, ends_with_norm, is_convolution, is_norm, width_after
from .steps import RELU, Reading, Step, Unreadable, child, read

__all__ = ["RELU", "Block", "Blocks", "find_blocks"]

_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")


class Block(NamedTuple):
    """The steps of a block's forward.

    `head` is what main path and shortcut have in common, `main` ends where the layer comes, `between` comes after it
    and before the addition; `shortcut` is None where nothing is added; `tail` comes after the addition. `width` is the
    number of channels after `main`.
    """

    head: tuple[Step, ...]
    main: tuple[Step, ...]
    between: tuple[Step, ...]
    shortcut: tuple[Step, ...] | None
    tail: tuple[Step, ...]
    width: int


class Blocks(NamedTuple):
    """The blocks of a model by name, and the modules whose forward could not be read, with the reason."""

    found: dict[str, Block]
    unread: dict[str, str]


class _Unlike(Exception):
    """Why a module that adds a shortcut is not a block; says what was found."""


def find_blocks(model: nn.Module, where: Callable[[str], bool]) -> Blocks:
    """The residual blocks of a model that `where` allows, innermost only.

    Raises: ValueError for a residual block that computes something else than a chain, a shortcut and an activation.
    """
    found, unread = dict[str, Block](), dict[str, str]()
    candidates = [(name, module) for name, module in model.named_modules() if where(name) and _may_be_block(module)]
    for name, module in reversed(candidates):  # children come before their parents
        if _holds(name, found):
            continue
        try:
            block = _block(module)
        except Unreadable as reason:
            if _is_like_resnet(module):
                raise _refused(name, module, reason) from None
            if not _holds(name, unread):
                unread[name] = f"{described(name, module)}, whose forward {reason}"
        except _Unlike as reason:
            if _convolutions(module) > 1:
                raise _refused(name, module, reason) from None
        else:
            found |= {} if block is None else {name: block}
    _add_kin(dict(candidates), found, unread)
    order = [name for name, _ in candidates]
    return Blocks(
        {name: found[name] for name in order if name in found}, {name: unread[name] for name in order if name in unread}
    )


def _add_kin(candidates: dict[str, nn.Module], found: dict[str, Block], unread: dict[str, str]) -> None:
    """Adds the modules of a block's class that are none by themselves: blocks without a shortcut, or unread ones."""
    kinds = {type(candidates[name]) for name in found}
    for name, module in candidates.items():
        if type(module) not in kinds or name in found or name in unread or _holds(name, found):
            continue
        block = _without_shortcut(module)
        if block is None:
            unread[name] = f"{described(name, module)}, whose forward is another than its class has elsewhere"
        else:
            found[name] = block


def described(name: str, module: nn.Module) -> str:
    """A module in an error: its name, in quotes where it has one, and its class."""
    return f"{repr(name) if name else 'the model'} ({type(module).__name__})"


def adds(module: nn.Module) -> bool:
    """Whether the code of a module's forward has an addition in it."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if code is None:
        return False
    signs = {str(step.argrepr) for step in dis.get_instructions(code) if step.opname == "BINARY_OP"}
    older = {step.opname for step in dis.get_instructions(code)}  # Python 3.10
    return bool(signs & {"+", "+="} or older & {"BINARY_ADD", "INPLACE_ADD"} or {"add", "add_"} & {*code.co_names})


def _refused(name: str, module: nn.Module, reason: Exception) -> ValueError:
    return ValueError(
        f"block {described(name, module)} {reason}: leave it out with where=lambda name: ..., or call CBAM in its "
        "forward yourself"
    )


def _holds(name: str, others: dict[str, Any]) -> bool:
    return any(other.startswith(f"{name}." if name else "") for other in others)


def _may_be_block(module: nn.Module) -> bool:
    if type(module).__module__.startswith("torch.nn.") or isinstance(module, (nn.Sequential, Attention)):
        return False
    return _convolutions(module) > 0 and any(is_norm(layer) for layer in module.modules())


def _is_like_resnet(module: nn.Module) -> bool:
    return {"conv1", "bn1", "conv2"} <= module._modules.keys()


def _convolutions(module: nn.Module) -> int:
    return sum(is_convolution(layer) for layer in module.modules())


def _block(module: nn.Module) -> Block | None:
    if "cbam" in module._modules:
        raise _Unlike("has a child `cbam` already, expected none")
    if "forward" in vars(module):
        raise _Unlike("has a forward of its own on the instance, expected that of its class")
    training, found = (_block_in(module, mode) for mode in (True, False))
    if isinstance(found, _Unlike) and isinstance(training, _Unlike):
        raise found
    if found != training:
        raise _Unlike("calls other layers in training than in eval mode, expected the same")
    return found if isinstance(found, Block) else None


def _block_in(module: nn.Module, training: bool) -> Block | _Unlike | None:
    """The block that the module is in this mode, None for no residual block."""
    reading = read(module, training)
    tail, last = reading.chain(reading.result)
    added = _operands(last)
    if added is None:
        chain = reading.steps(tail)
        return _made(module, (), chain, None, ()) if last is reading.x and _is_inverted(module) else None
    try:
        return _residual(module, reading, added, tail)
    except _Unlike as reason:
        return reason


def _residual(module: nn.Module, reading: Reading, added: tuple[Any, ...], tail: list[fx.Node]) -> Block | None:
    (one, source), (other, other_source) = map(reading.chain, added)
    if reading.x not in (source, other_source):
        return None
    nodes = len({*one, *other}) + len(tail) + 3  # the input, the addition and the output
    if source is not other_source or len(reading.graph.nodes) != nodes:
        raise _Unlike("computes more than layers one after another and a shortcut")
    common = sum(1 for node in one if node in other)
    head, *paths = (reading.steps(path) for path in (one[:common], one[common:], other[common:]))
    counts = [_count(module, path) for path in paths]
    if counts[0] == counts[1]:
        raise _Unlike("has as many convolutions on either side of its addition, expected fewer in the shortcut")
    main, shortcut = paths if counts[0] > counts[1] else reversed(paths)
    return _made(module, head, main, shortcut, reading.steps(tail))


def _made(
    module: nn.Module,
    head: tuple[Step, ...],
    steps: tuple[Step, ...],
    shortcut: tuple[Step, ...] | None,
    tail: tuple[Step, ...],
) -> Block | None:
    end = len(steps)
    while end and drops(_layer(module, steps[end - 1])):
        end -= 1
    width = width_after(module, steps[:end]) if end else None
    if shortcut is None and (width is None or not ends_with_norm(module, steps[:end])):
        return None
    if width is None:
        last = _layer(module, steps[end - 1]) if end else None
        what = f" ({type(last).__name__})" if isinstance(last, nn.Module) else ""
        raise _Unlike(
            f"has {_named(steps[end - 1]) if end else 'nothing'}{what} before its addition, expected a norm, or an "
            "activation after one"
        )
    between = [step for step in steps[end:] if not isinstance(_layer(module, step), nn.Identity)]
    return Block(head, steps[:end], tuple(between), shortcut, tail, width)


def _layer(module: nn.Module, step: Step) -> Any:
    return child(module, step) if isinstance(step, str) and step != RELU else step


def _named(step: Step) -> str:
    return repr(step) if isinstance(step, str) else f"'{step.name}()'"


def _operands(node: Any) -> tuple[Any, ...] | None:
    if not isinstance(node, fx.Node) or node.target not in _ADDITIONS or node.kwargs or len(node.args) != 2:
        return None
    return node.args if all(isinstance(operand, fx.Node) for operand in node.args) else None


def _is_inverted(module: nn.Module) -> bool:
    """Whether this is an inverted residual block whose stride or width leaves no shortcut.

    Either library says so, or a depthwise convolution lies between two pointwise ones.
    """
    if any(getattr(module, name, None) is False for name in ("use_res_connect", "has_skip", "apply_residual")):
        return True
    layers: list[Any] = [layer for layer in module.modules() if is_convolution(layer)]
    if len(layers) < 3:
        return False
    ends = {size for layer in (layers[0], layers[-1]) for size in (*layer.kernel_size, *layer.stride, layer.groups)}
    return ends == {1} and any(layer.groups == layer.in_channels > 1 for layer in layers[1:-1])


def _without_shortcut(module: nn.Module) -> Block | None:
    """The block of a module that only calls its layers, where others of its class add a shortcut."""
    if "cbam" in module._modules or "forward" in vars(module):
        return None
    readings = [read(module, training) for training in (True, False)]
    chains = [reading.chain(reading.result) for reading in readings]
    steps = [reading.steps(nodes) for reading, (nodes, _) in zip(readings, chains, strict=True)]
    if steps[0] != steps[1] or any(source is not one.x for one, (_, source) in zip(readings, chains, strict=True)):
        return None
    return _made(module, (), steps[1], None, ())


def _count(module: nn.Module, steps: tuple[Step, ...]) -> int:
    children = [child(module, step) for step in steps if isinstance(step, str) and step != RELU]
    return sum(map(_convolutions, children))
