"""Device files: what the model takes of a GPU, a JSON object each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from ..kernels.launch.hardware import DeviceFacts

_SHIPPED = Path(__file__).with_name("devices.json")
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
    """The GPUs that come with the package, by name. Their numbers are public measurements."""
    return {row["name"]: gpu_of(row, str(_SHIPPED)) for row in json.loads(_SHIPPED.read_text("utf-8"))}


def known(device: str, sms: int) -> Gpu | None:
    """The shipped GPU that a driver gives this name and so many SMs; None for another one, or a part of one.

    >>> from cbam_triton.prediction.devices import known
    >>> known("NVIDIA H100 80GB HBM3", 132).name, known("NVIDIA H100 PCIe", 114)
    ('H100', None)
    """
    for name, found in shipped().items():
        if re.search(rf"\b{re.escape(name)}\b", device) and found.sms == sms:
            return found
    return None


def gpu_of(values: Any, where: str) -> Gpu:
    """The GPU of a JSON object. Raises: ValueError for missing, unknown and impossible values."""
    kinds = get_type_hints(Gpu)
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold a JSON object with {', '.join(kinds)}")
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
        raise ValueError(f"{where} is no device file: {'; '.join(wrong)}")
    return Gpu(**values)
