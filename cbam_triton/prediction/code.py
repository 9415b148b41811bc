"""What the compiler made of a kernel: instructions, loads and waits, inside its loops and outside."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

_LABEL = re.compile(r"^(\$\w+):")
_BRANCH = re.compile(r"\bbra(?:\.uni)?\s+(\$\w+);")
_INSTRUCTION = re.compile(r"^\s+(?:@!?%\w+\s+)?([a-z]\w*)[.\s].*;")
_LOAD = re.compile(r"\bld(?:\.\w+)*\.global[.:\w]*?(?:\.v(\d))?\.[bfsu](\d+)\s")
_NO_CODE = {"mov", "cvta"}  # what ptxas turns into nothing, mostly


class Part(NamedTuple):
    """A stretch of code: a warp's instructions, bytes a thread loads, and what a warp waits for one after another."""

    instructions: int = 0
    load_bytes: int = 0
    loads: int = 0  # times that loads are waited for: those between two barriers arrive together
    barriers: int = 0
    shuffles: int = 0

    def __add__(self, other: Part) -> Part:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Part(*(a + b for a, b in zip(self, other, strict=True)))


class Code(NamedTuple):
    """A compiled kernel: registers a thread, shared bytes and warps of a program, its loops in textual order."""

    registers: int
    shared: int
    warps: int
    outside: Part
    loops: tuple[Part, ...]


def code_of(compiled: Any, warps: int) -> Code:
    """What a kernel that Triton compiled for NVIDIA is made of."""
    outside, loops = parts_of(compiled.asm["ptx"])
    found = resources(compiled.asm["cubin"])
    return Code(found["registers"], compiled.metadata.shared, warps, outside, loops)


@functools.lru_cache(maxsize=256)
def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread and spilled bytes (these kernels have no other stack) of a cubin, by Triton's cuobjdump."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        said = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"{tool} -res-usage reported no registers: {said!r}")
    return {"registers": int(found[1]), "spills": int(found[2])}


def parts_of(ptx: str) -> tuple[Part, tuple[Part, ...]]:
    """The code outside loops and that of each loop; a loop inside another counts as a loop of its own."""
    lines = ptx.splitlines()
    labels = {match[1]: i for i, line in enumerate(lines) if (match := _LABEL.match(line))}
    spans = sorted(
        (labels[match[1]], i)
        for i, line in enumerate(lines)
        if (match := _BRANCH.search(line)) and labels.get(match[1], i) < i
    )
    owner = [-1] * len(lines)
    for k, (begin, end) in enumerate(spans):  # an inner loop begins later, and takes its lines
        owner[begin : end + 1] = [k] * (end + 1 - begin)
    groups: list[list[str]] = [[] for _ in range(len(spans) + 1)]
    for line, of in zip(lines, owner, strict=True):
        groups[of].append(line)
    return _part(groups[-1]), tuple(_part(group) for group in groups[:-1])


def _part(lines: list[str]) -> Part:
    instructions = load_bytes = loads = barriers = shuffles = 0
    waited = False  # a load since the last barrier
    for line in lines:
        found = _INSTRUCTION.match(line)
        if found is None:
            continue
        name = found[1]
        instructions += name not in _NO_CODE
        shuffles += name == "shfl"
        if name == "bar":
            barriers += 1
            waited = False
        elif load := _LOAD.search(line):
            load_bytes += int(load[2]) // 8 * int(load[1] or 1)
            loads += not waited
            waited = True
    return Part(instructions, load_bytes, loads, barriers, shuffles)
