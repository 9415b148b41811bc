"""Who reads a call instead of running it: an export, a trace, a transform. None of them sees into an operator."""

import sys

import torch
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad
from torch.jit._trace import is_tracing


def _is_exporting_in_2_6() -> bool:
    """What `torch.compiler.is_exporting` says in later releases."""
    if torch.compiler._is_compiling_flag or torch.onnx.is_in_onnx_export():  # a strict export sets neither
        return True
    dynamo = sys.modules.get("torch._dynamo.symbolic_convert")
    return bool(getattr(getattr(getattr(dynamo, "tls", None), "current_tx", None), "export", False))


# What torch.compiler.assume_constant_result sets, without the second that its import of torch._dynamo takes.
_is_exporting_in_2_6._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]

is_exporting = getattr(torch.compiler, "is_exporting", _is_exporting_in_2_6)


def reads() -> bool:
    """Whether PyTorch's own functions are asked for, not operators of ours."""
    # Inside a forward-mode level any tensor may carry a tangent, which no kernel would propagate. Tracing is on in
    # the older ONNX export too. The transforms of torch.func need rules that operators have not.
    return forward_ad._current_level >= 0 or is_exporting() or is_tracing() or _transformed()


def _transformed() -> bool:
    return _functorch.maybe_current_level() is not None
