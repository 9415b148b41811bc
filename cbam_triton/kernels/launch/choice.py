"""Which candidate launches a problem: the one that is asked for, one from a table, or the default."""

import os
import warnings
from typing import NamedTuple

from . import tables
from .candidate import Candidate
from .hardware import DeviceFacts
from .problem import Problem
from .schedule import choose_schedule
from .tile_sizes import configs


def warn_of_autotune() -> None:
    """Say what to do instead where the environment asks for what is gone: timing at a first call."""
    if os.environ.get("CBAM_TRITON_AUTOTUNE", "0") not in ("", "0"):
        warnings.warn(
            "CBAM_TRITON_AUTOTUNE does nothing any more, no call times anything: run `python -m bench tune` and "
            "`python -m bench distill` once, then cbam_triton.tuning.use(path)",
            FutureWarning,
            stacklevel=2,
        )


warn_of_autotune()


class Choice(NamedTuple):
    """A candidate, where it is from, and why."""

    candidate: Candidate
    source: str
    reason: str


def choose(problem: Problem, device: DeviceFacts, wanted: str) -> Choice:
    """The choice for a problem on a device.

    `wanted` is the JSON of a candidate, a schedule, or "auto": then a table may have the problem, of which the first of
    `tables.lookup` counts; else the schedule is chosen by rule. Tile sizes that nobody asked for are the default's.
    Raises: ValueError for a candidate that the problem does not take.
    """
    if wanted.startswith("{"):
        candidate = Candidate.parse(wanted)
        why = unfit(candidate, problem)
        if why is not None:
            raise ValueError(f"the candidate of settings(config=...) cannot launch {problem}: {why}")
        return Choice(candidate, "settings", "it was asked for")
    if wanted == "auto":
        found = tables.lookup(problem, device)
        if found is not None and unfit(found.candidate, problem) is None:
            return Choice(found.candidate, found.source, found.reason)
        chosen = default(problem, device)
        return chosen._replace(reason=chosen.reason + tables.passed_over(device.name))
    return Choice(Candidate(wanted, configs(wanted, problem)[0]), "default", "the schedule was asked for")


def default(problem: Problem, device: DeviceFacts) -> Choice:
    """What runs where nothing was tuned and nothing is asked for."""
    schedule, reason = choose_schedule(problem, device)
    return Choice(Candidate(schedule, configs(schedule, problem)[0]), "default", reason)


def unfit(candidate: Candidate, problem: Problem) -> str | None:
    """Why the kernels would compute something else with this candidate; None if they take it."""
    sizes = candidate.tiles._asdict()
    along = "C" if problem.channels_last else "P"
    for stage in ("POOL", "SPATIAL", "APPLY"):
        name = f"{stage}_{along}"
        if sizes[name] % problem.vec:
            return f"{name} must be a multiple of the {problem.vec} elements of an access, got {sizes[name]}"
    return candidate.impossible()
