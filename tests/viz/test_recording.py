"""`viz.record` gives the gates that a model applies, by name, whoever made its CBAMs."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_triton import CBAM, ChannelAttention, SpatialAttention, convert_cbam, insert_cbam, settings, viz
from cbam_triton.timm import CbamModule

from ..models.idioms import FORMS, C, drawn


class Block(nn.Module):
    """A basic residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + x)


def input_of() -> Tensor:
    return torch.randn(2, C, 5, 4, generator=torch.Generator().manual_seed(0))


def recorded(model, *inputs):
    with torch.no_grad(), viz.record(model) as gates:
        model(*inputs)
    return gates


def test_gates_of_layers_of_every_kind_are_recorded_by_name():
    model = nn.Sequential(
        CBAM(C), drawn(FORMS["timm"]()).float(), nn.Sequential(Block()), CbamModule(C), ChannelAttention(C)
    )
    model.append(SpatialAttention()).eval()
    insert_cbam(model[2])
    convert_cbam(model)
    gates = recorded(model, input_of())
    assert list(gates) == ["0", "1", "2.0.cbam", "3", "4", "5"]
    N, _, H, W = input_of().shape
    for name, found in gates.items():
        assert found.channel is None if name == "5" else found.channel.shape == (N, C)
        assert found.spatial is None if name == "4" else found.spatial.shape == (N, 1, H, W)


@pytest.mark.parametrize("arrangement", ["channel_first", "spatial_first", "parallel"])
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid"])
def test_recorded_gates_are_those_of_attention_maps(arrangement, gate):
    torch.manual_seed(0)
    layer = CBAM(C, 4, arrangement=arrangement, gate=gate).eval()
    x = input_of()
    found = recorded(layer, x)[""]
    with settings(backend="reference"), torch.no_grad():
        expected = layer.attention_maps(x)
    assert torch.equal(found.channel, expected.channel)
    assert torch.equal(found.spatial, expected.spatial)


def test_the_result_times_the_gates_is_what_the_model_returns():
    model, x = drawn(FORMS["Jongchan"]()).float().eval(), input_of()
    convert_cbam(model)
    with torch.no_grad(), viz.record(model) as gates:
        y = model(x)
    found = gates[""]
    torch.testing.assert_close(x * found.channel[:, :, None, None] * found.spatial, y)


def test_a_layer_that_is_called_twice_has_two_records_and_a_new_forward_begins_anew():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = CBAM(C, 1)

        def forward(self, x):
            return self.layer(self.layer(x))

    torch.manual_seed(0)
    model = Twice().eval()
    with torch.no_grad(), viz.record(model) as gates:
        model(input_of())
        first = gates["layer"].channel
        model(2 * input_of())
        assert list(gates) == ["layer", "layer#2"]
        assert not torch.equal(first, gates["layer"].channel)
        model.layer(input_of())
    assert list(gates) == ["layer"]


def test_layers_whose_children_are_called_have_the_name_of_the_layer():
    model = nn.Sequential(CBAM(C)).eval()
    model[0].channel.fc1.register_forward_hook(lambda *_: None)
    model[0].channel.register_forward_hook(lambda *_: None)
    gates = recorded(model, input_of())
    assert list(gates) == ["0"]
    assert None not in gates["0"]


def test_a_compiled_model_is_recorded_under_the_names_of_the_plain_one():
    model = nn.Sequential(nn.Conv2d(C, C, 1), CBAM(C)).eval()
    x = input_of()
    plain = recorded(model, x)
    wrapped, in_place = torch.compile(model, backend="eager", fullgraph=True), copy.deepcopy(model)
    in_place.compile(backend="eager", fullgraph=True)
    for compiled in (wrapped, in_place):
        with torch.no_grad():
            compiled(x)
        found = recorded(compiled, x)
        assert list(found) == list(plain) == ["1"]
        assert torch.equal(found["1"].spatial, plain["1"].spatial)


def test_signals_and_volumes_are_recorded():
    for dims, pixels in ((1, (5,)), (3, (2, 3, 4))):
        found = recorded(CBAM(C, dims=dims).eval(), torch.randn(2, C, *pixels))[""]
        assert (found.channel.shape, found.spatial.shape) == ((2, C), (2, 1, *pixels))


def test_training_goes_on_as_without_a_record():
    model, twin = nn.Sequential(CBAM(C)), nn.Sequential(CBAM(C))
    twin.load_state_dict(model.state_dict())
    with viz.record(model) as gates, settings(backend="reference"):
        model(input_of()).sum().backward()
    with settings(backend="reference"):
        twin(input_of()).sum().backward()
    assert not gates["0"].channel.requires_grad
    for one, other in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(model[0].channel.fc1.weight.grad, twin[0].channel.fc1.weight.grad)


def test_what_other_threads_and_other_models_do_is_not_recorded():
    model, other = CBAM(C).eval(), CBAM(C).eval()
    with torch.no_grad(), viz.record(model) as gates:
        other(input_of())
        thread = threading.Thread(target=model, args=(input_of(),))
        thread.start()
        thread.join()
    assert len(gates) == 0


def test_nothing_is_recorded_after_the_block_or_an_error_in_it():
    model = CBAM(C).eval()

    def fail() -> None:
        with viz.record(model) as gates:
            found.append(gates)
            model(input_of())
            model(torch.randn(2, C + 1, 3, 3))

    found = []
    with pytest.raises(ValueError, match="channels"):
        fail()
    before = len(found[0])
    model(input_of())
    assert len(found[0]) == before
    assert list(recorded(model, input_of())) == [""]


def test_a_name_that_was_not_recorded_is_told_the_others():
    with pytest.raises(KeyError, match="no gates of 'layer1' were recorded; recorded: 0"):
        recorded(nn.Sequential(CBAM(C)).eval(), input_of())["layer1"]
    with pytest.raises(KeyError, match="recorded: none: call the model in the block"):
        recorded(nn.ReLU(), input_of())["layer1"]


@pytest.mark.parametrize("what", [None, CBAM, lambda x: x])
def test_what_is_no_module_is_a_type_error(what):
    with pytest.raises(TypeError, match=r"record takes a torch\.nn\.Module"):
        viz.record(what)
