"""One thing to tune: a map, a layout and a step, with the layer that runs on it and what it must compute."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cbam_triton import CBAM, settings
from cbam_triton.demo.options import InputError
from cbam_triton.kernels.launch.candidate import Candidate
from cbam_triton.kernels.launch.choice import default
from cbam_triton.kernels.launch.hardware import DeviceFacts, facts
from cbam_triton.kernels.launch.problem import Problem
from cbam_triton.testing.agreement import Agreement, agreement, gradient_agreement

from ..inputs import DTYPES, LAYOUTS, make_dy, make_input, make_layer, parse_shapes

STEPS = ("forward", "backward")
_GRADIENTS = {
    "channel.fc1.weight": "fc1_weight", "channel.fc1.bias": "fc1_bias", "channel.fc2.weight": "fc2_weight",
    "channel.fc2.bias": "fc2_bias", "spatial.conv.weight": "conv_weight", "spatial.norm.weight": "norm_weight",
    "spatial.norm.bias": "norm_bias",
}  # fmt: skip


class Case(NamedTuple):
    """x (N, C, H, W), its dtype and layout by name, and what is timed: inference, or the gradients of training."""

    shape: tuple[int, int, int, int]
    dtype: str
    layout: str
    step: str

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.dtype} {self.layout} {self.step}"


def add_case_arguments(parser: argparse.ArgumentParser, batch: int = 32) -> None:
    """The options that `cases_of` reads."""
    parser.add_argument("--shapes", nargs="+", default=["resnet50"], metavar="SHAPE", help="as for bench run")
    parser.add_argument("--batch", type=int, default=batch, help="samples in the sets' shapes (default: %(default)s)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float16"])
    parser.add_argument("--layout", nargs="+", choices=tuple(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--step", nargs="+", choices=STEPS, default=["forward"])
    parser.add_argument("--problems", type=Path, help="instead: what tuning.record() saved")


def cases_of(arguments: argparse.Namespace) -> list[Case]:
    """The cases that the options name. Raises: InputError for a file that holds none."""
    if arguments.problems is not None:
        return _recorded(arguments.problems)
    shapes = [shape for name in arguments.shapes for shape in parse_shapes(name, arguments.batch)]
    return [Case(*each) for each in itertools.product(shapes, arguments.dtype, arguments.layout, arguments.step)]


def _recorded(path: Path) -> list[Case]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = []
        for row in rows:
            layout = "channels_last" if row["channels_last"] else "nchw"
            if len(row["shape"]) == 4 and not row["variant"]:
                step = "backward" if row["problem"]["backward"] else "forward"
                found.append(Case(tuple(row["shape"]), row["dtype"], layout, step))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--problems {path}: not what tuning.record() saves ({error})") from None
    if not found:
        raise InputError(f"--problems {path} holds no plain layer of two axes: run the program that you tune for")
    return list(dict.fromkeys(found))


class Bench:
    """A case on a device: what candidates are asked to compute there, and whether they do."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.x = make_input(case.shape, device, getattr(torch, case.dtype), case.layout)
        self.layer = make_layer(self.x)
        self._dy = make_dy(self.x)
        self._weights = _weights_of(self.layer)
        self._saved: Any = None

    @property
    def facts(self) -> DeviceFacts:
        """Those of the device."""
        return facts(self.device)

    @property
    def problem(self) -> Problem:
        """What the table is asked for."""
        return problem_of(self.case, self.device)

    def default(self) -> Candidate:
        """What runs where nothing is tuned."""
        return default(self.problem, self.facts).candidate

    def call(self, candidate: Candidate) -> Callable[[], Any]:
        """The launches of one step by a candidate."""
        from cbam_triton.kernels.launch.backward import backward
        from cbam_triton.kernels.launch.forward import forward, forward_saved
        from cbam_triton.kernels.launch.tensors import Needed

        text = str(candidate)
        if self.case.step == "forward":
            return lambda: forward(self.x, self._weights, text)
        if self._saved is None:
            _, self._saved, _ = forward_saved(self.x, self._weights, "auto")
        return lambda: backward(self.x, self._dy, None, self._weights, self._saved, Needed(), text)

    def agreement(self, candidate: Candidate) -> Agreement:
        """How a candidate's result compares with eager's and with float64."""
        found = self.call(candidate)()
        if self.case.step == "forward":
            eager, exact = self._references
            return agreement(found, eager["y"], exact["y"])
        eager, exact = self._references
        mine = {name: getattr(found, field) for name, field in _GRADIENTS.items()}
        mine = {"x": found.x, **{name: gradient for name, gradient in mine.items() if gradient is not None}}
        return gradient_agreement(mine, {name: eager[name] for name in mine}, {name: exact[name] for name in mine})

    @functools.cached_property
    def _references(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Eager's results, and the exact ones."""
        return self._reference(self.x.dtype), self._reference(torch.float64)

    def _reference(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """y, or the gradients by name, of the layer in plain PyTorch."""
        layer, backward = make_layer(self.x).to(dtype), self.case.step == "backward"
        x = self.x.detach().to(dtype).requires_grad_(backward)
        with settings(backend="reference"), torch.set_grad_enabled(backward):
            y = layer(x)
        if not backward:
            return {"y": y}
        names = dict(layer.named_parameters())
        found = torch.autograd.grad(y, [x, *names.values()], self._dy.to(dtype))
        return dict(zip(["x", *names], found, strict=True))


def problem_of(case: Case, device: torch.device) -> Problem:
    """The problem of a case; nothing of its size is allocated."""
    from cbam_triton.kernels.launch.tensors import Weights, plan_of

    x = torch.empty(case.shape, dtype=getattr(torch, case.dtype), memory_format=LAYOUTS[case.layout], device="meta")
    layer: Any = CBAM(case.shape[1], device="meta")
    weights = Weights(layer.channel.fc1.weight, None, layer.channel.fc2.weight, None, layer.spatial.conv.weight, None)
    with _facts_of(device):
        return plan_of(x, weights, "staged", backward=case.step == "backward").problem


def _facts_of(device: torch.device) -> Any:
    from unittest.mock import patch

    from cbam_triton.kernels.launch import tensors

    here = facts(device)
    return patch.object(tensors, "facts", lambda _: here)


def _weights_of(layer: Any) -> Any:
    from cbam_triton.kernels.launch.tensors import Weights

    channel, spatial = layer.channel, layer.spatial
    norm = spatial.norm
    return Weights(
        channel.fc1.weight.detach(), channel.fc1.bias.detach(), channel.fc2.weight.detach(), channel.fc2.bias.detach(),
        spatial.conv.weight.detach(), None, norm.weight.detach(), norm.bias.detach(), norm.running_mean,
        norm.running_var, norm.eps,
    )  # fmt: skip
