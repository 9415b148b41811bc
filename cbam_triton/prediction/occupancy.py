"""How many programs of a kernel a multiprocessor holds at once, by NVIDIA's tables of each architecture."""

from typing import NamedTuple

KIB = 1 << 10
REGISTERS = 1 << 16  # of an SM, since sm_70
_GRANULE = 256  # registers that a warp takes at once


class Limits(NamedTuple):
    """What an SM has: threads, programs, bytes of shared memory, and of these what the system takes a program."""

    threads: int
    programs: int
    shared: int
    reserved: int


_LIMITS = {
    "sm_70": Limits(2048, 32, 96 * KIB, 0),
    "sm_75": Limits(1024, 16, 64 * KIB, 0),
    "sm_80": Limits(2048, 32, 164 * KIB, KIB),
    "sm_86": Limits(1536, 16, 100 * KIB, KIB),
    "sm_87": Limits(1536, 16, 164 * KIB, KIB),
    "sm_89": Limits(1536, 24, 100 * KIB, KIB),
    "sm_90": Limits(2048, 32, 228 * KIB, KIB),
    "sm_100": Limits(2048, 32, 228 * KIB, KIB),
    "sm_103": Limits(2048, 32, 228 * KIB, KIB),
    "sm_120": Limits(1536, 24, 100 * KIB, KIB),
}


def limits_of(architecture: str) -> Limits | None:
    """Those of a name such as "sm_90"; None for one that the table has not."""
    return _LIMITS.get(architecture)


def resident(limits: Limits, warps: int, registers: int, shared: int) -> int:
    """Programs that an SM holds, at least one: by threads, slots, registers and shared memory.

    >>> from cbam_triton.prediction.occupancy import limits_of, resident
    >>> resident(limits_of("sm_90"), warps=4, registers=128, shared=512)
    4
    """
    of_a_warp = -(-registers * 32 // _GRANULE) * _GRANULE
    by_shared = limits.shared // max(1, shared + limits.reserved)
    return max(1, min(limits.threads // (32 * warps), limits.programs, REGISTERS // (of_a_warp * warps), by_shared))
