"""Which modules are blocks that a CBAM can be put into, and what is said of the others."""

from functools import partial

import pytest
import torch.nn.functional as F
from torch import nn

from cbam_triton import CBAM, insert_cbam

from .networks import FunctionalBlock, models, small, timm_model


def test_the_innermost_block_gets_the_layer():
    model = Outer()
    assert insert_cbam(model) == ("block",)
    assert type(model) is Outer


class Outer(nn.Module):
    """A residual module around a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = FunctionalBlock(8, 8)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.bn(self.block(x)) + x


def test_where_says_which_blocks_get_a_layer():
    model = small()
    assert insert_cbam(model, where=lambda name: name.startswith("layer4")) == ("layer4.0",)
    assert sum(isinstance(module, CBAM) for module in model.modules()) == 1
    features = models.vgg.make_layers([4, "M", 8, "M", 8])
    assert insert_cbam(features, where=lambda name: name != "1") == ("4",)


class Odd(FunctionalBlock):
    """A block with one thing that no plain one has."""

    def __init__(self, kind: str) -> None:
        super().__init__(8, 8)
        self.kind = kind
        if kind == "attention":
            self.attention = nn.Sigmoid()

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        match self.kind:
            case "attention":
                return self.attention(out) + x
            case "scale":
                return 0.1 * out + x
            case "twice":
                return out + self.shortcut(out)
            case "mode":
                return (out if self.training else self.conv1(out)) + x
            case _:
                return out + x if x.sum() > 0 else x


@pytest.mark.parametrize("kind, message", [
    ("attention", r"has 'attention' \(Sigmoid\) before its addition, expected a norm"),
    ("scale", "computes more than layers one after another and a shortcut"),
    ("twice", "has as many convolutions on either side of its addition, expected fewer in the shortcut"),
    ("mode", "calls other layers in training than in eval mode"),
    ("branch", "cannot be traced"),
])  # fmt: skip
def test_a_block_that_computes_something_else_is_refused(kind, message):
    model = nn.Sequential(FunctionalBlock(8, 8), Odd(kind))
    with pytest.raises(ValueError, match=rf"block '1' \(Odd\) {message}.*: leave it out with where="):
        insert_cbam(model)
    assert insert_cbam(model, where=lambda name: name == "0") == ("0",)


def test_a_block_may_end_with_a_norm_a_convolution_or_an_activation_of_either():
    layers = pytest.importorskip("timm").layers
    ends = [
        nn.BatchNorm2d(8), layers.BatchNormAct2d(8), layers.ConvNormAct(8, 8),
        layers.ConvNormAct(8, 8, apply_act=False), nn.Conv2d(8, 8, 1),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.LeakyReLU(), nn.Dropout(0.5)),
    ]  # fmt: skip
    for last in ends:
        block = FunctionalBlock(8, 8)
        block.bn2 = last
        assert insert_cbam(block) == ("",)
        assert block.cbam.channel.fc1.in_features == 8


def test_a_forward_on_the_instance_is_refused():
    block = FunctionalBlock(8, 8)
    block.forward = partial(FunctionalBlock.forward, block)
    with pytest.raises(ValueError, match="has a forward of its own on the instance"):
        insert_cbam(block)


def test_a_sum_of_other_things_is_no_block():
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.Conv2d(8, 4, 1), nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))

        def forward(self, maps):
            return self.low(maps["low"]) + self.high(maps["high"])

    assert insert_cbam(nn.ModuleDict({"block": FunctionalBlock(8, 8), "head": Head()})) == ("block",)


def test_attention_of_timm_and_a_second_layer_are_refused():
    with pytest.raises(ValueError, match=r"has 'se' \(SEModule\) before its addition"):
        insert_cbam(timm_model("seresnet18"))
    model = small()
    insert_cbam(model)
    with pytest.raises(ValueError, match="has a child `cbam` already"):
        insert_cbam(model)


@pytest.mark.parametrize(
    "build", [nn.Sequential, partial(nn.Conv2d, 1, 1, 1), partial(nn.TransformerEncoderLayer, 8, 2)]
)
def test_a_network_without_blocks_is_refused(build):
    with pytest.raises(ValueError, match="has no residual block and no VGG stage"):
        insert_cbam(build())
