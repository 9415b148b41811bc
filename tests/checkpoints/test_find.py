"""The layers in the state dict of a whole model, and in a checkpoint that holds one."""

import pytest
import torch
from torch import nn

import cbam_triton
from cbam_triton import CBAM, convert_state_dict
from cbam_triton.checkpoints import find_cbam

from ..models import zoo

pytestmark = pytest.mark.filterwarnings("ignore:the keys of the format")


class Network(nn.Module):
    """A residual block with luuuyi's two modules in it, and two layers that are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.layer1 = nn.Sequential(zoo.Luuuyi(8, 2, K=3))
        self.layer1[0].conv1, self.layer1[0].bn1 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.layer2 = nn.ModuleDict({"cbam": zoo.Jongchan(8, 3, K=5)})
        self.layer3 = nn.ModuleDict({"cbam": CBAM(6), "att": zoo.Ultralytics(4)})
        self.fc = nn.Linear(8, 10)


NETWORK = {"layer1.0": "luuuyi", "layer2.cbam": "jongchan", "layer3.cbam": "cbam_triton", "layer3.att": "ultralytics"}


def test_the_layers_of_a_model_are_found():
    assert find_cbam(Network().state_dict()) == NETWORK
    assert find_cbam(nn.DataParallel(Network()).state_dict()) == {f"module.{key}": NETWORK[key] for key in NETWORK}
    assert find_cbam(zoo.Timm(8, 2).state_dict()) == {"": "timm"}
    assert find_cbam(nn.Linear(2, 2).state_dict()) == {}


@pytest.mark.parametrize("prefix", NETWORK)
def test_a_prefix_selects_a_layer(prefix):
    network = Network()
    module, x = network.get_submodule(prefix).eval(), torch.randn(2, 8, 5, 4)
    x = x[:, : {"layer3.cbam": 6, "layer3.att": 4}.get(prefix, 8)]
    with cbam_triton.settings(backend="reference"), torch.no_grad():
        for spelled in (prefix, f"{prefix}."):
            layer = CBAM.from_state_dict(network.state_dict(), prefix=spelled).eval()
            torch.testing.assert_close(layer(x), module(x))


STATE = Network().state_dict()
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
WITH_OTHERS = {"epoch": 3, "optimizer": OPTIMIZER, "state_dict": STATE, "scaler": {"scale": torch.ones(1)}}
CHECKPOINTS = {
    "state_dict": (WITH_OTHERS, "checkpoint['state_dict']"),
    "model": ({"model": STATE}, "checkpoint['model']"),
    "net": ({"net": STATE, "acc": 0.9}, "checkpoint['net']"),
    "nested": ({"ema": {"module": STATE, "decay": 0.9}}, "checkpoint['ema']['module']"),
    "a module": ({"model": Network(), "epoch": 1}, "checkpoint['model'].state_dict()"),
    "two": ({"model": STATE, "ema": STATE}, "checkpoint['model'] and at checkpoint['ema']"),
    "without a layer": ({"best": 1.0, "weights": nn.Linear(2, 2).state_dict()}, "checkpoint['weights']"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("function", [find_cbam, convert_state_dict])
def test_a_checkpoint_is_told_where_its_state_dict_is(name, function):
    checkpoint, place = CHECKPOINTS[name]
    with pytest.raises(TypeError) as caught:
        function(checkpoint)
    assert f"the checkpoint has one at {place}: pass that" in str(caught.value)
    assert "state_dict must map keys to tensors, got dict with the keys " in str(caught.value)


@pytest.mark.parametrize("given, message", [
    (nn.Linear(1, 1), r"got Linear: pass model\.state_dict\(\)"),
    ("weights.pth", r"got str: pass what torch\.load\(path\) returns"),
    (None, r"got NoneType: pass model\.state_dict\(\)"),
    ([("a", 1)], r"got list: pass model\.state_dict\(\)"),
    ({5: torch.zeros(1)}, r"got the key 5: pass model\.state_dict\(\)"),
])  # fmt: skip
@pytest.mark.parametrize("function", [find_cbam, convert_state_dict])
def test_anything_but_a_state_dict_is_refused(given, message, function):
    with pytest.raises(TypeError, match=f"^state_dict must map keys to tensors, {message}"):
        function(given)


def test_other_values_beside_the_tensors_are_ignored():
    assert find_cbam({**STATE, "step": 3, "layer2.cbam.extra": None}) == NETWORK
