"""A child that is replaced, patched or hooked after the conversion: the module's own forward runs."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cbam_triton import convert_cbam
from cbam_triton.models import apply_cbam

from .idioms import FORMS, TOLERANCE, C, R, Residual, conv_mlp, drawn, input_of, results


def replace_layer(model: Any) -> None:
    model.ca.mlp[0] = drawn(nn.Conv2d(C, R, 1, bias=False), seed=7)


def other_kind(model: Any) -> None:
    model.ca.mlp[1] = nn.GELU()


def patch_instance(model: Any) -> None:
    model.sa.forward = lambda x: x.mean(1, keepdim=True)


def patch_layer(model: Any) -> None:
    conv = model.get_submodule("sa.conv.conv")
    conv.forward = lambda x: 2 * type(conv).forward(conv, x)


def remove_part(model: Any) -> None:
    model.ca = nn.Identity()


def fuse_norm(model: Any) -> None:
    block = model.sa.conv
    block.conv = nn.utils.fuse_conv_bn_eval(block.conv.eval(), block.bn.eval())
    block.bn = None


def hook_part(model: Any) -> None:
    model.ca.register_forward_hook(lambda module, inputs, output: 0.5 * output)


def hook_layer(model: Any) -> None:
    model.ca.mlp[0].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


def hook_function(model: Any) -> None:
    model.sa.sigmoid.register_forward_hook(lambda module, inputs, output: output.square())


def repad(model: Any) -> None:
    conv = model.get_submodule("sa.conv.conv")
    conv.padding_mode, conv._reversed_padding_repeated_twice = "reflect", [3] * 4


def add_layer(model: Any) -> None:
    model.ca.mlp.append(nn.Tanh())


def other_class(model: Any) -> None:
    """As some tools patch a module: its class is changed under it."""
    own = type(model.sa)
    model.sa.__class__ = type("Doubled", (own,), {"forward": lambda self, x: 2 * own.forward(self, x)})


def patch_convolution(model: Any) -> None:
    conv = model.get_submodule("sa.conv.conv")
    conv._conv_forward = lambda z, *weights: 2 * type(conv)._conv_forward(conv, z, *weights)


CHANGES = [
    other_class, patch_convolution,
    replace_layer, other_kind, patch_instance, patch_layer, remove_part, fuse_norm, hook_part, hook_layer,
    hook_function, repad, add_layer,
]  # fmt: skip


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_the_conversion_is_followed(change, called_before, no_kernels):
    model = drawn(FORMS["timm"]()).eval()
    twin, x = copy.deepcopy(model), input_of()
    assert convert_cbam(model).converted
    if called_before:
        torch.testing.assert_close(model(x), twin(x), **TOLERANCE)
    change(model), change(twin)
    torch.testing.assert_close(results(model, x), results(twin, x), **TOLERANCE)
    if change is not replace_layer:
        assert not torch.allclose(model(x), drawn(FORMS["timm"]()).eval()(x)) or change is fuse_norm


@pytest.mark.parametrize("clone", [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_follow_a_change_of_their_own(clone: Callable[[Any], Any], no_kernels):
    model: Any = drawn(FORMS["timm"]()).eval()
    x = input_of()
    assert convert_cbam(model).converted
    expected = model(x)
    other = clone(model)
    torch.testing.assert_close(other(x), expected, **TOLERANCE)
    if clone is not copy.copy:  # which shares the children
        other.ca.mlp[1] = nn.GELU()
        assert not torch.allclose(other(x), expected)
    torch.testing.assert_close(model(x), expected, **TOLERANCE)


def library_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    refined = apply_cbam.refined
    monkeypatch.setattr(apply_cbam, "refined", lambda *arguments: calls.append(1) or refined(*arguments))
    return calls


def test_the_kernels_come_back_when_a_hook_is_removed(monkeypatch, no_kernels):
    model: Any = drawn(FORMS["timm"]())
    convert_cbam(model)
    calls, seen = library_calls(monkeypatch), []
    handle = model.ca.register_forward_hook(lambda *_: seen.append(1))
    model(input_of())
    assert (len(calls), len(seen)) == (0, 1)
    handle.remove()
    model(input_of())
    assert (len(calls), len(seen)) == (1, 1)


def test_a_layer_that_is_replaced_by_its_like_is_read(monkeypatch, no_kernels):
    model: Any = drawn(FORMS["timm"]()).eval()
    convert_cbam(model)
    twin, calls = drawn(FORMS["timm"]()).eval(), library_calls(monkeypatch)
    for each in (model, twin):
        replace_layer(each)
    torch.testing.assert_close(model(input_of()), twin(input_of()), **TOLERANCE)
    assert len(calls) == 1


def hook_gate(model: Any) -> None:
    model.who.register_forward_hook(lambda module, inputs, output: output.square())


def replace_mlp(model: Any) -> None:
    model.who.mlp = nn.Sequential(*drawn(conv_mlp(C, R)), nn.Tanh())


def patch_gate(model: Any) -> None:
    model.where.forward = lambda x: x.mean(1, keepdim=True)


@pytest.mark.parametrize("change", [hook_gate, replace_mlp, patch_gate])
def test_a_block_whose_gate_is_changed_runs_its_own_forward(change, no_kernels):
    model, x = drawn(Residual(C)).eval(), input_of()
    twin = copy.deepcopy(model)
    assert convert_cbam(model).converted
    torch.testing.assert_close(model(x), twin(x), **TOLERANCE)
    unchanged = twin(x)
    change(model), change(twin)
    torch.testing.assert_close(model(x), twin(x), **TOLERANCE)
    assert not torch.allclose(model(x), unchanged)


def test_a_map_that_was_not_proven_runs_the_modules_own_forward(monkeypatch, no_kernels):
    model = drawn(FORMS["timm"]()).eval()
    twin, calls = copy.deepcopy(model), library_calls(monkeypatch)
    convert_cbam(model)
    with pytest.raises(RuntimeError) as own:
        twin(input_of()[:, :-1])
    with pytest.raises(RuntimeError) as ours:
        model(input_of()[:, :-1])
    assert str(ours.value) == str(own.value)
    torch.testing.assert_close(model(x=input_of()), twin(x=input_of()), **TOLERANCE)
    assert calls == []
