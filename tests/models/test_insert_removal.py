"""Insertion undone, and the parameters that it added."""

import copy

import pytest
import torch
from torch import nn

from cbam_triton import CBAM, convert_cbam, insert_cbam
from cbam_triton.models import new_parameters, remove_cbam

from ..errors import assert_same
from .networks import Basic, models, shaken, small

pytestmark = pytest.mark.usefixtures("reference")

NETWORKS = {
    "residual": small,
    "vgg": lambda: shaken(nn.Sequential(models.vgg.make_layers([4, "M", 8, 8, "M"], batch_norm=True), nn.Flatten())),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("clone", [lambda model: model, copy.deepcopy])
def test_removal_undoes_an_insertion_exactly(name, clone):
    model, x = NETWORKS[name]().eval(), torch.randn(2, 3, 32, 32)
    parts = [(key, type(part), part) for key, part in model.named_modules()]
    keys = list(model.state_dict())
    with torch.no_grad():
        expected = model(x)
        names = insert_cbam(model)
        changed = clone(model)
        assert not torch.equal(changed(x), expected)
        assert remove_cbam(changed) == names
        assert_same(changed(x), expected)
    assert list(changed.state_dict()) == keys
    assert [(key, type(part)) for key, part in changed.named_modules()] == [(key, kind) for key, kind, _ in parts]
    if changed is model:
        assert all(part is before for part, (_, _, before) in zip(model.modules(), parts, strict=True))
    assert not any("cbam" in attribute for part in changed.modules() for attribute in vars(part))
    assert insert_cbam(changed) == names


def test_removal_leaves_alone_what_was_not_inserted():
    model = nn.Sequential(CBAM(8), small())
    assert remove_cbam(model) == ()
    insert_cbam(model)
    remove_cbam(model)
    assert sum(isinstance(part, CBAM) for part in model.modules()) == 1


def test_removal_refuses_a_block_that_is_something_else_now():
    model = small()
    insert_cbam(model)
    model.layer2[0].cbam = nn.Identity()
    with pytest.raises(ValueError, match=r"'layer2\.0' \(BasicBlock\) must have the child `cbam` .*, got Identity"):
        remove_cbam(model)
    assert sum(isinstance(part, CBAM) for part in model.modules()) == 3
    block = Basic(8, 8)
    insert_cbam(block)
    block.forward = lambda x: x
    with pytest.raises(ValueError, match=r"the model \(BasicBlock\) must have the forward that insert_cbam gave it"):
        remove_cbam(block)
    del block.forward
    assert remove_cbam(block) == ("",)


@pytest.mark.parametrize("name", NETWORKS)
def test_new_parameters_are_those_that_the_insertion_added(name):
    model = NETWORKS[name]()
    before = set(map(id, model.parameters()))
    assert new_parameters(model) == {}
    insert_cbam(model)
    found = new_parameters(model)
    assert {key: id(p) for key, p in model.named_parameters() if id(p) not in before} == {
        key: id(p) for key, p in found.items()
    }
    wrapped = nn.DataParallel(model)
    assert set(new_parameters(wrapped)) == {f"module.{key}" for key in found}


def test_only_the_new_parameters_learn_where_the_rest_is_frozen():
    model = small()
    insert_cbam(model, gentle=True)
    model.requires_grad_(False)
    new = new_parameters(model)
    for parameter in new.values():
        parameter.requires_grad_(True)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert {key for key, p in model.named_parameters() if p.grad is not None} == set(new)
    convert_cbam(model)
    assert set(new_parameters(model)) == set(new)


@pytest.mark.parametrize("function", [insert_cbam, remove_cbam, new_parameters])
def test_anything_but_a_module_is_refused(function):
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got str: pass the network itself"):
        function("resnet18")


def test_a_where_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="where must be a function of a block's name, got 'layer1'"):
        insert_cbam(small(), where="layer1")
