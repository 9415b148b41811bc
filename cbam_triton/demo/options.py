"""What the commands' options mean, asked before any work: each mistake is one sentence that says what to give."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import NoReturn, TypeVar

import torch

EXTRA = 'pip install "cbam-triton[demo]"'
DTYPES = ("float16", "bfloat16", "float32", "float64")

_Number = TypeVar("_Number", int, float)


class InputError(Exception):
    """What the user gave cannot be used; the message says what to do."""


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; --help lists the options\n")


def need_extras(*names: str, extra: str = EXTRA) -> None:
    """Raises: InputError for a package that is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"this command needs {' and '.join(missing)}: {extra}")


def device_of(name: str | None) -> torch.device:
    """The device of that name; an accelerator if there is one, else the CPU, for None.

    Raises: InputError for a device that torch does not know or that is not there.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None:
        return accelerator if accelerator is not None and accelerator.type in ("cuda", "xpu") else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device: torch knows no device {name!r}; give cpu, cuda or cuda:0") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if accelerator is None or accelerator.type != device.type:
        raise InputError(f"--device {name}: torch {torch.__version__} sees no {device.type} device; try --device cpu")
    count = torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        raise InputError(f"--device {name}: the last {device.type} device here is {device.type}:{count - 1}")
    return device


def dtype_of(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype of that name; float32 on a CPU and float16 elsewhere for None.

    Raises: InputError for another dtype than those that the kernels take.
    """
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    if name not in DTYPES:
        raise InputError(f"--dtype: {name!r} is not one of {', '.join(DTYPES)}")
    return getattr(torch, name)


def number_of(name: str, value: _Number, least: int, most: int, what: str) -> _Number:
    """`value`, if it lies between `least` and `most`.

    Raises: InputError else.
    """
    if not least <= value <= most:
        raise InputError(f"{name} is {what}, from {least} to {most}, got {value}")
    return value


def folder_of(name: str, files: tuple[str, ...], *, option: str = "--output") -> Path:
    """The folder, made if it is not there, in which files of these names can be written.

    Raises: InputError where they cannot.
    """
    output = Path(name)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{option}: cannot make the folder {_short(name)} ({_reason(error)})") from None
    for file in files:
        check_writable(option, output / file)
    return output


def check_writable(option: str, path: Path) -> None:
    """Raises: InputError for a file that cannot be written; its contents stay."""
    try:
        there = path.exists()
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except (OSError, ValueError) as error:
        raise InputError(f"{option}: cannot write {_short(str(path))} ({_reason(error)})") from None


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")
