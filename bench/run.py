"""Time the module on this device against the published form, timm's form and torch.compile of timm's form.

The forward pass in eval mode, or forward and backward in training mode. Everything that is timed has agreed with fp64
first. Every ratio is within one run: the contenders take turns.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch

from cbam_triton.demo.options import device_of, folder_of, number_of

from . import own_forms
from .contenders import BASELINES, measure
from .inputs import DTYPES, LAYOUTS, SHAPES, environment, make_input, parse_shapes

SUMMARY = "Time the module on this device against the published form, timm's form and torch.compile of timm's form."
COLUMNS = (
    "device", "dtype", "layout", "n", "c", "h", "w", "pass", "form", "error_over_eager", "median_us", "quartiles_us",
    "noisy", "gigabytes_per_second", "over_published", "over_timm", "over_timm_compiled", "note",
    "schedule", "source", "candidates",
    "python", "torch", "triton", "cbam_triton",
)  # fmt: skip
OURS = ("ours", "ours staged", "ours wavefront", "ours compiled")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench run`."""
    parser.add_argument("--device", default=None, help="torch device (default: a GPU if there is one)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="default: float16 on a GPU, float32 on a CPU")
    parser.add_argument(
        "--shapes", nargs="+", default=["resnet50"], metavar="SHAPE",
        help=f"sets ({', '.join(SHAPES)}, all) or sizes such as 32x256x56x56 (default: resnet50)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, help="samples in the sets' shapes (default: 32 on a GPU, 4 on a CPU)")
    parser.add_argument("--layout", nargs="+", choices=tuple(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each line's measurement (default: 2)")
    parser.add_argument("--backward", action="store_true", help="forward and backward in training mode, not forward")
    parser.add_argument("--no-compile", action="store_true", help="leave out everything that needs torch.compile")
    parser.add_argument(
        "--with", nargs="+", default=[], dest="own", metavar="PACKAGE:NAME",
        help="forms of your own beside the others: a mapping of names to factories, a function that returns one, or "
        "one factory; a factory takes a CBAM and returns a function of x",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("results.csv"), help="default: %(default)s")


def main(arguments: argparse.Namespace) -> int:
    """Measure, print and write the CSV; 1 if a result of ours was wrong."""
    device = device_of(arguments.device)
    on_cpu = device.type == "cpu"
    dtypes = arguments.dtype or ["float32" if on_cpu else "float16"]
    batch = (4 if on_cpu else 32) if arguments.batch is None else arguments.batch
    number_of("--batch", batch, 1, 1 << 20, "the number of samples")
    shapes = [shape for name in arguments.shapes for shape in parse_shapes(name, batch)]
    own = own_forms.load(arguments.own, (*BASELINES, *OURS))
    folder_of(str(arguments.out.parent), (arguments.out.name,), option="--out")
    facts = environment(device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    wrong = noisy = False
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for dtype in dtypes:
            for shape in shapes:
                for layout in arguments.layout:
                    print(f"\n{'x'.join(map(str, shape))} {dtype} {layout}{', with backward' * arguments.backward}")
                    x = make_input(shape, device, getattr(torch, dtype), layout)
                    compiles, sizes = not arguments.no_compile, dict(zip("nchw", shape, strict=True))
                    found = measure(x, arguments.backward, seconds=arguments.seconds, with_compile=compiles, own=own)
                    rows = [{**facts, "dtype": dtype, "layout": layout, **sizes, **row} for row in found]
                    writer.writerows(rows)
                    file.flush()
                    timed = {row["form"] for row in rows if "median_us" in row}
                    print("\n".join(_line(row, timed) for row in rows), flush=True)
                    wrong |= any(row["form"] in OURS and row["note"] == "wrong" for row in rows)
                    noisy |= any(row.get("noisy") for row in rows)
    if noisy:
        print("\n~: no ratio, for quartiles lie more than a quarter of the median apart: the machine is busy.")
    print(f"\nWrote {arguments.out}.")
    return int(wrong)


def _line(row: dict[str, Any], timed: Container[str]) -> str:
    if "median_us" not in row:
        error = f" (error/eager {row['error_over_eager']})" if row.get("error_over_eager") else ""
        return f"  {row['form']:<16} not timed: {row['note']}{error}"
    speeds = "  ".join(
        f"{row.get('over_' + other.replace(' ', '_'), '~' if other in timed else '-'):>7} over {other}"
        for other in BASELINES
    )
    mark, launched = "~" if row["noisy"] else " ", row.get("schedule", "") and f"  {row['schedule']} ({row['source']})"
    line = f"  {row['form']:<16} {row['median_us']:>12} us {mark} error/eager {row['error_over_eager']:>7}   {speeds}"
    return line + launched + (row["note"] and f"  {row['note']}")
