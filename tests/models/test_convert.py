import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cbam_triton.timm
from cbam_triton import CBAM, convert_cbam, restore_cbam, settings
from cbam_triton.kernels.launch import hardware
from cbam_triton.models import apply_cbam

from ..errors import assert_same
from .idioms import (
    FORMS,
    TOLERANCE,
    AttentionLayer,
    C,
    ChannelPart,
    R,
    SpatialPart,
    conv_mlp,
    drawn,
    input_of,
    layer,
    linear_mlp,
    results,
    spatial_conv,
)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "name, backend", [*((name, "reference") for name in FORMS), ("Jongchan", "auto"), ("timm", "auto")]
)
def test_every_form_computes_the_same_after_conversion(name, backend, training):
    with settings(backend=backend):
        check_conversion(name, training)


def check_conversion(name: str, training: bool) -> None:
    model, x = drawn(FORMS[name]()), input_of(name)
    twin = copy.deepcopy(model)
    report = convert_cbam(model)
    assert [found.name for found in report.converted] == [""]
    assert not report.skipped
    # Converted in the one mode, used in the other: the mode is read at the call.
    expected, found = results(twin.train(training), x), results(model.train(training), x)
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_one_call_of_the_library(name, monkeypatch, no_kernels):
    calls = []
    refined = apply_cbam.refined
    monkeypatch.setattr(apply_cbam, "refined", lambda *arguments: calls.append(arguments) or refined(*arguments))
    model = drawn(FORMS[name]())
    convert_cbam(model)
    model(input_of(name))
    assert len(calls) == 1


def test_the_variants_are_read_off_the_forward():
    variants = {}
    for name, make in FORMS.items():
        model: Any = make()
        convert_cbam(model)
        variants[name] = model.forward.args[1].plan.variant
    assert variants["Jongchan"].spatial_pools == variants["External-Attention"].spatial_pools == ("max", "mean")
    assert variants["timm"] == cbam_triton.spec.variant.DEFAULT
    assert variants["timm, light"].light
    assert variants["ultralytics"].channel_pools == ("avg",)
    assert variants["Jongchan, other pools"].channel_pools == ("avg", "lp", "lse")
    assert [variants[name].arrangement for name in ("spatial first", "parallel")] == ["spatial_first", "parallel"]


def test_conversion_runs_nothing_and_changes_no_mode():
    model = drawn(FORMS["timm"]())
    norm: Any = model.get_submodule("sa.conv.bn")
    seen = []
    norm.register_forward_hook(lambda *_: seen.append(1))
    norm.eval()
    before = copy.deepcopy(model.state_dict())
    assert convert_cbam(model).converted
    assert seen == []
    assert [name for name, part in model.named_modules() if not part.training] == ["sa.conv.bn"]
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_parameters_keys_and_the_optimizer_stay(no_kernels):
    model = drawn(FORMS["Jongchan"]())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    modules = dict(model.named_modules())
    convert_cbam(model)
    after = model.state_dict(keep_vars=True)
    assert {name: id(tensor) for name, tensor in after.items()} == {name: first for name, (first, _) in before.items()}
    assert all(part is modules[name] for name, part in model.named_modules())
    model(input_of()).square().sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name][1] - 0.1 * parameter.grad)


def test_a_loaded_checkpoint_and_a_moved_model_are_used(no_kernels):
    model, other = drawn(FORMS["timm"]()), drawn(FORMS["timm"](), seed=5)
    convert_cbam(model)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model.eval()(input_of()), other.eval()(input_of()), **TOLERANCE)
    x = input_of().float()
    torch.testing.assert_close(model.float()(x), other.float()(x))


def test_parametrized_weights_are_computed(no_kernels):
    model: Any = drawn(FORMS["timm"]()).eval()
    for part in (model.ca.mlp[0], model.sa.conv.conv):
        nn.utils.parametrizations.weight_norm(part)
    expected = results(model, input_of())
    assert convert_cbam(model).converted
    torch.testing.assert_close(results(model, input_of()), expected, **TOLERANCE)


def test_restored_modules_have_their_own_forward():
    model = nn.Sequential(drawn(FORMS["timm"]()), nn.ReLU(), drawn(FORMS["STCN"]()))
    attributes = [dict(part.__dict__) for part in model.modules()]
    convert_cbam(model)
    assert restore_cbam(model) == 2
    assert [part.__dict__ for part in model.modules()] == attributes
    assert restore_cbam(model) == 0


def test_a_second_conversion_finds_nothing_new():
    model = nn.ModuleDict({"ours": CBAM(8), "theirs": FORMS["timm"]()})
    first, second = convert_cbam(model), convert_cbam(model)
    assert [found.name for found in first.converted] == ["theirs"]
    assert [(found.name, found.note) for found in first.already] == [("ours", "of cbam_triton")]
    assert second.converted == ()
    assert [found.name for found in second.already] == ["ours", "theirs"]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_run_on_their_own_parameters(clone, no_kernels):
    model: Any = drawn(FORMS["timm"]()).eval()
    convert_cbam(model)
    x = input_of()
    expected = model(x)
    other: Any = clone(model)
    assert_same(other(x), expected)
    with torch.no_grad():
        other.ca.mlp[0].weight.zero_()
    assert_same(model(x), expected)
    assert not torch.equal(other(x), expected)
    assert restore_cbam(other) == 1
    assert convert_cbam(model).already


def test_hooks_of_the_module_and_of_its_norm_fire(no_kernels):
    model: Any = drawn(FORMS["timm"]())
    seen = []
    for part in (model, model.sa.conv.bn):
        part.register_forward_hook(lambda module, inputs, output: seen.append((type(module).__name__, output.shape[1])))
    expected = copy.deepcopy(model)(input_of())
    seen.clear()
    assert convert_cbam(model).converted
    torch.testing.assert_close(model(input_of()), expected, **TOLERANCE)
    assert seen == [("BatchNorm2d", 1), ("AttentionLayer", C)]


def test_a_converted_module_compiles_and_traces_to_one_node(no_kernels):
    model = nn.Sequential(nn.Conv2d(C, C, 1), drawn(FORMS["Jongchan"]())).double().eval()
    expected = model(input_of())
    convert_cbam(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(input_of()), expected, **TOLERANCE)
    graph = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(graph(input_of()), expected, **TOLERANCE)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1"]


def test_parts_that_multiply_are_converted_alone(no_kernels):
    channel = ChannelPart(conv_mlp(C, R), "methods", multiplies=True)
    model = drawn(nn.Sequential(channel, nn.ReLU(), SpatialPart(spatial_conv(3), "amax", True, True)))
    expected = results(model, input_of())
    report = convert_cbam(model)
    assert [found.name for found in report.converted] == ["0", "2"]
    assert [found.kind for found in report.skipped] == ["Sequential"]
    torch.testing.assert_close(results(model, input_of()), expected, **TOLERANCE)


def test_other_layers_are_neither_converted_nor_reported():
    squeeze = ChannelPart(conv_mlp(C, R), "average", multiplies=True)
    attention = nn.MultiheadAttention(8, 2)
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1), squeeze, attention, nn.Sequential(*linear_mlp(8, 4)))
    assert convert_cbam(model) == ((), (), ())
    assert str(convert_cbam(model)) == "0 converted, 0 already, 0 skipped"


class Doubled(AttentionLayer):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_the_parts_of_a_changed_whole_are_converted():
    whole = drawn(FORMS["STCN"]())
    model: Any = Doubled(whole.ca, whole.sa, whole.combine)
    expected = model(input_of())
    report = convert_cbam(model)
    assert [found.name for found in report.converted] == ["ca", "sa"]
    assert [(found.name, found.kind) for found in report.skipped] == [("", "Doubled")]
    torch.testing.assert_close(model(input_of()), expected, **TOLERANCE)


def test_wrappers_are_looked_through_and_shared_modules_counted_once():
    inner = FORMS["timm"]()
    model = nn.Sequential(nn.Sequential(nn.Sequential(inner)), inner)
    report = convert_cbam(model)
    assert [found.name for found in report.converted] == ["0.0.0"]
    assert isinstance(vars(inner)["forward"].args[0], AttentionLayer)


class Scriptable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


def test_a_script_module_is_left_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in some releases that TorchScript is deprecated
        model = torch.jit.script(Scriptable())
    assert "compiled by TorchScript" in convert_cbam(model).skipped[0].note


def test_the_report_is_a_table():
    odd = layer(nn.Sequential(nn.Conv2d(C, R, 1), nn.GELU(), nn.Conv2d(R, C, 1)), combine="in turn")
    model = nn.ModuleDict({"ours": CBAM(8), "stage": FORMS["External-Attention"](), "odd": odd})
    lines = [line.split("  ") for line in str(convert_cbam(model)).splitlines()]
    words = [[word.strip() for word in line if word.strip()] for line in lines]
    note = "channel gate of avg+max, C 6, R 2; spatial gate of max+mean, K 5 + x"
    assert words[0] == ["module", "class"]
    assert words[1] == ["converted", "stage", "AttentionLayer", note]
    assert words[2] == ["converted", "odd.sa", "SpatialPart", "spatial gate of mean+max, K 3"]
    assert words[3] == ["already", "ours", "CBAM", "of cbam_triton"]
    assert words[4] == ["skipped", "odd", "AttentionLayer", "its forward uses GELU (ca.mlp.1), which CBAM has not"]
    assert words[6] == ["2 converted, 1 already, 1 skipped"]


def test_the_report_says_whether_the_kernels_run_here(monkeypatch):
    report = convert_cbam(FORMS["timm"]())
    monkeypatch.setattr(hardware, "device_type", lambda: "cuda")
    assert "The kernels run here, on cuda tensors." in str(report)
    monkeypatch.setattr(hardware, "device_type", lambda: None)
    monkeypatch.setattr(hardware, "missing", lambda: "triton is not installed: pip install triton")
    assert "cannot run here, plain PyTorch computes the same: triton is not installed: pip" in str(report)


def test_a_state_dict_is_refused_with_advice():
    with pytest.raises(TypeError, match="got OrderedDict: pass the model, not its state_dict"):
        convert_cbam(CBAM(8).state_dict())  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="got OrderedDict: pass the model that was converted"):
        restore_cbam(CBAM(8).state_dict())  # pyright: ignore[reportArgumentType]
