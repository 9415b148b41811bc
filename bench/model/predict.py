"""`python -m bench predict`: the time of the staged schedule's launches on a GPU that is not here."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from unittest.mock import patch

import torch

from cbam_triton.demo.options import InputError
from cbam_triton.kernels.launch import hardware as kernel_device
from cbam_triton.kernels.launch.plan import Plan
from cbam_triton.prediction.code import code_of
from cbam_triton.prediction.devices import Gpu, shipped
from cbam_triton.prediction.launches import Launched, Work, works
from cbam_triton.prediction.predict import Prediction, predicted

from .. import codegen
from ..inputs import LAYOUTS, parse_shapes
from .devices import gpu

SUMMARY = "Predicted time and limiter of each launch of the staged schedule, from compiled code; no GPU needed."
DTYPES = ("float16", "bfloat16")  # of x; accesses of other widths are not told apart in the code
STEPS = ("forward", "training")


def works_there(
    shape: tuple[int, int, int, int],
    dtype: str,
    layout: str,
    step: str,
    device: Gpu,
    schedule: str = "staged",
    parameters: torch.dtype = torch.float32,
) -> list[Work]:
    """What the library would launch there for an x (N, C, H, W), compiled. `schedule` may be a candidate's JSON."""
    from cbam_triton.kernels.launch import tensors

    plans: list[Plan] = []
    mode = "inference" if step == "forward" else "training"

    def noted(plan: Plan, x: torch.Tensor) -> None:
        del x
        plans.append(plan)

    with patch.object(tensors, "LISTENERS", [noted]):
        launches = codegen.launches(
            shape, getattr(torch, dtype), layout, schedule, device.architecture, mode, device.facts, parameters
        )
    found = []
    for launch in launches:
        name, warps = launch.kernel.__name__, launch.options.get("num_warps", 4)
        plan = plans[0] if name in _FORWARD else plans[-1]
        compiled = codegen.compile_for(launch.kernel, launch.arguments, launch.options, device.architecture)
        found.append(Launched(name, launch.programs, plan, code_of(compiled, warps)))
    size = float(torch.Size(shape).numel() * getattr(torch, dtype).itemsize)
    return works(found, size, device.held)


_FORWARD = {"channel_pool_kernel", "channel_mlp_kernel", "spatial_pool_kernel", "apply_gates_kernel"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench predict`."""
    parser.add_argument("--device", nargs="+", default=list(shipped()), help="names, or device files (default: all)")
    parser.add_argument("--shapes", nargs="+", default=["resnet50"], help="as for bench run (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--layout", nargs="+", choices=tuple(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--step", choices=STEPS, default="forward", help="training: forward and backward")
    parser.add_argument("--config", help="a candidate's JSON instead of the default tiles")


def main(arguments: argparse.Namespace) -> int:
    """Print a line for each launch."""
    if kernel_device.interpreted():
        raise InputError("the interpreter compiles nothing: unset TRITON_INTERPRET")
    if (why := kernel_device.why_no_triton()) is not None:
        raise InputError(why)
    devices = [gpu(name) for name in arguments.device]
    shapes = [shape for name in arguments.shapes for shape in parse_shapes(name, 32)]
    for device, shape, layout in itertools.product(devices, shapes, arguments.layout):
        try:
            todo = works_there(shape, arguments.dtype, layout, arguments.step, device, arguments.config or "staged")
        except ValueError as error:
            raise InputError(f"--config: {error}") from None
        print(f"\n{device.name}, {'x'.join(map(str, shape))} {arguments.dtype} {layout}, predicted")
        print("\n".join(table([predicted(work, device) for work in todo], device)), flush=True)
    return 0


def table(found: Sequence[Prediction], device: Gpu) -> list[str]:
    """The lines of one call."""
    lines = [f"  {'kernel':<24}{'us':>7} {'interval':>15}  {'limiter':<13}{'programs':>8} {'an SM':>6}"]
    for one in found:
        interval = f"{one.low:.1f} to {one.high:.1f}"
        lines.append(
            f"  {one.kernel:<24}{one.us:>7.1f} {interval:>15}  {one.limiter:<13}{one.programs:>8} {one.resident:>6}"
        )
    gaps = device.launch_us * (len(found) - 1)
    low, high = (sum(getattr(one, name) for one in found) + gaps for name in ("low", "high"))
    whole = f"{low:.1f} to {high:.1f}"
    lines.append(f"  {'with gaps of launches':<24}{sum(one.us for one in found) + gaps:>7.1f} {whole:>15}")
    return lines
