"""CBAMs of others replaced by ours in a live model, by what they compute."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cbam_triton import CBAM, convert_cbam, restore_cbam
from cbam_triton.models import replace_cbam

from ..errors import assert_same
from .idioms import FORMS, TOLERANCE, C, Residual, conv_mlp, drawn, input_of, layer, spatial_conv


def external(combine: str) -> nn.Module:
    """A form whose forward adds x, or one of the same keys that does not."""
    return layer(conv_mlp(C, 2), "modules", spatial_conv(5, True), combine=combine, max_first=True)


class AddedOutside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cbam = FORMS["STCN"]()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cbam(x)


def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    assert x.grad is not None
    return {"y": y.detach(), "dx": x.grad}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_a_layer_of_ours_takes_the_place_and_the_weights(name, training, no_kernels):
    model, x = nn.Sequential(drawn(FORMS[name]())).train(training), input_of(name)
    twin = copy.deepcopy(model)
    report = replace_cbam(model)
    assert [found.note.startswith("replaced: ") for found in report.converted] == [True]
    found: Any = model[0]
    assert type(found) is CBAM
    assert found.training is training
    torch.testing.assert_close(results(model, x), results(twin, x), **TOLERANCE)
    numbers = [sorted(p.sum().item() for p in one.parameters()) for one in (model, twin)]
    assert numbers[0] == numbers[1]
    assert all(p.grad is not None for p in model.parameters())


def test_a_sum_outside_of_the_layer_stays_outside(no_kernels):
    model: Any = drawn(AddedOutside()).eval()
    twin = copy.deepcopy(model)
    replace_cbam(model)
    assert type(model.cbam) is CBAM
    assert not model.cbam.add_input
    with torch.no_grad():
        torch.testing.assert_close(model(input_of()), twin(input_of()), **TOLERANCE)


def test_one_layer_in_two_places_stays_one_layer(no_kernels):
    shared = drawn(FORMS["timm"]()).eval()
    model = nn.Sequential(shared, nn.ReLU(), shared)
    twin = copy.deepcopy(model)
    replace_cbam(model)
    assert model[0] is model[2]
    with torch.no_grad():
        torch.testing.assert_close(model(input_of()), twin(input_of()), **TOLERANCE)


def test_what_a_trainer_set_on_the_module_is_kept_and_the_model_needs_no_conversion():
    model: Any = nn.Sequential(FORMS["timm"]())
    model[0].i, model[0].f, model[0].type, model[0].np = 4, -1, "CBAM", 123
    convert_cbam(model)
    replace_cbam(model)
    found = pickle.loads(pickle.dumps(model))[0]
    assert (found.i, found.f, found.type, found.np) == (4, -1, "CBAM", 123)
    assert restore_cbam(model) == 0


def test_what_cannot_be_replaced_stays_and_is_reported(no_kernels):
    hooked = FORMS["timm"]()
    hooked.register_forward_hook(lambda module, inputs, output: None)
    model = nn.Sequential(hooked, FORMS["timm"](), CBAM(C)).eval()
    report = replace_cbam(model)
    assert [(found.name, found.note) for found in report.skipped] == [
        ("0", "it has hooks, which a new layer would not have: remove them first")
    ]
    assert [found.name for found in report.converted] == ["1"]
    assert [found.name for found in report.already] == ["2"]
    assert model[0] is hooked
    assert restore_cbam(model) == 0
    alone = FORMS["timm"]()
    report = replace_cbam(alone)
    assert report.skipped[0].note.startswith("it is the model itself: pass a module that holds it")
    assert "forward" not in vars(alone)


def test_gates_that_a_block_multiplies_are_left_to_the_conversion():
    model = nn.Sequential(Residual(C))
    report = replace_cbam(model)
    assert [found.note for found in report.skipped] == ["its own forward multiplies the gates: convert_cbam runs these"]
    assert restore_cbam(model) == 0


def test_layers_of_equal_keys_and_another_forward_come_out_right(no_kernels):
    model: Any = nn.Sequential(external("added"), external("channel first"))
    assert list(model[0].state_dict()) == list(model[1].state_dict())
    twin = copy.deepcopy(drawn(model).eval())
    replace_cbam(model)
    assert (model[0].add_input, model[1].add_input) == (True, False)
    with torch.no_grad():
        torch.testing.assert_close(model(input_of()), twin(input_of()), **TOLERANCE)


def test_frozen_parameters_stay_frozen_and_linear_ones_are_the_same():
    model: Any = nn.Sequential(FORMS["Jongchan"](), FORMS["timm"]()).requires_grad_(False)
    first = next(p for p in model[0].parameters() if p.ndim == 2)
    replace_cbam(model)
    assert model[0].channel.fc1.weight is first
    assert not any(p.requires_grad for p in model.parameters())
    assert_same(model[0].channel.fc1.weight, first)
