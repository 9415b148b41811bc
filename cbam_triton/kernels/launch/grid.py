"""How many programs a stage has."""

from ..stages.channel_pool import pool_grid
from .problem import Problem
from .tile_sizes import Config, Sizes

TAP_SPLIT = 1 << 11  # pixels over which a program correlates a row of taps, in whole MAP_P


def pool_blocks(problem: Problem, row: Config) -> tuple[int, int]:
    """(blocks, chunks) of the channel pool of one sample."""
    blocks, chunks, _ = pool_grid.fn(problem.C, problem.P, row.POOL_C, row.POOL_P, row.POOL_SPLIT)
    return blocks, chunks


def pool_tiles(problem: Problem, sizes: Sizes) -> int:
    """Programs a sample in the channel pool; whole blocks of whole chunks."""
    blocks, chunks, _ = pool_grid.fn(problem.C, problem.P, sizes["POOL_C"], sizes["POOL_P"], sizes["POOL_SPLIT"])
    return blocks * chunks


def mlp_tiles(problem: Problem, sizes: Sizes) -> int:
    """Programs a sample in the channel MLP of the staged schedule."""
    return _divide(problem.C, sizes["MLP_SPLIT"])


def spatial_tiles(problem: Problem, sizes: Sizes) -> int:
    """Programs a sample in the spatial pool."""
    return _divide(problem.P, sizes["SPATIAL_P"])


def pixel_tiles(problem: Problem, sizes: Sizes) -> int:
    """Programs a sample where the last stage stops at the logits."""
    return _divide(problem.P, sizes["APPLY_P"])


def apply_tiles(problem: Problem, sizes: Sizes) -> int:
    """Programs a sample in the last stage."""
    return pixel_tiles(problem, sizes) * _divide(problem.C, sizes["APPLY_SPLIT"])


def wavefront_tiles(problem: Problem, sizes: Sizes) -> int:
    """Programs a sample in the wavefront."""
    gate_map = pixel_tiles(problem, sizes) if problem.spatial_first else 0
    return _gate_tiles(problem, sizes) + gate_map + apply_tiles(problem, sizes)


def tap_chunks(problem: Problem) -> int:
    """Shares a sample in the gradient of the convolution's weight."""
    return _divide(problem.P, TAP_SPLIT)


def map_tiles(problem: Problem, sizes: Sizes, taps: bool = True) -> int:
    """Programs a sample that go back through the convolution: to the maps, with `taps` to its weight too."""
    return _divide(problem.P, sizes["MAP_P"]) + (tap_chunks(problem) * problem.tap_rows if taps else 0)


def backward_tiles(problem: Problem, sizes: Sizes, taps: bool = True, logits: bool = True, rest: bool = True) -> int:
    """Programs a sample in the wavefront of the backward.

    Without `logits` it begins at the convolution's output; without `rest`, which is for the spatial gate first, it ends
    there.
    """
    tiles = 0
    if rest:
        tiles += apply_tiles(problem, sizes) + (map_tiles(problem, sizes, taps) if problem.K else 0)
    if problem.K and logits:
        tiles += spatial_tiles(problem, sizes)
    if problem.R and (logits or not problem.spatial_first):
        tiles += pool_tiles(problem, sizes)
    return tiles


def wavefront_logit_tiles(problem: Problem, sizes: Sizes) -> int:
    """Programs a sample in the wavefront that stops at the logits."""
    return _gate_tiles(problem, sizes) + pixel_tiles(problem, sizes)


def _gate_tiles(problem: Problem, sizes: Sizes) -> int:
    pool = pool_tiles(problem, sizes) if problem.R else 0
    return pool + (spatial_tiles(problem, sizes) if problem.K else 0)


def _divide(a: int, b: int) -> int:
    return -(-a // b)
