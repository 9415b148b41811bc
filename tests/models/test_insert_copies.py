"""Copies of the usual networks, as people type them: each gets the layers that the original does, or a word."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cbam_triton import insert_cbam

from ..errors import assert_same
from .networks import shaken


def body(inputs: int, outputs: int) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs))


class Made(nn.Module):
    """A block that makes its last layer at each call."""

    def __init__(self, inputs: int = 8, outputs: int = 8, last=lambda: nn.ReLU(inplace=True)) -> None:
        super().__init__()
        self.body, self.last = body(inputs, outputs), last
        self.shortcut = nn.Sequential() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        return self.last()(self.body(x) + self.shortcut(x))


class Dropped(Made):
    def forward(self, x):
        return F.leaky_relu(F.dropout(self.body(x), 0.5, self.training) + self.shortcut(x), 0.2)


class PreActivated(nn.Module):
    """What comes first is common to the layers and the shortcut where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        return torch.add(self.conv2(F.relu(self.bn2(self.conv1(out)))), shortcut)


class Listed(nn.Module):
    """A block of layers in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(body(8, 8))

    def forward(self, x):
        out = x
        for layer in self.layers:
            out = layer(out)
        return F.relu(x + out)


class Inverted(nn.Module):
    """An inverted residual block that adds a shortcut where it can, and says so nowhere."""

    def __init__(self, inputs: int, outputs: int, expansion: int = 2, stride: int = 1) -> None:
        super().__init__()
        width = inputs * expansion
        wide = [nn.Conv2d(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU6()] if expansion > 1 else []
        deep = [nn.Conv2d(width, width, 3, stride, 1, groups=width), nn.BatchNorm2d(width), nn.ReLU6()]
        self.conv = nn.Sequential(*wide, *deep, nn.Conv2d(width, outputs, 1), nn.BatchNorm2d(outputs))
        self.stride, self.same = stride, inputs == outputs

    def forward(self, x):
        out = self.conv(x)
        if self.stride == 1 and self.same:
            out += x
        return out


def stem(*blocks: nn.Module) -> nn.Module:
    return shaken(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks))


def unit(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def vgg(*tail: nn.Module) -> nn.Module:
    return shaken(nn.Sequential(*unit(3, 4), nn.MaxPool2d(2), *unit(4, 8), nn.MaxPool2d(2), *tail))


COPIES = {
    "ReLU made in forward": (lambda: stem(Made(), Made(8, 12)), ("1", "2")),
    "SiLU made in forward": (lambda: stem(Made(last=nn.SiLU), Made(8, 12, nn.SiLU)), ("1", "2")),
    "functional dropout": (lambda: stem(Dropped(), Dropped(8, 12)), ("1", "2")),
    "pre-activation": (lambda: stem(PreActivated(8, 8), PreActivated(8, 12)), ("1", "2")),
    "layers in a list": (lambda: stem(Listed()), ("1",)),
    "mobilenet v2": (lambda: stem(Inverted(8, 8), Inverted(8, 12), Inverted(12, 12, 2, 2)), ("1", "2", "3")),
    "without expansion": (lambda: stem(Inverted(8, 8), Inverted(8, 12, 1)), ("1", "2")),
    "vgg with a pooling at its end": (lambda: vgg(nn.AvgPool2d(1, 1)), ("2", "6")),
    "vgg with its classifier": (lambda: vgg(nn.Flatten(), nn.Linear(8 * 64, 4), nn.ReLU(), nn.Dropout()), ("2", "6")),
    "vgg with a head": (lambda: vgg(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), Head()), ("2", "6")),
    "vgg with dropout": (
        lambda: shaken(nn.Sequential(*unit(3, 4), nn.Dropout(0.3), *unit(4, 4), nn.Dropout(0.3), nn.MaxPool2d(2))),
        ("6",),
    ),
    "vgg of units": (
        lambda: nn.Sequential(
            nn.Sequential(*unit(3, 4)), nn.MaxPool2d(2), nn.Sequential(*unit(4, 4), nn.AvgPool2d(2))
        ),
        ("0.2", "2.2"),
    ),
    "vgg with the norm last": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.MaxPool2d(2)
        ),
        ("3",),
    ),
    "vgg with PReLU": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.MaxPool2d(2)), ("2",)),
}  # fmt: skip


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_gets_layers_that_change_nothing_else(name, no_gates):
    build, names = COPIES[name]
    model = build()
    changed, x = copy.deepcopy(model), torch.randn(2, 3, 32, 32)
    assert insert_cbam(changed) == names
    assert {key for key in changed.state_dict() if "cbam." not in key} == set(model.state_dict())
    for training in (True, False):
        outputs = []
        for network in (model, changed):
            torch.manual_seed(1)
            with torch.no_grad():
                outputs.append(network.train(training)(x))
        assert_same(outputs[1], outputs[0])


FAMILIES = {
    "regnetx_002": 13, "skresnet18": 8, "cs3darknet_s": 9, "mobilenetv3_small_050": 11,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_of_convolutions_and_norms_in_one_module_are_found(name, no_gates):
    model = pytest.importorskip("timm").create_model(name, num_classes=3).eval()
    changed, x = copy.deepcopy(model), torch.randn(1, 3, 64, 64)
    assert len(insert_cbam(changed)) == FAMILIES[name]
    with torch.no_grad():
        assert_same(changed(x), model(x))


def test_a_block_that_cannot_be_read_is_named_where_nothing_else_is_found():
    with pytest.raises(ValueError, match=r"'1' \(Made\), whose forward makes a layer with weights \(PReLU\) at each"):
        insert_cbam(stem(Made(last=nn.PReLU)))
    with pytest.raises(ValueError, match=r"the model \(Made\), whose forward makes a layer"):
        insert_cbam(Made(last=nn.PReLU))


def test_a_block_that_cannot_be_read_is_named_beside_others():
    with pytest.warns(UserWarning, match=r"no CBAM was put into '2' \(Made\), whose forward makes .*: call CBAM in"):
        assert insert_cbam(stem(Made(), Made(last=nn.PReLU))) == ("1",)


def test_a_block_of_the_class_that_computes_something_else_is_named():
    with pytest.warns(UserWarning, match=r"'2' \(Sometimes\), whose forward is another than its class has elsewhere"):
        assert insert_cbam(stem(Sometimes(True), Sometimes(False))) == ("1",)


class Sometimes(Made):
    def __init__(self, added: bool) -> None:
        super().__init__()
        self.added = added

    def forward(self, x):
        return F.relu(self.body(x) + x) if self.added else torch.cat([self.body(x), x[:, 4:] + 1], 1)


@pytest.mark.parametrize("name", ["squeezenet1_1", "densenet121"])
def test_the_poolings_of_a_stem_make_no_vgg(name):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = getattr(models, name)()
    with pytest.raises(ValueError, match="has no residual block and no VGG stage: expected modules that add"):
        insert_cbam(model)
