"""The launches of calls that were made here: which kernels were compiled for them, and their predicted times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from ..kernels.launch import hardware, tensors
from ..kernels.launch.plan import Plan
from ..kernels.launch.prepared import Launch
from .code import code_of
from .devices import Gpu, known
from .launches import Launched, works
from .predict import Prediction, predicted


class Noted(NamedTuple):
    """One call of the launchers: its plan, its x, and what it launched, in order."""

    plan: Plan
    x: Tensor
    launches: list[Launch]


@contextlib.contextmanager
def noted() -> Iterator[list[Noted]]:
    """Note the calls of the block. The launches of each are complete after the block.

    A plan keeps the launches that it has prepared, of all calls; in the block each call prepares its own.
    """
    calls: list[Noted] = []
    begun: dict[int, tuple[Noted, dict]] = {}  # by plan: its last call, and what was prepared before

    def end(call: Noted, before: dict) -> None:
        call.launches.extend(call.plan.prepared.values())
        call.plan.prepared.update(before)

    def listen(plan: Plan, x: Tensor) -> None:
        if id(plan) in begun:
            end(*begun.pop(id(plan)))
        calls.append(Noted(plan, x, []))
        begun[id(plan)] = (calls[-1], dict(plan.prepared))
        plan.prepared.clear()

    tensors.LISTENERS.append(listen)
    try:
        yield calls
    finally:
        tensors.LISTENERS.remove(listen)
        for call, before in begun.values():
            end(call, before)


def predicted_here(call: Noted) -> tuple[Prediction, ...]:
    """The predicted time of each launch on the GPU that it ran on.

    Nothing for an unknown GPU, the wavefront, an x that is not of 16 bits, and where the compiled code cannot be read.
    """
    facts = hardware.facts(call.x.device)
    device = known(facts.name, facts.sm_count)
    return () if device is None else predicted_on(device, call)


def predicted_on(device: Gpu, call: Noted) -> tuple[Prediction, ...]:
    """The same on a GPU for which the launches were compiled."""
    if call.plan.schedule != "staged" or call.x.element_size() != 2 or any(one.code is None for one in call.launches):
        return ()
    try:
        found = [Launched(one.name, one.programs, call.plan, code_of(one.code, one.warps)) for one in call.launches]
        size = float(call.x.numel() * call.x.element_size())
        return tuple(predicted(work, device) for work in works(found, size, device.held))
    except Exception:  # whatever a missing or another cuobjdump does: a prediction is an extra
        return ()
