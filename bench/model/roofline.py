"""`python -m bench roofline`: what each launch reaches of a GPU's bandwidths, predicted; a table and a picture.

CBAM does about ten operations an element, so its roof is bandwidth: that of DRAM, that of L2 for what is read again,
and on small maps the time in which any launch begins and one load returns.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

from cbam_triton.demo.options import InputError, folder_of, need_extras
from cbam_triton.kernels.launch import hardware as kernel_device
from cbam_triton.prediction.devices import Gpu, shipped
from cbam_triton.prediction.launches import Work
from cbam_triton.prediction.predict import Prediction, predicted

from ..inputs import LAYOUTS, parse_shapes
from .devices import gpu
from .predict import DTYPES, STEPS, works_there

SUMMARY = "Draw what each launch of the staged schedule reaches of a GPU's bandwidths, predicted from compiled code."
COLOURS = ("#1f77b4", "#17807e", "#e08214", "#8a5aa8", "#c0504d", "#6b6b6b")


class Point(NamedTuple):
    """One launch: bytes of x and tensors like it, GB/s by them, and the most that the roof over them allows."""

    kernel: str
    shape: str
    layout: str
    passed: float
    gbs: float
    roof: float
    limiter: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench roofline`."""
    parser.add_argument("--device", nargs="+", default=list(shipped()), help="names, or device files (default: all)")
    parser.add_argument("--shapes", nargs="+", default=["resnet50"], help="as for bench run (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--layout", nargs="+", choices=tuple(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--step", choices=STEPS, default="forward", help="training: forward and backward")
    parser.add_argument("--out", type=Path, default=Path("roofline.svg"), help="picture (default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    """Print a line for each launch that touches x, and write the picture."""
    if kernel_device.interpreted():
        raise InputError("the interpreter compiles nothing: unset TRITON_INTERPRET")
    if (why := kernel_device.why_no_triton()) is not None:
        raise InputError(why)
    need_extras("matplotlib", extra='pip install "cbam-triton[lab]"')
    folder_of(str(arguments.out.parent), (arguments.out.name,), option="--out")
    shapes = [shape for name in arguments.shapes for shape in parse_shapes(name, 32)]
    found: dict[Gpu, list[Point]] = {}
    for device in map(gpu, arguments.device):
        print(f"\n{device.name}, {arguments.dtype}, predicted: GB/s of x and what is like it, and of the roof over it")
        for shape, layout in itertools.product(shapes, arguments.layout):
            todo = works_there(shape, arguments.dtype, layout, arguments.step, device)
            points = points_of(todo, device, "x".join(map(str, shape)), layout)
            found.setdefault(device, []).extend(points)
            print("\n".join(map(_line, points)), flush=True)
    draw(found, arguments.out)
    print(f"Wrote {arguments.out}.")
    return 0


def points_of(todo: list[Work], device: Gpu, shape: str, layout: str) -> list[Point]:
    """The launches that touch x."""
    points = []
    for work in todo:
        if work.passed > 0:
            one: Prediction = predicted(work, device)
            speed = work.passed / one.us / 1e3
            limit = roof(work.passed, work.dram_bytes, device)
            points.append(Point(work.kernel, shape, layout, work.passed, speed, limit, one.limiter))
    return points


def roof(passed: float, dram_bytes: float, device: Gpu) -> float:
    """GB/s that no launch exceeds: its bytes by DRAM's and L2's bandwidth, and one load at the least."""
    least_ns = max(dram_bytes / device.dram_gbs, passed / device.l2_gbs, device.dram_ns if dram_bytes else device.l2_ns)
    return passed / least_ns


def draw(found: dict[Gpu, list[Point]], path: Path) -> None:
    """A panel for each GPU: bytes against GB/s, a colour for each stage, under the roofs of DRAM and L2."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.4 * columns, 0.9 + 2.9 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    kernels = list(dict.fromkeys(point.kernel for points in found.values() for point in points))
    for axis, (device, points) in zip(axes, found.items(), strict=False):
        sizes = [10**5, max(2 * 10**8, 1.2 * max(point.passed for point in points))]
        load = device.dram_ns
        for speed, label in ((device.dram_gbs, "DRAM"), (device.l2_gbs, "L2")):
            axis.plot(
                [sizes[0], speed * load, sizes[1]], [sizes[0] / load, speed, speed], color="#4d4d4d", linewidth=0.9
            )
            axis.annotate(label, (sizes[1], speed), fontsize=7, ha="right", va="bottom")
        for kernel, colour in zip(kernels, itertools.cycle(COLOURS), strict=False):
            mine = [point for point in points if point.kernel == kernel]
            axis.plot([p.passed for p in mine], [p.gbs for p in mine], "o", color=colour, markersize=4, label=kernel)
        axis.set_title(device.name, fontsize=10)
        axis.set_xscale("log")
        axis.set_yscale("log")
    for axis in axes[len(found) :]:
        axis.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    named = [label.removesuffix("_kernel").replace("_", " ") for label in labels]
    figure.legend(handles, named, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    figure.supxlabel("bytes of x and tensors like it, read and written", fontsize=9)
    figure.supylabel("GB/s, predicted", fontsize=9)
    with rc_context({"svg.hashsalt": "cbam_triton", "svg.fonttype": "path"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _line(point: Point) -> str:
    return (
        f"  {point.shape:<16}{point.layout:<15}{point.kernel:<24}{point.gbs:>7.0f} of {point.roof:>5.0f}"
        f"  {point.gbs / point.roof:>4.0%}  {point.limiter}"
    )
