"""What the kernels would run on: is there a driver, for which torch device, how many SMs, how large an L2."""

import functools
import importlib.util
import os
from typing import Any, NamedTuple

import torch
from torch.torch_version import TorchVersion

OVERRIDE = "CBAM_TRITON_DEVICE"


class DeviceFacts(NamedTuple):
    """Facts that the launch configuration is made from."""

    name: str
    sm_count: int
    l2_bytes: int


# The interpreter runs programs one after another: one SM, and an L2 that never decides anything.
_INTERPRETER = DeviceFacts("Triton interpreter", 1, 1 << 26)


@functools.cache
def is_nvidia() -> bool:
    """Whether Triton compiles for NVIDIA's GPUs here."""
    return not interpreted() and _active_driver().get_current_target().backend == "cuda"


@functools.cache
def interpreted() -> bool:
    """Whether kernels are run by Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        return False
    from .tiles import INTERPRETED

    return bool(INTERPRETED.value)


def missing() -> str | None:
    """What keeps the kernels from running here and what to do about it; None if nothing does."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton (Linux), or use backend='reference'"
    if interpreted():
        return _uninterpretable()
    if _driver_device_type() is None:
        return (
            "Triton has no active GPU driver: install the GPU's driver, set TRITON_INTERPRET=1 before the import "
            "to interpret kernels on the CPU, or use backend='reference'"
        )
    return None


def _uninterpretable() -> str | None:
    import numpy
    import triton

    if TorchVersion(triton.__version__) < "3.7" and TorchVersion(numpy.__version__) >= "2.4":
        return (
            f"the interpreter of Triton {triton.__version__} fails with NumPy {numpy.__version__}: pip install "
            "'numpy<2.4', or use backend='reference'"
        )
    return None


def device_type() -> str | None:
    """Type of the torch device that kernels run on; None where they cannot run."""
    if missing() is not None:
        return None
    return "cpu" if interpreted() else _driver_device_type()


def _driver_device_type() -> str | None:
    try:
        return _active_driver().get_active_torch_device().type
    except Exception:  # each Triton release fails in its own way without a driver
        return None


def _active_driver() -> Any:
    from triton.runtime import driver

    return driver.active


def facts(device: torch.device) -> DeviceFacts:
    """SM count and L2 size of the device; CBAM_TRITON_DEVICE="sm_count=132,l2_bytes=52428800" overrides either.

    The variable is read once, at import; a value of another form is a ValueError then.
    """
    found = _cuda_facts(device) if device.type == "cuda" else _driver_facts(device)
    return found._replace(**_OVERRIDES) if _OVERRIDES else found


@functools.cache
def _cuda_facts(device: torch.device) -> DeviceFacts:
    properties = torch.cuda.get_device_properties(device)
    return DeviceFacts(properties.name, properties.multi_processor_count, properties.L2_cache_size)


def _driver_facts(device: torch.device) -> DeviceFacts:
    if interpreted():
        return _INTERPRETER
    active = _active_driver()
    properties = active.utils.get_device_properties(device.index or 0)
    l2_bytes = properties.get("l2_cache_size", _INTERPRETER.l2_bytes)
    return DeviceFacts(str(active.get_current_target().arch), properties["multiprocessor_count"], l2_bytes)


def parse_override(text: str) -> dict[str, int]:
    """Facts from the text of CBAM_TRITON_DEVICE; none from an empty one."""
    if not text:
        return {}
    try:
        values = {key.strip(): int(value) for key, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        values = {}
    if not values or not set(values) <= {"sm_count", "l2_bytes"} or min(values.values()) < 1:
        raise ValueError(f"{OVERRIDE} must look like 'sm_count=132,l2_bytes=52428800', got {text!r}")
    return values


_OVERRIDES = parse_override(os.environ.get(OVERRIDE, ""))
