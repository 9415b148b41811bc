"""Host cost of one call: everything but the launch itself, with the kernels stubbed out.

The layers are timed from the inside out, each with what lies under it, so a row minus the one before is a layer's own.
The last row has the real kernels, compiled here, on the way to a driver whose launch does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import timeit
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest import mock

import torch

from .inputs import parse_shapes
from .stub_driver import stub_driver

SUMMARY = "Host cost of one call: everything but the launch itself, with the kernels stubbed out."


class _Stub:
    """Takes any launch and does nothing."""

    arg_names = ()

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *arguments, **constants: None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench host`."""
    parser.add_argument("--shape", default="8x256x14x14", help="N x C x H x W (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each row (default: %(default)s)")


def main(arguments: argparse.Namespace) -> int:
    """Print microseconds a call, layer by layer."""
    from cbam_triton.kernels.launch.hardware import interpreted

    (shape,) = parse_shapes(arguments.shape, 8)
    with contextlib.nullcontext() if interpreted() else stub_driver(), torch.no_grad():
        for schedule in ("wavefront", "staged"):
            _print_rows(shape, schedule, arguments.seconds, launched=not interpreted())
    return 0


def _print_rows(shape: tuple[int, int, int, int], schedule: str, seconds: float, launched: bool) -> None:
    from cbam_triton import CBAM, functional, ops, settings
    from cbam_triton.kernels.launch import forward as launch
    from cbam_triton.kernels.launch.hardware import device_type
    from cbam_triton.kernels.launch.tensors import Weights

    device = device_type() or "cpu"
    x = torch.randn(shape, device=device)
    layer: Any = CBAM(x.shape[1], device=device).eval()
    mlp = (layer.channel.fc1.weight, layer.channel.fc1.bias, layer.channel.fc2.weight, layer.channel.fc2.bias)
    conv, norm = layer.spatial.conv.weight, layer.spatial.norm
    fixed = (norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    weights = Weights(*mlp, conv, None, *fixed)
    rows: dict[str, Callable[[], Any]] = {
        "launcher": lambda: launch.forward(x, weights, schedule),
        "operator": lambda: ops.cbam(x, *mlp, conv, None, *fixed, schedule),
        "functional": lambda: functional.cbam(x, *mlp, conv, None, norm=norm),
        "module": lambda: layer(x),
    }
    print(f"{schedule}, {'x'.join(map(str, shape))}, {device}")
    with settings(backend="triton", schedule=schedule):
        names = ("cbam_wavefront", "channel_pool", "channel_mlp", "spatial_pool", "apply_gates")
        stubs = {name if name == "cbam_wavefront" else f"{name}_kernel": _Stub() for name in names}
        with mock.patch.multiple(launch, **stubs):
            for name, call in rows.items():
                _print_row(name, call, seconds)
        if launched:
            _print_row("to the driver", rows["module"], seconds)


def _print_row(name: str, call: Callable[[], Any], seconds: float) -> None:
    print(f"  {name:14s}{1e6 * _seconds(call, seconds):7.1f} us", flush=True)


def _seconds(call: Callable[[], Any], at_least: float) -> float:
    """Seconds a call: the median of rounds that take so many seconds in all."""
    timer = timeit.Timer(call)
    count, took = timer.autorange()
    count = max(1, int(count * 0.02 / took))  # rounds of 20 ms
    return median(timer.repeat(max(5, int(at_least / 0.02)), count)) / count
