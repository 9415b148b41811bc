"""How many programs a stage has, and how many samples apart the stages of a wavefront are."""

from .config import L2_SHARE, Config, Problem, Sizes
from .device import DeviceFacts

TAP_SPLIT = 1 << 12  # pixels over which a program correlates a row of taps, in whole MAP_P


def pool_grid(problem: Problem, sizes: Config) -> tuple[int, int]:
    """(blocks, chunks) of the channel pool of one sample: what `channel_pool.pool_grid` computes on the device."""
    return _pool_grid(problem, sizes.POOL_C, sizes.POOL_P, sizes.POOL_SPLIT)


def _pool_grid(problem: Problem, block_c: int, block_p: int, split: int) -> tuple[int, int]:
    chunk = _divide(_divide(problem.P, _divide(problem.P, split)), block_p) * block_p
    return _divide(problem.C, block_c), _divide(problem.P, chunk)


def pool_tiles(problem: Problem, sizes: Sizes) -> int:
    """Programs a sample in the channel pool; whole blocks of whole chunks."""
    blocks, chunks = _pool_grid(problem, sizes["POOL_C"], sizes["POOL_P"], sizes["POOL_SPLIT"])
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


def lag(problem: Problem, config: Config, device: DeviceFacts) -> int:
    """Samples between one stage of the wavefront and the next.

    Enough that a tile's inputs were handed out before anything now resident, so that waits are rare; but no more than
    L2 holds: a sample lives from its first read to its last, `stages` lags and the programs in between. In a backward
    a sample is x and its gradient, and there is a stage more if there is a convolution.
    """
    resident = config.programs_per_sm * device.sm_count
    tiles = (backward_tiles if problem.backward else wavefront_tiles)(problem, config._asdict())
    in_flight = resident / tiles
    stages = (2 if problem.R and problem.K else 1) + (
        1 if problem.K and (problem.backward or problem.spatial_first) else 0
    )
    wanted = int(in_flight) + 1
    sample_bytes = problem.C * problem.P * problem.itemsize * (2 if problem.backward else 1)
    held = int((L2_SHARE * device.l2_bytes / sample_bytes - in_flight - 1) / stages)
    return max(1, min(wanted, held))


def _divide(a: int, b: int) -> int:
    return -(-a // b)
