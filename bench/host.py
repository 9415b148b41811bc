"""Host cost of one call: everything but the launch itself, with the kernels stubbed out.

The layers are timed from the inside out, each with what lies under it, so a row minus the one before is a layer's own.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.utils.benchmark import Timer


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
    os.environ.setdefault("TRITON_INTERPRET", "1")  # where there is no GPU; the stub keeps it from running anything
    from cbam_triton import CBAM, functional, ops, settings
    from cbam_triton.kernels import launch
    from cbam_triton.kernels.call import Weights
    from cbam_triton.kernels.device import device_type

    device = device_type() or "cpu"
    x = torch.randn(*map(int, arguments.shape.split("x")), device=device)
    layer = CBAM(x.shape[1], device=device).eval()
    names = ("cbam_wavefront", "channel_pool_kernel", "channel_mlp_kernel", "spatial_pool_kernel", "apply_gates_kernel")
    mlp = (layer.channel.fc1.weight, layer.channel.fc1.bias, layer.channel.fc2.weight, layer.channel.fc2.bias)
    norm = layer.spatial.norm
    fixed = (norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    with mock.patch.multiple(launch, **{name: _Stub() for name in names}), torch.no_grad():
        for schedule in ("wavefront", "staged"):
            weights = Weights(*mlp, layer.spatial.conv.weight, None, *fixed)
            rows: dict[str, Callable[[], Any]] = {
                "launcher": lambda weights=weights, schedule=schedule: launch.forward(x, weights, schedule),
                "operator": lambda schedule=schedule: ops.cbam(
                    x, *mlp, layer.spatial.conv.weight, None, *fixed, schedule
                ),
                "functional": lambda: functional.cbam(x, *mlp, layer.spatial.conv.weight, None, norm=norm),
                "module": lambda: layer(x),
            }
            with settings(backend="triton", schedule=schedule):
                print(f"{schedule}, {arguments.shape}, {device}")
                for name, call in rows.items():
                    timing = Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=arguments.seconds)
                    print(f"  {name:12s}{1e6 * timing.median:7.1f} us")
    return 0
