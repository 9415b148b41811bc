"""Blocks that multiply by the gates of their children compute the same after conversion."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cbam_triton import convert_cbam, restore_cbam, settings
from cbam_triton.models import apply_cbam

from .block_forms import BLOCKS
from .idioms import (
    COMBINED,
    TOLERANCE,
    C,
    Residual,
    channel_gate,
    drawn,
    input_of,
    results,
    spatial_gate,
)


def outputs(model: nn.Module, x: Tensor) -> dict[str, Any]:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            y = self.model(x)
            return y[0] if isinstance(y, tuple) else y

    return results(First(), x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "name, backend",
    [(name, "reference") for name in BLOCKS]
    + [(name, "auto") for name in ("basic", "in place", "everything in place")],
)
def test_every_block_computes_the_same_after_conversion(name, backend, training):
    model, x = drawn(BLOCKS[name][0]()), input_of()
    twin = copy.deepcopy(model)
    before = {key: id(tensor) for key, tensor in model.state_dict(keep_vars=True).items()}
    report = convert_cbam(model)
    assert [found.name for found in report.converted] == [""]
    assert not report.skipped
    # Converted in the one mode, used in the other: what runs of the block is asked at the call.
    model.train(training), twin.train(training)
    with settings(backend=backend):
        with torch.no_grad():
            torch.testing.assert_close(model(x.clone()), twin(x.clone()), **TOLERANCE)
        if name != "everything in place":  # in which eager has no gradients
            torch.testing.assert_close(outputs(model, x), outputs(twin, x), **TOLERANCE)
    assert {key: id(tensor) for key, tensor in model.state_dict(keep_vars=True).items()} == before


@pytest.mark.parametrize("name", BLOCKS)
def test_every_pair_is_one_call_of_the_library(name, monkeypatch, no_kernels):
    make, expected = BLOCKS[name]
    calls = []
    refined = apply_cbam.refined

    def spied(x: Tensor, layer: Any, residual: Any, activation: Any) -> Any:
        channel, spatial = layer.mlp[0] is not None, layer.conv[0] is not None
        kind = layer.variant.arrangement if channel and spatial else "channel" if channel else "spatial"
        calls.append(kind + "+" * (residual is not None) + "r" * (activation == "relu"))
        return refined(x, layer, residual, activation)

    monkeypatch.setattr(apply_cbam, "refined", spied)
    model = drawn(make())
    convert_cbam(model)
    model(input_of())
    assert calls == expected


class Network(nn.Module):
    """Blocks, and gates in the network's own forward, as in the ResNets of many copies."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.ModuleList([channel_gate(), spatial_gate()])
        self.stage = nn.Sequential(Residual(C, 8), Residual(8, 8, 2))
        self.late = nn.ModuleList([channel_gate(8), spatial_gate()])
        self.whole = Whole()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.early[0](x) * x
        x = self.early[1](x) * x
        x = self.whole(self.stage(x))
        x = self.late[0](x) * x
        x = self.late[1](x) * x
        return self.head(x.mean((2, 3)))


class Whole(nn.Module):
    """A CBAM of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.ca, self.sa = channel_gate(8), spatial_gate()

    def forward(self, x: Tensor) -> Tensor:
        return COMBINED["channel first"](self.ca, self.sa, x)


def test_a_network_and_its_blocks_are_converted_each_in_its_own_forward(no_kernels):
    model, x = drawn(Network()), input_of()
    twin = copy.deepcopy(model)
    report = convert_cbam(model)
    assert [found.name for found in report.converted] == ["", "stage.0", "stage.1", "whole"]
    assert not report.skipped
    torch.testing.assert_close(results(model, x), results(twin, x), **TOLERANCE)
    again = convert_cbam(model)
    assert [found.name for found in again.already] == ["", "stage.0", "stage.1", "whole"]
    assert again.converted == again.skipped == ()
    assert restore_cbam(model) == 4
    assert [vars(part).keys() for part in model.modules()] == [vars(part).keys() for part in twin.modules()]
    torch.testing.assert_close(results(model, x), results(twin, x), **TOLERANCE)


def test_the_report_names_the_block_and_its_gates():
    lines = str(convert_cbam(nn.ModuleDict({"plain": nn.Conv2d(3, 3, 1), "block": Residual(C)}))).splitlines()
    note = "in its forward: channel gate of avg+max, C 6, R 2; spatial gate of mean+max, K 3 + residual, ReLU"
    assert lines[1] == f"converted  block   Residual  {note}"
    assert lines[-1] == "1 converted, 0 already, 0 skipped"
