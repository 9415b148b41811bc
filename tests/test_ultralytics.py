"""The layer that a model file of ultralytics names."""

import copy
import pickle
import types

import pytest
import torch
from torch import nn

import cbam_triton
from cbam_triton import CBAM
from cbam_triton.ultralytics import CBAM as YoloCBAM
from cbam_triton.ultralytics import register

ROWS = {"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "CBAM", ["c2", 3]]], "head": [[-1, 1, "nn.ReLU", []]]}


def test_it_takes_channels_and_kernel_size_in_the_order_of_a_model_file():
    layer = YoloCBAM(32, 7)
    assert isinstance(layer, CBAM)
    assert repr(layer).replace("\n", "") == repr(CBAM(32)).replace("\n", "")
    assert YoloCBAM(32, 3, 8).channel.fc1.out_features == 4
    x = torch.randn(2, 32, 5, 4)
    plain = CBAM(32)
    plain.load_state_dict(layer.state_dict())
    with cbam_triton.settings(backend="reference"), torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), plain.eval()(x))


def test_weights_give_the_layer_that_they_are_from():
    layer = YoloCBAM.from_state_dict(CBAM(8, hidden_channels=3, kernel_size=5).state_dict())
    assert type(layer) is CBAM
    assert layer.channel.fc1.out_features == 3


def test_a_number_of_output_channels_in_second_place_is_refused():
    with pytest.raises(ValueError, match=r"kernel_size must be odd, got 64: the arguments are \(channels, kernel_size"):
        YoloCBAM(64, 64)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_what_a_trainer_sets_survives_copies(clone):
    layer = YoloCBAM(8)
    layer.np = sum(p.numel() for p in layer.parameters())
    layer.i, layer.f, layer.type = 3, -1, "cbam_triton.ultralytics.CBAM"
    other = clone(layer)
    assert (other.i, other.f, other.type, other.np) == (3, -1, "cbam_triton.ultralytics.CBAM", layer.np)
    assert type(other) is YoloCBAM


def test_registration_names_the_layer_in_the_module_that_parses_model_files():
    tasks = types.ModuleType("tasks")
    tasks.parse_model = lambda rows: None
    register(tasks, "CBAM7")
    assert tasks.CBAM7 is YoloCBAM
    with pytest.raises(TypeError, match="tasks must be a module with a function parse_model, got 5: pass"):
        register(5)


def test_ultralytics_builds_it_from_a_model_file_trains_and_fuses():
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    register()
    model, _ = tasks.parse_model(copy.deepcopy(ROWS), ch=3, verbose=False)
    layer = model[1]
    assert type(layer) is YoloCBAM
    assert (layer.i, layer.f, layer.channel.fc1.in_features, layer.spatial.conv.kernel_size) == (1, -1, 8, (3, 3))
    whole = tasks.BaseModel.__new__(tasks.BaseModel)
    nn.Module.__init__(whole)
    whole.model, whole.save = model, []
    x = torch.randn(2, 3, 16, 16)
    with cbam_triton.settings(backend="reference"):
        whole._predict_once(x).sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
        whole.eval()
        with torch.no_grad():
            expected = whole._predict_once(x)
            whole.info = lambda **options: None
            torch.testing.assert_close(whole.fuse(verbose=False)._predict_once(x), expected, rtol=1e-4, atol=1e-5)
