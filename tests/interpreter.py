"""Triton's interpreter, quicker: it patches `triton.language` at every call of a device function, though the kernel
that calls it has done so already. Here it patches once a kernel, which halves the time of the tests."""

from types import FunctionType, SimpleNamespace
from typing import Any


def patch_once_a_kernel() -> None:
    """Does nothing without Triton, or where its interpreter works otherwise than that of Triton 3.8."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        return

    patch: Any = getattr(interpreter, "_patch_lang", None)
    scope_type: Any = getattr(interpreter, "_LangPatchScope", None)
    if patch is None or scope_type is None:
        return
    everything = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    inside = False

    def patched(fn: FunctionType) -> Any:
        nonlocal inside
        if inside:  # a device function, which never restores
            return scope_type()
        inside = True
        scope = patch(everything)
        restore = scope.restore

        def restored() -> None:
            nonlocal inside
            inside = False
            restore()

        scope.restore = restored
        return scope

    interpreter._patch_lang = patched
