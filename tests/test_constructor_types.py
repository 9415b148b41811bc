"""Arguments of the layers that are of a wrong type or size: an error names each, what came and what to do."""

import re

import numpy as np
import pytest
import torch

from cbam_triton import CBAM, ChannelAttention, SpatialAttention

WRONG = [
    *({"channels": value} for value in ("16", 16.0, True, None, [16])),
    *({"reduction": value} for value in ("4", None, [4], True)),
    *({"hidden_channels": value} for value in ("4", 4.0, True)),
    *({"kernel_size": value} for value in ("7", 7.0, (7, 7), None, True)),
    *({"channel_pools": value} for value in (5, "avg", [["avg"]], np.array(["avg"]), None)),
    *({"spatial_pools": value} for value in (5, "mean", None, iter(["mean"]))),
    *({"gate": value} for value in (None, 5, np.array(["sigmoid", "x"]))),
    *({"arrangement": value} for value in (None, np.array([1, 2]))),
    *({name: "no"} for name in ("light", "mlp_bias", "conv_bias", "add_input")),
    {"dtype": "float32"},
]
REFUSED = [
    {"reduction": float("nan")},
    {"reduction": float("inf")},
    {"reduction": -1},
    {"dims": 4},
    {"dims": [2]},
    {"dims": True},
    {"mlp_layers": "2"},
    {"spatial_norm": np.array([1, 2])},
    {"activation": np.array([1, 2])},
    {"activation": 5},
    {"device": "nowhere"},
    *({"dtype": dtype} for dtype in (torch.int32, torch.complex64, torch.float8_e4m3fn)),
]


def _name(value):
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))  # the same in every process


@pytest.mark.parametrize(
    "kind, options", [(TypeError, o) for o in WRONG] + [(ValueError, o) for o in REFUSED], ids=_name
)
def test_a_wrong_argument_is_named(kind, options):
    (name,) = options
    with pytest.raises(kind, match=rf"^{name} must .*, got .*: "):
        CBAM(**{"channels": 16, **options})


def test_each_attention_checks_its_own_arguments():
    with pytest.raises(TypeError, match=r"^channels must be an integer, got the string '8': "):
        ChannelAttention("8")
    with pytest.raises(TypeError, match=r"^kernel_size must be an integer, got a value of type tuple: "):
        SpatialAttention((7, 7))
    with pytest.raises(TypeError, match=r"^channels must be an integer, got None: spatial_pools \('conv',\) needs"):
        SpatialAttention(7, spatial_pools=("conv",))


def test_a_ratio_in_place_of_a_reduction_is_told_its_reduction():
    with pytest.raises(ValueError, match=r"reduction must be at least 1, got 0.0625: .* is written 16$"):
        CBAM(64, 1 / 16)


def test_integers_of_numpy_are_integers():
    assert CBAM(np.int64(16), hidden_channels=np.int32(4)).channel.fc1.weight.shape == (4, 16)


@pytest.mark.parametrize(
    "x", [None, "x", 5, [1.0], np.zeros((1, 16, 4, 4), np.float32)], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("layer", [CBAM(16), CBAM(16, add_input=True), ChannelAttention(16), SpatialAttention()])
def test_a_map_that_is_no_tensor_is_named(layer, x):
    with pytest.raises(TypeError, match=r"^x must be a torch.Tensor, got "):
        layer(x)


@pytest.mark.parametrize("add_input", [False, True])
@pytest.mark.parametrize("residual", [5, "a", torch.zeros(2, 16, 1, 1), torch.zeros(3, 16, 5, 4)], ids=str)
def test_a_wrong_residual_is_named(residual, add_input):
    layer = CBAM(16, add_input=add_input)
    with pytest.raises((TypeError, ValueError), match=r"^residual must "):
        layer(torch.zeros(2, 16, 5, 4), residual=residual)


def test_a_volume_is_told_of_dims():
    with pytest.raises(ValueError, match=r"got shape \(1, 16, 2, 3, 4\): .*build the layer with dims=3"):
        CBAM(16)(torch.zeros(1, 16, 2, 3, 4))
