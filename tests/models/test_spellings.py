"""However a CBAM is written, it is followed; whatever computes something else is not taken for one."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_triton import convert_cbam
from cbam_triton.models import apply_cbam

from .idioms import TOLERANCE, drawn
from .spellings import CHANNEL, OTHER_CHANNEL, OTHER_SPATIAL, SPATIAL, C, Written, both, maps

# The first as large as C on one side and then on the other; the last wider than every window above.
SHAPES = [(2, C, C, 7), (2, C, 7, C), (3, C, C, C), (1, C, 4, 5), (2, C, 40, 35)]


def agrees(model: nn.Module, twin: nn.Module, training: bool) -> int:
    """Compares both on every shape that the twin takes; returns how many."""
    count = 0
    for i, shape in enumerate(SHAPES):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        torch.manual_seed(i)
        try:
            with torch.no_grad():
                expected = twin.train(training)(x.clone())
        except Exception:
            continue
        torch.manual_seed(i)
        with torch.no_grad():
            torch.testing.assert_close(model.train(training)(x.clone()), expected, **TOLERANCE)
        count += 1
    return count


def converted(model: nn.Module) -> tuple[nn.Module, nn.Module, Any]:
    twin = copy.deepcopy(drawn(model))
    return model, twin, convert_cbam(model)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each call of the library."""
    found: list[int] = []
    refined = apply_cbam.refined
    monkeypatch.setattr(apply_cbam, "refined", lambda *arguments: found.append(1) or refined(*arguments))
    return found


@pytest.mark.parametrize("name", CHANNEL)
def test_channel_gates_are_followed_however_they_are_written(name, calls, no_kernels):
    model, twin, report = converted(Written(CHANNEL[name][0], linear=CHANNEL[name][1]))
    assert [found.name for found in report.converted] == [""], report
    assert agrees(model, twin, False) == len(SHAPES) == len(calls)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", SPATIAL)
def test_spatial_gates_are_followed_however_they_are_written(name, training, calls, no_kernels):
    model, twin, report = converted(Written(spatial=SPATIAL[name], norm=True))
    assert [found.name for found in report.converted] == [""], report
    assert agrees(model, twin, training) == len(SHAPES) == len(calls)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), **TOLERANCE)


HARD_SIGMOIDS = {
    "a function": F.hardsigmoid,
    "a module": nn.Hardsigmoid(),
    "ReLU6": lambda z: F.relu6(z + 3) / 6,
    "a module of ReLU6": lambda z: nn.ReLU6(inplace=True)(z + 3.0) / 6.0,
    "clamp": lambda z: (z / 6 + 0.5).clamp(0, 1),
    "clamp to six": lambda z: torch.clamp(z + 3, min=0, max=6) * (1 / 6),
    "hardtanh": lambda z: F.hardtanh(z + 3, 0.0, 6.0) / 6,
}


@pytest.mark.parametrize("name", HARD_SIGMOIDS)
def test_hard_sigmoids_are_followed_however_they_are_written(name, no_kernels):
    function: Any = HARD_SIGMOIDS[name]

    def channel(m: Any, x: Tensor) -> Tensor:
        return function(both(m, m.avg(x), m.max(x)))

    model, twin, report = converted(Written(channel, lambda m, x: function(m.norm(m.conv(maps(x))))))
    assert ["hard_sigmoid" in found.note for found in report.converted] == [True], report
    assert agrees(model, twin, False) == len(SHAPES)


class Alone(Written):
    """The spatial gate without a channel gate, of any number of channels."""

    def __init__(self, spatial: Any) -> None:
        super().__init__(spatial=spatial)
        del self.mlp

    def forward(self, x: Tensor) -> Tensor:
        return x * self.spatial(self, x)


@pytest.mark.parametrize("name", SPATIAL)
def test_a_spatial_gate_alone_takes_any_number_of_channels(name, calls, no_kernels):
    model, twin, report = converted(Alone(SPATIAL[name]))
    assert [found.name for found in report.converted] == [""], report
    for channels in (1, 3, 8):
        x = torch.randn(2, channels, 5, 4, dtype=torch.float64)
        torch.testing.assert_close(model(x), twin(x), **TOLERANCE)
    assert len(calls) == 3


@pytest.mark.parametrize("name", OTHER_CHANNEL)
def test_other_channel_gates_are_not_taken_for_one(name, no_kernels):
    function, linear = OTHER_CHANNEL[name]
    model, twin, report = converted(Written(function, linear=linear))
    assert report.converted == ()
    assert [found.name for found in report.skipped] == [""], report
    assert agrees(model, twin, False) > 0


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", OTHER_SPATIAL)
def test_other_spatial_gates_are_not_taken_for_one(name, training, no_kernels):
    model, twin, report = converted(Written(spatial=OTHER_SPATIAL[name], norm=True))
    assert report.converted == ()
    assert [found.name for found in report.skipped] == [""], report
    assert agrees(model, twin, training) > 0


@pytest.mark.parametrize("name", [*OTHER_CHANNEL, *OTHER_SPATIAL])
def test_reasons_are_in_the_users_words(name):
    gates = {"channel": OTHER_CHANNEL[name][0]} if name in OTHER_CHANNEL else {"spatial": OTHER_SPATIAL[name]}
    linear = name in OTHER_CHANNEL and OTHER_CHANNEL[name][1]
    (found,) = convert_cbam(Written(**gates, linear=linear, norm=True)).skipped
    words = found.note.lower()
    assert len(words) > 20
    assert not any(word in words for word in ("proxy", "proxies", "symbolic", "torch.fx", "traceerror", "node"))
