"""Registers, occupancy, loops and access widths of the default kernels, compiled here without a GPU."""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from cbam_triton.demo.options import InputError
from cbam_triton.kernels.launch import hardware as kernel_device
from cbam_triton.kernels.launch.hardware import DeviceFacts

from .inputs import DTYPES, LAYOUTS, parse_shapes
from .ptx import Access, accesses, exchanged_products, widths
from .static import static_of

SUMMARY = "Registers, occupancy, loops and access widths of the default kernels, compiled here without a GPU."
MIB = 1 << 20
# A common GPU of each architecture: the defaults depend on multiprocessors and L2.
FACTS = {
    "sm_75": DeviceFacts("T4", 40, 4 * MIB),
    "sm_80": DeviceFacts("A100", 108, 40 * MIB),
    "sm_86": DeviceFacts("A10", 72, 6 * MIB),
    "sm_89": DeviceFacts("L4", 58, 48 * MIB),
    "sm_90": DeviceFacts("H100", 132, 50 * MIB),
    "sm_100": DeviceFacts("B200", 148, 126 * MIB),
    "sm_120": DeviceFacts("RTX 5090", 170, 96 * MIB),
    "gfx942": DeviceFacts("MI300X", 304, 4 * MIB),
    "gfx1100": DeviceFacts("RX 7900 XTX", 96, 6 * MIB),
}
SCHEDULES = ("staged", "wavefront")
# What runs: the forward alone; forward and backward, the end of a residual block, and with a batch norm in training.
MODES = ("inference", "training", "residual", "batch_norm")


def target_of(architecture: str) -> Any:
    """Triton's GPUTarget for a name such as "sm_90" or "gfx942"."""
    from triton.backends.compiler import GPUTarget

    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture[3:]), 32)
    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64 if architecture.startswith("gfx9") else 32)
    raise ValueError(f"architecture {architecture!r} is neither like sm_90 nor like gfx942")


def compile_for(kernel: Any, arguments: Mapping[str, Any], options: Mapping[str, Any], architecture: str) -> Any:
    """Compile a @triton.jit kernel for an architecture as a launch with these arguments (by name) would.

    Tensors may be on any device, also "meta"; their memory is taken to be 16-byte aligned.
    """
    import triton
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}

    def described(path, value, parameter):
        """The type of an argument, or of one inside a pack; what is constant or aligned is noted by its path."""
        if isinstance(value, tuple) and not parameter.is_constexpr:
            inner = (described((*path, i), element, parameter) for i, element in enumerate(value))
            return type(value)(*inner)
        if isinstance(value, triton.language.constexpr):
            value = value.value
        elif not (parameter.is_constexpr or value is None or (value_is_one(value) and not parameter.do_not_specialize)):
            divisible = not isinstance(value, int) or value % 16 == 0
            if divisible and not isinstance(value, float) and not parameter.do_not_specialize:
                attributes[path] = [["tt.divisibility", 16]]
            return _type_of(value)
        constants[path] = value
        return "constexpr"

    for i, parameter in enumerate(kernel.params):
        signature[parameter.name] = described((i,), arguments[parameter.name], parameter)
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target_of(architecture), options=dict(options))


def value_is_one(value: Any) -> bool:
    """Whether Triton makes a constant of this argument: the integer 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value == 1


def _type_of(value):
    from triton.runtime.jit import mangle_type

    if isinstance(value, int) and not isinstance(value, bool):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return mangle_type(value)


def report(compiled: Any, architecture: str, programs: int, warps: int) -> dict[str, Any]:
    """`static_of` on the architecture's common GPU; for NVIDIA also the accesses by width."""
    facts = static_of(compiled, architecture, programs, warps, FACTS[architecture].sm_count)
    if architecture.startswith("gfx"):
        return facts
    ptx = compiled.asm["ptx"]
    found = list(accesses(ptx))
    facts["jump_tables"] = ptx.count("brx.idx")
    facts["non_coherent_loads"] = sum(".nc" in access.qualifiers for access in found)
    facts["exchanged_products"] = exchanged_products(ptx)
    facts["accesses"] = [access._asdict() for access in found]
    return facts


class Launch(NamedTuple):
    """One recorded launch: the kernel, its arguments by name, its options such as num_warps, its programs."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]
    programs: int


@contextmanager
def recorded(facts: DeviceFacts) -> Iterator[list[Launch]]:
    """Inside, launches are recorded instead of run, and every device has these facts."""
    from triton.runtime.jit import JITFunction

    from cbam_triton.kernels.launch import launcher, prepared, tensors

    found: list[Launch] = []

    def run(self, *arguments, grid, warmup, **options):
        del warmup
        named = dict(zip(self.arg_names, arguments, strict=False))
        named |= {name: options.pop(name) for name in self.arg_names if name in options}
        found.append(Launch(self, named, options, math.prod(grid)))

    device = patch.object(tensors, "facts", lambda device: facts)
    driver = patch.object(prepared, "driver", SimpleNamespace(active=None))
    with patch.object(JITFunction, "run", run), device, driver, patch.object(launcher, "is_nvidia", lambda: True):
        yield found


def launches(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    layout: str,
    schedule: str,
    architecture: str,
    mode: str,
    device: DeviceFacts | None = None,
    parameters: torch.dtype = torch.float32,
) -> list[Launch]:
    """What the library launches for a CBAM on x (N,C,H,W) on that architecture, on its common GPU if none is given.

    The norm is of fixed statistics, or of the batch's in the mode "batch_norm".
    """
    from cbam_triton.kernels.launch.backward import backward
    from cbam_triton.kernels.launch.forward import forward, forward_saved
    from cbam_triton.kernels.launch.tensors import Needed, Weights

    C = shape[1]
    R = max(1, C // 16)
    x = torch.empty(shape, dtype=dtype, memory_format=LAYOUTS[layout])
    one, fc1, fc2 = (torch.empty(size, dtype=parameters) for size in ((1,), (R, C), (C, R)))
    weights = Weights(
        fc1, fc1[:, 0].contiguous(), fc2, fc2[:, 0].contiguous(), torch.empty(1, 2, 7, 7, dtype=parameters), None,
        one, one, one, one, 1e-5,
    )  # fmt: skip
    relu, by_batch = mode == "residual", mode == "batch_norm"
    residual = torch.empty_like(x) if relu else None
    with recorded(device or FACTS[architecture]) as found:
        if mode == "inference":
            forward(x, weights, schedule)
        else:
            y, saved, _ = forward_saved(x, weights, schedule, residual, relu, by_batch)
            needed = Needed(residual=relu)
            backward(x, torch.empty_like(x), y if relu else None, weights, saved, needed, schedule, by_batch)
    return found


def measure(
    shape: tuple[int, int, int, int], dtype: torch.dtype, layout: str, schedule: str, architecture: str, mode: str
) -> Iterator[dict[str, Any]]:
    """`report` of every kernel of a schedule, with what it was compiled for."""
    for launch in launches(shape, dtype, layout, schedule, architecture, mode):
        compiled = compile_for(launch.kernel, launch.arguments, launch.options, architecture)
        facts = report(compiled, architecture, launch.programs, launch.options.get("num_warps", 4))
        yield {
            "architecture": architecture,
            "shape": "x".join(map(str, shape)),
            "dtype": str(dtype).removeprefix("torch."),
            "layout": layout,
            "schedule": schedule,
            "mode": mode,
            "kernel": launch.kernel.__name__,
            **facts,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench codegen`."""
    parser.add_argument("--architecture", nargs="+", choices=tuple(FACTS), default=list(FACTS))
    parser.add_argument("--shapes", nargs="+", default=["32x256x56x56"], help="as for bench run (default: %(default)s)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float16"])
    parser.add_argument("--layout", nargs="+", choices=tuple(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--schedule", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument(
        "--mode", nargs="+", choices=MODES, default=["inference"], help="what runs (default: inference)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with every access")


def main(arguments: argparse.Namespace) -> int:
    """Print one line for each kernel; 1 if one spills."""
    if kernel_device.interpreted():
        raise InputError("the interpreter compiles nothing: unset TRITON_INTERPRET")
    if (why := kernel_device.why_no_triton()) is not None:
        raise InputError(why)
    shapes = [shape for name in arguments.shapes for shape in parse_shapes(name, 32)]
    spilled = False
    for mode, shape, name, layout in itertools.product(arguments.mode, shapes, arguments.dtype, arguments.layout):
        if not arguments.json:
            print(f"\n{'x'.join(map(str, shape))} {name} {layout}, {mode}, triton {version('triton')}\n{HEADER}")
        for architecture, schedule in itertools.product(arguments.architecture, arguments.schedule):
            for found in measure(shape, getattr(torch, name), layout, schedule, architecture, mode):
                spilled |= found["spills"] > 0
                print(json.dumps(found) if arguments.json else _line(found), flush=True)
    return int(spilled)


HEADER = (
    f"{'architecture':<13} {'schedule':<10} {'kernel':<23} {'registers':>9} {'spills':>6} {'shared':>6} {'.nc':>4} "
    f"{'an SM':>5} {'occ.':>5} {'waves':>6} {'in flight':>9} {'loop':>5} {'loads':>5} {'bar.':>4}  "
    f"{'loads of 16-bit x':<26} stores"
)


def _line(found: dict[str, Any]) -> str:
    listed = [Access(**access) for access in found.get("accesses", [])]
    loads, stores = (widths(listed, kind) if listed else "" for kind in ("ld", "st"))
    occupancy, waves = (found.get(name) for name in ("occupancy", "waves"))
    loop = found.get("loop", {})
    flight = f"{found['bytes_in_flight'] / 1024:.1f}K" if "bytes_in_flight" in found else ""
    cells = (
        f"{found.get('programs_per_sm', ''):>5} {'' if occupancy is None else f'{occupancy:.0%}':>5} "
        f"{'' if waves is None else f'{waves:.2f}':>6} {flight:>9} "
        f"{loop.get('instructions', ''):>5} {loop.get('loads', ''):>5} {loop.get('barriers', ''):>4}"
    )
    return (
        f"{found['architecture']:<13} {found['schedule']:<10} {found['kernel']:<23} {found['registers']:>9} "
        f"{found['spills']:>6} {found['shared']:>6} {found.get('non_coherent_loads', ''):>4} {cells}  "
        f"{loads:<26} {stores}"
    ).rstrip()
