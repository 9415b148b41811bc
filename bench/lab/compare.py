"""`python -m bench compare A B`: whether B is slower than A, by trials of the same candidates on the same GPU."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from statistics import median

from cbam_triton.demo.options import InputError

from .trials import Trial, changes, name_of, one_device, read

SUMMARY = "Whether the second run is slower than the first: ratios of medians with intervals; exit 1 if one is proved."
_RESAMPLES = 400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench compare`."""
    parser.add_argument("before", type=Path, help="a file of `python -m bench tune`")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("--any-device", action="store_true", help="compare times of different devices or clocks, too")
    parser.add_argument("--tolerance", type=float, default=0.02, help="a slowdown that counts (default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    """Print a line for each candidate that both files timed; 1 if one is slower beyond doubt."""
    (before, first), (after, second) = read([arguments.before]), read([arguments.after])
    if not arguments.any_device:
        where = one_device(before), one_device(after)
        if where[0] != where[1]:
            raise InputError(f"{where[0]} and {where[1]} cannot be compared: times of one GPU can, or --any-device")
    print("\n".join([*first, *second, "seconds of the second over the first, 95 % interval"]))
    known = {_key(trial): trial for trial in before if trial.error is None}
    pairs = [(known[_key(trial)], trial) for trial in after if trial.error is None and _key(trial) in known]
    if not pairs:
        raise InputError("the files have no candidate of one problem in common: tune both with the same options")
    slower = 0
    for one, other in pairs:
        middle, low, high = ratio(one.times, other.times)
        verdict = "slower" if low > 1 + arguments.tolerance else "faster" if high < 1 - arguments.tolerance else ""
        slower += verdict == "slower"
        words = f"{name_of(other):<41} {middle:.3f} ({low:.3f} to {high:.3f}) {verdict:<6}"
        print(f"{words} {changes(other)}")
    print(f"{slower} of {len(pairs)} slower beyond doubt")
    return int(slower > 0)


def ratio(before: list[float], after: list[float]) -> tuple[float, float, float]:
    """The ratio of the medians, and its 95 % interval by resampling each run for itself."""
    draw = random.Random(0)
    found = sorted(
        median(draw.choices(after, k=len(after))) / median(draw.choices(before, k=len(before)))
        for _ in range(_RESAMPLES)
    )
    return median(after) / median(before), found[int(0.025 * _RESAMPLES)], found[int(0.975 * _RESAMPLES) - 1]


def _key(trial: Trial) -> tuple[str, ...]:
    return trial.key[1:]
