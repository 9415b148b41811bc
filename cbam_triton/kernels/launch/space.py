"""The space that tuning searches: the candidates of a problem, and why one is left out."""

from collections.abc import Iterator

from . import grid
from .candidate import Candidate
from .choice import default, unfit
from .hardware import DeviceFacts
from .problem import Problem
from .tile_sizes import configs, power_above

LEVELS = ("table", "tiles", "all")
_MOST_VALUES = 128  # of a tile in the registers of one thread
_LEAST_VALUES = 1
_WAVES = 4096  # programs an SM: more are launch overhead alone

# A knob, and the values that it has beside the default's: factors, or values themselves. A new knob is a field of
# `Config` or `Candidate` and a line here.
_FACTORS: dict[str, tuple[float, ...]] = {
    "POOL_C": (0.5, 2),
    "POOL_P": (0.5, 2),
    "POOL_SPLIT": (0.25, 0.5, 2, 4),
    "SPATIAL_C": (0.5, 2),
    "SPATIAL_P": (0.5, 2),
    "APPLY_C": (0.5, 2),
    "APPLY_P": (0.5, 2),
    "APPLY_SPLIT": (0.5, 2, 4),
    "MLP_C": (0.5, 2),
    "MLP_SPLIT": (0.5, 2),
    "num_warps": (0.5, 2),
}
_VALUES: dict[str, tuple[int, ...]] = {"POOL_DEPTH": (1, 2, 3), "registers": (0, 128, 168), "lag": (1, 2, 4, 8)}
_SPLITS = (("POOL_SPLIT", "POOL_P"), ("APPLY_SPLIT", "APPLY_C"), ("MLP_SPLIT", "MLP_C"))  # the second divides the first


def candidates(problem: Problem, device: DeviceFacts, level: str = "tiles") -> Iterator[Candidate]:
    """The candidates of a level, each once, the default first; also those that `reject` leaves out.

    "table": the rows of both schedules' tables. "tiles": these, and each with one knob changed. "all": with two.
    Raises: ValueError for another level.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}: choose one of these")
    rows = [default(problem, device).candidate]
    rows += [Candidate(name, row) for name in ("staged", "wavefront") for row in configs(name, problem)]
    seen: set[Candidate] = set()
    for changes in range(LEVELS.index(level) + 1):
        for row in rows:
            for found in changed(row, changes):
                if found not in seen:
                    seen.add(found)
                    yield found


def reject(candidate: Candidate, problem: Problem, device: DeviceFacts) -> str | None:
    """Why a candidate is not worth a launch, or cannot be one; None if it is."""
    why = unfit(candidate, problem)
    if why is not None:
        return why
    sizes = candidate.tiles._asdict()
    extents = {"C": power_above(problem.C), "P": power_above(problem.P)}
    stages = [stage for stage, used in (("POOL", problem.R), ("SPATIAL", problem.K), ("APPLY", 1)) if used]
    for stage in stages:
        for axis, extent in extents.items():
            if sizes[f"{stage}_{axis}"] > extent:
                return f"{stage}_{axis}={sizes[f'{stage}_{axis}']} is beyond {axis} = {getattr(problem, axis)}"
        values = sizes[f"{stage}_C"] * sizes[f"{stage}_P"] / (32 * candidate.tiles.num_warps)
        if values > _MOST_VALUES:
            return f"a thread would hold {values:.0f} values of a tile of {stage}, more than {_MOST_VALUES}"
        if values < _LEAST_VALUES:
            return f"a tile of {stage} has {values:g} values a thread: most threads would do nothing"
    tiles = grid.apply_tiles(problem, sizes)
    if problem.N * tiles > _WAVES * device.sm_count:
        return f"{problem.N * tiles} programs are more than {_WAVES} an SM"
    return None


def changed(row: Candidate, changes: int) -> Iterator[Candidate]:
    """The row with so many knobs changed, also those that `reject` leaves out."""
    if changes == 0:
        yield row
        return
    for name, factors in _FACTORS.items():
        for factor in factors:
            size = int(getattr(row.tiles, name) * factor)
            if size >= 1:
                yield from changed(_whole(row._replace(tiles=row.tiles._replace(**{name: size}))), changes - 1)
    for name, values in _VALUES.items():
        for value in values:
            if name in row._fields:
                if name != "lag" or row.schedule == "wavefront":
                    yield from changed(row._replace(**{name: value}), changes - 1)
            else:
                yield from changed(row._replace(tiles=row.tiles._replace(**{name: value})), changes - 1)


def _whole(row: Candidate) -> Candidate:
    """The row with what depends on its tiles brought in line."""
    sizes = row.tiles._asdict()
    for split, part in _SPLITS:
        sizes[split] = max(sizes[part], sizes[split] // sizes[part] * sizes[part])
    for kept, of in (("POOL_KEEP", "POOL_P"), ("SPATIAL_KEEP", "SPATIAL_C")):
        sizes[kept] = min(sizes[kept], sizes[of])
    return row._replace(tiles=row.tiles._replace(**sizes))
