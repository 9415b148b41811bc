"""`python -m bench report`: what trials say, as Markdown and a picture."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path

from cbam_triton.demo.options import folder_of, need_extras
from cbam_triton.kernels.launch import tables

from .trials import Trial, by_problem, name_of, one_device, read

SUMMARY = "What trials say: a table of the fastest, of failures, and a picture of all ratios."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench report`."""
    parser.add_argument("trials", nargs="+", type=Path, help="files of `python -m bench tune`")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    parser.add_argument("--no-plot", action="store_true", help="write the Markdown alone")


def main(arguments: argparse.Namespace) -> int:
    """Write report.md and ratios.png."""
    if not arguments.no_plot:
        need_extras("matplotlib", extra='pip install "cbam-triton[lab]"')
    folder = folder_of(str(arguments.out), ("report.md", "ratios.png"), option="--out")
    trials, skipped = read(arguments.trials)
    text = markdown(trials, skipped)
    tables.write_whole(folder / "report.md", text)
    print(text)
    if not arguments.no_plot:
        draw(trials, folder / "ratios.png")
    print(f"Wrote {folder}.")
    return 0


def markdown(trials: list[Trial], skipped: list[str]) -> str:
    """The report."""
    lines = [f"# {len(trials)} trials", "", one_device(trials), "", *skipped, ""]
    lines += ["| problem | trials | default, us | fastest, us | ratio | interval | |", "|---|---|---|---|---|---|---|"]
    for name, group in by_problem(trials):
        best = min(group, key=lambda trial: trial.ratio[0])
        middle, low, high = best.ratio
        times = (f"{sorted(values)[len(values) // 2] * 1e6:.2f}" for values in (best.default_times, best.times))
        cells = (name, len(group), *times, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", "proved" if high < 1 else "")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    failed = collections.Counter(f"{name_of(trial)}: {trial.error}" for trial in trials if trial.error is not None)
    if failed:
        lines += ["", "## Not timed", "", *(f"* {count} x {why}" for why, count in failed.most_common())]
    return "\n".join(lines) + "\n"


def draw(trials: list[Trial], path: Path) -> None:
    """Every trial's ratio to the default, sorted, with its interval; one row of axes for each problem."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    groups = list(by_problem(trials))
    figure = Figure(figsize=(7, 1.0 + 1.4 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), 1, squeeze=False, sharey=True)
    for axis, (name, group) in zip(axes[:, 0], groups, strict=True):
        found = sorted(trial.ratio for trial in group)
        middle = [ratio[0] for ratio in found]
        axis.vlines(range(len(found)), [r[1] for r in found], [r[2] for r in found], color="#b8b8b8", linewidth=1)
        axis.plot(middle, ".", color="#1f77b4", markersize=3)
        axis.axhline(1, color="#4d4d4d", linewidth=0.8)
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_ylabel("time over\nthe default's")
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_locator(NullLocator())
        axis.grid(axis="y", color="#e8e8e8", linewidth=0.6)
    axes[-1, 0].set_xlabel("candidates, fastest first")
    figure.suptitle(one_device(trials), fontsize=9)
    figure.savefig(path, dpi=120)
