"""The stages of a VGG: in a chain of layers, the last activation or norm before each pooling."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn

from .layer_ends import drops, is_activation, is_chain, is_convolution, is_norm

_POOLINGS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


class StageEnd(NamedTuple):
    """Where a layer comes in: `name` is that of the child `key` of `chain`, which gets it after itself, or before."""

    name: str
    chain: nn.Module
    key: str
    before: bool
    convolution: Any


class _Place(NamedTuple):
    name: str
    chain: nn.Module
    key: str
    layer: nn.Module


def find_stage_ends(model: nn.Module, where: Callable[[str], bool]) -> list[StageEnd]:
    """The ends of all stages that `where` allows, in chains of nothing but single layers up to the last stage."""
    return [end for end in _ends_in(model, "") if where(end.name)]


def _ends_in(module: nn.Module, name: str) -> Iterator[StageEnd]:
    if is_chain(module):
        ends = list(_ends_of(list(_places(module, name))))
        if ends:
            yield from ends
            return
    for key, child in module.named_children():
        yield from _ends_in(child, f"{name}.{key}" if name else key)


def _places(chain: nn.Module, name: str) -> Iterator[_Place]:
    """The single layers of a chain, and of the chains in it, in their order."""
    for key, layer in chain._modules.items():
        if layer is None:
            continue
        inner = f"{name}.{key}" if name else key
        if is_chain(layer) and len(layer._modules):
            yield from _places(layer, inner)
        else:
            yield _Place(inner, chain, key, layer)


def _ends_of(places: list[_Place]) -> Iterator[StageEnd]:
    poolings = [i for i, place in enumerate(places) if isinstance(place.layer, _POOLINGS)]
    last = max(poolings, default=0)
    if any(next(place.layer.children(), None) is not None for place in places[:last]):
        return  # a chain of blocks, which is no VGG
    start = 0
    for i in poolings:
        end = _end_of(places[start:i], places[i])
        start = i + 1
        if end is not None:
            yield end


def _end_of(stage: list[_Place], pooling: _Place) -> StageEnd | None:
    convolutions = [place.layer for place in stage if is_convolution(place.layer)]
    after = pooling
    while stage and drops(stage[-1].layer):
        after = stage.pop()
    if not convolutions or not stage or not (is_activation(stage[-1].layer) or is_norm(stage[-1].layer)):
        return None
    # What has weights keeps its name, so the layer goes before the next one then.
    place, before = (after, True) if len(stage[-1].layer.state_dict()) else (stage[-1], False)
    return StageEnd(place.name, place.chain, place.key, before, convolutions[-1])
