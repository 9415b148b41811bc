"""Loops of machine code, NVIDIA's (SASS) and AMD's: instructions, loads and barriers of a round."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_SASS = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_TARGET = re.compile(r"0x([0-9a-f]+)")
_AMD = re.compile(r"^\t([a-z]\w+)(.*)")
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


class Line(NamedTuple):
    """An instruction: bytes that a thread loads from global memory, whether it is a barrier, where it may jump."""

    load_bytes: int
    barrier: bool
    target: int | None = None  # the index of an instruction


class Loop(NamedTuple):
    """A round of a loop, without the loops inside it: a warp's instructions, loads, their bytes a thread, barriers."""

    instructions: int = 0
    loads: int = 0
    load_bytes: int = 0
    barriers: int = 0


def loops_of(code: Sequence[Line]) -> tuple[Loop, list[Loop]]:
    """What is outside loops, and the loops in textual order. A loop ends at a jump back and begins at its target."""
    spans = sorted((line.target, i) for i, line in enumerate(code) if line.target is not None and line.target < i)
    owner = [-1] * len(code)
    for k, (begin, end) in enumerate(spans):  # an inner loop begins later, and takes its lines
        owner[begin : end + 1] = [k] * (end + 1 - begin)
    found = [Loop() for _ in range(len(spans) + 1)]
    for line, k in zip(code, owner, strict=True):
        one = found[k]
        loads = one.loads + (line.load_bytes > 0)
        found[k] = Loop(one.instructions + 1, loads, one.load_bytes + line.load_bytes, one.barriers + line.barrier)
    return found[-1], [loop for loop in found[:-1] if loop.instructions]


def main_loop(code: Sequence[Line]) -> Loop | None:
    """The loop that loads most bytes a round; None where no loop loads."""
    best = max(loops_of(code)[1], key=lambda loop: loop.load_bytes, default=Loop())
    return best if best.load_bytes else None


@functools.lru_cache(maxsize=256)
def sass(cubin: bytes) -> str | None:
    """The machine code of a cubin as text, by Triton's cuobjdump or one that is installed; None without either."""
    import triton

    own = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    tool = str(own) if own.exists() else shutil.which("cuobjdump")
    if tool is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        said = subprocess.run([tool, "-sass", path], capture_output=True, text=True, timeout=60, check=False)
    return said.stdout if said.returncode == 0 else None


def lines_of_sass(text: str) -> list[Line]:
    """The instructions of one kernel in SASS, without the padding."""
    rows = [(int(match[1], 16), match[2], match[3]) for line in text.splitlines() if (match := _SASS.match(line))]
    rows = [row for row in rows if row[1] != "NOP"]
    index = {address: i for i, (address, _, _) in enumerate(rows)}
    found = []
    for _, name, operands in rows:
        head, *kinds = name.split(".")
        target = _TARGET.search(operands) if head == "BRA" else None
        width = next((_BYTES[kind] for kind in kinds if kind in _BYTES), 4) if head in ("LDG", "LDGSTS") else 0
        found.append(Line(width, head == "BAR", None if target is None else index.get(int(target[1], 16))))
    return found


def lines_of_amdgcn(text: str) -> list[Line]:
    """The instructions of one kernel in AMD's assembly."""
    found: list[Line] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in text.splitlines():
        if line.startswith(".LBB"):
            labels[line.split(":")[0]] = len(found)
        elif match := _AMD.match(line):
            name, operands = match.groups()
            if name.startswith("s_cbranch") or name == "s_branch":
                jumps.append((len(found), operands.split()[0]))
            found.append(Line(_amd_bytes(name), name.startswith("s_barrier")))
    for i, label in jumps:
        found[i] = found[i]._replace(target=labels.get(label))
    return found


def _amd_bytes(name: str) -> int:
    """Bytes that a thread loads by global_load_dwordx4, buffer_load_b128, global_load_ushort and others like these."""
    if not re.match(r"(global|buffer|flat)_load_", name):
        return 0
    kind = name.split("_load_")[1]
    if match := re.match(r"dwordx?(\d*)|b(\d+)", kind):
        return 4 * int(match[1] or 1) if match[2] is None else int(match[2]) // 8
    return 1 if "8" in kind or "byte" in kind else 2
