"""Launches: a kernel on the grid of a plan, with the plan's constants."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...settings import Labels
from ..stages.packs import Tiles, constants
from . import grid
from .hardware import INTERPRETER_LOCK, interpreted, is_nvidia
from .plan import Plan
from .prepared import Launch
from .problem import Problem
from .schedule import registers
from .tensors import Call
from .tile_sizes import Sizes


def launch(
    call: Call, kernel: Any, stages: tuple[str, ...], tiles: Callable[[Problem, Sizes], int],
    *arguments: Any, first: bool = False, aligned: bool = False, **options: Any,
) -> None:  # fmt: skip
    """Launch `tiles` programs a sample with the tile sizes of `stages`, of the plan's candidate.

    `first` says that no launch of this call comes before; where the GPU can, any other begins before that one has
    ended. `aligned` says whether the gradient among the arguments can be read as x is. Other compile-time constants
    that the plan does not know are `options`.
    """
    prepared = call.plan.prepared
    key = (id(kernel), tiles, call.training, first, aligned, *options.values())
    found = prepared.get(key)
    if found is None:
        found = prepared[key] = _prepared(
            call.plan, kernel, stages, tiles, call.training, first, aligned, options
        )  # fmt: skip
    around = _around_launch(call.x, kernel)
    if around is None:
        found(arguments)
    else:
        with around:
            found(arguments)


def launch_once(call: Call, kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Launch so many programs in all, of four warps each, after others of this call."""
    prepared = call.plan.prepared
    key = (id(kernel), programs, *options.values())
    found = prepared.get(key)
    if found is None:
        known = {"FORM": constants(call.plan.form), "enable_fp_fusion": True, **options}
        known |= _chain(call.plan, kernel, first=False)
        found = prepared[key] = Launch(kernel, (programs,), known)
    with _around_launch(call.x, kernel) or contextlib.nullcontext():
        found(arguments)


def _prepared(
    plan: Plan,
    kernel: Any,
    stages: tuple[str, ...],
    tiles: Callable[[Problem, Sizes], int],
    training: bool,
    first: bool,
    aligned: bool,
    options: dict[str, Any],
) -> Launch:
    packs = {"FORM": plan.form, "LAYOUT": plan.layout._replace(ALIGNED=aligned)}
    known = {name: constants(pack) for name, pack in packs.items() if name in kernel.arg_names}
    known |= {"enable_fp_fusion": True, **options, **_chain(plan, kernel, first)}
    limit = plan.candidate.registers
    limit = registers(plan.problem, plan.schedule, training) if limit is None else limit
    if limit and is_nvidia():
        known["maxnreg"] = limit
    sizes = plan.candidate.tiles.of(*stages)
    programs = plan.problem.N * tiles(plan.problem, sizes)
    if "MAP" in stages:
        sizes["MAP_SPLIT"] = grid.TAP_SPLIT
    known |= {"TILES": constants(Tiles(**sizes)), "num_warps": plan.candidate.tiles.num_warps}
    return Launch(kernel, (programs,), known)


def _chain(plan: Plan, kernel: Any, first: bool) -> dict[str, Any]:
    """How a launch follows the one before it: see `signals.follow`."""
    if "CHAINED" not in kernel.arg_names:
        return {}
    chained = plan.dependent_launches
    return {"CHAINED": chained, **({"launch_pdl": True} if chained and not first else {})}


def _around_launch(x: Tensor, kernel: Any) -> Any:
    """What a launch needs around it: x's CUDA device as the current one, the interpreter's lock, a label, or None."""
    around = None
    if x.is_cuda:
        around = torch.cuda.device(x.device) if x.get_device() != torch.cuda.current_device() else None
    elif interpreted():
        around = INTERPRETER_LOCK
    return around if Labels.blocks == 0 else _labelled(x, kernel, around)


@contextlib.contextmanager
def _labelled(x: Tensor, kernel: Any, around: Any) -> Iterator[None]:
    size, dtype = "x".join(map(str, x.shape)), str(x.dtype).removeprefix("torch.")
    label = f"cbam_triton {size} {dtype}: {kernel.__name__.removesuffix('_kernel')}"
    with torch.profiler.record_function(label), around or contextlib.nullcontext():
        yield
