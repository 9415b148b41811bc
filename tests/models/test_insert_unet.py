"""CBAM in the encoder and the decoder of U-Nets."""

import copy

import pytest
import torch

from cbam_triton import CBAM, insert_cbam
from cbam_triton.models import remove_cbam

from ..errors import assert_same
from .networks import shaken
from .unets import UNETS, UNetOfBlocks, unet_of_chains


@pytest.mark.parametrize("name", UNETS)
def test_encoder_and_decoder_of_a_unet_get_layers_that_change_nothing_else(name, no_gates):
    build, encoder, decoder = UNETS[name]
    model, x = build(), torch.randn(2, 3, 16, 16)
    for options, expected in (({}, encoder), ({"decoder": True}, encoder | decoder)):
        changed = copy.deepcopy(model)
        names = insert_cbam(changed, **options)
        assert set(names) == expected
        assert {key for key in changed.state_dict() if ".cbam." not in key} == set(model.state_dict())
        for training in (True, False):
            with torch.no_grad():
                assert_same(changed.train(training)(x), model.train(training)(x))
        assert remove_cbam(changed) == names
        assert list(changed.state_dict()) == list(model.state_dict())


def test_the_layer_refines_what_a_decoder_block_returns(reference):
    model = shaken(UNetOfBlocks()).eval()
    plain = copy.deepcopy(model)
    insert_cbam(model, decoder=True, where=lambda name: name.startswith("up"))
    low, skip = torch.randn(2, 8, 4, 4), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        assert_same(model.up1(low, skip), model.up1.cbam(plain.up1(low, skip)))


def test_a_stage_of_a_unet_gets_no_second_layer():
    for model in (UNetOfBlocks(), unet_of_chains()):
        insert_cbam(model)
        with pytest.raises(ValueError, match=r"has a (child `cbam`|layer of insert_cbam) already, expected none: "):
            insert_cbam(model)
        assert sum(isinstance(part, CBAM) for part in model.modules()) == 2


@pytest.mark.parametrize("encoder, blocks", [("resnet18", 8), ("vgg11_bn", 5), ("densenet121", 0)])
def test_decoder_blocks_of_segmentation_models_are_found(encoder, blocks, no_gates):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet(encoder, encoder_weights=None).eval()
    changed, x = copy.deepcopy(model), torch.randn(1, 3, 32, 32)
    names = insert_cbam(changed, decoder=True)
    assert [name for name in names if name.startswith("decoder")] == [f"decoder.blocks.{i}" for i in range(5)]
    assert len(names) == blocks + 5
    with torch.no_grad():
        assert_same(changed(x), model(x))


@pytest.mark.parametrize("units, names", [
    (0, ("model.0", "model.1.submodule.0", "model.1.submodule.1.submodule", "model.1.submodule.2")),
    (2, ("model.0", "model.1.submodule.0", "model.1.submodule.1.submodule", "model.1.submodule.2.1")),
])  # fmt: skip
@pytest.mark.parametrize("dims", [2, 3])
def test_both_paths_of_monais_unet_are_found(units, names, dims, no_gates):
    nets = pytest.importorskip("monai.networks.nets")
    model = nets.UNet(dims, 1, 2, (4, 8, 16), (2, 2), num_res_units=units).eval()
    changed, x = copy.deepcopy(model), torch.randn(1, 1, *(8,) * dims)
    assert insert_cbam(changed, decoder=True, kernel_size=3) == names
    with torch.no_grad():
        assert_same(changed(x), model(x))
