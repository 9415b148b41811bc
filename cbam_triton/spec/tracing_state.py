"""Who reads a call instead of running it: an export, a trace, a transform.

None of them sees into an operator of the library.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch._C import (
    _functorch,  # pyright: ignore[reportAttributeAccessIssue]
    _get_tracing_state,
    _set_tracing_state,  # pyright: ignore[reportAttributeAccessIssue]
)
from torch.autograd import forward_ad
from torch.jit._trace import is_tracing


def is_exporting() -> bool:
    """Whether torch.export reads."""
    return torch.compiler.is_exporting()


# torch.compile of PyTorch 2.8 and 2.9 takes `torch.compiler.is_exporting()` for True where it reads it. This mark lets
# it call the function instead. `torch.compiler.assume_constant_result` sets it too, but imports torch._dynamo first,
# for a second.
is_exporting._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def reads() -> bool:
    """Whether the call must consist of PyTorch's own functions, in a form that can be differentiated later."""
    # A forward-mode level comes first: any tensor in it may carry a tangent, which no kernel would propagate. Tracing
    # includes the legacy ONNX export. The transforms of torch.func need rules that our operators do not have.
    return forward_ad._current_level >= 0 or is_exporting() or is_tracing() or is_transformed()


def is_watched() -> bool:
    """Whether anything but autograd sees the calls of operators: torch.compile, a dispatch mode, the profiler."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return torch.autograd.profiler._is_profiler_enabled


def is_transformed() -> bool:
    """Whether a transform of torch.func is active."""
    return _functorch.maybe_current_level() is not None


def unrecorded(check: Callable[..., Any], *arguments: Any) -> Any:
    """check(*arguments), which `torch.jit.trace` does not record; it would warn of each comparison of sizes."""
    state = _get_tracing_state()
    if state is None:
        return check(*arguments)
    _set_tracing_state(None)
    try:
        return check(*arguments)
    finally:
        _set_tracing_state(state)


def leaf(module: nn.Module, x: Any, *others: Any) -> Any:
    """The call of a module as one node, where torch.fx traces a network that holds it; else None.

    A module that is traced by itself is no node of its own graph.
    """
    if not isinstance(x, fx.Proxy):
        return None
    tracer: Any = x.tracer
    path = tracer.path_of_module(module)
    return tracer.create_proxy("call_module", path, (x, *others), {}) if path else None
