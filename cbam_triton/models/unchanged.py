"""Whether a converted module is still what was converted: asked at every call, since children are swapped and hooked.

A converted forward reads the weights of children and does not call them. So a child that was replaced, that has
another forward or that has hooks by now means that the module's own forward runs.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from ..spec.children import is_hooked
from .recognition.layers import is_norm

_ANY_TIME = ("training", "inplace", "eps", "momentum")  # read at the call, or of no consequence
_PLAIN = (bool, int, float, str, type(None))


class Part(NamedTuple):
    """A module below a converted one: its path, class, forward, the names of its children, its plain attributes."""

    path: tuple[str, ...]
    kind: type
    forward: Any
    children: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...]


class _State(NamedTuple):
    """What is compared at each call, by identity: classes, attributes, children and hooks of each part."""

    families: tuple[tuple[dict[str, Any], tuple[Any, ...]], ...]
    kinds: tuple[tuple[nn.Module, type, dict[str, Any]], ...]  # with what must not have a forward of its own
    settings: tuple[tuple[dict[str, Any], str, Any], ...]  # of classes that are not PyTorch's
    classes: tuple[tuple[Any, Any], ...]
    hooks: tuple[Any, ...]


def seen_in(module: nn.Module, *paths: str) -> tuple[Part, ...]:
    """What the module, or its children at `paths`, is made of."""
    tops = {path: module.get_submodule(path) for path in paths or ("",)}
    return tuple(
        _part(tuple(filter(None, name.split("."))), part)
        for path, top in tops.items()
        for name, part in top.named_modules(prefix=path)
    )


def is_unchanged(module: nn.Module, seen: tuple[Part, ...], memory: dict[str, Any]) -> bool:
    """Whether every part is as it was seen; `memory` is the module's own, for a quick answer the next time."""
    if torch.compiler.is_compiling():
        return _is_as_seen(module, seen)
    state = memory.get("state")
    if state is not None and _holds(state):
        return True
    memory.pop("state", None)
    if not _is_as_seen(module, seen):
        return False
    memory["state"] = _state(module, seen)
    return True


def _holds(state: _State) -> bool:
    for own, children in state.families:
        if tuple(own["_modules"].values()) != children:
            return False
    for part, kind, own in state.kinds:
        if type(part) is not kind or "forward" in own:
            return False
    for own, name, value in state.settings:
        if own.get(name) is not value:
            return False
    for kind, forward in state.classes:
        if kind.forward is not forward:
            return False
    return not any(state.hooks)


def _state(module: nn.Module, seen: tuple[Part, ...]) -> _State:
    parts = list(_parts_of(module, seen))
    below = [part for part in parts if part is not module]
    families = [(vars(part), tuple(part._modules.values())) for part in parts if part._modules]
    hooked = [vars(part) for part in below if not is_norm(part)]
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    others = [part for part in parts if not type(part).__module__.startswith("torch.nn.")]
    classes = {type(part): type(part).forward for part in others}
    settings = [(vars(part), *setting) for part in others for setting in _settings(part)]
    return _State(
        tuple(families),
        tuple((part, type(part), {} if part is module else vars(part)) for part in parts),
        tuple(settings),
        tuple(classes.items()),
        tuple(own[name] for own in hooked for name in names),
    )


def _is_as_seen(module: nn.Module, seen: tuple[Part, ...]) -> bool:
    for path, kind, forward, children, settings in seen:
        part: Any = module
        for name in path:
            part = part._modules.get(name)
            if part is None:
                return False
        if type(part) is not kind or kind.forward is not forward or tuple(part._modules) != children:
            return False
        if part is not module and ("forward" in part.__dict__ or (is_hooked(part) and not is_norm(part))):
            return False
        if any(getattr(part, name, None) != value for name, value in settings):
            return False
    return True


def _parts_of(module: nn.Module, seen: tuple[Part, ...]) -> Iterator[Any]:
    for part in seen:
        yield module.get_submodule(".".join(part.path))


def _part(path: tuple[str, ...], module: Any) -> Part:
    return Part(path, type(module), type(module).forward, tuple(module._modules), _settings(module))


def _settings(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _ANY_TIME and _is_plain(value)
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))
