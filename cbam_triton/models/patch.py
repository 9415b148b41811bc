"""Forwards of ours on modules of others: put there, taken away, and bound to each copy.

A module keeps its class; `forward` becomes an attribute of its own, bound to it. Whoever copies only the attributes
has to bind it anew: for `copy.copy` and pickle the module's own `__reduce_ex__` does, for `nn.DataParallel` the method
by which it makes replicas. Nothing outside of the module knows its class, so a class is freed with its last module.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

_OWN = ("forward", "_replicate_for_data_parallel", "__reduce_ex__")


def replace_forward(module: nn.Module, run: Callable[..., Any], plan: Any) -> None:
    """Makes `module(...)` call `run(module, plan, memory, ...)`, `run` a function of a module of ours.

    `memory` is a dict of this module alone, empty at first.
    """
    own = vars(module)
    own["forward"] = functools.partial(run, module, plan, {})
    own["_replicate_for_data_parallel"] = functools.partial(_replica, module)
    own["__reduce_ex__"] = functools.partial(_reduced, module)


def restore_forward(module: nn.Module) -> None:
    for name in _OWN:
        vars(module).pop(name, None)


def is_replaced(module: nn.Module) -> bool:
    """Whether `replace_forward` was called on the module."""
    own = vars(module).get("forward")
    return isinstance(own, functools.partial) and own.func.__module__.startswith(f"{__package__}.")


def conversion_of(module: nn.Module) -> Any:
    """The plan that `replace_forward` was given for the module, None where it was not called."""
    return vars(module)["forward"].args[1] if is_replaced(module) else None


def _replica(module: Any) -> nn.Module:
    replica = type(module)._replicate_for_data_parallel(module)
    own = vars(module)["forward"]
    replace_forward(replica, own.func, own.args[1])
    return replica


def _reduced(module: nn.Module, _: int) -> Any:
    """What `__reduce_ex__` says, but for a forward of ours, which is put on what is made of it."""
    reduced: Any = type(module).__reduce_ex__(module, 4)
    if not is_replaced(module) or not isinstance(reduced[2], dict):
        return reduced
    make, arguments, state, *rest = reduced
    own = vars(module)["forward"]
    state = {name: value for name, value in state.items() if name not in _OWN}
    return _made, (own.func, own.args[1], make, *arguments), state, *rest


def _made(run: Callable[..., Any], plan: Any, make: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    module = make(*arguments)
    replace_forward(module, run, plan)
    return module
