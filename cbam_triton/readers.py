"""Who reads a call instead of running it: an export, a trace, a transform. None of them sees into an operator."""

import sys

import torch
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad
from torch.jit._trace import is_tracing

# In PyTorch 2.6 another flag means an export, where it is asked for while nothing is compiled.
_is_flagged = getattr(
    torch.compiler, "is_exporting", lambda: torch.compiler._is_compiling_flag or torch.onnx.is_in_onnx_export()
)


def is_exporting() -> bool:
    """Whether torch.export reads; of `torch.compiler.is_exporting` torch.compile makes True in PyTorch 2.7 to 2.9."""
    if _is_flagged():
        return True
    dynamo = sys.modules.get("torch._dynamo.symbolic_convert")  # in 2.6 a strict export is known to this alone
    return dynamo is not None and bool(getattr(getattr(dynamo.tls, "current_tx", None), "export", False))


# Called while torch.compile reads, not read by it: what torch.compiler.assume_constant_result sets, without the second
# that its import of torch._dynamo takes.
is_exporting._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def reads() -> bool:
    """Whether PyTorch's own functions are asked for, not operators of ours."""
    # Inside a forward-mode level any tensor may carry a tangent, which no kernel would propagate. Tracing is on in
    # the older ONNX export too. The transforms of torch.func need rules that operators have not.
    return forward_ad._current_level >= 0 or is_exporting() or is_tracing() or _transformed()


def _transformed() -> bool:
    return _functorch.maybe_current_level() is not None
