"""What a network with inserted layers goes through: weights, copies, compilation, extraction of features."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import fx, nn

from cbam_triton import CBAM, insert_cbam

from ..errors import assert_same
from .networks import Basic, shaken, small
from .unets import UNetOfBlocks

pytestmark = pytest.mark.usefixtures("reference")


def test_weights_of_the_plain_network_load_before_or_after():
    plain = small()
    after, before = small(), small()
    names = insert_cbam(after)
    found = after.load_state_dict(plain.state_dict(), strict=False)
    assert found.unexpected_keys == []
    assert {key.split(".cbam.")[0] for key in found.missing_keys} == set(names)
    before.load_state_dict(plain.state_dict())
    insert_cbam(before)
    torch.manual_seed(0)
    assert {k: v.shape for k, v in before.state_dict().items()} == {k: v.shape for k, v in after.state_dict().items()}


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, saved_and_loaded])
def test_copies_compute_the_same(clone):
    model = shaken(nn.Sequential(Basic(8, 8), Basic(8, 8))).eval()
    insert_cbam(model)
    other = clone(model)
    x = torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        expected = model(x)
        assert_same(other(x), expected)
        for p in other.parameters():
            p.zero_()
        assert torch.equal(model(x), expected) is (clone is not copy.copy)
    assert isinstance(other[0], Basic)


def test_a_replica_of_a_block_computes_with_its_own_parameters():
    # What DataParallel does: a shallow copy, then other parameters.
    block = shaken(Basic(16, 16)).eval()
    insert_cbam(block)
    replica = block._replicate_for_data_parallel()
    replica._modules["conv1"] = nn.Conv2d(16, 16, 3, padding=1)
    x = torch.randn(2, 16, 5, 5)
    assert not torch.equal(replica(x), block(x))


def test_a_compiled_network_is_one_graph():
    model = small().eval()
    insert_cbam(model)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


def test_features_can_be_extracted_by_a_symbolic_trace():
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = small().eval()
    insert_cbam(model)
    extractor = extraction.create_feature_extractor(model, ["layer4"], tracer_kwargs={"leaf_modules": [CBAM]})
    seen = []
    model.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        model(x)
        assert_same(extractor(x)["layer4"], seen[0])


def test_a_block_may_be_called_by_keyword_and_traced_by_itself():
    block: Any = shaken(Basic(8, 8)).eval()
    insert_cbam(block)
    x = torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        assert_same(block(x=x), block(x))
        assert_same(fx.symbolic_trace(block)(x), block(x))


def test_a_block_of_a_decoder_may_be_called_by_keywords():
    model: Any = UNetOfBlocks().eval()
    insert_cbam(model, decoder=True)
    low, skip = torch.randn(2, 8, 4, 4), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        expected = model.up1(low, skip)
        assert_same(model.up1(low, skip=skip), expected)
        assert_same(model.up1(skip=skip, low=low), expected)
