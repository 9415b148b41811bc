"""CBAM in the networks of torchvision and timm: where it goes, that nothing else changes, and the paper's sizes."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cbam_triton import CBAM, insert_cbam

from ..checkpoints.published import published_cbam
from ..errors import assert_same
from .networks import (
    Basic,
    Bottleneck,
    FunctionalBlock,
    efficientnet,
    mnasnet,
    models,
    regnet,
    resnet,
    shaken,
    small,
    timm_model,
    timm_resnet,
)

pytestmark = pytest.mark.usefixtures("reference")


# The paper's tables 4 and 5 in full: a biased MLP of r = 16, a 7x7 convolution and a batch norm in every block.
PAPER = [
    (models.resnet18, 11_689_512, 11_779_392),
    (models.resnet34, 21_797_672, 21_960_468),
    (models.resnet50, 25_557_032, 28_089_624),
    (models.resnet101, 44_549_160, 49_330_172),
    (models.resnet152, 60_192_808, 66_826_848),
    (partial(resnet, 1.5), 25_875_816, 26_075_516),
    (partial(resnet, 2.0), 45_618_216, 45_971_256),
    (models.resnext50_32x4d, 25_028_904, 27_561_496),
    (partial(models.ResNet, Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4), 44_177_704, 48_958_716),
]


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("build, plain, with_cbam", PAPER, ids=[str(row[1]) for row in PAPER])
def test_networks_have_the_papers_number_of_parameters(build, plain, with_cbam):
    with torch.device("meta"):
        model = build()
    assert size(model) == plain
    insert_cbam(model)
    assert size(model) == with_cbam


ARCHITECTURES = {
    "basic": (small, 4),
    "bottleneck": (partial(small, Bottleneck), 4),
    "grouped": (partial(small, Bottleneck, groups=4, width_per_group=32), 4),
    "timm basic": (timm_resnet, 4),
    "timm drop path": (partial(timm_resnet, drop_path_rate=0.5), 4),
    "timm drop block": (partial(timm_resnet, drop_block_rate=0.1), 4),
    "timm average shortcut": (partial(timm_resnet, avg_down=True, stem_type="deep"), 4),
    "timm swish": (partial(timm_resnet, act_layer=nn.SiLU), 4),
    "timm grouped": (partial(timm_resnet, "Bottleneck", cardinality=4, base_width=32, drop_path_rate=0.1), 4),
    "timm blur": (partial(timm_resnet, "Bottleneck", aa_layer=nn.AvgPool2d), 4),
    "copy": (lambda: shaken(nn.Sequential(nn.Conv2d(3, 8, 3), FunctionalBlock(8, 8), FunctionalBlock(8, 12))), 2),
    "mobilenet v2": (lambda: shaken(models.mobilenet_v2(width_mult=0.25, num_classes=10)), 17),
    "mobilenet v3": (lambda: shaken(models.mobilenet_v3_small(width_mult=0.25, num_classes=10)), 11),
    "regnet": (regnet, 2),
    "mnasnet": (mnasnet, 2),
    "efficientnet": (efficientnet, 3),
    "timm mobilenet v2": (partial(timm_model, "mobilenetv2_035"), 17),
    "vgg": (lambda: shaken(models.vgg.make_layers([4, "M", 8, 8, "M", 8], batch_norm=True)), 2),
}


@pytest.mark.parametrize("build, count", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_without_its_gates_the_network_computes_what_it_did(build, count, no_gates):
    torch.manual_seed(0)
    model = build()
    before = set(model.state_dict())
    changed = copy.deepcopy(model)
    names = insert_cbam(changed)
    assert len(names) == len(set(names)) == count
    assert {key for key in changed.state_dict() if ".cbam." not in key} == before
    assert all(isinstance(changed.get_submodule(f"{name}.cbam"), CBAM) for name in names)
    x = torch.randn(2, 3, 32, 32)
    for training in (True, False):
        outputs = []
        for network in (model, changed):
            torch.manual_seed(1)  # of the paths that are dropped
            with torch.no_grad():
                outputs.append(network.train(training)(x))
        assert_same(outputs[1], outputs[0])


@pytest.mark.parametrize("shortcut", [None, nn.Conv2d(16, 16, 1)])
def test_the_layer_comes_after_the_last_norm_and_before_the_addition(shortcut):
    block = shaken(Basic(16, 16, downsample=shortcut)).eval()
    insert_cbam(block)
    x = torch.randn(2, 16, 5, 5)
    with torch.no_grad():
        out = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
        expected = F.relu(published_cbam(block.cbam, out) + (x if shortcut is None else shortcut(x)))
        torch.testing.assert_close(block(x), expected)
    assert block.cbam.activation == "relu"


def test_an_inverted_residual_block_without_a_shortcut_ends_with_the_layer():
    block = shaken(models.mobilenetv2.InvertedResidual(8, 12, 1, 2)).eval()
    insert_cbam(block)
    x = torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(block(x), published_cbam(block.cbam, block.conv(x)))


def test_in_a_vgg_the_layer_comes_between_the_last_relu_and_the_pooling():
    features = models.vgg11(init_weights=False).features[:6].eval()
    assert insert_cbam(features) == ("1", "4")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        first = F.max_pool2d(published_cbam(features[1].cbam, F.relu(features[0](x))), 2)
        second = F.max_pool2d(published_cbam(features[4].cbam, F.relu(features[3](first))), 2)
        torch.testing.assert_close(features(x), second)


def test_a_block_of_volumes_gets_a_layer_of_volumes():
    block = shaken(Volumes()).eval()
    insert_cbam(block, kernel_size=3)
    x = torch.randn(2, 8, 3, 4, 5)
    gates = []
    block.cbam.spatial.norm.register_forward_hook(lambda module, inputs, output: gates.append(output.shape))
    with torch.no_grad():
        assert block(x).shape == x.shape
    assert gates == [(2, 1, 3, 4, 5)]


class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Sequential(nn.Conv3d(8, 8, 3, padding=1), nn.BatchNorm3d(8)) for _ in range(2)]
        self.conv1, self.conv2 = convolutions

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.conv1(x))) + x)


def test_a_path_that_drops_nothing_leaves_the_addition_to_the_layer():
    block = pytest.importorskip("timm").models.resnet.BasicBlock(16, 16, drop_path=nn.Identity())
    insert_cbam(block)
    assert block.cbam.activation == "relu"


def test_a_drop_path_comes_after_the_layer():
    model = timm_resnet(drop_path_rate=0.5)
    insert_cbam(model)
    block = model.layer4[0].eval()
    assert block.cbam.activation is None
    seen = []
    block.drop_path.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x = torch.randn(2, 32, 4, 4)
    with torch.no_grad():
        y = block(x)
        assert_same(y, F.relu(seen[0] + block.downsample(x)))
        assert_same(seen[0], block.cbam(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))))


def test_layers_take_the_dtype_the_device_and_the_mode_of_their_block():
    model = small().double().eval().to("meta")
    model.layer2.train()
    insert_cbam(model, kernel_size=3, reduction=8)
    layer = model.layer2[0].cbam
    assert {(p.dtype, p.device.type) for p in layer.parameters()} == {(torch.float64, "meta")}
    assert (layer.training, model.layer1[0].cbam.training) == (True, False)
    assert layer.spatial.conv.kernel_size == (3, 3)
    assert layer.channel.fc1.out_features == 2


def test_frozen_batch_norms_give_the_width():
    model = small(norm_layer=pytest.importorskip("torchvision").ops.FrozenBatchNorm2d)
    insert_cbam(model)
    assert model.layer3[0].cbam.channel.fc1.in_features == 32
