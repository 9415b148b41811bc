"""`python -m cbam_triton info`: what would run here and why, as a bug report needs it."""

from __future__ import annotations

import getpass
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..kernels.launch import hardware
from ..settings import current_backend, current_schedule
from .environment import device_name, driver, kernels, machine_of, schedules, versions
from .options import device_of

# Variables that change what runs; others stay out, for they may hold secrets.
_VARIABLES = (
    "CBAM_TRITON_",
    "TRITON_",
    "TORCHINDUCTOR_",
    "TORCHDYNAMO_",
    "PYTORCH_CUDA_ALLOC_CONF",
    "CUDA_VISIBLE_DEVICES",
)
# A batch of 32 at the sizes of ResNet-50's stages.
_SHAPES = ((32, 256, 56, 56), (32, 512, 28, 28), (32, 1024, 14, 14), (32, 2048, 7, 7))


def gathered() -> dict[str, Any]:
    """Everything, as what JSON holds."""
    device = device_of(None)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    machine = machine_of(device, dtype)
    auto = []
    if machine.kernels:
        maps = [torch.empty(shape, dtype=dtype, device=device) for shape in _SHAPES]
        auto = [dict(zip(("shape", "schedule", "reason"), found, strict=True)) for found in schedules(maps)]
    asked = {"backend": current_backend(), "schedule": current_schedule()}
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "torch_build": _build(),
        "devices": _devices(device),
        "driver": driver(device),
        "kernels": {"run": machine.kernels, "interpreted": machine.interpreted, "words": kernels(machine, None)},
        "settings": asked,
        "runs": _runs(machine.kernels, asked["backend"]),
        "auto": auto,
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
        "caches": _caches(),
    }


def text(facts: dict[str, Any]) -> str:
    """The same for a reader, a line for each thing."""
    lines = [
        ("versions", ", ".join(f"{name} {number}" for name, number in facts["versions"].items())),
        ("platform", f"{facts['platform']}, torch built {facts['torch_build']}"),
        *(("device" if i == 0 else "", f"{one['device']}: {one['name']}") for i, one in enumerate(facts["devices"])),
        ("driver", facts["driver"]),
        ("kernels", facts["kernels"]["words"]),
        ("settings", f"backend {facts['settings']['backend']}, schedule {facts['settings']['schedule']}"),
        ("runs", facts["runs"]),
        *(("", f"{one['shape']}: {one['schedule']} ({one['reason']})") for one in facts["auto"]),
        ("variables", ", ".join(f"{name}={value}" for name, value in facts["environment"].items()) or "none set"),
        *(("caches" if i == 0 else "", line) for i, line in enumerate(map(_cache_line, facts["caches"].items()))),
    ]
    return "\n".join(f"{name:<9} {said}" for name, said in lines)


def _build() -> str:
    if torch.version.hip:
        return f"for HIP {torch.version.hip}"
    return f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU alone"


def _devices(default: torch.device) -> list[dict[str, Any]]:
    """The accelerators, each with what the launches are decided by; the CPU where none is there."""
    if default.type == "cpu":
        return [{"device": "cpu", "name": device_name(default)}]
    found = []
    for i in range(torch.accelerator.device_count()):
        device = torch.device(default.type, i)
        one = {"device": str(device), "name": device_name(device)}
        if device.type in ("cuda", hardware.device_type()):
            facts = hardware.facts(device)
            one |= {"multiprocessors": facts.sm_count, "l2_bytes": facts.l2_bytes}
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            one |= {"memory_bytes": properties.total_memory, "capability": f"{properties.major}.{properties.minor}"}
        found.append(one)
    return found


def _runs(kernels_run: bool, backend: str) -> str:
    if backend == "reference":
        return "the reference, PyTorch's operators, as the settings ask"
    if kernels_run:
        return 'the kernels; "auto" takes a schedule by size:'
    return "the reference, PyTorch's operators" if backend == "auto" else "nothing: backend triton is asked for"


def _caches() -> dict[str, dict[str, Any]]:
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    user = getpass.getuser() if os.name == "nt" or os.environ.get("USER") else str(os.getuid())
    folders = {
        "triton": os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache",
        "inductor": os.environ.get("TORCHINDUCTOR_CACHE_DIR") or Path(tempfile.gettempdir()) / f"torchinductor_{user}",
    }
    return {name: {"path": str(path), "entries": _entries(Path(path))} for name, path in folders.items()}


def _entries(path: Path) -> int:
    try:
        return sum(1 for _ in path.iterdir())
    except OSError:
        return 0


def _cache_line(item: tuple[str, dict[str, Any]]) -> str:
    name, cache = item
    return f"{name}: {cache['path']}, {cache['entries']} entries"
