"""What is known of a launch before it runs: registers, occupancy, waves, bytes in flight, the main loop's code."""

from __future__ import annotations

import re
from typing import Any

from cbam_triton.prediction.code import resources
from cbam_triton.prediction.occupancy import limits_of, resident

from .machine_code import lines_of_amdgcn, lines_of_sass, main_loop, sass

# Of AMD's multiprocessors: SIMDs, and waves that a SIMD holds.
_AMD_SIMDS = {"gfx9": (4, 8), "gfx11": (2, 16), "gfx12": (2, 16)}


def static_of(compiled: Any, architecture: str, programs: int, warps: int, sms: int) -> dict[str, Any]:
    """The facts of one launch of `programs` programs on a GPU with so many multiprocessors; what is not known lacks.

    `occupancy` is the part of a multiprocessor's threads that it holds, `waves` how often its programs are replaced,
    `bytes_in_flight` what the threads of a multiprocessor ask for in one round of the loop that loads most.
    """
    found: dict[str, Any] = {"programs": programs, "warps": warps, "shared": compiled.metadata.shared}
    if architecture.startswith("gfx"):
        text, lanes = compiled.asm["amdgcn"], 64 if architecture.startswith("gfx9") else 32
        found |= amd_resources(text)
        held, occupancy = _amd_held(text, architecture, warps)
        code = lines_of_amdgcn(text)
    else:
        cubin, lanes = compiled.asm["cubin"], 32
        found |= resources(cubin)
        limits = limits_of(architecture)
        held = None if limits is None else resident(limits, warps, found["registers"], found["shared"])
        occupancy = None if limits is None or held is None else held * 32 * warps / limits.threads
        text = sass(cubin)
        code = [] if text is None else lines_of_sass(text)
    if held is not None:
        found |= {"programs_per_sm": held, "occupancy": occupancy, "waves": programs / (held * sms)}
    loop = main_loop(code)
    if loop is not None:
        found["loop"] = loop._asdict()
        if held is not None:
            found["bytes_in_flight"] = loop.load_bytes * lanes * warps * min(held, -(-programs // sms))
    return found


def amd_resources(assembly: str) -> dict[str, int]:
    """Registers a thread and spilled registers, as AMD's assembler has them."""

    def number(name: str) -> int:
        return max(map(int, re.findall(rf"\.{name}:\s+(\d+)", assembly)), default=0)

    return {"registers": number("vgpr_count"), "spills": number("vgpr_spill_count")}


def _amd_held(assembly: str, architecture: str, warps: int) -> tuple[int | None, float | None]:
    """Programs that a multiprocessor holds, and the part of its waves that these are, by the assembler's comment."""
    said = re.search(r"^; Occupancy: (\d+)", assembly, re.MULTILINE)
    simds = next((value for name, value in _AMD_SIMDS.items() if architecture.startswith(name)), None)
    if said is None or simds is None:
        return None, None
    held = max(1, int(said[1]) * simds[0] // warps)
    return held, min(1.0, held * warps / (simds[0] * simds[1]))
