"""The check behind `python -m cbam_triton`: every backend and schedule on a photograph, compared and timed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .. import CBAM, AttentionMaps, settings
from ..settings import Backend, Schedule
from ..testing.agreement import Agreement, agreement, gradient_agreement
from ..testing.published import JONGCHAN_NAMES, JongchanCBAM, jongchan_like, timm_like
from ..testing.timing import CompileFailed, Timing, compiled, interleaved
from .environment import Machine
from .photograph import STAGES, Stage, feature_maps, make_layer

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
REFERENCE: tuple[Backend, Schedule | None] = ("reference", None)
KERNELS: tuple[tuple[Backend, Schedule | None], ...] = (("triton", "staged"), ("triton", "wavefront"))
# The interpreter needs about a second for 10^5 elements: one sample, cut to this many channels and pixels a side.
CROP_CHANNELS = 64
CROP_SIDE = 10


class Progress(Protocol):
    """A progress bar such as tqdm's."""

    def set_description(self, desc: str) -> None: ...

    def update(self) -> object: ...


@dataclass
class Row:
    """One line of the table; times in seconds, speeds as time of the other over time of this one."""

    shape: str
    layout: str
    backend: Backend
    schedule: Schedule | None
    agreement: Agreement
    gradients: Agreement
    timing: Timing | None = None
    over_eager: str = "-"
    over_compiled: str = "-"
    noisy: bool = False
    crop: bool = False

    @property
    def name(self) -> str:
        """Backend and schedule in words."""
        return f"{self.backend} {self.schedule or ''}".rstrip()

    @property
    def ok(self) -> bool:
        """Whether the result and all gradients are right."""
        return self.agreement.ok and self.gradients.ok


@dataclass
class Outcome:
    """What a check found: rows of the table, gates of the first view by stage, remarks to print below."""

    rows: list[Row] = field(default_factory=list)
    gates: dict[Stage, AttentionMaps] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


class _Yardstick(NamedTuple):
    """What a map's results are compared with: the published form's at the same dtype, and fp64's."""

    eager: Tensor
    want: Tensor
    dy: Tensor
    eager_gradients: dict[str, Tensor]
    want_gradients: dict[str, Tensor]


class _CompileBudget:
    """Seconds left for torch.compile in this run: the first compilation on a CPU alone may take half a minute."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self.failure: str | None = None

    def compile(self, module: torch.nn.Module, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        if self.left <= 0 or self.failure:
            return None
        begin = time.perf_counter()
        try:
            return compiled(module, x)
        except CompileFailed as error:
            self.failure = str(error)
            return None
        finally:
            self.left -= time.perf_counter() - begin


def run_with(backend: Backend, schedule: Schedule | None, layer: CBAM, x: Tensor) -> Tensor:
    """The layer's output by one backend and schedule."""
    with settings(backend=backend, schedule=schedule):
        return layer(x)


def gradients_with(
    backend: Backend, schedule: Schedule | None, layer: CBAM, x: Tensor, dy: Tensor
) -> dict[str, Tensor]:
    """Gradients of sum(y * dy) by one backend and schedule: "x", and the layer's parameters by name."""
    return _gradients(partial(run_with, backend, schedule, layer), layer, x, dy)


def published_gradients(form: JongchanCBAM, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """What `gradients_with` gives, by the published form that has the layer's weights."""
    found = _gradients(form, form, x, dy)
    found["conv.weight"] = found["conv.weight"].flip(1)  # its inputs are [max, mean]
    return {JONGCHAN_NAMES.get(name, name): gradient for name, gradient in found.items()}


def _gradients(function, module, x, dy) -> dict[str, Tensor]:
    leaves = {"x": x.detach().requires_grad_(), **dict(module.named_parameters())}
    with torch.enable_grad():
        found = torch.autograd.grad(function(leaves["x"]), list(leaves.values()), dy)
    return dict(zip(leaves, found, strict=True))


def check_stage(
    views: Tensor, stage: Stage, layout: str, machine: Machine, budget: _CompileBudget, progress: Progress
) -> Iterator[Row]:
    """Rows of one stage in one memory format: the whole map, then the crop where kernels are interpreted."""
    maps = feature_maps(views, stage)
    timed = [REFERENCE, *(KERNELS if machine.kernels and not machine.interpreted else ())]
    yield from _compare(maps, layout, machine, timed, budget, progress)
    if machine.kernels and machine.interpreted:
        crop = maps[:1, :CROP_CHANNELS, :CROP_SIDE, :CROP_SIDE]
        yield from _compare(crop, layout, machine, KERNELS, None, progress)


def _compare(maps, layout, machine, contenders, budget, progress) -> Iterator[Row]:
    """Compare contenders on a map; time those that agree if there is a budget for the compiled form."""
    layer = make_layer(maps).to(machine.device, machine.dtype)
    x = maps.to(machine.device, machine.dtype).contiguous(memory_format=LAYOUTS[layout])
    yardstick = _yardstick(layer, x)
    shape = "x".join(map(str, x.shape))
    rows = []
    for backend, schedule in contenders:
        progress.set_description(f"{shape} {layout}: {backend} {schedule}".removesuffix(" None"))
        result = agreement(run_with(backend, schedule, layer, x), yardstick.eager, yardstick.want)
        found = gradients_with(backend, schedule, layer, x, yardstick.dy)
        gradients = gradient_agreement(found, yardstick.eager_gradients, yardstick.want_gradients)
        rows.append(Row(shape, layout, backend, schedule, result, gradients, crop=budget is None))
        if budget is None:
            yield rows[-1]
    if budget is not None:
        progress.set_description(f"{shape} {layout}: torch.compile of timm's form")
        _time(rows, layer, x, yardstick, budget)
        yield from rows


def _yardstick(layer: CBAM, x: Tensor) -> _Yardstick:
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x)
    exact, published = copy.deepcopy(layer).double(), jongchan_like(layer)
    return _Yardstick(
        published(x),
        run_with("reference", None, exact, x.double()),
        dy,
        published_gradients(published, x, dy),
        gradients_with("reference", None, exact, x.double(), dy.double()),
    )


def _time(rows: list[Row], layer: CBAM, x: Tensor, yardstick: _Yardstick, budget: _CompileBudget) -> None:
    """Time rows that agree, the published form and, if the budget has time for it, timm's compiled."""
    calls = {"published": partial(jongchan_like(layer), x)}
    right, function = False, budget.compile(timm_like(layer), x)
    if function is not None:
        right = agreement(function(x), yardstick.eager, yardstick.want).ok
        if right:
            calls["compiled"] = partial(function, x)
    for row in rows:
        if row.ok:
            calls[row.name] = partial(run_with, row.backend, row.schedule, layer, x)
    timings = interleaved(calls, x.device, seconds=0.3)
    for row in rows:
        row.timing = timings.get(row.name)
        if row.timing:
            row.noisy = row.timing.noisy
            row.over_eager = _speed(timings["published"], row.timing)
            if right:
                row.over_compiled = _speed(timings["compiled"], row.timing)
            else:
                row.over_compiled = "wrong" if function else "failed" if budget.failure else "skipped"


def _speed(other: Timing, own: Timing) -> str:
    """How many times as long the other takes; no number where either is noisy."""
    speed = own.over(other)
    return "~" if speed is None else f"{speed:.2f}x"


def row_count(machine: Machine) -> int:
    """How many rows `check_photograph` will make."""
    return len(STAGES) * len(LAYOUTS) * (1 + (len(KERNELS) if machine.kernels else 0))


@torch.no_grad()
def check_photograph(views: Tensor, machine: Machine, progress: Progress, *, compile_seconds: float) -> Outcome:
    """Run every backend and schedule on the feature maps of the views (N,3,S,S); `progress` moves once a row."""
    outcome = Outcome()
    budget = _CompileBudget(compile_seconds)
    for stage in STAGES:
        for layout in LAYOUTS:
            for row in check_stage(views, stage, layout, machine, budget, progress):
                outcome.rows.append(row)
                progress.update()
        first = feature_maps(views[:1], stage)
        with settings(backend="reference" if machine.interpreted else "auto"):
            maps = first.to(machine.device)
            gates = make_layer(first).to(machine.device).attention_maps(maps)
        outcome.gates[stage] = AttentionMaps(gates.channel.cpu(), gates.spatial.cpu())
    outcome.remarks = _remarks(outcome.rows, machine, budget)
    return outcome


def _remarks(rows, machine, budget) -> list[str]:
    remarks = []
    if any(row.crop for row in rows):
        remarks.append(
            f"crop: one sample, at most {CROP_CHANNELS} channels and {CROP_SIDE}x{CROP_SIDE} pixels of the map, "
            "because Triton's interpreter runs the kernels here. It checks results and says nothing about speed."
        )
    if budget.failure:
        remarks.append(f"failed: torch.compile does not work on this machine ({budget.failure}).")
    cells = {row.over_compiled for row in rows}
    if "skipped" in cells:
        remarks.append("skipped: the time set aside for torch.compile was used up (--compile-seconds).")
    if "wrong" in cells:
        remarks.append("wrong: the compiled timm form broke the error rule, so it was not timed.")
    if any("~" in (row.over_eager, row.over_compiled) for row in rows):
        remarks.append("~: no ratio, for quartiles lie more than a quarter of the median apart: the machine is busy.")
    if machine.device.type == "cpu":
        remarks.append("Times on a CPU are of this library's eager composition, not of its kernels.")
    return remarks
