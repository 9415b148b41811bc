"""What `python -m bench train` builds: attention in the right place, SE as torchvision has it, weights that fit."""

import argparse

import pytest
import torch

from cbam_triton import CBAM, settings
from cbam_triton.demo.options import InputError

pytest.importorskip("torchvision")

from torchvision.ops import FrozenBatchNorm2d, SqueezeExcitation

from bench.train import models


def arguments(**options):
    given = dict.fromkeys((*models.OPTIONS, "reduction", "weights", "min_size", "max_size"))
    return argparse.Namespace(**given | {"model": "resnet18", "attention": "cbam", "trainable_layers": 3} | options)


def test_se_is_torchvisions_squeeze_and_excitation():
    model = models.classifier(arguments(attention="se", reduction=8.0), 2)
    layer = model.layer2[0].cbam
    theirs = SqueezeExcitation(128, 16)
    with torch.no_grad():
        for one, other in ((layer.channel.fc1, theirs.fc1), (layer.channel.fc2, theirs.fc2)):
            other.weight.copy_(one.weight.view_as(other.weight))
            other.bias.copy_(one.bias.normal_())
    x = torch.randn(2, 128, 5, 6)
    with settings(backend="reference"):
        got = layer(x, residual=torch.zeros_like(x))
    torch.testing.assert_close(got, theirs(x).relu(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options, expected", [
    ({}, (16, 7, "channel_first")),
    ({"arrangement": "spatial_first", "kernel_size": 3, "reduction": 8.0}, (8, 3, "spatial_first")),
    ({"arrangement": "parallel"}, (16, 7, "parallel")),
])  # fmt: skip
def test_cbam_comes_with_its_options_into_every_block(options, expected):
    model = models.classifier(arguments(model="mobilenet_v2", **options), 2)
    layers = [layer for layer in model.modules() if isinstance(layer, CBAM)]
    assert len(layers) == 17
    last = layers[-1]
    got = last.channel.fc2.in_features, last.spatial.conv.kernel_size[0], last.variant.arrangement
    assert got == (320 // expected[0], *expected[1:])


@pytest.mark.parametrize("name, parameters, with_cbam", [
    ("resnet18", 11_689_512, 11_779_392), ("resnet34", 21_797_672, 21_960_468), ("resnet50", 25_557_032, 28_089_624),
    ("resnext50_32x4d", 25_028_904, 27_561_496),
])  # fmt: skip
def test_the_papers_networks_have_the_papers_parameters(name, parameters, with_cbam):
    for attention, expected in (("none", parameters), ("cbam", with_cbam)):
        with torch.device("meta"):
            model = models.classifier(arguments(model=name, attention=attention), 1000)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


def checkpoint_of(model, path):
    torch.save({"model": model.state_dict(), "config": {}}, path)
    return path


def test_a_detector_starts_from_a_classifier_that_was_trained_here(tmp_path):
    trained = models.classifier(arguments(), 5)
    path = checkpoint_of(trained, tmp_path / "checkpoint.pt")
    small = {"model": "fasterrcnn_resnet18_fpn", "min_size": 64, "max_size": 64}
    model = models.detector(arguments(weights=path, **small), 3)
    body = model.backbone.body
    assert isinstance(body.layer1[0].bn1, FrozenBatchNorm2d)
    for name, value in trained.state_dict().items():
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
            assert torch.equal(body.state_dict()[name], value), name
    frozen = {name.split(".")[0] for name, p in body.named_parameters() if not p.requires_grad}
    free = {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad}
    assert (frozen, free) == ({"conv1", "layer1"}, {"layer2", "layer3", "layer4"})


def test_attention_that_is_new_trains_even_in_frozen_layers(tmp_path):
    path = checkpoint_of(models.classifier(arguments(attention="none"), 5), tmp_path / "checkpoint.pt")
    model = models.detector(arguments(weights=path, model="fasterrcnn_resnet18_fpn"), 3)
    free = {name for name, p in model.backbone.body.layer1.named_parameters() if p.requires_grad}
    assert free
    assert all(".cbam." in name for name in free)


def test_weights_of_another_network_or_attention_are_refused(tmp_path):
    path = checkpoint_of(models.classifier(arguments(model="resnet34"), 5), tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"has no fitting layer1\.0\.conv1\.weight, .*is it of this --model"):
        models.classifier(arguments(model="resnet50", weights=path), 5)
    path = checkpoint_of(models.classifier(arguments(kernel_size=3), 5), tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"has no fitting layer1\.0\.cbam\.spatial\.conv\.weight"):
        models.classifier(arguments(weights=path), 5)
    with pytest.raises(InputError, match="--weights goes with fasterrcnn_"):
        models.detector(arguments(model="retinanet_resnet50_fpn", weights=path), 3)


def test_files_that_hold_more_than_weights_are_refused(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "whole.pt")
    with pytest.raises(InputError, match="holds other objects than tensors and plain values"):
        models.classifier(arguments(weights=tmp_path / "whole.pt"), 5)
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds a list, not the dict of a checkpoint"):
        models.classifier(arguments(weights=tmp_path / "list.pt"), 5)


@pytest.mark.parametrize("name", ["ssd300_vgg16", "fasterrcnn_mobilenet_v3_large_fpn", "ssdlite320_mobilenet_v3_large"])
def test_detectors_get_their_attention_in_the_backbone(name):
    with torch.device("meta"):
        model = models.detector(arguments(model=name), 3)
    names = [name for name, layer in model.named_modules() if isinstance(layer, CBAM)]
    assert len(names) >= 4
    assert all(name.startswith("backbone.") for name in names)


def test_a_detector_of_one_size_takes_no_sizes_and_masks_are_no_detectors():
    with pytest.raises(InputError, match="--min-size and --max-size are not of ssd300_vgg16"):
        models.detector(arguments(model="ssd300_vgg16", min_size=64), 3)
    with pytest.raises(InputError, match="has no 'maskrcnn_resnet50_fpn'"):
        models.detector(arguments(model="maskrcnn_resnet50_fpn"), 3)
