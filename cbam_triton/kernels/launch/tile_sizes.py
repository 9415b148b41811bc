"""Tile sizes and warps of every stage. Sizes come in classes.

A tile spans one or two 128-byte lines along the axis with unit stride, so that a line is read by one program at a time,
and a thread has a few 16-byte accesses in flight. The tiles of every stage move about the same number of bytes: in the
wavefront a slow tile would make every later one wait, and the lag, and with it the share of L2, grow.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

from .layout import ACCESS_BYTES
from .problem import Problem

Sizes = Mapping[str, int]  # tile sizes by name


class Config(NamedTuple):
    """Tile sizes of every stage, by their names in `packs.Tiles`.

    A stage of the backward has the sizes of the forward's that walks the same tiles: POOL the channel gradient, SPATIAL
    the logit gradient, APPLY the input gradient.
    """

    POOL_C: int
    POOL_P: int
    POOL_SPLIT: int
    POOL_KEEP: int
    POOL_R: int
    POOL_DEPTH: int  # tiles of x under way in a program
    MLP_T: int
    MLP_C: int
    MLP_SPLIT: int
    SPATIAL_C: int
    SPATIAL_P: int
    SPATIAL_KEEP: int
    APPLY_C: int
    APPLY_P: int
    APPLY_SPLIT: int
    MAP_P: int
    num_warps: int
    programs_per_sm: int  # as many as registers allow, on sm_80

    def of(self, *stages: str) -> dict[str, int]:
        """The sizes whose names begin with one of `stages`."""
        return {name: value for name, value in self._asdict().items() if name.startswith(stages)}


class _Shape(NamedTuple):
    """A row of a table."""

    num_warps: int  # of a program
    accesses: int  # in flight, a thread
    span: int  # bytes of a tile along the unit stride
    pool_tile: int  # elements that a channel pool program reads
    programs_per_sm: int


class _Measured(NamedTuple):
    """A default of the staged schedule: tiles as (C, P), and what a program owns."""

    pixels: int  # of the smallest maps that it is for
    pool: tuple[int, int, int]  # C, P, pixels of a chunk
    pool_depth: int
    spatial: tuple[int, int]
    apply: tuple[int, int, int]  # C, P, channels of a program


# The fastest of 47 to 60 arrangements each on an H100 (the first of 120 to 210 on an H200), float16, 32 samples,
# ResNet-50's maps from 256 x 56 x 56 to 2048 x 7 x 7, four warps a program. Keys: channels_last, backward.
_STAGED: dict[tuple[bool, bool], tuple[_Measured, ...]] = {
    (True, False): (
        _Measured(2048, (64, 64, 2048), 3, (64, 32), (256, 16, 256)),
        _Measured(512, (64, 64, 1024), 3, (128, 16), (256, 16, 512)),
        _Measured(128, (64, 128, 4096), 1, (256, 8), (256, 8, 512)),
        _Measured(0, (128, 32, 4096), 1, (512, 8), (256, 8, 512)),
    ),
    (True, True): (
        _Measured(2048, (64, 64, 2048), 1, (64, 32), (64, 64, 256)),
        _Measured(512, (32, 64, 1024), 1, (128, 16), (128, 32, 512)),
        _Measured(128, (64, 32, 4096), 1, (256, 8), (32, 64, 128)),
        _Measured(0, (128, 16, 4096), 1, (512, 8), (64, 32, 256)),
    ),
    (False, False): (
        _Measured(2048, (8, 128, 4096), 3, (64, 64), (128, 64, 256)),
        _Measured(512, (16, 64, 4096), 1, (128, 64), (128, 64, 256)),
        _Measured(128, (64, 32, 4096), 1, (256, 32), (128, 64, 128)),
        _Measured(0, (128, 16, 4096), 1, (256, 8), (64, 32, 256)),
    ),
    (False, True): (
        _Measured(2048, (32, 128, 1024), 1, (64, 64), (32, 128, 128)),
        _Measured(512, (32, 64, 4096), 1, (64, 64), (32, 64, 128)),
        _Measured(128, (64, 32, 4096), 1, (256, 32), (64, 32, 256)),
        _Measured(0, (64, 16, 4096), 1, (256, 8), (32, 32, 256)),
    ),
}

# What tuning tries; the first row is the wavefront's default. In NCHW rows of pixels rarely begin on a line, so
# neighbouring tiles share one: a span of two lines halves the sharing.
# Keys: schedule, channels_last, backward. A backward's programs have accesses to two tensors in flight.
_TABLES: dict[tuple[str, bool, bool], tuple[_Shape, ...]] = {
    ("wavefront", True, False): (
        _Shape(4, 4, 128, 1 << 14, 5),
        _Shape(2, 4, 128, 1 << 14, 10),
        _Shape(2, 2, 128, 1 << 13, 12),
        _Shape(4, 2, 256, 1 << 14, 6),
    ),
    ("wavefront", False, False): (
        _Shape(4, 4, 256, 1 << 14, 5),
        _Shape(2, 4, 256, 1 << 14, 8),
        _Shape(2, 4, 128, 1 << 14, 10),
        _Shape(4, 2, 512, 1 << 14, 5),
    ),
    ("staged", True, False): (
        _Shape(2, 4, 128, 1 << 13, 16),
        _Shape(4, 4, 128, 1 << 14, 8),
        _Shape(4, 2, 128, 1 << 13, 8),
        _Shape(8, 4, 256, 1 << 14, 4),
    ),
    ("staged", False, False): (
        _Shape(4, 2, 128, 1 << 13, 8),
        _Shape(2, 4, 256, 1 << 14, 8),
        _Shape(4, 4, 256, 1 << 14, 8),
        _Shape(8, 4, 512, 1 << 14, 4),
    ),
    ("wavefront", True, True): (
        _Shape(2, 4, 128, 1 << 15, 6),
        _Shape(2, 2, 128, 1 << 14, 8),
        _Shape(4, 2, 128, 1 << 14, 5),
    ),
    ("wavefront", False, True): (
        _Shape(2, 2, 256, 1 << 14, 8),
        _Shape(2, 4, 128, 1 << 14, 6),
        _Shape(4, 2, 256, 1 << 14, 5),
    ),
    ("staged", True, True): (
        _Shape(2, 4, 128, 1 << 15, 8),
        _Shape(2, 2, 128, 1 << 14, 12),
        _Shape(4, 2, 128, 1 << 14, 6),
    ),
    ("staged", False, True): (
        _Shape(2, 2, 256, 1 << 14, 12),
        _Shape(2, 4, 128, 1 << 14, 8),
        _Shape(4, 2, 256, 1 << 14, 6),
    ),
}

_WARPS = 4  # of a program of the staged schedule
_STAGE_TILE = 1 << 15  # elements that a program of any stage but the channel pool reads at most
_MLP_WEIGHTS = 64  # of a layer of the MLP that a thread holds, as many again on their way
_POOL_WEIGHTS = 32  # the same, beside a tile of x


def configs(schedule: str, problem: Problem) -> tuple[Config, ...]:
    """The table of a schedule for a problem: the default first, then where tuning begins.

    Depends on classes only (powers of two of C, P and R, dtype, alignment, layout): a new N or a new H x W of the same
    class gives the same rows.
    """
    classes = (power_above(problem.C), power_above(problem.P), power_above(max(problem.R, 1)))
    return _configs(schedule, *classes, problem.itemsize, problem.vec, problem.channels_last, problem.backward)


@functools.cache
def _configs(
    schedule: str, C: int, P: int, R: int, itemsize: int, vec: int, channels_last: bool, backward: bool
) -> tuple[Config, ...]:
    rows = [_config(row, C, P, R, itemsize, vec, channels_last) for row in _TABLES[schedule, channels_last, backward]]
    if schedule == "staged":
        measured = next(row for row in _STAGED[channels_last, backward] if row.pixels <= P)
        rows.insert(0, _measured(measured, C, P, R, itemsize, vec, channels_last))
    return tuple(dict.fromkeys(rows))


def _measured(row: _Measured, C: int, P: int, R: int, itemsize: int, vec: int, channels_last: bool) -> Config:
    """A measured row for maps of other channels and dtypes: as many bytes a tile."""
    wide = max(1, itemsize // 2)
    threads = 32 * _WARPS

    def tile(c: int, p: int) -> tuple[int, int]:
        c, p = (c // wide, p) if channels_last else (c, max(1, p // wide))
        inside = min(c, C)
        return inside, min(P, p * c // inside if channels_last else p)

    pool_c, pool_p, pool_split = row.pool
    pool_c, pool_p = tile(pool_c, pool_p)
    spatial_c, spatial_p = tile(*row.spatial)
    apply_c, apply_p, apply_split = row.apply
    apply_c, apply_p = tile(apply_c, apply_p)
    return Config(
        POOL_C=pool_c,
        POOL_P=pool_p,
        POOL_SPLIT=max(pool_p, pool_split),
        POOL_KEEP=_kept(pool_p, pool_c, threads, vec, unit_stride=not channels_last),
        POOL_R=min(R, max(1, _POOL_WEIGHTS * threads // max(pool_c, 64))),
        POOL_DEPTH=row.pool_depth,
        **_mlp(C, R, pool_c, threads),
        SPATIAL_C=spatial_c,
        SPATIAL_P=spatial_p,
        SPATIAL_KEEP=_kept(spatial_c, spatial_p, threads, vec, unit_stride=channels_last),
        APPLY_C=apply_c,
        APPLY_P=apply_p,
        APPLY_SPLIT=max(apply_c, apply_split),
        MAP_P=min(P, 256),
        num_warps=_WARPS,
        programs_per_sm=8,
    )


def _config(row: _Shape, C: int, P: int, R: int, itemsize: int, vec: int, channels_last: bool) -> Config:
    threads = 32 * row.num_warps
    span = row.span // itemsize
    narrow = ACCESS_BYTES // itemsize // vec
    at_once = threads * vec * (row.accesses if narrow == 1 else 2 * row.accesses)
    pixels = min(P, max(16, P // 8))
    if channels_last:
        pool_c = min(C, span)
        pool_p = min(pixels, max(1, at_once // pool_c))
        spatial_p = min(pixels, max(16, at_once // pool_c), max(16, _STAGE_TILE // C))
        spatial_c = min(C, span, max(1, at_once // spatial_p))
    else:
        pool_p = min(span, max(16, P // 16), P)
        pool_c = min(C, max(16, min(row.pool_tile // P, max(at_once // 2 // pool_p, 32))))
        spatial_p = min(span, pixels, max(16, _STAGE_TILE // C))
        spatial_c = min(C, max(1, at_once // spatial_p))
    return Config(
        POOL_C=pool_c,
        POOL_P=pool_p,
        POOL_SPLIT=max(pool_p, row.pool_tile // pool_c),
        POOL_KEEP=_kept(pool_p, pool_c, threads, vec, unit_stride=not channels_last),
        POOL_R=min(R, max(1, _POOL_WEIGHTS * threads // max(pool_c, 64))),
        POOL_DEPTH=1,
        **_mlp(C, R, pool_c, threads),
        SPATIAL_C=spatial_c,
        SPATIAL_P=spatial_p,
        SPATIAL_KEEP=_kept(spatial_c, spatial_p, threads, vec, unit_stride=channels_last),
        APPLY_C=spatial_c,
        APPLY_P=spatial_p,
        APPLY_SPLIT=max(spatial_c, _STAGE_TILE // spatial_p),
        MAP_P=min(P, 128),
        num_warps=row.num_warps,
        programs_per_sm=row.programs_per_sm,
    )


def _mlp(C: int, R: int, pool_c: int, threads: int) -> dict[str, int]:
    """Channels that a program owns and whose weights it holds at once, and blocks of the pool that it adds at once."""
    split = min(C, max(64, min(128, C // 16)))
    channels = min(split, max(1, _MLP_WEIGHTS * threads // R))
    return {
        "MLP_C": channels,
        "MLP_SPLIT": split,
        "MLP_T": max(1, min(16 * threads // R, power_above(-(-C // pool_c)))),
    }


def _kept(reduced: int, other: int, threads: int, vec: int, unit_stride: bool) -> int:
    """How many of `reduced` elements lie in different threads, so that the rest can be reduced inside a thread."""
    if unit_stride:
        return max(1, reduced // vec)
    return min(reduced, max(1, threads * vec // other))


def power_above(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()
