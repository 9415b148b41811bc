"""A candidate: every knob of the launches of one problem, as data that can be written down and read back."""

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from .tile_sizes import Config

SCHEDULES = ("staged", "wavefront")
_MOST_ELEMENTS = 1 << 20  # of a tile, in Triton
_OWN = ("schedule", "lag", "registers")
# What a program loads or keeps at once.
_TILES = (("POOL_C", "POOL_P"), ("SPATIAL_C", "SPATIAL_P"), ("APPLY_C", "APPLY_P"))
_ANY_INTEGER = ("POOL_SPLIT", "APPLY_SPLIT", "MLP_SPLIT", "POOL_DEPTH", "programs_per_sm")


class Candidate(NamedTuple):
    """One way to launch a problem: the schedule, the tile sizes of its stages, and what else may be chosen.

    `lag` and `registers` are worked out for each problem where they are None (`schedule.lag`, `schedule.registers`), so
    one candidate may serve layers of many sizes. `str` gives its JSON, `Candidate.parse` reads it.

        >>> from cbam_triton.kernels.launch.candidate import Candidate
        >>> sizes = dict.fromkeys(Candidate.knobs(), 16) | {"schedule": "staged", "num_warps": 4, "POOL_DEPTH": 1}
        >>> Candidate.from_json({**sizes, "lag": None, "registers": None}).tiles.POOL_C
        16
    """

    schedule: str
    tiles: Config
    lag: int | None = None  # samples between the stages of a wavefront
    registers: int | None = None  # the most of a thread, on NVIDIA; 0 leaves it to the assembler

    @staticmethod
    def knobs() -> tuple[str, ...]:
        """The names of what may be chosen, as they are in the JSON."""
        return (*_OWN, *Config._fields)

    def to_json(self) -> dict[str, Any]:
        """One flat object: a value for each of `knobs`, but those that are None."""
        own = {name: getattr(self, name) for name in _OWN if getattr(self, name) is not None}
        return own | self.tiles._asdict()

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Candidate":
        """The candidate of an object as `to_json` makes it.

        Raises: ValueError for an object with other names, other types, or sizes that no kernel takes.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a candidate must be an object with {', '.join(Candidate.knobs())}, got {values!r}")
        unknown, missing = set(values) - set(Candidate.knobs()), set(Config._fields) - set(values)
        if unknown or missing or "schedule" not in values:
            wrong = [f"unknown: {name}" for name in sorted(unknown)] + [f"missing: {name}" for name in sorted(missing)]
            raise ValueError(
                f"a candidate has a schedule and {', '.join(Config._fields)}, may have a lag and registers; "
                f"{'; '.join(wrong) or 'missing: schedule'}: tune again with this release"
            )
        numbers = {name: value for name, value in values.items() if name != "schedule" and value is not None}
        wrong = [f"{name}={value!r}" for name, value in numbers.items() if type(value) is not int]
        if wrong:
            raise ValueError(f"the sizes of a candidate must be integers, got {', '.join(wrong)}")
        tiles = Config(**{name: values[name] for name in Config._fields})
        candidate = Candidate(values["schedule"], tiles, values.get("lag"), values.get("registers"))
        why = candidate.impossible()
        if why is not None:
            raise ValueError(f"this candidate cannot run: {why}")
        return candidate

    def __str__(self) -> str:
        return json.dumps(self.to_json(), separators=(",", ":"))

    @staticmethod
    def parse(text: str) -> "Candidate":
        """The candidate that `str` wrote. Raises: ValueError for another text."""
        return _parsed(text)

    def impossible(self) -> str | None:
        """Why no kernel can be launched like this, whatever the problem; None if one can."""
        sizes = self.tiles._asdict()
        if self.schedule not in SCHEDULES:
            return f"the schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}"
        if self.lag is not None and (self.schedule != "wavefront" or self.lag < 1):
            return f"a lag is a wavefront's, and at least 1, got {self.lag} for {self.schedule}"
        if self.registers is not None and self.registers != 0 and not 24 <= self.registers <= 255:
            return f"registers must be 0 or from 24 to 255, got {self.registers}"
        for name, size in sizes.items():
            if size < 1 or (name not in _ANY_INTEGER and size & (size - 1)):
                return f"{name} must be {'positive' if size < 1 else 'a power of two'}, got {size}"
        if self.tiles.num_warps > 32:
            return f"a program has at most 32 warps, got {self.tiles.num_warps}"
        for c, p in _TILES:
            if sizes[c] * sizes[p] > _MOST_ELEMENTS:
                return f"{c} times {p} must be at most 2^20, got {sizes[c] * sizes[p]}"
        for part, whole in (("POOL_KEEP", "POOL_P"), ("SPATIAL_KEEP", "SPATIAL_C")):
            if sizes[part] > sizes[whole]:
                return f"{part} must be at most {whole}, got {sizes[part]} and {sizes[whole]}"
        for whole, part in (("APPLY_SPLIT", "APPLY_C"), ("MLP_SPLIT", "MLP_C")):
            if sizes[whole] % sizes[part]:
                return f"{whole} must be a multiple of {part}, got {sizes[whole]} and {sizes[part]}"
        return None


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> Candidate:
    try:
        values = json.loads(text)
    except ValueError:
        raise ValueError(f"a candidate must be a JSON object, got {text[:80]!r}") from None
    return Candidate.from_json(values)
