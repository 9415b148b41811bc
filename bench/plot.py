"""Draw a CSV of `python -m bench run`: speed of every form over torch.compile of timm's form."""

from __future__ import annotations

import argparse
import csv
import itertools
from pathlib import Path

from cbam_triton.demo.options import InputError, folder_of

SUMMARY = "Draw a CSV of `python -m bench run`: speed of every form over torch.compile of timm's form."
FORMS = ("published", "timm", "timm compiled", "ours", "ours staged", "ours wavefront", "ours compiled")
COLOURS = ("#b8b8b8", "#8a8a8a", "#4d4d4d", "#1f77b4", "#7fb2d9", "#17807e", "#e08214")
OWN_COLOURS = (
    "#762a83",
    "#c51b7d",
    "#a6761d",
    "#66a61e",
)  # of forms of `bench run --with`, over again after the fourth


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench plot`."""
    parser.add_argument("csv", nargs="?", type=Path, default=Path("results.csv"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="default: the CSV's name with .png")


def main(arguments: argparse.Namespace) -> int:
    """Read the CSV and write the picture."""
    if not arguments.csv.is_file():
        raise InputError(f"there is no {arguments.csv}; `python -m bench run` writes it")
    with arguments.csv.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("median_us")]
    if not rows:
        raise InputError(f"{arguments.csv} holds no time")
    out = arguments.out or arguments.csv.with_suffix(".png")
    folder_of(str(out.parent), (out.name,), option="--out")
    draw(rows, out)
    print(f"Wrote {out}.")
    return 0


def draw(rows: list[dict[str, str]], out: Path) -> None:
    """One panel for each dtype, layout and pass, one group of bars for each shape, one bar for each form."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    baseline = "timm_compiled" if any(row["over_timm_compiled"] for row in rows) else "timm"
    panels = list(dict.fromkeys(_panel(row) for row in rows))
    own = list(dict.fromkeys(row["form"] for row in rows if row["form"] not in FORMS))
    colours = dict(zip(FORMS, COLOURS, strict=True)) | dict(zip(own, itertools.cycle(OWN_COLOURS), strict=False))
    forms = [form for form in colours if any(row["form"] == form for row in rows)]
    shapes = list(dict.fromkeys(_shape(row) for row in rows))
    figure = Figure(figsize=(max(6.0, 2.2 + 1.5 * len(shapes)), 0.9 + 2.5 * len(panels)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    width = 0.84 / len(forms)
    for axis, panel in zip(axes, panels, strict=True):
        here = {(_shape(row), row["form"]): row for row in rows if _panel(row) == panel}
        for i, form in enumerate(forms):
            at = [j for j, shape in enumerate(shapes) if here.get((shape, form), {}).get(f"over_{baseline}")]
            speeds = [float(here[shapes[j], form][f"over_{baseline}"]) for j in at]
            left = [j + (i - (len(forms) - 1) / 2) * width for j in at]
            bars = axis.bar(left, speeds, width * 0.92, color=colours[form], label=form)
            axis.bar_label(bars, fmt="%.2f", fontsize=6.5, padding=1.5, rotation=90)
        axis.axhline(1, color="black", linewidth=0.8, linestyle=":", zorder=0)
        axis.set_title(panel, fontsize=10, loc="left")
        axis.set_ylabel("speed", fontsize=9)
        axis.margins(y=0.18)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xticks(range(len(shapes)), shapes, fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(forms), 4), fontsize=8, frameon=False)
    first = rows[0]
    baseline_name = "torch.compile of timm's form" if baseline == "timm_compiled" else "timm's form"
    figure.suptitle(
        f"Speed over {baseline_name} (higher is better)\n"
        f"{first['device']}, torch {first['torch']}, triton {first['triton']}, cbam_triton {first['cbam_triton']}",
        fontsize=10,
    )
    figure.savefig(out)


def _panel(row: dict[str, str]) -> str:
    return ", ".join((row["dtype"], row["layout"], row["pass"]))


def _shape(row: dict[str, str]) -> str:
    return "x".join(row[size] for size in "nchw")
