"""A conversion runs and changes nothing but forwards, and what one module does never stops the others."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cbam_triton import convert_cbam

from .idioms import FORMS, TOLERANCE, C, R, drawn, input_of, results
from .spellings import Written, both


class Counting(Written):
    """Keeps something in a list at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1)
        return super().forward(x)


class Raising(Written):
    def named_children(self) -> Any:
        raise ValueError("no children for you")

    def forward(self, x: Tensor) -> Tensor:
        raise LookupError("not today")


class Flagged(nn.Module):
    """One gate, with flags that have defaults, for signals, images and volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(C, R), nn.ReLU(), nn.Linear(R, C))

    def forward(self, x: Tensor, return_gate: bool = False, *, scale: float | None = None) -> Any:
        flat = x.flatten(2)
        gate = torch.sigmoid(both(self, flat.mean(-1), flat.amax(-1)))
        y = (flat * gate.unsqueeze(-1)).view_as(x)
        y = y if scale is None else y * scale
        return (y, gate) if return_gate else y


def test_random_numbers_buffers_and_lists_stay_what_they_are():
    model = nn.Sequential(drawn(FORMS["timm"]()), Counting())
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    report = convert_cbam(model)
    assert [found.name for found in report.converted] == ["0"]
    assert [found.note for found in report.skipped] == ["its forward sets seen, which a converted one would not"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model.get_submodule("1").seen == []


def test_what_one_module_raises_is_reported_and_stops_no_other():
    model = nn.Sequential(Raising(), drawn(FORMS["timm"]()), Raising())
    report = convert_cbam(model)
    assert [found.name for found in report.converted] == ["1"]
    assert [found.name for found in report.skipped] == ["0", "2"]
    assert all("LookupError: not today" in found.note or "no children" in found.note for found in report.skipped)


@pytest.mark.parametrize("context", [torch.device("meta"), torch.inference_mode(), torch.autocast("cpu")])
def test_models_convert_where_they_are_made(context):
    with context:
        assert [found.name for found in convert_cbam(nn.Sequential(FORMS["timm"]())).converted] == ["0"]


@pytest.mark.parametrize("shape", [(2, C, 9), (2, C, 4, 5), (2, C, 3, 4, 5)])
def test_one_gate_of_linear_layers_is_followed_for_any_number_of_axes(shape, no_kernels):
    model = drawn(Flagged())
    twin, x = copy.deepcopy(model), torch.randn(shape, dtype=torch.float64)
    assert convert_cbam(model).converted
    torch.testing.assert_close(results(model, x), results(twin, x), **TOLERANCE)
    torch.testing.assert_close(model(x, scale=2.0), twin(x, scale=2.0), **TOLERANCE)
    assert len(model(x, True)) == 2


def test_layers_that_two_chains_share_count_once(no_kernels):
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            up, down = nn.Conv2d(C, R, 1), nn.Conv2d(R, C, 1)
            self.one = nn.Sequential(nn.AdaptiveAvgPool2d(1), up, nn.ReLU(), down)
            self.two = nn.Sequential(nn.AdaptiveMaxPool2d(1), up, nn.ReLU(), down)

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(self.one(x) + self.two(x))

    model = drawn(Shared())
    twin = copy.deepcopy(model)
    assert convert_cbam(model).converted
    torch.testing.assert_close(results(model, input_of()), results(twin, input_of()), **TOLERANCE)


def test_einops_is_followed_as_functions_and_as_layers(no_kernels):
    einops = pytest.importorskip("einops")
    layers = pytest.importorskip("einops.layers.torch")

    class Reduced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp, self.conv = nn.Sequential(nn.Linear(C, R), nn.ReLU(), nn.Linear(R, C)), nn.Conv2d(2, 1, 3, 1, 1)
            self.maps = nn.ModuleList(layers.Reduce("b c h w -> b 1 h w", how) for how in ("mean", "max"))
            self.spread = layers.Rearrange("b c -> b c 1 1")

        def forward(self, x: Tensor) -> Tensor:
            pools = (einops.reduce(x, "b c h w -> b c", how) for how in ("mean", "max"))
            x = x * self.spread(torch.sigmoid(both(self, *pools)))
            maps = einops.rearrange([pool(x) for pool in self.maps], "m b 1 h w -> b m h w")
            return x * torch.sigmoid(self.conv(maps))

    model = drawn(Reduced())
    twin = copy.deepcopy(model)
    assert [found.name for found in convert_cbam(model).converted] == [""]
    torch.testing.assert_close(results(model, input_of()), results(twin, input_of()), **TOLERANCE)
    pattern = einops.reduce(input_of(), "b c h w -> b c", "mean")
    assert pattern.shape == (2, C)


@pytest.mark.parametrize("width", [1, C // 2, 2 * C])
def test_an_mlp_of_another_width_than_the_channels_is_left_alone(width, no_kernels):
    class Folded(nn.Module):
        """One MLP for each group of channels, or for the channels of several samples."""

        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(width, R), nn.ReLU(), nn.Linear(R, width))

        def forward(self, x: Tensor) -> Tensor:
            pools = (pool.reshape(-1, width) for pool in (x.mean((2, 3)), x.amax((2, 3))))
            return x * torch.sigmoid(both(self, *pools)).view(x.size(0), x.size(1), 1, 1)

    model = drawn(Folded())
    twin, x = copy.deepcopy(model), input_of()
    convert_cbam(model)
    torch.testing.assert_close(results(model, x), results(twin, x), **TOLERANCE)
