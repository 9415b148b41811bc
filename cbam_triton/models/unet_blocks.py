"""The blocks of a U-Net, found by its skip connections: where two maps are concatenated, and where a stage ends."""

import inspect
import itertools
from collections.abc import Callable, Iterator

from torch import fx, nn

from .layer_ends import is_chain, stage_width, width_after
from .recognition.nodes import operation
from .steps import Unreadable, read

_CONCATENATIONS = {"cat", "concat", "concatenate"}
_UPSAMPLING = ("interpolate", "upsample")
_UPSAMPLING_LAYERS = (nn.Upsample, nn.PixelShuffle, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def find_decoder_blocks(model: nn.Module, where: Callable[[str], bool]) -> dict[str, int]:
    """The blocks after the concatenations with a skip connection that `where` allows, innermost only, with their width.

    A block is a module of several inputs that concatenates; or what a module gives the concatenation of an upsampled
    map to; or what comes in a chain after a module that concatenates its input with what it makes of it.
    """
    found = dict[str, int]()
    for name, module in reversed(list(model.named_modules())):  # children come before their parents
        for path, block in _blocks_of(module):
            full = ".".join(part for part in (name, path) if part)
            inside = any(other == full or other.startswith(f"{full}." if full else "") for other in found)
            width = None if inside or not where(full) else _width_of(block)
            if width is not None:
                found[full] = width
    return dict(reversed(found.items()))


def find_encoder_blocks(model: nn.Module, decoder: dict[str, int], where: Callable[[str], bool]) -> dict[str, int]:
    """The largest chains of layers with a convolution outside of these decoder blocks, with their width."""
    return dict(_encoder_blocks(model, "", decoder, where, set()))


def _encoder_blocks(
    module: nn.Module, name: str, decoder: dict[str, int], where: Callable[[str], bool], seen: set[nn.Module]
) -> Iterator[tuple[str, int]]:
    if name in decoder or module in seen:
        return
    seen.add(module)
    inside = any(other.startswith(f"{name}." if name else "") for other in decoder)
    width = None if inside or _has_upsampling(module) else stage_width(module)
    if width is not None:
        if where(name):
            yield name, width
        return
    for key, child in module.named_children():
        yield from _encoder_blocks(child, f"{name}.{key}" if name else key, decoder, where, seen)


def _blocks_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The decoder blocks that a module is or has among its children, by path."""
    if is_chain(module):
        children = list(module.named_children())
        yield from (after for (_, one), after in itertools.pairwise(children) if _is_skip(one))
    if not _concatenates(module):
        return
    if _inputs(module) > 1:
        yield "", module
    elif not _is_skip(module):
        yield from _after_upsampling(module)


def _is_skip(module: nn.Module) -> bool:
    """Whether it concatenates its input with what its only child makes of it."""
    return _concatenates(module) and _inputs(module) == 1 and len(list(module.children())) == 1


def _after_upsampling(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    try:
        reading = read(module, training=False)
    except Unreadable:
        return
    for node in reading.graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or operation(source) not in _CONCATENATIONS:
            continue
        if any(_upsamples(module, part) for part in source.all_input_nodes):
            yield str(node.target), module.get_submodule(str(node.target))


def _upsamples(module: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return _has_upsampling(module.get_submodule(str(node.target)))
    return operation(node) in _UPSAMPLING


def _width_of(block: nn.Module) -> int | None:
    """C of what a decoder block returns, None where that is not what a norm or an activation makes."""
    if is_chain(block):
        return stage_width(block)
    try:
        reading = read(block, training=False, several=True)
    except Unreadable:
        widths = [stage_width(child) for child in block.children()]
        return next((width for width in reversed(widths) if width is not None), None)
    nodes, _ = reading.chain(reading.result)
    return width_after(block, reading.steps(nodes))


def _concatenates(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and bool(_CONCATENATIONS & {*code.co_names})


def _inputs(module: nn.Module) -> int:
    return len(inspect.signature(type(module).forward).parameters) - 1


def _has_upsampling(module: nn.Module) -> bool:
    return any(isinstance(part, _UPSAMPLING_LAYERS) for part in module.modules())
