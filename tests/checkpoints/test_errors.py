"""What is refused, with what was expected, what came, and what to do."""

import numpy as np
import pytest
import torch
from torch import nn

from cbam_triton import CBAM, convert_state_dict

from ..models import zoo


def edited(state, drop=(), **changes):
    """`state` without some keys and with others, which may name a tensor's new shape; __ stands for a dot."""
    state = {key: tensor for key, tensor in state.items() if not key.startswith(tuple(drop) or ("\n",))}
    for key, value in changes.items():
        state[key.replace("__", ".")] = torch.zeros(value) if isinstance(value, tuple) else value
    return state


pytestmark = pytest.mark.filterwarnings("ignore:the keys of the format")

JONGCHAN, TIMM, PYTORCHCV = (make(8, 2).state_dict() for make in (zoo.Jongchan, zoo.Timm, zoo.Pytorchcv))
OURS = CBAM(8).state_dict()
SEQUENTIAL = nn.ModuleDict(
    {
        "channel_attention": nn.Sequential(nn.AdaptiveAvgPool2d(1), *zoo._conv_mlp(8, 2), nn.Sigmoid()),
        "spatial_attention": nn.Sequential(zoo._stack(7), nn.Sigmoid()),
    }
).state_dict()
FULL = zoo._linear_mlp(8, 2, False)
SIGMOID_INSIDE = {
    "ca.fc.0.weight": FULL[0].weight,
    "ca.fc.2.weight": FULL[2].weight,
    "sa.conv1.weight": torch.ones(1, 2, 7, 7),
}

# What is refused, and what the error must say: what was expected, what came, what to do.
REFUSED = {
    "unknown keys": (
        {"attention.query.weight": torch.ones(8, 8), "attention.key.weight": torch.ones(8, 8)},
        ["keys of a known CBAM", "nearest format", "unexpected: attention.key.weight, attention.query", "channel.fc1"],
    ),
    "nothing": ({}, ["keys of a known CBAM", "nearest format"]),
    "a missing key": (
        edited(JONGCHAN, ["ChannelGate.mlp.3.weight"]),
        ["nearest format is 'jongchan', missing: ChannelGate.mlp.3.weight; unexpected: nothing: pass the whole"],
    ),
    "one bias of two": (
        edited(JONGCHAN, ["ChannelGate.mlp.3.bias"]),
        ["nearest format is 'jongchan', missing: ChannelGate.mlp.3.bias; unexpected: nothing: pass"],
    ),
    "half a norm": (
        edited(TIMM, ["spatial.conv.bn.running"]),
        ["format is 'timm', missing: spatial.conv.bn.running_mean, spatial.conv.bn.running_var; unexp"],
    ),
    "one key too many": (
        edited(TIMM, channel__fc3__weight=(8, 8)),
        ["is 'timm'", "unexpected: channel.fc3.weight: if"],
    ),
    "no spatial part": (
        edited(PYTORCHCV, ["sp_gate"]),
        ["'pytorchcv', missing: sp_gate.conv.conv.weight; unexpected: nothing: pass"],
    ),
    "a misspelt key": (
        edited(JONGCHAN, ["SpatialGate.spatial.conv"], SpatialGate__spatial__cnov__weight=(1, 2, 7, 7)),
        ["'jongchan', missing: SpatialGate.spatial.conv.weight; unexpected: SpatialGate.spatial.cnov.weight: if"],
    ),
    "a whole model": (
        nn.ModuleDict({"a": zoo.Jongchan(8, 2), "b": nn.Sequential(CBAM(8), nn.Linear(2, 2))}).state_dict(),
        ["state_dict must be that of one CBAM, got a model's with 2 of them: pass prefix=, one of a, b.0"],
    ),
    "a sequential that begins with a pool": (
        SEQUENTIAL,
        ["nearest format", "channel_attention.1.weight", "its shared Sequential beginning with a pooling"],
    ),
    "pooling and convolutions under the authors' keys": (
        edited(JONGCHAN, ChannelGate__mlp__1__weight=(2, 8, 1, 1), ChannelGate__mlp__3__weight=(8, 2, 1, 1)),
        [
            "'jongchan' has linear layers (R, C) for its MLP, got ChannelGate.mlp.1.weight (2, 8, 1, 1)",
            "beginning with a pooling",
        ],
    ),
    "linear layers with a sigmoid behind them": (
        SIGMOID_INSIDE,
        ["'luuuyi' has 1x1 convolutions (R, C, 1, 1) for its MLP, got ca.fc.0.weight (2, 8)", "the gate reaches 2"],
    ),
    "fc2 like fc1": (
        edited(OURS, channel__fc2__weight=(1, 8)),
        ["channel.fc2.weight must have shape (8, 1), got (1, 8): pass the weights of one layer"],
    ),
    "two channel counts": (edited(TIMM, channel__fc2__weight=(9, 2, 1, 1)), ["(8, 2, 1, 1), got (9, 2, 1, 1): "]),
    "a 3x3 MLP": (
        edited(TIMM, channel__fc1__weight=(2, 8, 3, 3)),
        ["shape (R, C) or (R, C, 1, 1), got (2, 8, 3, 3): "],
    ),
    "no channels": (edited(OURS, channel__fc1__weight=(1, 0)), ["shape (R, C) or (R, C, 1, 1), got (1, 0): "]),
    "a bias too long": (edited(OURS, channel__fc1__bias=(8,)), ["channel.fc1.bias must have shape (1,), got (8,): "]),
    "one layer that is not square": (
        edited(OURS, ["channel.fc2"], channel__fc1__weight=(4, 8), channel__fc1__bias=(4,)),
        ["channel.fc1.weight must have shape (8, 8), as it is the only layer, got (4, 8): add the second"],
    ),
    "an even K": (edited(OURS, spatial__conv__weight=(1, 2, 4, 4)), ["(1, 2, K, K) with K odd, got (1, 2, 4, 4): "]),
    "an oblong K": (edited(OURS, spatial__conv__weight=(1, 2, 3, 5)), ["(1, 2, K, K) with K odd, got (1, 2, 3, 5): "]),
    "two maps out": (edited(OURS, spatial__conv__weight=(2, 2, 3, 3)), ["(1, 2, K, K) with K odd, got (2, 2, 3, 3): "]),
    "a vector": (edited(OURS, spatial__conv__weight=(7,)), ["(1, 2, K, K) with K odd, got (7,): "]),
    "a convolution of all channels": (
        edited(TIMM, spatial__conv__conv__weight=(1, 8, 7, 7)),
        ["must have shape (1, 2, K, K), for the maps mean, max, got (1, 8, 7, 7): "],
    ),
    "MLP and convolution of other dimensions": (
        edited(TIMM, spatial__conv__conv__weight=(1, 2, 7, 7, 7)),
        ["spatial.conv.conv.weight must have shape (1, 2, K, K), as the MLP has it, got (1, 2, 7, 7, 7): "],
    ),
    "a norm of many channels": (
        edited(TIMM, spatial__conv__bn__weight=(8,)),
        ["spatial.conv.bn.weight must have shape (1,), got (8,): "],
    ),
    "kernels in PyTorch's order": (
        edited(zoo.Keras(8, 2).state_dict(), conv2d__kernel=(1, 2, 7, 7)),
        ["conv2d.kernel must have shape (1, 2, K, K) with K odd, its axes in PyTorch's order, got (7, 7, 1, 2)"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_cbam_is_refused_with_what_is_wrong_and_what_to_do(name):
    state, phrases = REFUSED[name]
    for refuse in (convert_state_dict, CBAM.from_state_dict):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 the phrases follow
            refuse(state)
        for phrase in phrases:
            assert phrase in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"channels": 9}, r"channels must be 8, as the weights have it, got 9: "),
        ({"prefix": "layer4"}, r"prefix must begin some keys, got 'layer4': the state dict has layers under ''"),
        ({"options": {"hidden_channels": 2}}, r"options may hold activation, .*, got 'hidden_channels': leave it out"),
        ({"options": {"gait": "sigmoid"}}, r"options may hold activation, .*, got 'gait': "),
        ({"options": {"light": True}}, r"options\['light'\] must be False, as the weights have it, got True: "),
        ({"options": {"dims": 3}}, r"options\['dims'\] must be 2, as the weights have it, got 3: "),
        (
            {"options": {"arrangement": "channel_only"}},
            r"options\['arrangement'\] must be one of .*'channel_only': leave",
        ),
        ({"options": {"spatial_pools": ("max",)}}, r"\(1, 1, K, K\), for the maps max, got \(1, 2, 7, 7\): "),
    ],
)
def test_arguments_that_contradict_the_weights_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        convert_state_dict(JONGCHAN, **arguments)


def test_a_spatial_attention_alone_needs_its_channels():
    state = CBAM(8, arrangement="spatial_only").state_dict()
    with pytest.raises(ValueError, match="channels must be given where a spatial attention is all there is: pass"):
        convert_state_dict(state)
    assert convert_state_dict(state, channels=8).options["channels"] == 8


def test_options_that_the_weights_refute_are_refused_for_one_part():
    state = CBAM(8, arrangement="channel_only").state_dict()
    with pytest.raises(
        ValueError, match=r"options\['arrangement'\] must be 'channel_only', as the weights have it, got"
    ):
        convert_state_dict(state, options={"arrangement": "parallel"})
    state = CBAM(8, spatial_pools=("conv",)).state_dict()
    with pytest.raises(
        ValueError, match=r"options\['spatial_pools'\] must be \('conv',\), as the weights have it, got"
    ):
        convert_state_dict(state, options={"spatial_pools": ("mean",)})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"gate": "tanh"}, r"options\['gate'\] must be one of 'sigmoid', 'hard_sigmoid', got 'tanh': choose"),
        ({"add_input": 1}, r"options\['add_input'\] must be one of False, True, got 1"),
        ({"channel_pools": ()}, r"options\['channel_pools'\] must be a tuple of some of 'avg', .*, got \(\)"),
        ({"channel_pools": "avg"}, r"must be a tuple of some of 'avg', 'max', 'lp', 'lse', got 'avg'"),
        ({"activation": 5}, r"options\['activation'\] must be one of None, 'relu', got 5"),
    ],
)
def test_values_of_options_that_no_layer_has_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        convert_state_dict(JONGCHAN, options=options)


def test_arguments_and_weights_of_other_types_are_refused():
    with pytest.raises(TypeError, match="prefix must be the layer's name in the model, a str, got 5"):
        convert_state_dict(JONGCHAN, prefix=5)
    with pytest.raises(TypeError, match="options must map names to values, got int"):
        convert_state_dict(JONGCHAN, options=5)
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(TypeError, match=rf"floating-point dtype, got {dtype} for .*: convert them"):
            convert_state_dict({key: tensor.to(dtype) for key, tensor in OURS.items()})
    words = {**OURS, "channel.fc1.bias": np.array(["x"])}
    with pytest.raises(TypeError, match=r"got an array of <U1 for 'channel\.fc1\.bias': convert it to numbers"):
        convert_state_dict(words)
    with pytest.raises(TypeError, match=r"got NoneType for 'channel\.fc1\.bias': leave it out"):
        convert_state_dict({**OURS, "channel.fc1.bias": None})
