"""Draw the figures of docs/: the order in which the schedules read x, and the measured times of its tables."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

from cbam_triton.demo.options import InputError, folder_of

SUMMARY = "Draw the figures of docs/: the order in which the schedules read x, and the measured times of its tables."
DOCS = Path(__file__).resolve().parent.parent / "docs"
SAMPLES, HELD, LAG = 16, 8, 2  # of the drawn batch; how many of them L2 holds; between the stages of the wavefront
STAGES = {"A": ("channel pool", "#1f77b4"), "B": ("spatial pool", "#e08214"), "C": ("gate and apply", "#17807e")}
FORMS = {"copy": "#c9c9c9", "timm eager": "#8a8a8a", "timm compiled": "#4d4d4d", "cbam_triton": "#17807e"}
NAMES = {"copy": "copy of x", "timm eager": "timm's, eager", "timm compiled": "torch.compile of timm's",
         "cbam_triton": "cbam_triton"}  # fmt: skip
_HEADER = re.compile(r"^\| x \| layout \| .+\|$", re.MULTILINE)

Read = tuple[str, int]  # a stage and the sample of x that it reads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench figures`."""
    parser.add_argument("--out", type=Path, default=DOCS, help="a folder (default: docs/)")


def main(arguments: argparse.Namespace) -> int:
    """Write both figures."""
    folder_of(str(arguments.out), ("schedules.svg", "cost.svg"), option="--out")
    table = times((DOCS / "benchmarks.md").read_text("utf-8"))
    draw_schedules(arguments.out / "schedules.svg")
    draw_times(table, arguments.out / "cost.svg")
    print(f"Wrote {arguments.out / 'schedules.svg'} and {arguments.out / 'cost.svg'}.")
    return 0


def staged(samples: int) -> list[Read]:
    """The reads of the staged schedule in their order: each launch walks the batch the other way."""
    forwards = list(range(samples))
    return [*(("A", n) for n in forwards), *(("B", n) for n in reversed(forwards)), *(("C", n) for n in forwards)]


def wavefront(samples: int, lag: int) -> list[Read]:
    """The reads of the wavefront in the order of its tickets, a sample at a time."""
    steps = range(samples + 2 * lag)
    reads = [(stage, step - late) for step in steps for stage, late in (("C", 2 * lag), ("B", lag), ("A", 0))]
    return [(stage, n) for stage, n in reads if 0 <= n < samples]


def from_dram(reads: list[Read], held: float) -> list[float]:
    """The part of each read that comes from DRAM, where L2 holds the `held` samples that were used last.

    A model: whole samples, no other traffic. Of a sample that is held in part, the rest is read.
    """
    cached: OrderedDict[int, None] = OrderedDict()
    parts = []
    for _, n in reads:
        age = list(reversed(cached)).index(n) if n in cached else None
        parts.append(1.0 if age is None else 1.0 - min(1.0, max(0.0, held - age)))
        cached.pop(n, None)
        cached[n] = None
    return parts


def draw_schedules(path: Path) -> None:
    """Write the figure: time from left to right, samples from top to bottom, a box for each read of a sample."""
    figure = _figure(9, 5)
    axes = figure.subplots(2, 1, sharex=True)
    orders = {"staged: a launch for each stage": staged(SAMPLES), "wavefront: one launch": wavefront(SAMPLES, LAG)}
    for axis, (name, reads) in zip(axes, orders.items(), strict=True):
        parts = from_dram(reads, HELD)
        for i, ((stage, n), part) in enumerate(zip(reads, parts, strict=True)):
            alpha = 1.0 if part else 0.35
            axis.bar(i / SAMPLES, 0.9, 1 / SAMPLES, n - 0.45, align="edge", color=STAGES[stage][1], alpha=alpha)
        units = sum(parts) / SAMPLES
        axis.set_title(f"{name}: {units:.1f} reads of x from DRAM", loc="left", fontsize=11)
        axis.set_ylabel("sample of the batch")
        axis.set_ylim(SAMPLES - 0.4, -0.6)
    axes[1].set_xlabel("reads of the whole x, one after another")
    axes[1].set_xlim(0, 3)
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=label) for label, colour in STAGES.values()]
    handles.append(Patch(color="#555555", alpha=0.35, label="pale: still in L2"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def times(page: str) -> dict[str, dict[tuple[str, str], float]]:
    """The first table of times of a page: of each form that is drawn, microseconds by shape and layout.

    Raises: InputError where the page has no such table.
    """
    found = _HEADER.search(page)
    if found is None:
        raise InputError("docs/benchmarks.md has no table that begins with '| x | layout |'")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page[found.start() :].splitlines()]
    end = next(i for i, row in enumerate(rows) if len(row) < 3)
    table: dict[str, dict[tuple[str, str], float]] = {form: {} for form in FORMS if form in rows[0]}
    shape = ""
    for row in rows[2:end]:
        shape = row[0] or shape  # a second layout has its shape in the row above
        for form, measured in table.items():
            measured[shape, row[1]] = float(row[rows[0].index(form)])
    return table


def draw_times(table: dict[str, dict[tuple[str, str], float]], path: Path) -> None:
    """Write the figure: a panel for each layout, a group of bars for each shape."""
    layouts = list(dict.fromkeys(layout for _, layout in next(iter(table.values()))))
    shapes = list(dict.fromkeys(shape for shape, _ in next(iter(table.values()))))
    figure = _figure(9, 3.6)
    width = 0.84 / len(table)
    for axis, layout in zip(figure.subplots(1, len(layouts), sharey=True, squeeze=False)[0], layouts, strict=True):
        for i, (form, measured) in enumerate(table.items()):
            at = [j + (i - (len(table) - 1) / 2) * width for j in range(len(shapes))]
            heights = [measured[shape, layout] for shape in shapes]
            bars = axis.bar(at, heights, width * 0.92, color=FORMS[form], label=NAMES[form])
            axis.bar_label(bars, fmt="%.0f", fontsize=7.5, padding=1)
        axis.set_xticks(range(len(shapes)), shapes, fontsize=8.5)
        axis.set_title(layout, fontsize=11)
    axis = figure.axes[0]
    axis.set_ylabel("microseconds a call")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    """As SVG that is the same in every run."""
    from matplotlib import rc_context

    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    with rc_context({"svg.hashsalt": "cbam_triton", "svg.fonttype": "path"}):
        figure.savefig(path, metadata={"Date": None})
