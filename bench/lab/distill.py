"""`python -m bench distill`: from trials to a table that `cbam_triton.tuning.use` takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from cbam_triton.demo.options import InputError, folder_of, number_of
from cbam_triton.kernels.launch import shipped, tables
from cbam_triton.kernels.launch.candidate import Candidate
from cbam_triton.kernels.launch.problem import Problem

from .trials import Trial, by_problem, one_device, read

SUMMARY = "From trials to a table: for each problem the fastest candidate that is proved faster, else the default."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench distill`."""
    parser.add_argument("trials", nargs="+", type=Path, help="files of `python -m bench tune`")
    parser.add_argument("--rows", type=int, default=8, help="different candidates at most (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("table.json"), help="default: %(default)s")
    parser.add_argument("--store", action="store_true", help="keep the entries in your own store, too")
    parser.add_argument("--ship", action="store_true", help="write the table that the wheel has for this device, too")


def main(arguments: argparse.Namespace) -> int:
    """Print the regret of few rows, and of rows from the other problems; write the table."""
    number_of("--rows", arguments.rows, 1, 1000, "how many candidates the table may have")
    folder_of(str(arguments.out.parent), (arguments.out.name,), option="--out")
    trials, skipped = read(arguments.trials)
    where = one_environment(trials) if arguments.ship else {}
    print("\n".join([*skipped, f"{len(trials)} trials of {one_device(trials)}"]))
    groups = dict(by_problem(trials))
    if not groups:
        raise InputError("no trial was timed: look at the errors with `python -m bench report`")
    ratios = {name: {_text(trial): trial.ratio[0] for trial in group} for name, group in groups.items()}
    rows = few_rows(ratios, arguments.rows)
    print(f"\n{'problem':<44} {'fastest':>8} {'of few':>8} {'left out':>8}   times over the default's")
    entries: dict[Problem, tuple[Candidate, str]] = {}
    for name, group in groups.items():
        others = {other: found for other, found in ratios.items() if other != name}
        unseen = _with(ratios[name], few_rows(others, arguments.rows)) if others else 1.0
        print(f"{name:<44} {min(ratios[name].values()):>8.3f} {_with(ratios[name], rows):>8.3f} {unseen:>8.3f}")
        entries |= dict([entry_of(group, rows)])
    kept = sum(reason != tables.PINNED for _, reason in entries.values())
    print(f"\n{len(rows)} rows; {kept} of {len(entries)} problems take one, the others keep the default")
    device = trials[0].environment["device"]
    tables.write_table(arguments.out, device, entries)
    print(f"Wrote {arguments.out}: cbam_triton.tuning.use({str(arguments.out)!r})")
    if arguments.ship:
        print(f"Wrote {ship(device, where, list(groups.values()), rows)}.")
    if arguments.store:
        if trials[0].environment["clock"] in ("stub", "interpreter"):
            raise InputError("--store keeps times of a GPU; these are of a clock that times none")
        for problem, (candidate, reason) in entries.items():
            tables.add_to_store(device, problem, candidate, reason)
        print(f"Wrote {tables.store_folder(device)}.")
    return 0


def best_of(group: list[Trial], rows: list[str], below: float = 1.0) -> Trial | None:
    """The fastest of the rows whose whole interval is below so much of the default's time."""
    proved = [trial for trial in group if _text(trial) in rows and trial.ratio[2] < below]
    return min(proved, key=lambda trial: trial.ratio[0]) if proved else None


def entry_of(group: list[Trial], rows: list[str], below: float = 1.0) -> tuple[Problem, tuple[Candidate, str]]:
    """The problem, its candidate and why: that of `best_of`, or the default."""
    best = best_of(group, rows, below)
    problem, _ = group[0].parsed()
    if best is None:
        return problem, (Candidate.from_json(group[0].default), tables.PINNED)
    middle, low, high = best.ratio
    clock, cache = best.environment["clock"], best.environment["cache"]
    reason = f"{middle:.3f} ({low:.3f} to {high:.3f}) of the default's time, clock {clock}, L2 {cache}"
    return problem, (best.parsed()[1], reason)


def one_environment(trials: list[Trial]) -> dict[str, Any]:
    """The environment of trials whose table may be shipped.

    Raises: InputError where it is not one, not a GPU's, or of other kernels than those that are here.
    """
    found = [{name: trial.environment.get(name) for name in shipped.ENVIRONMENT} for trial in trials]
    differing = [name for name in shipped.ENVIRONMENT if len({where[name] for where in found}) != 1]
    if differing:
        raise InputError(f"--ship takes trials of one environment, these differ in {', '.join(differing)}: one run's")
    if found[0]["clock"] in ("stub", "interpreter"):
        raise InputError("--ship takes times of a GPU; these are of a clock that times none")
    if found[0]["kernels"] != shipped.kernels_hash():
        raise InputError("--ship takes trials of the kernels that are here, these have others: tune again")
    return found[0]


def ship(device: str, where: dict[str, Any], groups: list[list[Trial]], rows: list[str]) -> Path:
    """Write the table that the package has for a device; the default is pinned unless a row is faster by a margin.

    The fastest of many trials is also the luckiest, so that an interval just below the default's time proves little.
    """
    entries, ratios = {}, {}
    for group in groups:
        problem, entries[problem] = entry_of(group, rows, shipped.MARGIN)
        best = best_of(group, rows, shipped.MARGIN)
        ratios[problem] = (1.0, 1.0, 1.0) if best is None else best.ratio
    path = shipped.file_of(device)
    tables.write_table(path, device, entries, where, ratios)
    return path


def few_rows(ratios: dict[str, dict[str, float]], most: int) -> list[str]:
    """At most so many candidates, one by one the one that makes all problems together fastest."""
    rows: list[str] = []
    everything = sorted({text for found in ratios.values() for text in found})
    while len(rows) < most:
        scores = {text: _mean(ratios, [*rows, text]) for text in everything}
        best = min(everything, key=lambda text: scores[text])
        if scores[best] >= _mean(ratios, rows):
            break
        rows.append(best)
    return rows


def _mean(ratios: dict[str, dict[str, float]], rows: list[str]) -> float:
    return geometric_mean([_with(found, rows) for found in ratios.values()])


def _with(found: dict[str, float], rows: list[str]) -> float:
    """The ratio of the fastest of the rows that was tried, or of the default."""
    return min([1.0, *(found[text] for text in rows if text in found)])


def _text(trial: Trial) -> str:
    return str(Candidate.from_json(trial.candidate))
