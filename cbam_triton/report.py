"""Plain text of `python -m cbam_triton`: the environment, the table, the verdict."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from . import CBAM
from .check import Machine, Outcome, Row
from .kernels import device as kernel_device

HEADER = ("shape", "layout", "backend", "schedule", "error/eager", "gradients", "", "time", "vs eager", "vs compiled")


def environment(machine: Machine, why_interpreted: str | None) -> str:
    """Versions, device, driver, and what runs the kernels."""
    packages = ("cbam-triton", "torch", "triton", "numpy")
    versions = [f"{name} {_version(name)}" for name in packages]
    lines = [
        ("versions", ", ".join([versions[0], f"Python {platform.python_version()}", *versions[1:]])),
        ("device", _device_name(machine.device) + f", {str(machine.dtype).removeprefix('torch.')}"),
        ("driver", _driver(machine.device)),
        ("kernels", _kernels(machine, why_interpreted)),
    ]
    return "\n".join(f"{name:<9} {text}" for name, text in lines)


def choices(machine: Machine, maps: list[Tensor], why_interpreted: str | None) -> str:
    """Which backend and schedule "auto" takes for each map, and why."""
    if not machine.kernels:
        return f"{'auto':<9} backend reference: kernels do not run on {machine.device.type} tensors here"
    from .kernels.call import Weights, plan_of
    from .kernels.config import choose_schedule

    lines = []
    for x in maps:
        layer = CBAM(x.shape[1], device="meta")
        weights = Weights(layer.channel.fc1.weight, None, None, None, layer.spatial.conv.weight, None)
        schedule, reason = choose_schedule(plan_of(x, weights, "auto").problem, kernel_device.facts(x.device))
        lines.append((f"{'x'.join(map(str, x.shape))}: {schedule}", reason))
    width = max(len(choice) for choice, _ in lines)
    first = "backend triton, schedule by size:"
    if why_interpreted:
        first = "backend reference (kernels are interpreted for this check alone); a kernel call would take"
    body = [f"{'':<9} {choice:<{width}}  ({reason})" for choice, reason in lines]
    return "\n".join([f"{'auto':<9} {first}", *body])


def table(rows: list[Row]) -> str:
    """Aligned plain text, one line a row."""
    lines: list[tuple[str, ...]] = [HEADER]
    for row in rows:
        if row.timing:
            time = f"{row.timing.median * 1e3:.3f} ms{' ~' if row.noisy else ''}"
        else:
            time = "interpreted, not timed" if row.crop else "not timed"
        shape = f"{row.shape} crop" if row.crop else row.shape
        verdict = "ok" if row.ok else "DISAGREES"
        errors = (f"{row.agreement.ratio:.2f}", f"{row.gradients.ratio:.2f}")
        speeds = ("", "") if row.crop else (row.over_eager, row.over_compiled)
        lines.append((shape, row.layout, row.backend, row.schedule or "-", *errors, verdict, time, *speeds))
    if not any(row.timing for row in rows):
        lines = [line[:8] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = {4, 5, 8, 9}
    text = []
    for line in lines:
        columns = enumerate(zip(line, widths, strict=True))
        text.append("  ".join(cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in columns))
    return "\n".join(line.rstrip() for line in [text[0], "-" * len(text[0]), *text[1:]])


def verdict(outcome: Outcome) -> str:
    """One sentence: how many rows agree with fp64, by which rule."""
    wrong = [row for row in outcome.rows if not row.ok]
    rule = (
        "error against fp64 at most twice that of the published eager form, plus one ulp of the output's scale; so the "
        "gradients of x and of both attentions' parameters, by root mean square"
    )
    if not wrong:
        return f"All {len(outcome.rows)} rows agree ({rule})."
    names = "; ".join(f"{row.shape} {row.layout} {row.name}{_what(row)}" for row in wrong)
    return f"{len(wrong)} of {len(outcome.rows)} rows DISAGREE ({rule}): {names}."


def _what(row: Row) -> str:
    return " (gradients)" if row.agreement.ok else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _device_name(device: torch.device) -> str:
    if device.type != "cpu":
        facts = kernel_device.facts(device)
        return f"{facts.name}, {facts.sm_count} multiprocessors, {facts.l2_bytes / 2**20:.0f} MiB of L2"
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


def _driver(device: torch.device) -> str:
    if device.type == "cpu":
        return "none in use (CPU)"
    if torch.version.hip:
        return f"HIP {torch.version.hip}"
    if device.type != "cuda":
        return device.type
    text = f"CUDA {torch.version.cuda}"
    if tool := shutil.which("nvidia-smi"):
        query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False).stdout.split()
        text += f", driver {found[0]}" if found else ""
    return text


def _kernels(machine: Machine, why_interpreted: str | None) -> str:
    if machine.interpreted and machine.kernels:
        return f"run in Triton's interpreter: {why_interpreted or 'TRITON_INTERPRET=1 is set'}"
    if machine.kernels:
        return f"run on {machine.device.type} by Triton's active driver"
    missing = kernel_device.missing()
    return f"do not run: {missing or f'Triton drives {kernel_device.device_type()}, not {machine.device.type}'}"
