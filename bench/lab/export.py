"""`python -m bench export`: trials as CSV, or as the cache file of Kernel Tuner."""

from __future__ import annotations

import argparse
import csv
import io
import json
from pathlib import Path
from statistics import median
from typing import Any

from cbam_triton.demo.options import InputError, folder_of
from cbam_triton.kernels.launch import tables
from cbam_triton.kernels.launch.candidate import Candidate

from .trials import Trial, by_problem, name_of, one_device, read

SUMMARY = "Trials as CSV, or as Kernel Tuner's cache files, one a problem."
FORMATS = ("csv", "kernel-tuner")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench export`."""
    parser.add_argument("trials", nargs="+", type=Path, help="files of `python -m bench tune`")
    parser.add_argument("--format", choices=FORMATS, default="csv", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("export"), help="folder (default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    """Write the files."""
    trials, skipped = read(arguments.trials)
    print("\n".join(skipped), end="\n" if skipped else "")
    device = one_device(trials)
    if arguments.format == "csv":
        files = {"trials.csv": csv_of(trials)}
    else:
        files = {
            f"{name.replace(' ', '_')}.json": kernel_tuner_of(name, group, device) for name, group in by_problem(trials)
        }
    if not files:
        raise InputError("no trial was timed, and Kernel Tuner's format has no other")
    folder = folder_of(str(arguments.out), tuple(files), option="--out")
    for name, text in files.items():
        tables.write_whole(folder / name, text)
    print(f"Wrote {', '.join(files)} in {folder}.")
    return 0


def csv_of(trials: list[Trial]) -> str:
    """One row a trial; times are medians in microseconds."""
    knobs = Candidate.knobs()
    text = io.StringIO()
    times_of = ("median_us", "default_us", "ratio", "low", "high")
    columns = ("device", "clock", "cache", "problem", *knobs, *times_of, "predicted_us", *_STATIC, "error")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for trial in trials:
        where = [trial.environment[name] for name in ("device", "clock", "cache")]
        times: list[Any] = ["", "", "", "", ""]
        if trial.error is None:
            times = [median(trial.times) * 1e6, median(trial.default_times) * 1e6, *trial.ratio]
        row = [trial.candidate.get(name, "") for name in knobs]
        predicted = "" if trial.predicted is None else trial.predicted * 1e6
        writer.writerow([*where, name_of(trial), *row, *times, predicted, *_static_of(trial), trial.error or ""])
    return text.getvalue()


_STATIC = ("registers", "spills", "occupancy", "target")


def _static_of(trial: Trial) -> list[Any]:
    """Of all launches the most registers, the sum of spills and the least occupancy, and what they are compiled for."""
    launches = trial.static.get("launches")
    if not launches:
        return [""] * len(_STATIC)
    occupancy = min((one["occupancy"] for one in launches if "occupancy" in one), default="")
    registers, spills = ([one[name] for one in launches] for name in ("registers", "spills"))
    return [max(registers), sum(spills), occupancy, trial.static["target"]]


def kernel_tuner_of(name: str, group: list[Trial], device: str) -> str:
    """The cache of one problem: times are milliseconds, as Kernel Tuner has them."""
    keys = list(Candidate.knobs())
    rows = [{key: trial.candidate.get(key, -1) for key in keys} for trial in group]
    cache = {}
    for row, trial in zip(rows, group, strict=True):
        times = [seconds * 1e3 for seconds in trial.times]
        cache[",".join(str(value) for value in row.values())] = {**row, "time": median(times), "times": times}
    found = {
        "device_name": device,
        "kernel_name": "cbam",
        "problem_size": name,
        "tune_params_keys": keys,
        "tune_params": {key: sorted({row[key] for row in rows}, key=str) for key in keys},
        "objective": "time",
        "cache": cache,
    }
    return json.dumps(found, indent=1) + "\n"
