"""Files that are whole or not there, and the states of every random generator: what an exact resumption needs."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import torch

from cbam_triton.demo.options import InputError


def write(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, so that a process killed at any time leaves the old file or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """The same for text."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read(path: Path, option: str) -> dict[str, Any]:
    """What `torch.save` wrote, on the CPU; tensors and plain values only.

    Raises: InputError for a file that is not there or is something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{option}: there is no file {str(path)!r}") from None
    except pickle.UnpicklingError:
        raise InputError(f"{option}: {str(path)!r} holds other objects than tensors and plain values") from None
    except Exception as error:  # torch.load raises whatever the bytes lead to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{option}: {str(path)!r} is not a file of torch.save with weights only ({reason})") from None
    if not isinstance(state, dict):
        raise InputError(f"{option}: {str(path)!r} holds a {type(state).__name__}, not the dict of a checkpoint")
    return state


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of Python's, PyTorch's and the device's generators: nothing here draws from NumPy's."""
    return {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "device": torch.get_device_module(device).get_rng_state() if device.type != "cpu" else None,
    }


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Set the generators to what `random_states` read."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states["device"])


def seed(value: int) -> None:
    """Seed these generators."""
    random.seed(value)
    torch.manual_seed(value)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What two configurations differ in, an entry a name: `--lr 0.1, now 0.2`."""
    return [
        f"{name} {_short(old.get(name))}, now {_short(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _short(value: Any) -> str:
    words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return words if len(words) <= 60 else f"{words[:57]}..."
