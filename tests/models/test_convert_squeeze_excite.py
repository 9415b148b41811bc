"""Squeeze-and-excitation in live models: converted when asked, left alone and unreported otherwise."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_triton import CBAM, convert_cbam, restore_cbam, settings
from cbam_triton.models import replace_cbam
from cbam_triton.spec import reference

from ..cases import both_schedules, of_interpreted_exp
from .idioms import FORMS, TOLERANCE, C, R, drawn, input_of, results


class Viewed(nn.Module):
    """As most people have it: view, linear layers without bias, expand_as."""

    def __init__(self, act: type[nn.Module] = nn.ReLU, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(C, R, bias=False), act(), nn.Linear(R, C, bias=False), gate())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        return x * self.fc(y).view(b, c, 1, 1).expand_as(x)


class Functional(nn.Module):
    """1x1 convolutions; `square` pools a window as high as it is wide, as RepVGG does."""

    def __init__(self, square: bool = False) -> None:
        super().__init__()
        self.square = square
        self.down, self.up = nn.Conv2d(C, R, 1), nn.Conv2d(R, C, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        x = F.avg_pool2d(inputs, inputs.size(3)) if self.square else F.adaptive_avg_pool2d(inputs, (1, 1))
        return inputs * torch.sigmoid(self.up(F.relu(self.down(x)))).view(-1, C, 1, 1)


class HardEffective(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * (F.relu6(self.fc(x.mean((2, 3), keepdim=True)) + 3) / 6)


class Block(nn.Module):
    """A residual block that multiplies with the gate of a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)
        layers = nn.Conv2d(C, R, 1), nn.ReLU(), nn.Conv2d(R, C, 1), nn.Sigmoid()
        self.se = nn.Sequential(nn.AdaptiveAvgPool2d(1), *layers)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x))
        out = out * self.se(out)
        return torch.relu(out + x)


class Concurrent(nn.Module):
    """scSE, as segmentation_models_pytorch has it."""

    def __init__(self) -> None:
        super().__init__()
        self.cSE = copy.deepcopy(Block().se)
        self.sSE = nn.Sequential(nn.Conv2d(C, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.cSE(x) + x * self.sSE(x)


class Efficient(nn.Module):
    """ECA: a convolution over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1)).sigmoid()
        return x * y.view(x.shape[0], -1, 1, 1).expand_as(x)


KINDS = {
    "view and expand_as": (Viewed, f"channel gate of avg, C {C}, R {R}"),
    "hard": (lambda: Viewed(gate=nn.Hardsigmoid), f"channel gate of avg, C {C}, R {R}; hard_sigmoid"),
    "functions": (Functional, f"channel gate of avg, C {C}, R {R}"),
    "effective": (HardEffective, f"channel gate of avg, C {C}; hard_sigmoid"),
    "in a block": (Block, f"in its forward: channel gate of avg, C {C}, R {R} + residual, ReLU"),
    "scSE": (Concurrent, f"in its forward: channel gate of avg, C {C}, R {R} + residual"),
}
kinds = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(autouse=True)
def one_thread():
    """Maps of a proof are small, and threads that wait for each other take longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(name):
    model = drawn(nn.Sequential(KINDS[name][0]()))
    return model, copy.deepcopy(model)


@kinds
def test_a_layer_is_left_alone_unless_asked_for(name, no_kernels):
    model, twin = made(name)
    assert sum(map(len, convert_cbam(model))) == 0
    assert sum(map(len, replace_cbam(model))) == 0
    report = convert_cbam(model, squeeze_excite=True)
    assert [(found.name, found.note) for found in report.converted] == [("0", KINDS[name][1])]
    assert not report.skipped
    assert list(model.state_dict()) == list(twin.state_dict())
    torch.testing.assert_close(results(model, input_of()), results(twin, input_of()), **TOLERANCE)
    assert [found.note for found in convert_cbam(model, squeeze_excite=True).already] == ["converted before"]
    assert restore_cbam(model) == 1
    torch.testing.assert_close(results(model, input_of()), results(twin, input_of()), rtol=0, atol=0)


@of_interpreted_exp
@pytest.mark.usefixtures("nan_memory")
@both_schedules
@kinds
def test_the_kernels_compute_what_the_layer_computed(name, schedule, device, monkeypatch):
    pytest.importorskip("triton")
    model, twin = (net.to(device) for net in made(name))
    x = input_of().to(device)
    convert_cbam(model, squeeze_excite=True)
    with settings(backend="triton", schedule=schedule), monkeypatch.context() as patch:
        patch.setattr(reference, "cbam", None)  # the reference does not run
        found = results(model, x)
    torch.testing.assert_close(found, results(twin, x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["view and expand_as", "effective"])
def test_a_layer_is_replaced_by_one_of_ours_when_asked(name, no_kernels):
    model, twin = made(name)
    report = replace_cbam(model, squeeze_excite=True)
    assert [found.note for found in report.converted] == [f"replaced: {KINDS[name][1]}"]
    layer = model.get_submodule("0")
    assert type(layer) is CBAM
    assert layer.spatial is None
    torch.testing.assert_close(model(input_of()), twin(input_of()), **TOLERANCE)


def test_both_kinds_of_layers_are_converted_at_once_or_one_after_the_other(no_kernels):
    model = nn.Sequential(drawn(FORMS["timm"]()), drawn(Viewed()))
    other = copy.deepcopy(model)
    assert [found.name for found in convert_cbam(model, squeeze_excite=True).converted] == ["0", "1"]
    assert [found.name for found in convert_cbam(other).converted] == ["0"]
    later = convert_cbam(other, squeeze_excite=True)
    assert [found.name for found in later.converted] == ["1"]
    assert [found.name for found in later.already] == ["0"]


@pytest.mark.parametrize(
    "make, note",
    [
        (
            lambda: Viewed(act=nn.SiLU),
            "its forward uses SiLU (fc.1), which CBAM has not: between its layers the kernels know ReLU, for a gate "
            "sigmoid and hard sigmoid",
        ),
        (
            lambda: Viewed(gate=nn.Tanh),
            "its forward uses Tanh (fc.3), which CBAM has not: between its layers the kernels know ReLU, for a gate "
            "sigmoid and hard sigmoid",
        ),
        (
            Efficient,
            "its 1-D convolution is not of pooled maps; over the channels, as in ECA, the kernels have none",
        ),
        (
            lambda: Functional(square=True),
            "its forward fails on a map of the channels of its MLP, of shape (2, 6, 9, 11): Given input size: (6x9x11)"
            ". Calculated output size: (6x0x1). Output size is too small",
        ),
    ],
    ids=["SiLU", "tanh", "ECA", "square window"],
)
def test_what_the_kernels_do_not_compute_is_reported_with_the_reason_when_asked(make, note):
    model = nn.Sequential(nn.Conv2d(C, C, 3), make())
    assert sum(map(len, convert_cbam(model))) == 0
    report = convert_cbam(model, squeeze_excite=True)
    assert not report.converted
    assert [(found.name, found.note) for found in report.skipped] == [("1", note)]


def test_heads_and_norms_beside_the_layers_are_not_reported():
    class Head(nn.Module):
        """A classifier of another width than its map: no gate."""

        def __init__(self) -> None:
            super().__init__()
            self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(C, C + 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.pool(x).flatten(1))

    model = nn.Sequential(nn.Sequential(nn.Conv2d(C, C, 1), nn.SiLU()), Viewed(), Head())
    report = convert_cbam(model, squeeze_excite=True)
    assert [found.name for found in report.converted] == ["1"]
    assert not report.skipped


def test_the_option_is_a_bool():
    with pytest.raises(TypeError, match=r"^squeeze_excite must be True or False, got the string 'yes': "):
        convert_cbam(nn.Identity(), squeeze_excite="yes")  # pyright: ignore[reportArgumentType]


def test_a_mobilenet_of_torchvision_is_converted_and_an_efficientnet_is_told_why_not(no_kernels):
    models = pytest.importorskip("torchvision.models")
    model = drawn(models.mobilenet_v3_small(num_classes=5)).eval()
    twin = copy.deepcopy(model)
    report = convert_cbam(model, squeeze_excite=True)
    assert len(report.converted) == 9
    assert not report.skipped
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found, expected = results(model, x), results(twin, x)
    torch.testing.assert_close(found["y"], expected["y"], rtol=1e-9, atol=1e-9)
    for key, right in expected.items():  # the gradient of F.hardsigmoid in float64 has the digits of float32
        torch.testing.assert_close(found[key], right, rtol=1e-4, atol=1e-5 * right.double().abs().max().item())
    other = convert_cbam(nn.Sequential(*models.efficientnet_b0().features[1:3]), squeeze_excite=True)
    assert not other.converted
    assert len(other.skipped) == 3
    assert all(
        found.note.startswith("its forward uses SiLU (activation), which CBAM has not: ") for found in other.skipped
    )


@pytest.mark.parametrize(
    "name, count",
    [
        ("seresnet18", 8),
        ("ese_vovnet19b_slim", 4),
        ("mobilenetv3_small_050", 9),
    ],
)
def test_networks_of_timm_are_converted(name, count, no_kernels):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, num_classes=5).eval()
    twin = copy.deepcopy(model)
    report = convert_cbam(model, squeeze_excite=True)
    assert len(report.converted) == count
    assert not report.skipped
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x), rtol=1e-4, atol=1e-5)
