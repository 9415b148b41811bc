"""The examples in the docstrings of public names run, and every public name has one."""

import doctest
import inspect

import pytest
import torch

from cbam_triton import CBAM, ChannelAttention, SpatialAttention, attention, functional, nn, settings, squeeze_excite

PUBLIC = [
    CBAM,
    ChannelAttention,
    SpatialAttention,
    squeeze_excite.SqueezeExcite,
    squeeze_excite.EffectiveSqueezeExcite,
    functional.cbam,
    functional.channel_attention,
    functional.spatial_attention,
    functional.attention_maps,
]


@pytest.mark.parametrize("module", [nn, attention, functional, squeeze_excite], ids=lambda module: module.__name__)
def test_examples_run_and_print_what_they_say(module):
    with settings(backend="reference"):
        found = doctest.testmod(module, extraglobs={"torch": torch})
    assert found.attempted > 0
    assert not found.failed


@pytest.mark.parametrize("name", PUBLIC, ids=lambda name: name.__name__)
def test_every_public_name_has_an_example_its_traffic_and_its_source(name):
    words = inspect.getdoc(name)
    for part in (">>> ", "Traffic: "):
        assert part in words, part
