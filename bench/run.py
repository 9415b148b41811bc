"""Time the module on this device against the published form, timm's form and torch.compile of timm's form.

The forward pass in eval mode, or forward and backward in training mode. Everything that is timed has agreed with fp64
first. Every ratio is within one run: the contenders take turns.
"""

from __future__ import annotations

import argparse
import copy
import csv
import functools
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cbam_triton
from cbam_triton import CBAM
from cbam_triton.demo.options import InputError, device_of, folder_of, number_of
from cbam_triton.kernels.launch import hardware as kernel_device
from cbam_triton.testing.agreement import Agreement, agreement, gradient_agreement
from cbam_triton.testing.published import jongchan_like, timm_like
from cbam_triton.testing.timing import CompileFailed, compiled, interleaved

SUMMARY = "Time the module on this device against the published form, timm's form and torch.compile of timm's form."
SHAPES = {
    "resnet50": ((256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)),
    "resnet18": ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)),
    "detection": ((256, 200, 304), (512, 100, 152), (1024, 50, 76), (2048, 25, 38)),
    "odd": ((96, 55, 57), (40, 31, 31), (320, 13, 13)),
}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = ("float16", "bfloat16", "float32", "float64")
COLUMNS = (
    "device", "dtype", "layout", "n", "c", "h", "w", "pass", "form", "error_over_eager", "median_us", "quartiles_us",
    "gigabytes_per_second", "over_published", "over_timm", "over_timm_compiled", "note",
    "python", "torch", "triton", "cbam_triton",
)  # fmt: skip
# Passes over x that no implementation can avoid: x read, y written; then x and dy read, dx written.
LEAST_PASSES = {"forward": 2, "forward+backward": 5}

Form = Callable[[Tensor], Tensor]


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
    parser.add_argument("--out", type=Path, default=Path("results.csv"), help="default: %(default)s")


def main(arguments: argparse.Namespace) -> int:
    """Measure, print and write the CSV; 1 if a result of ours was wrong."""
    device = device_of(arguments.device)
    on_cpu = device.type == "cpu"
    dtypes = arguments.dtype or ["float32" if on_cpu else "float16"]
    batch = (4 if on_cpu else 32) if arguments.batch is None else arguments.batch
    number_of("--batch", batch, 1, 1 << 20, "the number of samples")
    shapes = [shape for name in arguments.shapes for shape in parse_shapes(name, batch)]
    folder_of(str(arguments.out.parent), (arguments.out.name,), option="--out")
    facts = environment(device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    wrong = False
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for dtype in dtypes:
            for shape in shapes:
                for layout in arguments.layout:
                    print(f"\n{'x'.join(map(str, shape))} {dtype} {layout}{', with backward' * arguments.backward}")
                    x = make_input(shape, device, getattr(torch, dtype), layout)
                    compiles = not arguments.no_compile
                    for row in measure(x, arguments.backward, seconds=arguments.seconds, with_compile=compiles):
                        sizes = dict(zip("nchw", shape, strict=True))
                        row = {**facts, "dtype": dtype, "layout": layout, **sizes, **row}
                        writer.writerow(row)
                        file.flush()
                        print(_line(row), flush=True)
                        wrong |= row["form"].startswith("ours") and row["note"] == "wrong"
    print(f"\nWrote {arguments.out}.")
    return int(wrong)


def parse_shapes(name: str, batch: int) -> list[tuple[int, int, int, int]]:
    """Shapes (N,C,H,W) of a named set, of every set ("all"), or of one size such as "32x256x56x56".

    Raises: InputError for anything else.
    """
    if name == "all":
        return [(batch, *shape) for shapes in SHAPES.values() for shape in shapes]
    if name in SHAPES:
        return [(batch, *shape) for shape in SHAPES[name]]
    sizes = name.split("x")
    if len(sizes) == 4 and all(size.isdigit() and int(size) > 0 for size in sizes):
        n, c, h, w = map(int, sizes)
        return [(n, c, h, w)]
    known = ", ".join(SHAPES)
    raise InputError(f"--shapes: {name!r} is neither {known}, all nor four sizes such as 32x256x56x56")


def environment(device: torch.device) -> dict[str, str]:
    """What a time depends on besides the input: device and versions."""
    name = platform.processor() or platform.machine()
    if device.type != "cpu":
        name = torch.get_device_module(device).get_device_name(device)
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    return {
        "device": f"cpu {name} ({torch.get_num_threads()} threads)" if device.type == "cpu" else name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton,
        "cbam_triton": cbam_triton.__version__,
    }


def make_input(shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype, layout: str) -> Tensor:
    """A seeded map after a ReLU, half of it zeros, as a ResNet's are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).relu()
    return x.to(device, dtype).contiguous(memory_format=LAYOUTS[layout])


def make_dy(x: Tensor) -> Tensor:
    """A seeded gradient for the result on x, in x's dtype and layout."""
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return torch.empty_like(x).copy_(dy)


def make_layer(x: Tensor) -> CBAM:
    """A seeded CBAM in eval mode for x, with batch-norm statistics that are not 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = CBAM(x.shape[1]).eval()
        for key, value in (("running_mean", 0.1), ("running_var", 0.5), ("weight", 1.5), ("bias", -0.2)):
            getattr(layer.spatial.norm, key).data.fill_(value)
    return layer.to(x.device, x.dtype)


def kernels_run_on(device: torch.device) -> bool:
    """Whether the kernels run there at full speed: a driver, not the interpreter."""
    missing = kernel_device.missing() is not None or kernel_device.device_type() != device.type
    return not missing and not kernel_device.interpreted()


def with_settings(layer: CBAM, **options: Any) -> Form:
    """The layer under `cbam_triton.settings(**options)`."""

    def form(x: Tensor) -> Tensor:
        with cbam_triton.settings(**options):
            return layer(x)

    return form


def contenders(layer: CBAM, with_compile: bool) -> dict[str, Form | torch.nn.Module]:
    """Every form by name; the ones named "... compiled" are still to be compiled."""
    device = layer.channel.fc1.weight.device
    kernels = kernels_run_on(device)
    published, timm = jongchan_like(layer), timm_like(layer)
    ours = with_settings(layer, backend="auto" if kernels else "reference")
    forms: dict[str, Form | torch.nn.Module] = {"published": published, "timm": timm}
    if with_compile:
        forms["timm compiled"] = timm
    forms["ours"] = ours
    if kernels:
        for name in ("staged", "wavefront"):
            forms[f"ours {name}"] = with_settings(layer, backend="triton", schedule=name)
    if with_compile:
        forms["ours compiled"] = layer
    return forms


def measure(x: Tensor, backward: bool = False, *, seconds: float, with_compile: bool) -> Iterator[dict[str, Any]]:
    """Check every form on x, then time those that agree, taking turns; a dict of CSV cells for each."""
    layer = make_layer(x).train(backward)
    dy = make_dy(x) if backward else None
    x = x.detach().requires_grad_(backward)
    forms = contenders(layer, with_compile)
    owners = {name: form if isinstance(form, torch.nn.Module) else layer for name, form in forms.items()}
    truths = _truths(layer, x, dy)
    calls, found, notes = {}, {}, {}
    with torch.set_grad_enabled(backward):
        eager = results(forms["published"], owners["published"], x, dy)
        for name, form in forms.items():
            try:
                if name.endswith("compiled"):
                    with cbam_triton.settings(backend="auto" if kernels_run_on(x.device) else "reference"):
                        form = _under_same_settings(compiled(form, x), x.device)
                call = functools.partial(results, form, owners[name], x, dy)
                found[name] = _agreements(call(), eager, truths, name)
            except CompileFailed as error:
                notes[name] = str(error)
                continue
            if all(one.ok for one in found[name]):
                calls[name] = call
            else:
                notes[name] = "wrong"
        timings = interleaved(calls, x.device, seconds=seconds)
    for name in forms:
        row = {"pass": "forward+backward" if backward else "forward", "form": name, "note": notes.get(name, "")}
        if name in found:
            row["error_over_eager"] = f"{max(one.ratio for one in found[name]):.3f}"
        yield row | _speeds(row["pass"], name, timings, x)


def results(form: Form, owner: torch.nn.Module, x: Tensor, dy: Tensor | None) -> tuple[Tensor, ...]:
    """y; given dy also dx and the gradients of the owner's parameters, which all forms hold in the same order."""
    y = form(x)
    if dy is None:
        return (y,)
    return (y, *torch.autograd.grad(y, (x, *owner.parameters()), dy, materialize_grads=True))


def _truths(layer: CBAM, x: Tensor, dy: Tensor | None) -> dict[str, tuple[Tensor, ...]]:
    """The results in fp64: y is the module's; gradients are each form's own, since timm's amax splits them at ties."""
    wide = copy.deepcopy(layer).double()
    forms: dict[str, Any] = {"ours": with_settings(wide, backend="reference")}
    if dy is None:
        with torch.no_grad():
            return {"ours": results(forms["ours"], wide, x.double(), None)}
    forms |= {"published": jongchan_like(wide), "timm": timm_like(wide)}
    x = x.detach().double().requires_grad_()
    return {name: results(form, wide if name == "ours" else form, x, dy.double()) for name, form in forms.items()}


def _agreements(got, eager, truths, name) -> list[Agreement]:
    """Of y; given gradients also the worse of dx and of all parameters' together."""
    found = [agreement(got[0], eager[0], truths["ours"][0])]
    if len(got) > 1:
        own, published = truths[name.split()[0]], truths["published"]
        found.append(gradient_agreement(*map(_by_name, (got, eager, own, published))))
    return found


def _by_name(results: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {f"parameters.{i}" if i else "x": gradient for i, gradient in enumerate(results[1:])}


def _speeds(which, name, timings, x) -> dict[str, str]:
    if name not in timings:
        return {}
    own = timings[name]
    speeds = {
        "median_us": f"{own.median * 1e6:.2f}",
        "quartiles_us": f"{own.spread * 1e6:.2f}",
        "gigabytes_per_second": f"{LEAST_PASSES[which] * x.nbytes / own.median / 1e9:.1f}",
    }
    for other in ("published", "timm", "timm compiled"):
        if other in timings:
            speeds["over_" + other.replace(" ", "_")] = f"{timings[other].median / own.median:.3f}"
    return speeds


def _under_same_settings(form, device):
    """Compiled code guards on the settings it was compiled under."""
    if kernels_run_on(device):
        return form
    return lambda x: _with_reference(form, x)


def _with_reference(form, x):
    with cbam_triton.settings(backend="reference"):
        return form(x)


def _line(row: dict[str, Any]) -> str:
    if "median_us" not in row:
        return f"  {row['form']:<16} not timed: {row['note']}"
    speeds = "  ".join(
        f"{row.get('over_' + other, '-'):>7} {'over ' + other.replace('_', ' ')}"
        for other in ("published", "timm", "timm_compiled")
    )
    return f"  {row['form']:<16} {row['median_us']:>12} us   error/eager {row['error_over_eager']:>7}   {speeds}"
