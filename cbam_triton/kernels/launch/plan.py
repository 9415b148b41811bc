"""Plans: everything about a launch that does not depend on values, worked out once for a shape and kept."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ...spec.variant import Variant, decoded, maps_of
from ..stages.descriptors import HALF, POOLS, biases_of, slots_of
from ..stages.packs import Form, Layout
from ..stages.padded_map import gradient_lead, gradient_size, padded_size, plane_of, zeros_around
from . import grid, schedule, tables
from .candidate import Candidate
from .choice import choose
from .hardware import DeviceFacts
from .layout import PixelStrides, access_width, needs_wide_offsets, output_like, pixel_strides, pixel_strides_as
from .problem import Problem
from .tile_sizes import power_above

_NORM_PROGRAMS = 256  # at most; each leaves two sums, which every program adds up
_MULTIPLE = 16  # elements: as far as wider accesses come from it


class MapSizes(NamedTuple):
    """Pixels of one sample's map with the zeros around it, and elements of its gradient; see `padded_map`."""

    plane: int
    zeros: int
    padded: int
    gradient_lead: int
    gradient: int


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How one problem is launched, where that is from, and why it is so."""

    problem: Problem
    variant: Variant
    candidate: Candidate
    source: str  # of the candidate: "default", "settings", or the table that has it
    reason: str
    lag: int
    x_strides: tuple[int, int, int]  # as N C P
    y_strides: tuple[int, int, int]
    sizes: tuple[int, ...]  # N, C, H, W, planes, R: as the kernels take them
    blocks: int  # of channels
    partials: int  # chunks * POOL_C of a block; 0 with one chunk
    maps: MapSizes
    acc: torch.dtype  # of scratch and gates
    form: Form
    layout: Layout
    dependent_launches: bool
    norm_programs: int  # of the norm's gradients
    prepared: dict[Any, Any] = dataclasses.field(default_factory=dict)  # launches, by `launcher`

    @property
    def schedule(self) -> str:
        """Its name."""
        return self.candidate.schedule


@functools.lru_cache(maxsize=8192)
def plan(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    address: int,
    dtype: torch.dtype,
    R: int,
    K: int,
    wanted: str,
    device: DeviceFacts,
    backward: bool = False,
    dims: int = 2,
    variant: str = "",
    planes: int = 1,
    norm_eps: float = 0.0,
    wide: bool = False,
) -> Plan:
    """The plan for an x of this shape, strides, address (modulo the widest access) and dtype.

    R is the hidden width, 0 without channel attention, K the kernel size over `dims` axes, 0 without spatial attention;
    `variant` is an `encoded` one. `wanted` is "auto", a
    schedule, or the JSON of a candidate (`choice.choose`). With `wide` another tensor
    of x's shape needs offsets of 64 bits.
    Raises: ValueError for maps of so many pixels that 32 bits do not count their values.
    """
    x_strides, y_strides = _strides_of(shape, strides, dtype)
    options = decoded(variant)
    N, C, H, W = shape
    maps = _map_sizes(H, W, planes, K, dims)
    vec = access_width(C, H * W, dtype.itemsize, address, x_strides, y_strides)
    form = _form(options, C, R, K, dims, dtype, norm_eps)
    problem = Problem(
        N, C, H * W, R, K, dtype.itemsize, vec, x_strides.channels_last, backward, dims,
        options.arrangement == "spatial_first", form.SLOTS,
    )  # fmt: skip
    candidate, source, reason = choose(problem, device, wanted)
    blocks, chunks = grid.pool_blocks(problem, candidate.tiles)
    wide = wide or any(needs_wide_offsets(C, H * W, s.c, s.p) for s in (x_strides, y_strides))
    layout = Layout(vec, x_strides.channels_last, tl.int64 if wide else tl.int32, False)
    return Plan(
        problem=problem,
        variant=options,
        candidate=candidate,
        source=source,
        reason=reason,
        lag=schedule.lag(problem, candidate.tiles, device) if candidate.lag is None else candidate.lag,
        x_strides=(x_strides.n, x_strides.c, x_strides.p),
        y_strides=(y_strides.n, y_strides.c, y_strides.p),
        sizes=(N, C, H, W, planes, R),
        blocks=blocks,
        partials=chunks * candidate.tiles.POOL_C if chunks > 1 else 0,
        maps=maps,
        acc=torch.float64 if dtype == torch.float64 else torch.float32,
        form=form,
        layout=layout,
        dependent_launches=device.dependent_launches,
        norm_programs=min(_NORM_PROGRAMS, power_above(2 * device.sm_count)),
    )


def _strides_of(
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype
) -> tuple[PixelStrides, PixelStrides]:
    """Strides of x and of the output for it."""
    x = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    x_strides = pixel_strides(x)
    assert x_strides is not None, f"layout.merged was not asked about strides {strides}"
    y_strides = pixel_strides_as(output_like(x), x_strides.channels_last)
    assert y_strides is not None
    return x_strides, y_strides


def _map_sizes(H: int, W: int, planes: int, K: int, dims: int) -> MapSizes:
    """The sizes of a map; two of them, with the zeros around, are indexed by 32 bits."""
    plane = plane_of.fn(H, W, planes, dims)
    zeros = zeros_around.fn(W, K, dims)
    padded = padded_size.fn(H * W, max(plane, 1), zeros, dims)
    if padded >= 1 << 30:
        raise ValueError(
            f"expected fewer than 2^30 pixels a sample, with those that the convolution pads, got {H * W}: "
            'use settings(backend="reference"), or cut the maps'
        )
    lead = gradient_lead.fn(zeros)
    return MapSizes(plane, zeros, padded, lead, gradient_size.fn(padded, zeros, lead))


def _form(variant: Variant, C: int, R: int, K: int, dims: int, dtype: torch.dtype, norm_eps: float) -> Form:
    """What the layer computes."""
    pools = pool_bits(variant)
    maps, rows, block_k = maps_of(variant), K ** (dims - 1), triton.next_power_of_2(max(1, K))
    return Form(
        CHANNEL_POOLS=pools,
        SLOTS=slots_of(pools),
        BIASES=biases_of(pools),
        SPATIAL_POOLS="half" if variant.light else "+".join(sorted(variant.spatial_pools, reverse=True)),
        MAPS=maps,
        ARRANGEMENT=variant.arrangement,
        HARD=variant.gate == "hard_sigmoid",
        C_MULTIPLE=math.gcd(C, _MULTIPLE),
        R_MULTIPLE=math.gcd(R, _MULTIPLE),
        K=K,
        DIMS=dims,
        TAP_ROWS=rows,
        BLOCK_K=block_k,
        BLOCK_R=triton.next_power_of_2(max(1, R)),
        SHARE=maps * rows * block_k + 8,  # rows of taps of every map, a sector of float32 for the bias
        NORM_EPS=norm_eps,
        ACC=tl.float64 if dtype == torch.float64 else tl.float32,
    )


def pool_bits(variant: Variant) -> int:
    """The descriptors of a channel as bits, see `descriptors`."""
    return sum(POOLS[name] for name in variant.channel_pools) + (HALF.value if variant.light else 0)


tables.when_changed(plan.cache_clear)
