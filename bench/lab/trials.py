"""Trial records: one JSON object a line, appended whole; what a line lacks is reported and skipped."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from cbam_triton.demo.options import InputError
from cbam_triton.kernels.launch import tables
from cbam_triton.kernels.launch.candidate import Candidate
from cbam_triton.kernels.launch.problem import Problem

FORMAT = 1
_RESAMPLES = 400


class Trial(NamedTuple):
    """One candidate on one problem, against the default in the same rounds. Times are seconds a call."""

    environment: dict[str, Any]
    case: dict[str, Any]
    problem: dict[str, Any]
    candidate: dict[str, Any]
    default: dict[str, Any]  # the candidate that runs where nothing is tuned
    static: dict[str, Any]  # of the compiled launches, where there are any: `facts.facts_of`
    error_over_eager: float | None
    times: list[float]
    default_times: list[float]
    error: str | None = None  # why there are no times
    predicted: float | None = None  # seconds of the launches, with the gaps between them

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two trials the same; the clock rate of the moment does not."""
        where = {name: value for name, value in self.environment.items() if name != "sm_clock_mhz"}
        return tuple(json.dumps(part, sort_keys=True) for part in (where, self.problem, self.candidate))

    @property
    def ratio(self) -> tuple[float, float, float]:
        """The candidate's time over the default's: the median, and a 95 % interval of it by resampling rounds."""
        return interval([a / b for a, b in zip(self.times, self.default_times, strict=True)])

    def parsed(self) -> tuple[Problem, Candidate]:
        """The problem and the candidate as the launch has them."""
        return Problem(**self.problem), Candidate.from_json(self.candidate)


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and the 2.5 and 97.5 percentiles of the medians of resampled values."""
    draw = random.Random(0)
    found = sorted(median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return median(values), found[int(0.025 * _RESAMPLES)], found[int(0.975 * _RESAMPLES) - 1]


def environment(device: torch.device, name: str, clock: str, cache: str) -> dict[str, Any]:
    """What a time depends on besides the problem and the candidate."""
    found: dict[str, Any] = {"device": name, "clock": clock, "cache": cache, **tables.environment()}
    found["driver"] = _driver() if device.type == "cuda" else None
    if device.type == "cuda":
        found["sm_clock_mhz"] = _clock_rate(device)
    return found


def _driver() -> str | None:
    """The release of the GPU's driver, where the kernel module tells it."""
    for path in ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version"):
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError:
            continue
        match = re.search(r"\d+(?:\.\d+)+", text)
        return match[0] if match else text.strip()[:80]
    return None


def _clock_rate(device: torch.device) -> int | None:
    try:
        return torch.cuda.clock_rate(device)
    except Exception:  # without NVIDIA's management library there is none to ask
        return None


def append(path: Path, trial: Trial) -> None:
    """Add one line. A line that an interruption left half is ended first."""
    text = json.dumps({"format": FORMAT, **trial._asdict()}) + "\n"
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read(paths: Iterable[Path]) -> tuple[list[Trial], list[str]]:
    """The trials of all files, each once and the last of its kind, and what was skipped, a line each.

    Raises: InputError for a file that cannot be read.
    """
    found: dict[tuple[str, ...], Trial] = {}
    skipped = []
    for path in paths:
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): `python -m bench tune` writes one") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    trial = _trial(line)
                    found[trial.key] = trial
                except (ValueError, TypeError, KeyError) as error:
                    skipped.append(f"{path}, line {number}: skipped ({error})")
    return list(found.values()), skipped


def _trial(line: bytes) -> Trial:
    values = json.loads(line)
    if values.pop("format", None) != FORMAT:
        raise ValueError(f"not a trial of format {FORMAT}")
    trial = Trial(**values)
    trial.parsed()
    Candidate.from_json(trial.default)
    if trial.error is None and (not trial.times or len(trial.times) != len(trial.default_times)):
        raise ValueError("times and default_times must be as many, at least one")
    return trial


def by_problem(trials: Iterable[Trial]) -> Iterator[tuple[str, list[Trial]]]:
    """(name, trials that were timed) of each case."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.error is None:
            groups.setdefault(name_of(trial), []).append(trial)
    yield from groups.items()


def name_of(trial: Trial) -> str:
    """The case in words."""
    case = trial.case
    return f"{'x'.join(map(str, case['shape']))} {case['dtype']} {case['layout']} {case['step']}"


def changes(trial: Trial) -> str:
    """What a candidate has that the default has not: "POOL_C=16 num_warps=2"."""
    found = [f"{name}={value}" for name, value in trial.candidate.items() if trial.default.get(name) != value]
    return " ".join(found) or "the default"


def one_device(trials: Iterable[Trial]) -> str:
    """The device and clock of all trials. Raises: InputError where there are several, or no trials."""
    found = sorted({f"{trial.environment['device']}, clock {trial.environment['clock']}" for trial in trials})
    if len(found) != 1:
        raise InputError(f"trials of one device and clock are needed, got {'; '.join(found) or 'none'}")
    return found[0]
