"""The global accesses that PTX says of a compiled kernel, by width."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple


class Access(NamedTuple):
    """One access to global memory in PTX: "ld" or "st", bytes a thread, in a loop, of 16-bit elements, qualifiers."""

    kind: str
    width: int
    in_loop: bool
    half: bool
    qualifiers: str


_GLOBAL = re.compile(r"\b(ld|st)(?:\.\w+)*\.global([.:\w]*?)(?:\.v(\d))?\.[bfsu](\d+)\s+(.*);")
_LABEL = re.compile(r"^(\$\w+):")
_BRANCH = re.compile(r"\bbra(?:\.uni)?\s+(\$\w+);")


def accesses(ptx: str) -> Iterator[Access]:
    """Every load and store of global memory in PTX.

    An access is of 16-bit elements if its registers are, or are unpacked to or packed from pairs of 16-bit ones. It is
    in a loop if it stands between a label and a branch back to it.
    """
    lines = ptx.splitlines()
    labels = {match[1]: i for i, line in enumerate(lines) if (match := _LABEL.match(line))}
    loops = [
        (labels[match[1]], i)
        for i, line in enumerate(lines)
        if (match := _BRANCH.search(line)) and labels.get(match[1], i) < i
    ]
    halves = set(re.findall(r"mov\.b32\s+\{%\w+, %\w+\}, (%r\d+)", ptx))
    halves |= set(re.findall(r"mov\.b32\s+(%r\d+), \{%\w+, %\w+\}", ptx))
    halves |= set(re.findall(r"cvt[.\w]*\.(?:f16x2|bf16x2)\.f32\s+(%r\d+)", ptx))
    for i, line in enumerate(lines):
        if match := _GLOBAL.search(line):
            kind, qualifiers, count, bits, operands = match.groups()
            registers = re.findall(r"%\w+", operands.split("[")[0] if kind == "ld" else operands.split("]")[1])
            half = bits == "16" or any(register in halves for register in registers)
            in_loop = any(begin < i < end for begin, end in loops)
            yield Access(kind, int(bits) // 8 * int(count or 1), in_loop, half, qualifiers)


def exchanged_products(ptx: str) -> int:
    """Products that go straight to another thread: one of two that exchange their terms may round, the other fuse."""
    products = set(re.findall(r"\bmul(?:\.rn)?\.f(?:32|64)\s+(%\w+)", ptx))
    named = dict(re.findall(r"\bmov\.b(?:32|64)\s+(%\w+), (%\w+);", ptx))
    for low, high, whole in re.findall(r"\bmov\.b64\s+\{(%\w+), (%\w+)\}, (%\w+);", ptx):
        named[low] = named[high] = whole
    sent = re.findall(r"\bshfl\.sync\.\w+\.b32\s+%\w+(?:\|%\w+)?, (%\w+)", ptx)
    return sum(named.get(register, register) in products for register in sent)


def widths(found: list[Access], kind: str) -> str:
    """Counts by bytes a thread of the accesses to 16-bit elements, those in loops first: "16B*8 / 2B*1"."""

    def text(in_loop):
        counts = Counter(a.width for a in found if a.kind == kind and a.half and a.in_loop == in_loop)
        return " ".join(f"{width}B*{counts[width]}" for width in sorted(counts, reverse=True)) or "-"

    return f"{text(True)} / {text(False)}"
