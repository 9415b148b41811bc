"""Arguments that are no tensors: their types are checked, and what came is put into words."""

import math
from numbers import Integral, Real
from typing import Any

import torch

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_bool(name: str, value: Any) -> None:
    """The value is True or False; a word such as "no" and a number are neither."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {described(value)}: pass one of these two")


def check_callable(name: str, value: Any) -> None:
    """The value is None or can be called."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be None or callable, got {described(value)}: pass a module or a function")


def check_integer(name: str, value: Any, least: int, remedy: str) -> None:
    """The value is an integer, and at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {described(value)}: {remedy}")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}, got {value}: {remedy}")


def check_positive(name: str, value: Any, remedy: str) -> None:
    """The value is a number above zero."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {described(value)}: {remedy}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}: {remedy}")


def check_reduction(value: Any) -> None:
    """The value is a number of at least one."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"reduction must be a number, got {described(value)}: the paper's is 16")
    if 0 < float(value) < 1:
        raise ValueError(
            f"reduction must be at least 1, got {value}: it divides the channels, so the ratio {value} is written "
            f"{round(1 / float(value))}"
        )
    if not float(value) >= 1 or math.isinf(value):
        raise ValueError(f"reduction must be positive and finite, got {value}: the paper's is 16")


def check_word(name: str, value: Any, known: tuple[str, ...]) -> None:
    """The value is one of the known words."""
    wanted = f"{name} must be one of {', '.join(known)}, got"
    if not isinstance(value, str):
        raise TypeError(f"{wanted} {described(value)}: choose one of these words")
    if value not in known:
        raise ValueError(f"{wanted} {value!r}: choose one of these")


def check_place(device: Any, dtype: Any) -> None:
    """New parameters can have this device and this dtype; None stands for PyTorch's default."""
    if dtype is not None and dtype not in _DTYPES:
        error = ValueError if isinstance(dtype, torch.dtype) else TypeError
        got = dtype if isinstance(dtype, torch.dtype) else described(dtype)
        raise error(
            f"dtype must be torch.float16, bfloat16, float32 or float64, got {got}: choose one of these, or None"
        )
    if isinstance(device, torch.device) or device is None:
        return
    try:
        torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f"device must be a torch.device or the name of one, such as 'cuda', got {described(device)}: name one"
        ) from None


def described(value: Any) -> str:
    """A value of a wrong type, in few words."""
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return f"the string {value!r}"
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"a value of type {name}"
