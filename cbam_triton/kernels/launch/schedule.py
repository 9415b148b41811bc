"""Which schedule runs, how far apart the stages of a wavefront are, how many registers a thread may have."""

from . import grid
from .hardware import DeviceFacts
from .problem import Problem
from .tile_sizes import Config, power_above

L2_SHARE = 0.8  # of L2 that x may take; the rest is for y, weights and other launches


def choose_schedule(problem: Problem, device: DeviceFacts) -> tuple[str, str]:
    """(schedule, reason) that "auto" takes for a problem on a device."""
    x_bytes = problem.N * problem.C * problem.P * problem.itemsize * (2 if problem.backward else 1)
    sample_bytes = x_bytes // max(1, problem.N)
    if 3 * sample_bytes > L2_SHARE * device.l2_bytes:
        return "staged", "three samples do not fit in L2: nothing to keep there"
    if x_bytes < 2 * device.l2_bytes:
        return (
            "staged",
            "much of x stays in L2 from one stage to the next: programs of their own size for each stage win",
        )
    if problem.P < _PIXELS_OF_A_WAVE:
        return "staged", "maps are small: a sample's stages would wait for each other"
    return "wavefront", "samples in flight fit in L2, and x does not: x is read from DRAM once"


_PIXELS_OF_A_WAVE = 1024  # from here on a sample has programs enough that waits are rare


def lag(problem: Problem, config: Config, device: DeviceFacts) -> int:
    """Samples between one stage of the wavefront and the next.

    Enough that a tile's inputs were handed out before anything now resident, so that waits are rare; but no more than
    L2 holds: a sample lives from its first read to its last, `stages` lags and the programs in between. In a backward
    a sample is x and its gradient, and there is a stage more if there is a convolution.
    """
    resident = config.programs_per_sm * device.sm_count
    tiles = (grid.backward_tiles if problem.backward else grid.wavefront_tiles)(problem, config._asdict())
    in_flight = resident / tiles
    stages = (2 if problem.R and problem.K else 1) + (
        1 if problem.K and (problem.backward or problem.spatial_first) else 0
    )
    wanted = int(in_flight) + 1
    sample_bytes = problem.C * problem.P * problem.itemsize * (2 if problem.backward else 1)
    held = int((L2_SHARE * device.l2_bytes / sample_bytes - in_flight - 1) / stages)
    return max(1, min(wanted, held))


def registers(problem: Problem, schedule: str, training: bool) -> int:
    """The most registers of a thread, on NVIDIA, for kernels that ptxas left alone makes spill a word, to fit one more
    program on an SM; 0 leaves it alone."""
    if problem.backward and problem.spatial_first and problem.slots > 2:
        return 200  # x, and the gradients of its four descriptors, in two stages
    if problem.backward or (training and (schedule == "staged" or problem.itemsize > 2)):
        return 168
    if schedule == "wavefront" and power_above(problem.C) >= 2048:
        return 200  # a program that has every stage in it
    return 168 if power_above(problem.C) >= 512 else 0
