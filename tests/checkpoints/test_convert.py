"""Every published form, converted by its keys: the same numbers, gradients and statistics."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cbam_triton
from cbam_triton import CBAM, convert_state_dict
from cbam_triton.checkpoints import find_cbam
from cbam_triton.checkpoints.formats import FORMATS

from ..errors import assert_same
from ..models import zoo
from .forms import CASES, FORMS, SIZES, assert_close, assert_equal_layers, has_norm, input_of, made
from .published import randomised

pytestmark = pytest.mark.filterwarnings("ignore:the keys of the format")  # which test_shared_keys.py looks at


@pytest.mark.parametrize("C, R, K", SIZES)
@pytest.mark.parametrize(
    "name, training",
    [(name, False) for name in CASES] + [(name, True) for name, (make, _) in CASES.items() if has_norm(make(8, 2))],
)
def test_a_published_layer_and_its_conversion_are_equal(name, C, R, K, training):
    make, options = CASES[name]
    module = made(make, C, R, K).train(training)
    layer = CBAM.from_state_dict(module.state_dict(), options=options).train(training)
    if "jongchan" in name and layer.spatial is not None and layer.spatial.norm is not None:
        layer.spatial.norm.momentum = 0.01
    assert_equal_layers(layer, module, input_of(name, C), options)


@pytest.mark.parametrize("name", FORMS)
def test_the_format_is_named_and_its_facts_are_read_from_the_weights(name):
    module = made(FORMS[name], 24, 2, 5)
    converted = convert_state_dict(module.state_dict(), channels=24)
    assert converted.format == ("jongchan" if "jongchan" in name else name.split()[0])
    assert converted.options["channels"] == 24
    assert converted.options.get("hidden_channels", "none") == ("none" if name == "ultralytics" else 2)
    assert converted.options["add_input"] is (name == "external_attention")
    if "only" in name:
        assert converted.options["arrangement"] == "channel_only"
        return
    assert converted.options["kernel_size"] == 5
    assert converted.options["spatial_norm"] == ("batch" if has_norm(module) else None)
    assert converted.options["dims"] == {"1d": 1, "3d": 3}.get(name[-2:], 2)
    assert converted.options["light"] is (name == "timm_light")


def test_the_norms_own_numbers_are_the_defaults():
    norm = CBAM.from_state_dict(made(zoo.Jongchan, 8, 2, 3).state_dict()).spatial.norm
    assert (norm.eps, norm.momentum) == (1e-5, 0.1)


@pytest.mark.parametrize("name", ["timm", "stcn", "keras"])
def test_tensors_are_views_where_nothing_is_reordered(name):
    state = made(FORMS[name], 8, 2, 3).state_dict()
    converted = convert_state_dict(state).state_dict
    given = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    copied = {key for key, tensor in converted.items() if tensor.untyped_storage().data_ptr() not in given}
    assert copied == ({"spatial.conv.weight"} if name == "stcn" else set())


def test_the_new_layer_shares_no_memory_with_the_checkpoint():
    state = made(zoo.Timm, 8, 2, 3).state_dict()
    layer = CBAM.from_state_dict(state)
    before = {key: tensor.clone() for key, tensor in state.items()}
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1)
    torch.testing.assert_close(dict(state), before)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mlp_bias": False, "conv_bias": True, "spatial_norm": None, "kernel_size": 3},
        {"dims": 3},
        {"arrangement": "channel_only"},
        {"arrangement": "spatial_only"},
        {"mlp_layers": 1},
        {"light": True},
        {"hidden_channels": 5},
        {"spatial_pools": ("conv",)},
    ],
    ids=str,
)
def test_a_layer_of_ours_is_its_own_conversion(options):
    layer = randomised(CBAM(8, **options))
    converted = convert_state_dict(layer.state_dict(), channels=8)
    assert converted.format == "cbam_triton"
    assert converted.options.items() >= options.items()
    assert list(converted.state_dict) == list(layer.state_dict())
    for key, tensor in layer.state_dict().items():
        assert_same(converted.state_dict[key], tensor)
    CBAM(**converted.options).load_state_dict(converted.state_dict)


@pytest.mark.parametrize(
    "options",
    [
        {"arrangement": "parallel", "gate": "hard_sigmoid", "activation": "relu"},
        {"spatial_pools": ("max", "mean")},
        {"spatial_pools": ("max",)},
        {"light": True, "arrangement": "channel_only"},
        {"dims": 3, "arrangement": "channel_only", "channel_pools": ("lse",)},
    ],
    ids=str,
)
def test_a_layer_of_ours_needs_to_be_told_what_no_key_tells(options):
    layer = randomised(CBAM(8, **options)).double().eval()
    twin = CBAM.from_state_dict(layer.state_dict(), options=options).eval()
    x = input_of("3d" if "dims" in options else "", 8)
    with cbam_triton.settings(backend="reference"), torch.no_grad():
        assert_same(twin(x), layer(x))
    assert repr(twin) == repr(layer)


def test_options_describe_the_layer_that_the_weights_are_from():
    module = made(zoo.YoloFork, 8, 2, 3)
    weight = module.state_dict()["spatial_attention.conv.weight"]
    flipped = convert_state_dict(module.state_dict(), options={"spatial_pools": ("max", "mean")})
    assert flipped.options["spatial_pools"] == ("mean", "max")
    assert_same(flipped.state_dict["spatial.conv.weight"], weight.flip(1))
    weight = made(zoo.Jongchan, 8, 2, 3).state_dict()
    kept = convert_state_dict(weight, options={"spatial_pools": ("mean", "max")}).state_dict
    assert_same(kept["spatial.conv.weight"], weight["SpatialGate.spatial.conv.weight"])


def test_options_outweigh_what_the_format_implies():
    module, x = made(zoo.ExternalAttention, 8, 2, 3), input_of("", 8)
    layer = CBAM.from_state_dict(module.state_dict(), options={"add_input": False})
    with cbam_triton.settings(backend="reference"), torch.no_grad():
        assert_close(layer(x), module(x) - x)


def test_a_hidden_width_of_zero_leaves_the_biases():
    state = made(zoo.Jongchan, 8, 1, 3).state_dict()
    state |= {"ChannelGate.mlp.1.weight": torch.ones(0, 8).double(), "ChannelGate.mlp.1.bias": torch.ones(0).double()}
    state["ChannelGate.mlp.3.weight"] = torch.ones(8, 0).double()
    layer, x = CBAM.from_state_dict(state).eval(), input_of("", 8)
    g = torch.sigmoid(2 * state["ChannelGate.mlp.3.bias"])
    with cbam_triton.settings(backend="reference"):
        assert_close(layer.attention_maps(x).channel, g.expand(2, 8))


def test_a_checkpoint_without_batch_counts_loads():
    state = made(zoo.Jongchan, 8, 2, 3).state_dict()
    del state["SpatialGate.spatial.bn.num_batches_tracked"]
    assert CBAM.from_state_dict(state).spatial.norm.num_batches_tracked == 0


def test_arrays_are_taken_for_tensors():
    module = made(zoo.Keras, 8, 2, 3)
    arrays = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    layer, x = CBAM.from_state_dict(arrays), input_of("", 8)
    with cbam_triton.settings(backend="reference"):
        assert_close(layer(x), module(x))


def test_dtype_and_device_are_the_weights_or_those_asked_for():
    state = made(zoo.Timm, 8, 2, 3).state_dict()
    assert {p.dtype for p in CBAM.from_state_dict(state).parameters()} == {torch.float64}
    assert {p.dtype for p in CBAM.from_state_dict(state, dtype=torch.float16).parameters()} == {torch.float16}
    state = {key: tensor.to("meta") for key, tensor in state.items()}
    assert {p.device.type for p in CBAM.from_state_dict(state).parameters()} == {"meta"}


def test_every_format_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    assert all(f"| `{form.name}`" in page for form in FORMATS)


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(CASES)),
    prefix=st.sampled_from(["", "module", "layer1.0.cbam", "backbone.ca", "channel", "spatial.conv"]),
    C=st.integers(1, 9),
    R=st.integers(1, 6),
    K=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 9),
)
def test_every_form_converts_under_any_prefix_and_size(name, prefix, C, R, K, seed):
    make, options = CASES[name]
    module, x = made(make, C, R, K, seed).eval(), input_of(name, C, seed)
    start = f"{prefix}." if prefix else ""
    state = {start + key: tensor for key, tensor in module.state_dict().items()}
    state |= {"stem.weight": x, "head.bias": x} if prefix else {}
    converted = convert_state_dict(state, channels=C, prefix=prefix, options=options)
    layer = CBAM(**converted.options, dtype=torch.float64).eval()
    layer.load_state_dict(converted.state_dict)
    with cbam_triton.settings(backend="reference"), torch.no_grad():
        assert_close(layer(x), module(x))
    assert find_cbam(state)[prefix] == converted.format
