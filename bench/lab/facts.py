"""What is known of a candidate without its time: static facts of its launches, and their predicted time.

They come from the launches themselves where a GPU ran them, or from a compiler's process for a GPU that is not here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from cbam_triton.kernels.launch.candidate import Candidate
from cbam_triton.kernels.launch.plan import Plan
from cbam_triton.prediction.code import code_of
from cbam_triton.prediction.devices import Gpu, known
from cbam_triton.prediction.here import noted
from cbam_triton.prediction.launches import Launched, main_loop_trips, works
from cbam_triton.prediction.predict import predicted, total_us

from ..static import static_of
from .case import Bench, Case
from .worker import Worker

TARGET_SECONDS = 120  # to compile the launches of one candidate


class Compiled(NamedTuple):
    """A launch with what a compiler made of it."""

    kernel: str
    code: Any
    programs: int
    warps: int
    plan: Plan


def facts_of(launches: Iterable[Compiled], x_bytes: float, itemsize: int, sms: int, device: Gpu | None) -> dict:
    """`static` and `predicted` of a trial; what cannot be had lacks, and nothing is raised."""
    launches = list(launches)
    try:
        target = launches[0].code.metadata.target
        architecture = f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)
        rows = [
            {"kernel": one.kernel, **static_of(one.code, architecture, one.programs, one.warps, sms)}
            for one in launches
        ]
    except Exception:  # an unknown target, or tools that fail: a trial counts without facts
        return {}
    found: dict[str, Any] = {"static": {"target": architecture, "sms": sms, "launches": rows}}
    try:
        read = [Launched(one.kernel, one.programs, one.plan, code_of(one.code, one.warps)) for one in launches]
        if all(one.plan.schedule == "staged" for one in read):
            for row, one in zip(rows, read, strict=True):
                row["iterations"] = main_loop_trips(one.kernel, one.plan, one.code)
            if device is not None and itemsize == 2:
                todo = works(read, x_bytes, device.held)
                found["predicted"] = 1e-6 * total_us([predicted(work, device) for work in todo], device)
    except Exception:  # as above
        pass
    return found


def facts_here(bench: Bench, candidate: Candidate) -> dict[str, Any]:
    """Those of the launches that the device of the bench ran; nothing where the interpreter runs them."""
    with noted() as calls:
        bench.call(candidate)()
    if len(calls) != 1 or any(launch.code is None for launch in calls[0].launches):
        return {}
    plan, x, launches = calls[0]
    rows = [Compiled(one.name, one.code, one.programs, one.warps, plan) for one in launches]
    where = bench.facts
    size, sms = x.element_size(), where.sm_count
    return facts_of(rows, float(x.numel() * size), size, sms, known(where.name, sms))


def facts_there(case: Case, candidate: Candidate, device: Gpu) -> dict[str, Any]:
    """Those of the launches as they would be on a GPU of these facts, compiled here."""
    from cbam_triton.kernels.launch import tensors

    from .. import codegen

    plans: list[Plan] = []
    dtype = getattr(torch, case.dtype)
    mode = "inference" if case.step == "forward" else "training"
    with patch.object(tensors, "LISTENERS", [lambda plan, x: plans.append(plan)]):
        launches = codegen.launches(
            case.shape, dtype, case.layout, str(candidate), device.architecture, mode, device.facts, dtype
        )
    rows = []
    for launch in launches[_forward_launches(launches) if case.step == "backward" else 0 :]:
        code = codegen.compile_for(launch.kernel, launch.arguments, launch.options, device.architecture)
        warps = launch.options.get("num_warps", 4)
        rows.append(Compiled(launch.kernel.__name__, code, launch.programs, warps, plans[-1]))
    size = float(torch.Size(case.shape).numel() * dtype.itemsize)
    return facts_of(rows, size, dtype.itemsize, device.sms, device)


def _forward_launches(launches: list[Any]) -> int:
    """How many of the launches of training come before its backward."""
    names = [launch.kernel.__name__ for launch in launches]
    begins = [i for i, name in enumerate(names) if "gradient" in name or name.startswith("backward")]
    return begins[0]


def compile_there(connection: Connection, case: Case, device: Gpu) -> None:
    """Take candidates as JSON, answer with `facts_there`, until None comes."""
    torch.set_num_threads(1)
    connection.send("ready")
    while (text := connection.recv()) is not None:
        connection.send(_facts_or_error(case, text, device))


def _facts_or_error(case: Case, text: str, device: Gpu) -> dict[str, Any]:
    try:
        return facts_there(case, Candidate.parse(text), device)
    except Exception as error:  # whatever a compiler raises
        return {"error": f"{type(error).__name__}: {error}"}


class Compiler(Worker):
    """A child that compiles for a GPU that is not here; it has no interpreter, whatever this process has."""

    def __init__(self, case: Case, device: Gpu) -> None:
        super().__init__(case, device, target=compile_there)

    def facts(self, candidate: Candidate) -> dict[str, Any]:
        """`facts_there`; nothing where that fails or takes too long."""
        found = self.ask(candidate, TARGET_SECONDS)
        return {} if "error" in found else found

    def _start(self) -> bool:
        without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        with patch.dict(os.environ, without, clear=True):
            return super()._start()
