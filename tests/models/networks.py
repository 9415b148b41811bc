"""Networks and blocks small enough for a CPU, as torchvision, timm and copies of them build them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

models = pytest.importorskip("torchvision.models")
Basic, Bottleneck = models.resnet.BasicBlock, models.resnet.Bottleneck


def resnet(factor: float, block=Basic, layers=(2, 2, 2, 2), **options) -> nn.Module:
    """A ResNet with wider or narrower stages behind the usual stem."""
    widths = iter(int(width * factor) for width in (64, 128, 256, 512))

    class Scaled(models.ResNet):
        def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
            return super()._make_layer(block, next(widths), blocks, stride, dilate)

    made = Scaled(block, list(layers), **options)
    made.fc = nn.Linear(int(512 * factor) * block.expansion, 1000)
    return made


def small(block=Basic, **options) -> nn.Module:
    """A ResNet of four narrow blocks."""
    return shaken(resnet(1 / 8, block, (1, 1, 1, 1), **options))


def shaken(model: nn.Module) -> nn.Module:
    """`model` with every norm's parameters and statistics away from their defaults."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5 * ("bias" not in name))
    return model


def timm_resnet(block: str = "BasicBlock", **options) -> nn.Module:
    resnet = pytest.importorskip("timm").models.resnet
    narrow = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}
    return shaken(resnet.ResNet(getattr(resnet, block), num_classes=10, **narrow, **options))


def timm_model(name: str) -> nn.Module:
    return shaken(pytest.importorskip("timm").create_model(name, num_classes=10))


def efficientnet() -> nn.Module:
    stages = [(1, 3, 1, 32, 16, 1), (4, 3, 2, 16, 24, 2)]
    configs = [models.efficientnet.MBConvConfig(*stage) for stage in stages]
    return shaken(models.EfficientNet(configs, dropout=0.0, stochastic_depth_prob=0.5, num_classes=10))


def regnet() -> nn.Module:
    regnet = models.regnet
    norm, activation = nn.BatchNorm2d, nn.ReLU
    widths = [(16, 16, 1), (16, 24, 2)]
    blocks = [regnet.ResBottleneckBlock(*width, norm, activation, 8, 1.0, 0.25) for width in widths]
    return shaken(nn.Sequential(nn.Conv2d(3, 16, 3), *blocks))


def mnasnet() -> nn.Module:
    inverted = models.mnasnet._InvertedResidual
    return shaken(nn.Sequential(nn.Conv2d(3, 8, 3), inverted(8, 8, 3, 1, 2), inverted(8, 12, 3, 2, 2)))


class FunctionalBlock(nn.Module):
    """As in the many copies for small images: functional ReLU, a shortcut that is a Sequential, empty or not."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential() if inputs == outputs else nn.Sequential(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)
