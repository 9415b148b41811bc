"""What a result depends on besides the input: versions, device, driver, and what runs the kernels."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import CBAM, __version__
from ..kernels.launch import hardware


class Machine(NamedTuple):
    """What runs here: device and dtype, whether kernels run on that device, whether the interpreter runs them."""

    device: torch.device
    dtype: torch.dtype
    kernels: bool
    interpreted: bool


def machine_of(device: torch.device, dtype: torch.dtype) -> Machine:
    """What runs on the device."""
    kernels = hardware.missing() is None and hardware.device_type() == device.type
    return Machine(device, dtype, kernels, kernels and hardware.interpreted())


def environment(machine: Machine, why_interpreted: str | None) -> str:
    """Plain text: versions, device, driver, and what runs the kernels."""
    lines = [
        ("versions", ", ".join(f"{name} {number}" for name, number in versions().items())),
        ("device", device_name(machine.device) + f", {str(machine.dtype).removeprefix('torch.')}"),
        ("driver", driver(machine.device)),
        ("kernels", kernels(machine, why_interpreted)),
    ]
    return "\n".join(f"{name:<9} {text}" for name, text in lines)


def choices(machine: Machine, maps: list[Tensor], why_interpreted: str | None) -> str:
    """Plain text: which backend and schedule "auto" takes for each map, and why."""
    if not machine.kernels:
        return f"{'auto':<9} backend reference: kernels do not run on {machine.device.type} tensors here"
    found = schedules(maps)
    width = max(len(f"{shape}: {schedule}") for shape, schedule, _ in found)
    first = "backend triton, schedule by size:"
    if why_interpreted:
        first = "backend reference (kernels are interpreted for this check alone); a kernel call would take"
    body = [f"{'':<9} {f'{shape}: {schedule}':<{width}}  ({reason})" for shape, schedule, reason in found]
    return "\n".join([f"{'auto':<9} {first}", *body])


def schedules(maps: list[Tensor]) -> list[tuple[str, str, str]]:
    """(shape, schedule that "auto" takes, reason) of each map, where kernels run."""
    from ..kernels.launch.tensors import Weights, plan_of

    found = []
    for x in maps:
        layer: Any = CBAM(x.shape[1], device="meta")
        weights = Weights(layer.channel.fc1.weight, None, None, None, layer.spatial.conv.weight, None)
        plan = plan_of(x, weights, "auto")
        found.append(("x".join(map(str, x.shape)), plan.schedule, plan.reason))
    return found


def versions() -> dict[str, str]:
    """Releases by package."""
    names = ("torch", "triton", "numpy")
    return {"cbam-triton": __version__, "Python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(package: str) -> str:
    try:
        return str(importlib.import_module(package).__version__)
    except Exception:  # a package that is damaged, or another one of the same name
        try:
            return f"{version(package)} (its import fails)"
        except PackageNotFoundError:
            return "(not installed)"


def device_name(device: torch.device) -> str:
    """The device in words: name, multiprocessors and L2, or a CPU's name and threads."""
    if device.type != "cpu":
        facts = hardware.facts(device)
        return f"{facts.name}, {facts.sm_count} multiprocessors, {facts.l2_bytes / 2**20:.0f} MiB of L2"
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


def driver(device: torch.device) -> str:
    """The runtime and the driver of the device in words."""
    if device.type == "cpu":
        return "none in use (CPU)"
    if torch.version.hip:
        return f"HIP {torch.version.hip}"
    return f"CUDA {torch.version.cuda}{_nvidia_driver()}" if device.type == "cuda" else device.type


def _nvidia_driver() -> str:
    try:
        with open("/proc/driver/nvidia/version") as lines:
            return f", driver {next(word for word in lines.readline().split() if word[:1].isdigit())}"
    except (OSError, StopIteration):
        pass
    if tool := shutil.which("nvidia-smi"):
        query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False).stdout.split()
        return f", driver {found[0]}" if found else ""
    return ""


def kernels(machine: Machine, why_interpreted: str | None) -> str:
    """What runs the kernels, or why they do not run, in words."""
    if machine.interpreted and machine.kernels:
        return f"run in Triton's interpreter: {why_interpreted or 'TRITON_INTERPRET=1 is set'}"
    if machine.kernels:
        return f"run on {machine.device.type} by Triton's active driver"
    missing = hardware.missing()
    return f"do not run: {missing or f'Triton drives {hardware.device_type()}, not {machine.device.type}'}"
