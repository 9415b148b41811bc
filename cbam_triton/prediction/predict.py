"""The time of a launch on a GPU, in closed formulas.

A launch takes as long as the slowest of four things would alone, and some of the others on top: bytes through DRAM,
bytes through L2, instructions, and what one program after another waits for. Nothing is fitted to times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .code import Code, Part
from .devices import SCHEDULERS, Gpu
from .launches import Work
from .occupancy import limits_of
from .occupancy import resident as programs_held

START_CYCLES, BARRIER_CYCLES, SHUFFLE_CYCLES, DEPENDENT_CYCLES = 150, 30, 24, 3
_NORM = 3  # how the four add up: 1 is one after another, infinity is all at once
LIMITERS = {"dram": "DRAM", "l2": "L2", "issue": "instructions", "latency": "waiting"}


class Prediction(NamedTuple):
    """Microseconds of a launch: the estimate; all four at once, and one after another; the four; programs an SM."""

    kernel: str
    us: float
    low: float
    high: float
    terms: dict[str, float]
    programs: int
    resident: int

    @property
    def limiter(self) -> str:
        """The largest term in words."""
        return LIMITERS[max(self.terms, key=lambda name: self.terms[name])]


def resident(code: Code, device: Gpu) -> int:
    """Programs that an SM of this GPU holds; at least one."""
    limits = limits_of(device.architecture) or limits_of("sm_80")
    assert limits is not None
    return programs_held(limits._replace(threads=device.threads), code.warps, code.registers, code.shared)


def predicted(work: Work, device: Gpu) -> Prediction:
    """The time of a launch on a GPU."""
    code, cycle = work.code, 1e-3 / device.clock_ghz  # microseconds
    total = code.outside
    for part, trips in zip(code.loops, work.trips, strict=True):
        total += Part(*(trips * value for value in part))
    held, threads = resident(code, device), 32 * code.warps
    requested = work.passed or work.programs * threads * total.load_bytes
    fresh = min(1.0, work.dram_bytes / max(1.0, requested))
    load_us = 1e-3 * (fresh * device.dram_ns + (1 - fresh) * device.l2_ns)
    chain = cycle * (
        START_CYCLES
        + BARRIER_CYCLES * total.barriers
        + SHUFFLE_CYCLES * total.shuffles
        + DEPENDENT_CYCLES * total.instructions
    )
    waves = max(1.0, work.programs / (device.sms * held))
    terms = {
        "dram": 1e-3 * work.dram_bytes / device.dram_gbs,
        "l2": 1e-3 * requested / device.l2_gbs,
        "issue": cycle * work.programs * code.warps * total.instructions / (device.sms * SCHEDULERS),
        "latency": waves * (chain + load_us * total.loads),
    }
    values = terms.values()
    us = sum(value**_NORM for value in values) ** (1 / _NORM)
    return Prediction(work.kernel, us, max(values), sum(values), terms, work.programs, held)


def total_us(found: Sequence[Prediction], device: Gpu) -> float:
    """Microseconds of all launches, with the gaps between them."""
    return sum(one.us for one in found) + device.launch_us * (len(found) - 1)
