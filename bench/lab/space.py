"""`python -m bench space`: the candidates of a problem, and why others are left out."""

from __future__ import annotations

import argparse
import re
from collections import Counter

from cbam_triton.demo.options import device_of
from cbam_triton.kernels.launch.candidate import Candidate
from cbam_triton.kernels.launch.hardware import DeviceFacts, facts
from cbam_triton.kernels.launch.problem import Problem
from cbam_triton.kernels.launch.space import LEVELS, candidates, changed, reject

from .case import add_case_arguments, cases_of, problem_of

SUMMARY = "The candidates that tuning would try on this device, and why others are left out."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench space`."""
    add_case_arguments(parser)
    parser.add_argument("--level", choices=LEVELS, default="tiles", help="how much is varied (default: %(default)s)")
    parser.add_argument("--device", default=None, help="torch device (default: a GPU if there is one)")
    parser.add_argument("--list", action="store_true", help="a line for each candidate")
    parser.add_argument("--json", action="store_true", help="the candidates alone, one JSON object a line")
    parser.add_argument("--rejected", action="store_true", help="a line for each that is left out, with the reason")


def main(arguments: argparse.Namespace) -> int:
    """Print the space of every case."""
    device = device_of(arguments.device)
    here = facts(device)
    for case in cases_of(arguments):
        problem = problem_of(case, device)
        kept, left_out = parted(problem, here, arguments.level)
        if arguments.json:
            print("\n".join(map(str, kept)))
            continue
        print(f"{case}: {len(kept)} candidates, {len(left_out)} left out")
        reasons = Counter(_kind(why) for _, why in left_out)
        for reason, count in reasons.most_common(5):
            print(f"  {count:>5} {reason}")
        for row in kept if arguments.list else ():
            print(f"  {row}")
        for row, why in left_out if arguments.rejected else ():
            print(f"  {why}: {row}")
    return 0


def _kind(why: str) -> str:
    """The reason without its numbers."""
    return re.sub(r"\d+(\.\d+)?", "...", re.sub(r" ?= ?\d+", "", why))


def near(row: Candidate, problem: Problem, here: DeviceFacts) -> list[Candidate]:
    """The candidates with one knob of the row changed that are not left out."""
    return [other for other in changed(row, 1) if other != row and reject(other, problem, here) is None]


def parted(problem: Problem, here: DeviceFacts, level: str) -> tuple[list[Candidate], list[tuple[Candidate, str]]]:
    """The candidates to try, the default first, and those left out with the reason."""
    kept, left_out = [], []
    for i, row in enumerate(candidates(problem, here, level)):
        why = reject(row, problem, here)
        if why is None or i == 0:  # the default runs whatever the rule thinks of it
            kept.append(row)
        else:
            left_out.append((row, why))
    return kept, left_out
