"""Keys that published layers share although they compute different things: a word, and what the option then does."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import cbam_triton
from cbam_triton import CBAM, convert_state_dict
from cbam_triton.checkpoints.formats import FORMATS

from ..models import zoo
from .forms import FORMS, assert_close, input_of, made

ONE_PROJECT = {"cbam_triton", "timm", "timm_light", "ultralytics", "mmyolo", "pytorchcv", "keras"}


@pytest.mark.parametrize("name", FORMS)
def test_a_format_whose_keys_were_copied_is_said_to_leave_options_open(name):
    state = made(FORMS[name], 8, 2, 3).state_dict()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        converted = convert_state_dict(state)
    assert len(caught) == (converted.format not in ONE_PROJECT)
    for warning in caught:
        text = str(warning.message)
        assert text.startswith(
            f"the keys of the format '{converted.format}' are those of layers that compute different"
        )
        assert "add_input (False or True, taken as " in text
        assert "or swap the layers of the live model by cbam_triton.models.replace_cbam" in text
    assert {form.name for form in FORMATS if not form.shared} == ONE_PROJECT


def test_a_layer_that_is_described_in_full_brings_no_word():
    state = made(zoo.ExternalAttention, 8, 2, 3).state_dict()
    with pytest.warns(UserWarning, match="do not tell spatial_pools"):
        convert_state_dict(state, options={"add_input": False})
    convert_state_dict(state, options={"add_input": False, "spatial_pools": ("max", "mean")})
    with pytest.warns(UserWarning, match="channel_pools") as caught:
        convert_state_dict(made(FORMS["jongchan channel only"], 8, 2, 3).state_dict())
    assert "spatial_pools" not in str(caught[0].message)


class WithoutSum(zoo.ExternalAttention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x


def test_the_option_gives_what_the_other_layer_computes():
    module: nn.Module = made(WithoutSum, 8, 2, 3)
    options = {"add_input": False, "spatial_pools": ("max", "mean")}
    layer, x = CBAM.from_state_dict(module.state_dict(), options=options), input_of("", 8)
    with cbam_triton.settings(backend="reference"), torch.no_grad():
        assert_close(layer(x), module(x))
