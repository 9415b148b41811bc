"""CBAM in the backbone of a detector, as the paper's section 5.3 has it, on a photograph."""

import copy

import pytest
import torch
from torch import nn

from cbam_triton import CBAM, insert_cbam, settings
from cbam_triton.demo.photograph import load_photograph

from ..checkpoints.published import randomised
from ..errors import assert_as_good_as_eager

detection = pytest.importorskip("torchvision.models.detection")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    """Faster R-CNN with a random ResNet-50 and CBAM in all its 16 blocks, for images of about 64 pixels."""
    torch.manual_seed(0)
    model = detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=128, box_score_thresh=0.0
    )
    names = insert_cbam(model)
    assert len(names) == 16
    assert names[0] == "backbone.body.layer1.0"
    return model


def test_a_detector_trains_a_step(detector):
    model = copy.deepcopy(detector).train()
    target = {"boxes": torch.tensor([[40.0, 60.0, 400.0, 380.0]]), "labels": torch.tensor([2])}
    with settings(backend="reference"):
        losses = model([load_photograph(None)], [target])
        sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    layers = {name: p for name, p in model.named_parameters() if ".cbam." in name}
    before = {name: p.detach().clone() for name, p in layers.items()}
    torch.optim.SGD(layers.values(), lr=0.1).step()
    changed = {name for name, p in layers.items() if not torch.equal(p, before[name])}
    assert all(p.isfinite().all() for p in layers.values())
    assert changed == set(layers)


def test_a_detector_finds_boxes_in_a_photograph(detector):
    photograph = load_photograph(None)
    with torch.no_grad(), settings(backend="reference"):
        found = detector.eval()([photograph])[0]
    boxes = found["boxes"]
    assert len(boxes) > 0
    assert found["scores"].isfinite().all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert (boxes.amax(0)[2:] <= torch.tensor(photograph.shape[:0:-1])).all()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, pytest.importorskip("torchvision").ops.FrozenBatchNorm2d])
def test_kernels_compute_what_the_reference_does_in_a_block_of_a_backbone(norm, device):
    torch.manual_seed(0)
    backbone = detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=norm)
    insert_cbam(backbone)
    block = backbone.body.layer2[0].eval()
    randomised(block.cbam)
    x = torch.nn.functional.interpolate(load_photograph(None)[None], (9, 12)).mean(1, keepdim=True)
    x = x * torch.linspace(-1, 1, 64)[:, None, None]
    with torch.no_grad():
        with settings(backend="reference"):
            eager, exact = block(x), copy.deepcopy(block).double()(x.double())
        with settings(backend="triton"):
            found = block.to(device)(x.to(device))
    assert isinstance(block.cbam, CBAM)
    assert_as_good_as_eager(found.cpu(), eager, exact)
