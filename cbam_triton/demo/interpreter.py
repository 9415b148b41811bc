"""Triton's interpreter, turned on for a command where no GPU can run the kernels."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.metadata import entry_points

import torch

_RESTARTED = "CBAM_TRITON_CHECK_RESTARTED"


def interpret_if_there_is_no_driver() -> str | None:
    """Turn on Triton's interpreter where no driver can be active; the reason if this command did so.

    Triton reads TRITON_INTERPRET when its functions are defined: where torch has imported it, the process starts anew.
    """
    reason = "there is no GPU, so this check set TRITON_INTERPRET=1"
    if "TRITON_INTERPRET" in os.environ:
        return reason if os.environ.get(_RESTARTED) else None
    if importlib.util.find_spec("triton") is None or torch.cuda.is_available():
        return None
    if {point.name for point in entry_points(group="triton.backends")} - {"nvidia", "amd"}:
        return None
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
        return reason
    if _is_our_command():
        environment = {**os.environ, "TRITON_INTERPRET": "1", _RESTARTED: "1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    return None


def _is_our_command() -> bool:
    """Whether this process was started as `python -m cbam_triton`, so that it may be started once more."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == "cbam_triton.__main__"
