"""Copies of converted modules run on what is their own, whoever makes them and by whatever way."""

import copy
import copyreg
import gc
import io
import pickle
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cbam_triton import CBAM, convert_cbam, insert_cbam, restore_cbam, settings

from ..errors import assert_same
from .idioms import FORMS, TOLERANCE, C, Residual, drawn, input_of, results


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def replica_of(model: nn.Module, parameters: dict[str, Tensor]) -> Any:
    """What torch.nn.parallel.replicate makes of a model, with other parameters on the same device."""
    replicas: dict[nn.Module, Any] = {part: part._replicate_for_data_parallel() for part in model.modules()}
    for name, part in model.named_modules():
        replica = replicas[part]
        replica._former_parameters = OrderedDict()
        for key, child in part._modules.items():
            if child is None:
                replica._modules[key] = None
            else:
                setattr(replica, key, replicas[child])
        for key, parameter in part._parameters.items():
            if parameter is None:
                replica._parameters[key] = None
            else:
                own = parameters[f"{name}.{key}" if name else key]
                setattr(replica, key, own)
                replica._former_parameters[key] = own
        for key, buffer in part._buffers.items():
            setattr(replica, key, None if buffer is None else buffer.clone())
    return replicas[model]


def of_replica(model: nn.Module, x: Tensor, frozen: Callable[[str], bool] = lambda name: False) -> dict[str, Any]:
    """The result of a replica with parameters of its own, and the gradients of these."""
    leaves = {
        name: (parameter.detach() * 1.5).requires_grad_(not frozen(name))
        for name, parameter in model.named_parameters()
    }
    x = x.clone().requires_grad_(not frozen("x"))
    y = replica_of(model, {name: leaf * 1 for name, leaf in leaves.items()})(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return {"y": y.detach(), "dx": x.grad, **{name: leaf.grad for name, leaf in leaves.items()}}


MODELS: dict[str, Callable[[], nn.Module]] = {**FORMS, "a block": lambda: Residual(C)}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_replicas_of_data_parallel_run_on_their_own_parameters(name, training, no_kernels):
    model, x = drawn(MODELS[name]()).train(training), input_of(name)
    expected = of_replica(model, x)
    assert len(convert_cbam(model).converted) == 1
    torch.testing.assert_close(of_replica(model, x), expected, **TOLERANCE)
    original = copy.deepcopy(model)
    assert not torch.allclose(original(x), expected["y"])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("learning", ["", "spatial.norm", "conv"])
def test_replicas_of_our_layer_train(learning, training):
    """By the kernels, where there are any; with everything learning, or one part of it."""
    model, x = drawn(CBAM(C, 2, kernel_size=3)).train(training), input_of()

    def computed(backend: Any) -> dict[str, Any]:
        with settings(backend=backend):
            return of_replica(model, x, frozen=lambda name: learning not in name)

    expected = computed("reference")
    assert (expected["spatial.norm.weight"] is None) is (learning == "conv")
    torch.testing.assert_close(computed("auto"), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["timm", "a block"])
def test_a_shallow_copy_runs_on_what_it_is_given(name, no_kernels):
    model: Any = drawn(MODELS[name]()).eval()
    twin, x = copy.deepcopy(model), input_of()
    convert_cbam(model)
    other: Any = copy.copy(model)
    assert type(other) is type(model)
    assert_same(other(x), model(x))
    # A shallow copy shares its dicts, and so its children, until it gets others.
    other._modules = {key: copy.deepcopy(child) for key, child in model._modules.items()}
    twin.load_state_dict({key: 1.5 * tensor for key, tensor in twin.state_dict().items()})
    other.load_state_dict(twin.state_dict())
    torch.testing.assert_close(other(x), twin(x), **TOLERANCE)
    assert not torch.allclose(model(x), twin(x))
    assert restore_cbam(other) == 1
    assert convert_cbam(model).already


@pytest.mark.parametrize("name", ["timm", "a block"])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded])
def test_deep_copies_run_on_their_own_parameters(clone, name, no_kernels):
    model = drawn(MODELS[name]()).eval()
    twin, x = copy.deepcopy(model), input_of()
    convert_cbam(model)
    other = clone(nn.Sequential(model))[0]
    assert type(other) is type(model)
    assert_same(other(x), model(x))
    for each in (other, twin):
        with torch.no_grad():
            for parameter in each.parameters():
                parameter.mul_(1.5)
    torch.testing.assert_close(other(x), twin(x), **TOLERANCE)
    replicas = [of_replica(each, x) for each in (other, twin)]
    torch.testing.assert_close(*replicas, **TOLERANCE)
    shallow = copy.copy(other)
    assert restore_cbam(other) == restore_cbam(shallow) == 1
    assert vars(other).keys() == vars(twin).keys()


def test_copies_of_a_replica_and_replicas_of_a_copy_are_bound_to_themselves():
    model = drawn(FORMS["timm"]())
    convert_cbam(model)
    for made in (copy.copy(model)._replicate_for_data_parallel(), copy.copy(copy.copy(model)), copy.copy(model)):
        assert vars(made)["forward"].args[0] is made
        assert vars(made)["_replicate_for_data_parallel"].args[0] is made
    assert vars(model)["forward"].args[0] is model


def test_unconverted_modules_of_the_class_are_copied_as_before():
    model, plain = drawn(FORMS["timm"]()), drawn(FORMS["timm"](), seed=3)
    table = dict(copyreg.dispatch_table)
    convert_cbam(model)
    assert copyreg.dispatch_table == table
    other = pickle.loads(pickle.dumps(plain))
    assert vars(other).keys() == vars(plain).keys()
    torch.testing.assert_close(results(other, input_of()), results(plain, input_of()), **TOLERANCE)


def converted_and_restored() -> type:
    model = drawn(FORMS["timm"]())
    model.__class__ = type("Made", (type(model),), {})
    convert_cbam(model)
    assert "forward" in vars(model)
    restore_cbam(model)
    return type(model)


def inserted() -> type:
    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) + x

    assert insert_cbam(nn.Sequential(Made())) == ("0",)
    return Made


@pytest.mark.parametrize("made", [converted_and_restored, inserted])
def test_a_class_made_at_run_time_is_freed_with_its_last_module(made):
    kinds = [weakref.ref(made()) for _ in range(3)]
    gc.collect()
    assert [kind() for kind in kinds] == [None] * 3
