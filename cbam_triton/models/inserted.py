"""Layers of ours in modules of others: put in, found again, and taken out.

A module that gets a layer keeps its children under their names, and gets one more, `cbam`. What it was made of stands
in its attribute `_cbam_place`.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..nn import CBAM
from .layer_ends import is_chain
from .residual_blocks import Block, described
from .steps import RELU, child, run

_PLACE = "_cbam_place"
_AT_END = "at its end"


class WithCBAM(nn.Sequential):
    """A layer of a chain and the CBAM after or before it, in its place."""


def put_into_block(module: nn.Module, block: Block, layer: CBAM) -> None:
    """Makes `layer` the child `cbam` of a residual block, called between `main` and the addition."""
    if layer.activation is not None:
        block = block._replace(tail=block.tail[1:])
    _put(module, layer, block)


def put_at_end(module: nn.Module, layer: CBAM) -> None:
    """Makes `layer` the child `cbam` of a module, called on what it returns."""
    _put(module, layer, _AT_END)


def put_into_chain(chain: nn.Module, key: str, layer: CBAM, before: bool) -> None:
    """Puts a chain of the child `key` and `layer` in the place of this child."""
    other: Any = chain._modules[key]
    pair: Any = OrderedDict(cbam=layer, pool=other) if before else OrderedDict(relu=other, cbam=layer)
    chain._modules[key] = WithCBAM(pair)


def relu_follows(module: nn.Module, block: Block) -> bool:
    """Whether the layer can end the block: nothing lies between it and the addition, and a ReLU follows."""
    if block.shortcut is None or block.between or not block.tail:
        return False
    first = block.tail[0]
    return first == RELU or (isinstance(first, str) and type(child(module, first)) is nn.ReLU)


def holders(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold a layer which `insert_cbam` made, with their names."""
    for name, module in model.named_modules():
        if _PLACE in vars(module) or isinstance(module, WithCBAM):
            yield name, module


def take_out(model: nn.Module) -> tuple[str, ...]:
    """Undoes every insertion into the model, and returns the names of the modules that held a layer.

    Raises: ValueError where a module is not what the insertion made of it; the model then is as it was.
    """
    found = list(holders(model))
    for name, module in found:
        _check(name, module)
    parents = {id(part): (parent, key) for parent in model.modules() for key, part in parent._modules.items()}
    for _, module in found:
        if isinstance(module, WithCBAM):
            parent, key = parents[id(module)]
            parent._modules[key] = next(part for name, part in module.named_children() if name != "cbam")
            continue
        del module._modules["cbam"], vars(module)[_PLACE]
        if not is_chain(module):
            module.__class__ = type(module)._kind  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(name for name, _ in found)


def _check(name: str, module: nn.Module) -> None:
    if not isinstance(module._modules.get("cbam"), CBAM):
        raise ValueError(
            f"{described(name, module)} must have the child `cbam` that insert_cbam made, got "
            f"{type(module._modules.get('cbam')).__name__}: put the layer back, or build the network anew"
        )
    if isinstance(module, WithCBAM):
        if not name:
            raise ValueError("the model is a layer of a chain and its CBAM: pass the network that holds the chain")
        return
    if "forward" in vars(module) or not (is_chain(module) or hasattr(type(module), "_kind")):
        raise ValueError(
            f"{described(name, module)} must have the forward that insert_cbam gave it, got another: undo first what "
            "changed it since, restore_cbam or a wrapper"
        )


def _put(module: nn.Module, layer: CBAM, place: Block | str) -> None:
    module.add_module("cbam", layer)
    vars(module)[_PLACE] = place
    if not is_chain(module):  # a chain calls its last child by itself
        module.__class__ = _with_cbam(type(module))


# A subclass, not a forward on the instance: that one would be bound to this block in every replica of DataParallel.
def _with_cbam(kind: type) -> type:
    """The class of a module with a layer: `kind` under its own name, with another forward. One for each `kind`.

    No table has it: a class knows its subclasses, and keeps none of them alive.
    """
    for known in kind.__subclasses__():
        if vars(known).get("_kind") is kind:
            return known
    body = {"forward": _forward, "__reduce_ex__": _reduced, "__module__": __name__, "_kind": kind}
    return type(kind.__name__, (kind,), body)


def _forward(self: Any, x: Any = None, /, *others: Any, **named: Any) -> Tensor:
    block: Any = self._cbam_place
    if block == _AT_END:
        inputs = () if x is None else (x, *others)
        return self.cbam(self._kind.forward(self, *inputs, **named))
    if x is None:
        (x,) = named.values()
    if block.head:
        x = run(self, block.head, x)
    out = run(self, block.main, x)
    if block.shortcut is None:
        return run(self, block.between, self.cbam(out))
    identity = run(self, block.shortcut, x)
    if not block.between:
        return run(self, block.tail, self.cbam(out, residual=identity))
    return run(self, block.tail, run(self, block.between, self.cbam(out)) + identity)


def _reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
    return _restored, (self._kind,), self.__dict__


def _restored(kind: type) -> Any:
    """An empty module of `_with_cbam(kind)`, which pickle cannot find by its name."""
    return object.__new__(_with_cbam(kind))
