"""Device files: what the model takes of a GPU, a JSON object each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from cbam_triton.demo.options import InputError
from cbam_triton.kernels.launch.hardware import DeviceFacts

_SHIPPED = Path(__file__).with_name("devices.json")
REGISTERS = 1 << 16  # of an SM, since sm_70
SCHEDULERS = 4  # of an SM; each issues a warp's instruction a cycle


class Gpu(NamedTuple):
    """Facts of a GPU. Bandwidths are those that a copy reaches, about 0.92 of the data sheet."""

    name: str
    architecture: str  # such as sm_90, that kernels are compiled for
    sms: int
    clock_ghz: float  # of the SMs
    dram_gbs: float  # bytes a nanosecond
    l2_gbs: float
    l2_mib: float
    l2_share: float  # of L2 that distinct lines get: a partitioned one holds some twice
    l2_ns: float  # from a load to its value, from L2
    dram_ns: float  # the same beyond L2
    threads: int  # an SM holds
    launch_us: float = 1.0  # between two launches of a CUDA graph

    @property
    def held(self) -> float:
        """Bytes that L2 holds."""
        return self.l2_mib * self.l2_share * (1 << 20)

    @property
    def facts(self) -> DeviceFacts:
        """What the library's launches are chosen by."""
        return DeviceFacts(self.name, self.sms, int(self.l2_mib * (1 << 20)))

    def part(self, sms: int) -> Gpu:
        """So many of the SMs, with their share of L2 and of the bandwidths."""
        share = sms / self.sms
        return self._replace(
            sms=sms, dram_gbs=self.dram_gbs * share, l2_gbs=self.l2_gbs * share, l2_mib=self.l2_mib * share
        )


def shipped() -> dict[str, Gpu]:
    """The GPUs that come with the benchmarks, by name. Their numbers are public measurements."""
    return {row["name"]: gpu_of(row, str(_SHIPPED)) for row in json.loads(_SHIPPED.read_text("utf-8"))}


def gpu(name: str) -> Gpu:
    """A shipped GPU by its name, or the one of a device file. Raises: InputError for another name or a bad file."""
    known = shipped()
    if name in known:
        return known[name]
    path = Path(name)
    if not path.exists():
        raise InputError(f"{name!r} is no device: give one of {', '.join(known)}, or a device file")
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{name} is no device file ({error}): it holds one JSON object") from None
    return gpu_of(values, name)


def gpu_of(values: Any, where: str) -> Gpu:
    """The GPU of a JSON object. Raises: InputError for missing, unknown and impossible values."""
    kinds = get_type_hints(Gpu)
    if not isinstance(values, dict):
        raise InputError(f"{where} must hold a JSON object with {', '.join(kinds)}")
    needed = set(kinds) - set(Gpu._field_defaults)
    wrong = [f"unknown: {name}" for name in sorted(set(values) - set(kinds))]
    wrong += [f"missing: {name}" for name in sorted(needed - set(values))]
    for name, value in values.items():
        if kinds.get(name) is str:
            fine = isinstance(value, str)
        else:
            fine = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        if name in kinds and not fine:
            wrong.append(f"{name} must be {'text' if kinds[name] is str else 'positive'}, got {value!r}")
    if wrong:
        raise InputError(f"{where} is no device file: {'; '.join(wrong)}")
    return Gpu(**values)
