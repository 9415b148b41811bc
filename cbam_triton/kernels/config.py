"""Launch configuration: tile sizes, warps, and which schedule runs. Sizes come in classes.

A tile spans one or two 128-byte lines along the axis with unit stride, so that a line is read by one program at a time,
and a thread has a few 16-byte accesses in flight. The tiles of every stage move about the same number of bytes: in the
wavefront a slow tile would make every later one wait, and the lag, and with it the share of L2, grow.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

from ..layout import ACCESS_BYTES
from .device import DeviceFacts

Sizes = Mapping[str, int]  # block sizes by name, as a kernel gets them

L2_SHARE = 0.8  # of L2 that x may take; the rest is for y, weights and what else runs


class Problem(NamedTuple):
    """What a launch configuration depends on."""

    N: int
    C: int
    P: int
    R: int  # 0 without channel attention
    K: int  # 0 without spatial attention
    itemsize: int
    vec: int  # elements of the widest access
    channels_last: bool
    backward: bool = False
    dims: int = 2  # axes of pixels
    spatial_first: bool = False
    pools: int = 2  # what `channel_pool.pool_slots` computes on the device

    @property
    def tap_rows(self) -> int:
        """Rows of the convolution's taps."""
        return self.K ** (self.dims - 1)


class Config(NamedTuple):
    """Compile-time sizes of every stage; the names are the kernels' argument names.

    A stage of the backward has the sizes of the forward's that walks the same tiles: POOL the channel gradient, SPATIAL
    the logit gradient, APPLY the input gradient.
    """

    POOL_C: int
    POOL_P: int
    POOL_SPLIT: int
    POOL_KEEP: int
    POOL_R: int
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

    def constants(self, *stages: str) -> dict[str, int]:
        """The sizes whose names begin with one of `stages`: constexprs of a kernel."""
        return {name: value for name, value in self._asdict().items() if name.startswith(stages)}


class _Shape(NamedTuple):
    """A row of a table."""

    num_warps: int  # of a program
    accesses: int  # in flight, a thread
    span: int  # bytes of a tile along the unit stride
    pool_tile: int  # elements that a channel pool program reads
    programs_per_sm: int


# First row: the default; the others are what tuning tries. Two warps a program, where a tile is large enough: what is
# spent once a thread, on addresses above all, is halved. In NCHW rows of pixels rarely begin on a line, so neighbouring
# tiles share one: a span of two lines halves the sharing. The staged schedule keeps more of x in L2 from one stage to
# the next the less of x its programs read at once, so its tiles are smaller.
# Keys: schedule, channels_last, backward. A backward's programs have accesses to two tensors in flight.
_TABLES: dict[tuple[str, bool, bool], tuple[_Shape, ...]] = {
    ("wavefront", True, False): (
        _Shape(2, 4, 128, 1 << 14, 10),
        _Shape(4, 4, 128, 1 << 14, 5),
        _Shape(2, 2, 128, 1 << 13, 12),
        _Shape(4, 2, 256, 1 << 14, 6),
    ),
    ("wavefront", False, False): (
        _Shape(2, 4, 256, 1 << 14, 8),
        _Shape(4, 4, 256, 1 << 14, 5),
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

_WEIGHTS = 16  # of the MLP that a thread holds at once
_STAGE_TILE = 1 << 15  # elements that a program of any other stage reads at most


def configs(schedule: str, problem: Problem) -> tuple[Config, ...]:
    """The table of a schedule for a problem: the default first, then what autotuning tries.

    Depends on classes only (powers of two of C, P and R, dtype, alignment, layout): a new N or a new H x W of the same
    class gives the same rows.
    """
    classes = (_power(problem.C), _power(problem.P), _power(max(problem.R, 1)))
    return _configs(schedule, *classes, problem.itemsize, problem.vec, problem.channels_last, problem.backward)


@functools.cache
def _configs(
    schedule: str, C: int, P: int, R: int, itemsize: int, vec: int, channels_last: bool, backward: bool
) -> tuple[Config, ...]:
    rows = _TABLES[schedule, channels_last, backward]
    return tuple(dict.fromkeys(_config(row, C, P, R, itemsize, vec, channels_last) for row in rows))


def _config(row: _Shape, C: int, P: int, R: int, itemsize: int, vec: int, channels_last: bool) -> Config:
    threads = 32 * row.num_warps
    weights = _WEIGHTS * threads
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
    apply_p = spatial_p
    return Config(
        POOL_C=pool_c,
        POOL_P=pool_p,
        POOL_SPLIT=max(pool_p, row.pool_tile // pool_c),
        POOL_KEEP=_kept(pool_p, pool_c, threads, vec, unit_stride=not channels_last),
        POOL_R=min(R, max(1, weights // max(pool_c, 64))),
        MLP_T=max(1, min(32 // itemsize, weights // 2 // R)),
        MLP_C=min(C, max(1, (4 if R <= 16 else 2 if R <= 64 else 1) * weights // 2 // R)),  # short rows cost less
        MLP_SPLIT=min(C, max(1, 16384 // R)),
        SPATIAL_C=spatial_c,
        SPATIAL_P=spatial_p,
        SPATIAL_KEEP=_kept(spatial_c, spatial_p, threads, vec, unit_stride=channels_last),
        APPLY_C=spatial_c,
        APPLY_P=apply_p,
        APPLY_SPLIT=max(spatial_c, _STAGE_TILE // apply_p),
        MAP_P=min(P, 128),
        num_warps=row.num_warps,
        programs_per_sm=row.programs_per_sm,
    )


def _kept(reduced: int, other: int, threads: int, vec: int, unit_stride: bool) -> int:
    """How many of `reduced` elements lie in different threads, so that the rest can be reduced inside a thread."""
    if unit_stride:
        return max(1, reduced // vec)
    return min(reduced, max(1, threads * vec // other))


def registers(problem: Problem, schedule: str, training: bool) -> int:
    """The most registers of a thread, on NVIDIA, for kernels that ptxas left alone makes spill a word, to fit one more
    program on an SM; 0 leaves it alone."""
    if problem.backward and problem.spatial_first and problem.pools > 2:
        return 200  # x, and the gradients of its four descriptors, in two stages
    if problem.backward or (training and (schedule == "staged" or problem.itemsize > 2)):
        return 168
    return (168 if training else 128) if _power(problem.C) >= 512 else 0


def choose_schedule(problem: Problem, device: DeviceFacts) -> tuple[str, str]:
    """(schedule, reason) that "auto" takes for a problem on a device."""
    x_bytes = problem.N * problem.C * problem.P * problem.itemsize * (2 if problem.backward else 1)
    sample_bytes = x_bytes // max(1, problem.N)
    if 3 * sample_bytes > L2_SHARE * device.l2_bytes:
        return "staged", "three samples do not fit in L2: nothing to keep there"
    if problem.R * problem.C >= 1 << 17 and 2 * x_bytes < L2_SHARE * device.l2_bytes:
        return "staged", "x fits in L2 and the MLP is large: spread over many programs it is faster than in one"
    return "wavefront", "samples in flight fit in L2: x is read from DRAM once"


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
