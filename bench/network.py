"""Images a second of a whole ResNet: without attention, with a published CBAM, and with that one converted.

Inference, and training with a step of SGD. Outputs and gradients are compared with float64 before anything is timed;
the networks take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cbam_triton import settings, tuning
from cbam_triton.demo.options import InputError, device_of, folder_of, need_extras, number_of
from cbam_triton.testing.timing import Timing, interleaved

from .inputs import LAYOUTS, environment, kernels_run_on
from .networks import NETWORKS, Batch, agreements, build, exact_results, make_batch, prepared, results, step_of
from .own_forms import one_line
from .precompile import LayerCall, precompile, shapes_in

SUMMARY = "Images a second of a ResNet with CBAM, converted and not, against the one without attention."
MODES = ("inference", "training")
DTYPES = ("float16", "bfloat16", "float32")
OURS = ("converted", "inserted")

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench network`."""
    parser.add_argument("--device", default=None, help="torch device (default: a GPU if there is one)")
    parser.add_argument("--model", default="resnet50", help="a ResNet of torchvision (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="images of a step (default: 64 on a GPU, 2 on a CPU)")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of inference, and of autocast in training (default: float16, float32 on a CPU)"
    )
    parser.add_argument("--layout", nargs="+", choices=tuple(LAYOUTS), default=["channels_last", "nchw"])
    parser.add_argument("--mode", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK",
                        help=f"some of {', '.join(NETWORKS)} (default: all)")  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="torch.compile of every network too; takes minutes")
    parser.add_argument("--steps", type=int, help="steps in a round (default: 5 on a GPU, 1 on a CPU)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each measurement (default: 2)")
    parser.add_argument("--out", type=Path, default=Path("network.jsonl"), help="default: %(default)s")


def main(arguments: argparse.Namespace) -> int:
    """Measure, print and write a JSON object a line; 1 if a network of ours was wrong or failed."""
    device = _checked(arguments)
    begin = time.perf_counter()

    def say(words: str) -> None:
        print(f"[{time.perf_counter() - begin:5.1f} s] {words}", flush=True)

    facts = environment(device) | {"model": arguments.model, "batch": arguments.batch, "size": arguments.size}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    bad = False
    with _settings_for(device), arguments.out.open("w") as file:
        say(f"making {', '.join(arguments.networks)}")
        models = build(arguments.model, arguments.size, device)
        if kernels_run_on(device):
            calls = layer_calls(models["inserted"], arguments)
            say(f"compiling the kernels of {len(calls)} calls side by side")
            for failure in precompile(calls, device):
                say(failure)
        for layout in arguments.layout:
            for mode in arguments.mode:
                halves = mode == "training" and arguments.dtype != "float32"
                words = f"{mode}, {layout}, {arguments.dtype}{' autocast' * halves}"
                rows = list(measure(models, mode, layout, arguments, lambda text, w=words: say(f"{w}: {text}")))
                for row in rows:
                    file.write(json.dumps(facts | row) + "\n")
                    print(line_of(row))
                    bad |= row["network"] in OURS and bool(row["note"])
                file.flush()
                _forget(device)
    say(f"wrote {arguments.out}")
    return int(bad)


def _checked(arguments: argparse.Namespace) -> torch.device:
    """The device; fills in what depends on it. Raises: InputError."""
    need_extras("torchvision", extra='pip install ".[bench]"')
    from torchvision import models

    device = device_of(arguments.device)
    known = models.list_models(module=models, include=("resnet*", "resnext*", "wide_resnet*"))
    if arguments.model not in known:
        raise InputError(f"--model: {arguments.model!r} is not one of {', '.join(known)}")
    on_cpu = device.type == "cpu"
    if arguments.batch is None:
        arguments.batch = 2 if on_cpu else 64
    if arguments.steps is None:
        arguments.steps = 1 if on_cpu else 5
    arguments.dtype = arguments.dtype or ("float32" if on_cpu else "float16")
    number_of("--batch", arguments.batch, 1, 1 << 16, "the number of images of a step")
    number_of("--size", arguments.size, 32, 4096, "the number of pixels a side")
    number_of("--steps", arguments.steps, 1, 1000, "the number of steps in a round")
    if "training" in arguments.mode and arguments.batch < 2:
        raise InputError("--batch: batch norm trains on at least 2 images; give --batch 2, or --mode inference")
    folder_of(str(arguments.out.parent), (arguments.out.name,), option="--out")
    return device


def layer_calls(inserted: nn.Module, arguments: argparse.Namespace) -> list[LayerCall]:
    """What the attention of the networks of ours will be called with."""
    dtype = getattr(torch, arguments.dtype)
    return [
        LayerCall(shape, dtype, layout == "channels_last", mode == "training", name == "inserted")
        for shape in shapes_in(inserted, arguments.size, arguments.batch)
        for layout in arguments.layout
        for mode in arguments.mode
        for name in OURS
        if name in arguments.networks
    ]


def measure(
    models: dict[str, nn.Module],
    mode: str,
    layout: str,
    arguments: argparse.Namespace,
    say: Callable[[str], None],
) -> Iterator[Row]:
    """Check every network in this mode and layout, then time those that agree in turns; a row for each."""
    training, dtype = mode == "training", getattr(torch, arguments.dtype)
    device = next(models["none"].parameters()).device
    batch = make_batch(arguments.size, arguments.batch, device, training, dtype, LAYOUTS[layout])
    yardsticks: dict[str, Any] = {}
    rows: dict[str, Row] = {}
    steps: dict[str, Callable[[], object]] = {}
    torch.compiler.reset()
    for name in arguments.networks:
        for compiles in (False, True) if arguments.compile else (False,):
            form = f"{name} compiled" if compiles else name
            say(f"{'compiling and ' * compiles}checking {name}")
            row = rows[form] = {"mode": mode, "layout": layout, "dtype": arguments.dtype}
            row |= {"network": name, "compiled": compiles, "note": ""}
            try:
                model = prepared(models[name], training, dtype, LAYOUTS[layout])
                family = "none" if name == "none" else "published"
                if family not in yardsticks:
                    yardsticks[family] = _yardstick(prepared(models[family], training, dtype, LAYOUTS[layout]), batch)
                call = torch.compile(model, fullgraph=True) if compiles else model
                checked = check(call, model, batch, yardsticks[family])
                row |= checked
                if not checked["note"]:
                    steps[form] = step_of(call, model, batch)
                    row["step_mib"] = memory_of(steps[form], device)
            except Exception as error:  # whatever one network raises, the others are still measured
                row["note"] = one_line(error)
                steps.pop(form, None)
            if row["note"]:
                say(f"{form} is left out: {row['note']}")
    say(f"timing {len(steps)} networks, {arguments.steps} steps a round")
    timings = _timings(steps, arguments, device)
    for form, row in rows.items():
        yield row | speeds(form, timings, arguments.batch)


def _yardstick(model: nn.Module, batch: Batch) -> tuple[Any, Any]:
    """What all forms of an eager network must agree with: its results, and the exact ones."""
    return results(model, model, batch), exact_results(model, batch)


def check(call: Callable[..., Any], model: nn.Module, batch: Batch, yardstick: Any) -> Row:
    """Cells of a network's error, what its layers of ours launched, and why it is not to be timed."""
    with tuning.record() as met:
        got = results(call, model, batch)
    found = agreements(got, *yardstick)
    counts = Counter(launch_of(one) for one in met.explanations())
    return {
        "error_over_eager": [round(one.ratio, 3) for one in found],
        "launches": [dict(json.loads(launch), layers=count) for launch, count in counts.items()],
        "note": _note(got, found),
    }


def _note(got: Any, found: list[Any]) -> str:
    if not all(one.ok for one in found):
        return "wrong"
    finite = all(tensor.isfinite().all() for tensor in (got[0], *got[1].values()))
    return "" if finite else "overflow: a step of SGD would be skipped; more images, or --dtype bfloat16"


def launch_of(found: tuning.Explanation) -> str:
    """One launch as JSON: the map, the direction, the schedule, the candidate and where it is from."""
    return json.dumps({
        "shape": found.shape,
        "pass": "backward" if found.problem.backward else "forward",
        "schedule": found.candidate.schedule,
        "candidate": found.candidate.to_json(),
        "source": found.source,
    })  # fmt: skip


def memory_of(step: Callable[[], object], device: torch.device) -> float | None:
    """MiB that a second step takes at most beside what is kept between steps; None on a CPU."""
    step()
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    module.synchronize(device)
    module.reset_peak_memory_stats(device)
    before = module.memory_allocated(device)
    step()
    module.synchronize(device)
    return round((module.max_memory_allocated(device) - before) / 2**20, 1)


def _timings(steps: dict[str, Callable[[], object]], arguments: argparse.Namespace, device: torch.device):
    def repeated(step: Callable[[], object]) -> Callable[[], None]:
        def call() -> None:
            for _ in range(arguments.steps):
                step()

        return call

    if not steps:
        return {}
    calls = {name: repeated(step) for name, step in steps.items()}
    found = interleaved(calls, device, seconds=arguments.seconds)
    return {name: Timing(one.median / arguments.steps, one.spread / arguments.steps) for name, one in found.items()}


def speeds(form: str, timings: dict[str, Timing], batch: int) -> Row:
    """Cells of the time of a step; ratios are within one state of compilation, and none is given for noise."""
    own = timings.get(form)
    if own is None:
        return {}
    name, _, compiled = form.partition(" ")
    others = {other: timings.get(f"{other} {compiled}".strip()) for other in ("none", "published")}
    if name == "none":
        others["none"] = None
    ratios = {other: None if timing is None else own.over(timing) for other, timing in others.items()}
    return {
        "seconds": own.median,
        "quartiles_seconds": own.spread,
        "images_per_second": round(batch / own.median, 2),
        "noisy": own.noisy,
        "over_published": ratios["published"],
        "attention_share": None if ratios["none"] is None else 1 - ratios["none"],
    }


def line_of(row: Row) -> str:
    """A row for a reader."""
    form = f"{row['network']}{' compiled' * row['compiled']}"
    if "seconds" not in row:
        return f"  {form:<20} not timed: {row['note']}"
    over, share = row["over_published"], row["attention_share"]
    cells = [
        f"{row['images_per_second']:>9.1f} images/s{' ~' if row['noisy'] else '  '}",
        f"{'~' if over is None else f'{over:.2f}x':>6} over published",
        f"{'~' if share is None else f'{share:.0%}':>4} is attention",
        f"error/eager {max(row['error_over_eager']):.2f}",
    ]
    if row["step_mib"] is not None:
        cells.append(f"{row['step_mib']:.0f} MiB")
    launched = {f"{one['schedule']} ({one['source']})" for one in row["launches"]}
    return f"  {form:<20} " + "  ".join([*cells, *sorted(launched)])


def _settings_for(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The kernels only where they run at full speed; cuDNN chooses by trying, as in training it should."""
    stack = contextlib.ExitStack()
    stack.enter_context(settings(backend="auto" if kernels_run_on(device) else "reference"))
    stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=True))
    return stack


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
