"""`python -m bench tune`: try candidates, check them, time them against the default, keep every trial."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import Any

import torch

from cbam_triton.demo.options import InputError, device_of, folder_of, number_of
from cbam_triton.kernels.launch import hardware
from cbam_triton.kernels.launch.candidate import Candidate
from cbam_triton.kernels.launch.hardware import facts
from cbam_triton.kernels.launch.space import LEVELS

from ..model.devices import gpu
from .case import Case, add_case_arguments, cases_of, problem_of
from .clock import CACHES, CLOCKS
from .facts import Compiler
from .search import SEARCHES, search
from .space import near, parted
from .trials import Trial, append, environment, read
from .worker import Worker

SUMMARY = "Try candidates: each is checked against float64, then timed in turns with the default; trials are appended."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench tune`."""
    add_case_arguments(parser)
    parser.add_argument("--level", choices=LEVELS, default="tiles", help="how much is varied (default: %(default)s)")
    parser.add_argument("--search", choices=SEARCHES, default="coordinate", help="default: %(default)s")
    parser.add_argument("--budget", default="60", help="trials of each case, or seconds such as 90s (default: 60)")
    parser.add_argument("--clock", choices=CLOCKS, default="events", help="default: %(default)s")
    parser.add_argument("--cache", choices=CACHES, default="cold", help="L2 before a call (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=30, help="times of each in a trial (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of one trial (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=None, help="torch device (default: a GPU if there is one)")
    parser.add_argument(
        "--target", help="also compile each for this GPU, a name or file as for predict; one that tunes is its own"
    )
    parser.add_argument("--out", type=Path, default=Path("trials.jsonl"), help="default: %(default)s")
    parser.add_argument("--fresh", action="store_true", help="try again what the file has, which is skipped otherwise")


def main(arguments: argparse.Namespace) -> int:
    """Tune every case; 130 after Ctrl-C, which keeps what was tried."""
    device = _checked(arguments)
    trials, seconds = budget_of(arguments.budget)
    target = None if arguments.target is None else gpu(arguments.target)
    name = facts(device).name
    where = environment(device, name, arguments.clock, arguments.cache)
    known: dict[tuple[str, ...], Trial] = {}
    if arguments.out.exists() and not arguments.fresh:
        found, skipped = read([arguments.out])
        known = {trial.key: trial for trial in found}
        print("\n".join([*skipped, f"{arguments.out} has {len(found)} trials: those are not tried again"]))
    print(f"{name}, clock {arguments.clock}, L2 {arguments.cache}; times are over the default's in the same rounds")
    try:
        for case in cases_of(arguments):
            compiler = None if target is None else Compiler(case, target)
            tune(case, device, where, known, arguments, trials, seconds, compiler)
    except KeyboardInterrupt:
        print(f"\nStopped. What was tried is in {arguments.out}; the same command goes on from there.")
        return 130
    print(f"Wrote {arguments.out}.")
    return 0


def tune(
    case: Case,
    device: torch.device,
    where: dict[str, Any],
    known: dict[tuple[str, ...], Trial],
    arguments: argparse.Namespace,
    trials: int,
    seconds: float,
    compiler: Compiler | None = None,
) -> list[Trial]:
    """The trials of one case, in the order in which they were tried or found in the file."""
    problem = problem_of(case, device)
    kept, left_out = parted(problem, facts(device), arguments.level)
    print(f"\n{case}: {len(kept)} candidates, {len(left_out)} left out")
    worker = Worker(case, str(device), arguments.clock, arguments.cache, arguments.rounds, arguments.seed)
    order = search(arguments.search, kept, arguments.seed, lambda row: near(row, problem, facts(device)))
    done: list[Trial] = []
    end = time.monotonic() + seconds
    row: Candidate | None = next(order)
    try:
        while row is not None and len(done) < trials and time.monotonic() < end:
            trial = Trial(where, case._asdict(), problem._asdict(), row.to_json(), kept[0].to_json(), {}, None, [], [])
            before = known.get(trial.key)
            if before is None:
                trial = trial._replace(**worker.ask(row, arguments.limit))
                if compiler is not None and trial.error is None and not trial.static:
                    trial = trial._replace(**compiler.facts(row))
                append(arguments.out, trial)
            else:
                trial = before
            done.append(trial)
            print(_line(len(done), trial), flush=True)
            try:
                row = order.send(None if trial.error else trial.ratio[0])
            except StopIteration:
                row = None
    finally:
        worker.close()
        if compiler is not None:
            compiler.close()
    timed = [trial for trial in done if trial.error is None]
    if timed:
        best = min(timed, key=lambda trial: trial.ratio[0])
        print(f"  best of {len(done)}: {_ratio(best)}  {Candidate.from_json(best.candidate)}")
    return done


def budget_of(text: str) -> tuple[int, float]:
    """(trials, seconds) of "60" or "90s", the other one without end. Raises: InputError for another text."""
    match = re.fullmatch(r"(\d+)(s?)", text)
    if match is None or int(match[1]) < 1:
        raise InputError(f"--budget must be a number of trials such as 60, or of seconds such as 90s, got {text!r}")
    return (1 << 30, float(match[1])) if match[2] else (int(match[1]), float("inf"))


def _checked(arguments: argparse.Namespace) -> torch.device:
    """The device. Raises: InputError before any work."""
    number_of("--rounds", arguments.rounds, 3, 10_000, "how often each is timed")
    device = device_of(arguments.device)
    missing = hardware.missing()
    if missing is not None:
        raise InputError(f"no kernels to tune: {missing}. To try the lab here: TRITON_INTERPRET=1 and --clock stub")
    if hardware.device_type() != device.type:
        raise InputError(f"--device {device}: the kernels run on {hardware.device_type()} here")
    if device.type == "cpu" and arguments.clock in ("events", "graph"):
        raise InputError(f"--clock {arguments.clock} times a GPU: here take stub, or interpreter")
    if arguments.clock == "graph" and device.type != "cuda":
        raise InputError("--clock graph needs CUDA: take events")
    folder_of(str(arguments.out.parent), (arguments.out.name,), option="--out")
    return device


def _line(number: int, trial: Trial) -> str:
    if trial.error is not None:
        return f"  {number:>4}  {trial.error[:100]}"
    microseconds = sorted(trial.times)[len(trial.times) // 2] * 1e6
    return f"  {number:>4}  {microseconds:>9.2f} us  {_ratio(trial)}  {Candidate.from_json(trial.candidate).schedule}"


def _ratio(trial: Trial) -> str:
    middle, low, high = trial.ratio
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"
