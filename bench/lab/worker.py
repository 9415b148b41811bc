"""Trials in a child process: a candidate that hangs, crashes or spoils the device costs its trial and nothing else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from cbam_triton.kernels.launch.candidate import Candidate

from . import clock
from .case import Bench, Case

START_SECONDS = 120  # to import torch and make the tensors


def serve(connection: Connection, case: Case, device: str, how: str, cache: str, rounds: int, seed: int) -> None:
    """Take candidates as JSON, answer with `tried`, until None comes."""
    torch.set_num_threads(1)
    bench = Bench(case, torch.device(device))
    connection.send("ready")
    while (text := connection.recv()) is not None:
        connection.send(tried(bench, text, how, cache, rounds, seed))


def tried(bench: Bench, text: str, how: str, cache: str, rounds: int, seed: int) -> dict[str, Any]:
    """The error and the times of a candidate, and the default's in the same rounds; or why there are none."""
    from .facts import facts_here

    try:
        candidate = Candidate.parse(text)
        agreement = bench.agreement(candidate)
        if not agreement.ok:
            return {"error": f"wrong: {agreement.ratio:.3g} times eager's error", "error_over_eager": agreement.ratio}
        default = bench.default()
        if how == "stub":
            one, other = (clock.stub(row, bench.problem, seed) for row in (candidate, default))
        else:
            one, other = (clock.reading(how, cache, bench.device, bench.call(row)) for row in (candidate, default))
        times, default_times = clock.race(one, other, rounds)
    except Exception as error:  # whatever a compiler or a driver raises belongs to the trial
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    found = {"error_over_eager": agreement.ratio, "times": times, "default_times": default_times}
    try:
        return found | facts_here(bench, candidate)
    except Exception:  # a trial counts without facts
        return found


class Worker:
    """A child that serves one case; it is started when it is first asked, and again after it had to be stopped."""

    def __init__(self, *arguments: Any, target: Callable[..., None] = serve) -> None:
        self._arguments, self._target = arguments, target
        self._process: Any = None
        self._connection: Any = None

    def ask(self, candidate: Candidate, seconds: float) -> dict[str, Any]:
        """What the child answers within so many seconds, or the error that it did not."""
        if self._process is None and not self._start():
            self.close()
            return {"error": f"the child process did not start within {START_SECONDS} s"}
        try:
            self._connection.send(str(candidate))
            if self._connection.poll(seconds):
                return self._connection.recv()
            error = f"no answer within {seconds:g} s"
        except (EOFError, OSError):
            self._process.join(5)
            error = f"the child process ended with status {self._process.exitcode}"
        self.close()
        return {"error": error}

    def _start(self) -> bool:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=self._target, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            return self._connection.poll(START_SECONDS) and self._connection.recv() == "ready"
        except EOFError:
            return False

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None
