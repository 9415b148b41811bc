"""What launches a layer: ask it, choose it, keep it. Nothing here times anything; `python -m bench tune` does.

    from cbam_triton import tuning

    print(tuning.explain(model, x))  # schedule, tile sizes and where they are from, for every launch of a call
    tuning.use("table.json")  # what `python -m bench distill` wrote; None takes it away

One candidate for all layers, for an experiment: `cbam_triton.settings(config=candidate)`.
"""

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from .kernels.launch import hardware
from .kernels.launch.candidate import Candidate
from .kernels.launch.problem import Problem

if TYPE_CHECKING:
    from .prediction.predict import Prediction

__all__ = ["Candidate", "Explanation", "Problem", "Recording", "explain", "record", "sync", "use", "warmup"]


class Explanation(NamedTuple):
    """Why one call is launched as it is. `candidate` is what `settings(config=...)` takes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    problem: Problem
    candidate: Candidate
    source: str  # "default", "settings", or the name of a table and its device
    reason: str
    predicted: "tuple[Prediction, ...]" = ()  # of each launch, where the GPU and its compiled code are known


class _Explanations(list[Explanation]):
    def __str__(self) -> str:
        return "\n".join(_line(found) for found in self) or "no kernel was launched: the reference computes this"


class Recording:
    """The problems that calls met, in the order in which they were met first, with how often."""

    def __init__(self) -> None:
        self.met: dict[tuple[Any, ...], int] = {}
        self.plans: list[tuple[Any, Tensor]] = []

    def problems(self) -> list[dict[str, Any]]:
        """One object a problem, as `python -m bench tune --problems` reads them."""
        rows = []
        for (shape, dtype, channels_last, problem, code), calls in self.met.items():
            given = {"shape": list(shape), "dtype": dtype, "channels_last": channels_last, "variant": code}
            rows.append({**given, "problem": problem._asdict(), "calls": calls})
        return rows

    def explanations(self) -> "list[Explanation]":
        """One entry for each launch, in their order; printed, one line each."""
        found = _Explanations()
        for plan, x in self.plans:
            shape = tuple(x.shape)
            found.append(Explanation(shape, x.dtype, plan.problem, plan.candidate, plan.source, plan.reason))
        return found

    def save(self, path: str | PathLike[str]) -> None:
        """Write the problems as JSON, whole or not at all. Raises: OSError where that cannot be."""
        from .kernels.launch.tables import write_whole

        write_whole(Path(path), json.dumps(self.problems(), indent=1) + "\n")

    def _listen(self, plan: Any, x: Tensor) -> None:
        from .spec.variant import encoded

        dtype = str(x.dtype).removeprefix("torch.")
        key = (tuple(x.shape), dtype, plan.problem.channels_last, plan.problem, encoded(plan.variant))
        self.met[key] = self.met.get(key, 0) + 1
        self.plans.append((plan, x))


@contextlib.contextmanager
def record() -> Iterator[Recording]:
    """Note the problems that launches meet in the block, of every thread.

    >>> import torch
    >>> from cbam_triton import CBAM, tuning
    >>> with tuning.record() as met:
    ...     _ = CBAM(16)(torch.randn(2, 16, 8, 8))
    >>> len(met.problems()) in (0, 1)  # none where the reference runs
    True
    """
    recording = Recording()
    if hardware.why_no_triton() is not None:
        yield recording
        return
    from .kernels.launch.tensors import LISTENERS

    listen = recording._listen
    LISTENERS.append(listen)
    try:
        yield recording
    finally:
        LISTENERS.remove(listen)


def explain(layer: nn.Module, x: Tensor, training: bool = False) -> list[Explanation]:
    """How the launches of layer(x) are chosen, one entry each; printed, one line each.

    The layer may be a `CBAM`, one of its parts, or a model with some inside; it runs once, as a copy in eval mode
    without gradients, or with `training` as a copy that trains and computes gradients.
    On a GPU of `prediction/devices.json`, `predicted` has the time of each launch of the staged schedule for a 16-bit x
    and what limits it: predicted from the compiled code, not measured.
    Raises: TypeError for a layer that is no module and an x that is no tensor; what the layer raises for x.

        >>> import torch
        >>> from cbam_triton import CBAM, tuning
        >>> found = tuning.explain(CBAM(16), torch.randn(2, 16, 8, 8))
        >>> all(entry.candidate.schedule in ("staged", "wavefront") for entry in found)
        True
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer must be a module, got {type(layer).__name__}: pass a CBAM, or a model with some inside")
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}: pass what the layer is called with")
    if hardware.why_no_triton() is not None:
        return _explained(layer, x, training)
    from .prediction.here import noted, predicted_here

    with noted() as calls:
        found = _explained(layer, x, training)
    rows = zip(found, calls, strict=False)
    return _Explanations(one._replace(predicted=predicted_here(call)) for one, call in rows)


def use(path: str | PathLike[str] | None) -> None:
    """Take tuned problems from this table first, in the whole process and from the next call on; None: no longer.

    Compiled models follow. Problems that the table does not have keep what they had. Nothing changes if it fails.
    Warns: UserWarning where the table is of another device than every one that is here.
    Raises: OSError for a file that cannot be read, ValueError for one that is no table, RuntimeError without Triton.

        tuning.use("table.json")
    """
    why = hardware.why_no_triton()
    if why is not None:
        raise RuntimeError(f"no kernels, so nothing to tune: {why}")
    from .kernels.launch import tables

    if path is None:
        tables.use(None)
        return
    if not isinstance(path, (str, PathLike)):
        raise TypeError(f"path must be the path of a table, or None, got {type(path).__name__}: pass a str or Path")
    table = tables.read_table(Path(path))
    here = sorted({hardware.facts(device).name for device in _devices()})
    if here and table.device not in here:
        import warnings

        warnings.warn(
            f"{table.name} is of {table.device}, and here is {', '.join(here)}: it is asked on that device alone",
            stacklevel=2,
        )
    tables.use(table)


def warmup(
    model: nn.Module,
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    *,
    training: bool = False,
) -> list[Explanation]:
    """Compile all kernels that inputs of these shapes and dtypes need, before serving or capture; what they are.

    A copy of the model runs once on zeros of each shape (N, C, *pixels) and dtype, on the model's device and in its
    memory format; with `training` it also computes gradients. The model itself, its statistics and gradients stay as
    they are. Calls after it compile nothing, so that they can be captured in a CUDA graph.
    Raises: TypeError for a model that is no module; ValueError without shapes; what the model raises for an input.

        tuning.warmup(model, [(1, 3, 224, 224), (8, 3, 224, 224)], [torch.float16])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module, got {type(model).__name__}: pass the layer or network to warm up")
    if not shapes or not dtypes:
        raise ValueError("warmup needs at least one shape and one dtype: pass those of the inputs to come")
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    found = _Explanations()
    for shape in shapes:
        for dtype in dtypes:
            x = torch.zeros(tuple(shape), dtype=dtype, device=device)
            if x.ndim == 4 and _channels_last(model):
                x = x.to(memory_format=torch.channels_last)
            found += _explained(model, x, training)
    return found


def sync(group: Any = None) -> None:
    """Give every process of the group the table that its first process has in use; all must call.

    Raises: RuntimeError where the processes have other GPUs or releases than the first, for which a table may be wrong;
    then nothing has changed. RuntimeError where no processes are joined yet, TypeError for a group that is none.

        torch.distributed.init_process_group()
        tuning.sync()
    """
    import torch.distributed as dist

    from .kernels.launch import tables

    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("sync needs processes that are joined, got none: call torch.distributed.init_process_group")
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be a ProcessGroup or None, got {group!r}: torch.distributed.new_group makes one")
    ranks = dist.get_process_group_ranks(group) if group is not None else list(range(dist.get_world_size()))
    names = sorted({hardware.facts(device).name for device in _devices()})
    mine = json.dumps([names, tables.environment()])
    everyone: list[Any] = [None] * len(ranks)
    dist.all_gather_object(everyone, mine, group=group)
    others = sorted({rank for rank, theirs in zip(ranks, everyone, strict=True) if theirs != everyone[0]})
    if others:
        raise RuntimeError(
            f"ranks {', '.join(map(str, others))} have another GPU or other releases than rank {ranks[0]}: "
            f"{everyone[ranks.index(others[0])]} is not {everyone[0]}; tune each kind of GPU for itself"
        )
    table: list[Any] = [tables.used()]
    dist.broadcast_object_list(table, src=ranks[0], group=group)
    tables.use(table[0])


def _explained(layer: nn.Module, x: Tensor, training: bool) -> list[Explanation]:
    with record() as met:
        _run(layer, x, training)
    return met.explanations()


def _run(layer: nn.Module, x: Tensor, training: bool) -> None:
    copied = copy.deepcopy(layer).train(training)
    if not training:
        with torch.no_grad():
            copied(x)
        return
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(x.is_floating_point())
        y = copied(leaf)
        tensors = [t for t in _pytree.tree_leaves(y) if isinstance(t, Tensor) and t.requires_grad]
        torch.autograd.backward([t.sum() for t in tensors])


def _channels_last(model: nn.Module) -> bool:
    """Whether a weight lies in this memory format and not also in the other."""
    weights = [p for p in model.parameters() if p.ndim == 4 and not p.is_contiguous()]
    return any(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def _devices() -> list[torch.device]:
    kind = hardware.device_type()
    if kind is None:
        return []
    count = torch.cuda.device_count() if kind == "cuda" else 1
    return [torch.device(kind, i) if kind == "cuda" else torch.device(kind) for i in range(count)]


def _line(found: Explanation) -> str:
    size, dtype = "x".join(map(str, found.shape)), str(found.dtype).removeprefix("torch.")
    problem, tiles = found.problem, found.candidate.tiles
    layout = "channels_last" if problem.channels_last else "NCHW"
    step = "backward" if problem.backward else "forward"
    return (
        f"{size} {dtype} {layout} {step}: {found.candidate.schedule}, {tiles.num_warps} warps, "
        f"pool {tiles.POOL_C}x{tiles.POOL_P}, spatial {tiles.SPATIAL_C}x{tiles.SPATIAL_P}, "
        f"apply {tiles.APPLY_C}x{tiles.APPLY_P}; from {found.source}: {found.reason}"
        + "".join(f"\n  predicted {_predicted_line(one)}" for one in found.predicted)
    )


def _predicted_line(one: "Prediction") -> str:
    stage = one.kernel.removesuffix("_kernel")
    return f"{stage}: {one.us:.1f} us ({one.low:.1f} to {one.high:.1f}), limited by {one.limiter}"
