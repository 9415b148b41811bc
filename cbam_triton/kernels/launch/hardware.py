"""What the kernels would run on: is there a driver, for which torch device, how many SMs, how large an L2."""

import functools
import importlib
import os
import threading
from typing import Any, NamedTuple

import torch
from torch.torch_version import TorchVersion

OVERRIDE = "CBAM_TRITON_DEVICE"
OLDEST_TRITON = "3.4"
INTERPRETER_LOCK = threading.Lock()  # the interpreter keeps the running program's place in its grid in a global
_INSTEAD = ", or use backend='reference'"


class DeviceFacts(NamedTuple):
    """Facts that the launch configuration is made from."""

    name: str
    sm_count: int
    l2_bytes: int
    dependent_launches: bool = False  # a launch may begin before the one before it has ended


_DEPENDENT_LAUNCHES = 9  # NVIDIA's compute capability from which there are
# The interpreter runs programs one after another: one SM, and an L2 that never decides anything.
_INTERPRETER = DeviceFacts("Triton interpreter", 1, 1 << 26)


@functools.cache
def is_nvidia() -> bool:
    """Whether Triton compiles for NVIDIA's GPUs here."""
    return not interpreted() and _active_driver().get_current_target().backend == "cuda"


@functools.cache
def interpreted() -> bool:
    """Whether kernels are run by Triton's interpreter."""
    if why_no_triton() is not None:
        return False
    from ..stages.reductions import INTERPRETED

    return bool(INTERPRETED.value)


def missing() -> str | None:
    """What keeps the kernels from running here and what to do about it; None if nothing does."""
    why = why_no_triton()
    if why is None and interpreted():
        why = _why_not_interpreted()
    elif why is None and _driver_device_type() is None:
        why = (
            "Triton has no active GPU driver: install the GPU's driver, set TRITON_INTERPRET=1 before the import "
            f"to interpret kernels on the CPU{_INSTEAD}"
        )
    return why


@functools.cache
def why_no_triton() -> str | None:
    """What keeps the kernels from being imported; None where they are.

    A package may be installed and fail at its import, be another one of the same name, or be too old.
    """
    try:
        triton = importlib.import_module("triton")
        release = getattr(triton, "__version__", None)
        if release is None or (not hasattr(triton, "jit") and TorchVersion(release) >= OLDEST_TRITON):
            where = getattr(triton, "__file__", None) or ", ".join(getattr(triton, "__path__", ()))
            return f"the module triton in {where} is not OpenAI's Triton: rename or remove it{_INSTEAD}"
        if TorchVersion(release) < OLDEST_TRITON:
            return f"triton {release} is too old: pip install 'triton>={OLDEST_TRITON}'{_INSTEAD}"
        importlib.import_module("..stages.reductions", __package__)
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return f"triton is not installed: pip install triton (Linux){_INSTEAD}"
        return _import_failed(error)
    except Exception as error:  # whatever a damaged package raises, the reference still runs
        return _import_failed(error)
    return None


def _import_failed(error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    return (
        f"triton is installed but its import fails ({type(error).__name__}: {said}): "
        f"pip install --force-reinstall triton{_INSTEAD}"
    )


def _why_not_interpreted() -> str | None:
    """What keeps the interpreter from running: it computes with NumPy, and not with every release of it."""
    import triton

    try:
        import numpy
    except Exception as error:  # as for Triton
        return f"Triton's interpreter needs NumPy ({error}): pip install numpy{_INSTEAD}"
    if TorchVersion(triton.__version__) < "3.7" and TorchVersion(numpy.__version__) >= "2.4":
        return (
            f"the interpreter of Triton {triton.__version__} fails with NumPy {numpy.__version__}: pip install "
            f"'numpy<2.4'{_INSTEAD}"
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
    """Facts of the device; CBAM_TRITON_DEVICE="sm_count=132,l2_bytes=52428800" overrides these, `dependent_launches=0`
    turns the overlap of launches off.

    The variable is read once, at import; a value of another form is a ValueError then.
    """
    found = _cuda_facts(device) if device.type == "cuda" else _driver_facts(device)
    return found._replace(**_OVERRIDES) if _OVERRIDES else found


@functools.cache
def _cuda_facts(device: torch.device) -> DeviceFacts:
    properties = torch.cuda.get_device_properties(device)
    dependent = is_nvidia() and properties.major >= _DEPENDENT_LAUNCHES
    return DeviceFacts(properties.name, properties.multi_processor_count, properties.L2_cache_size, dependent)


def _driver_facts(device: torch.device) -> DeviceFacts:
    if interpreted():
        return _INTERPRETER
    active = _active_driver()
    properties = active.utils.get_device_properties(device.index or 0)
    l2_bytes = properties.get("l2_cache_size", _INTERPRETER.l2_bytes)
    arch = active.get_current_target().arch
    dependent = is_nvidia() and arch >= 10 * _DEPENDENT_LAUNCHES
    return DeviceFacts(str(arch), properties["multiprocessor_count"], l2_bytes, dependent)


def parse_override(text: str) -> dict[str, int]:
    """Facts from the text of CBAM_TRITON_DEVICE; none from an empty one."""
    if not text:
        return {}
    try:
        values = {key.strip(): int(value) for key, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        values = {}
    sizes = [value for name, value in values.items() if name != "dependent_launches"]
    if not values or not set(values) <= set(DeviceFacts._fields) - {"name"} or min(values.values()) < 0 or 0 in sizes:
        raise ValueError(f"{OVERRIDE} must look like 'sm_count=132,l2_bytes=52428800', got {text!r}")
    return values


_OVERRIDES = parse_override(os.environ.get(OVERRIDE, ""))
