"""The layers of installed libraries, converted by their keys."""

import copy

import pytest
import torch
from torch import nn

import cbam_triton
from cbam_triton import CBAM

from .forms import assert_close, assert_equal_layers, input_of
from .published import randomised


class ExactHardSigmoid(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x / 6 + 0.5).clamp(0, 1)


@pytest.mark.parametrize(
    "kind, made_with, untold",
    [
        ("CbamModule", {}, {}),
        ("CbamModule", {"mlp_bias": True, "spatial_kernel_size": 3}, {}),
        ("CbamModule", {"gate_layer": "hard_sigmoid"}, {"gate": "hard_sigmoid"}),
        ("LightCbamModule", {}, {}),
        ("LightCbamModule", {"mlp_bias": True, "spatial_kernel_size": 3}, {}),
    ],
)
@pytest.mark.parametrize("C", [8, 24, 40])
def test_timms_own_module_converts(kind, made_with, untold, C):
    cbam = pytest.importorskip("timm.layers.cbam", reason="timm is not installed")
    module = randomised(getattr(cbam, kind)(C, **made_with)).double()
    layer = CBAM.from_state_dict(module.state_dict(), options=untold)
    assert layer.channel.fc1.out_features == max(1, int(C / 16 + 0.5))
    if untold:
        with cbam_triton.settings(backend="reference"):
            assert_close(copy.deepcopy(layer).eval()(input_of("", C)), module.eval()(input_of("", C)))
        # The same function: the gradient of PyTorch's own has the digits of float32 in float64 too.
        module.train().channel.gate = module.spatial.gate = ExactHardSigmoid()
    assert_equal_layers(layer, module, input_of("", C), untold)


def test_pytorchcvs_own_module_converts():
    models = pytest.importorskip("pytorchcv.models.cbamresnet", reason="pytorchcv is not installed")
    module = randomised(models.CbamBlock(40)).double()
    assert_equal_layers(CBAM.from_state_dict(module.state_dict()), module, input_of("", 40))
