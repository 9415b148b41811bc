"""What is nearly a CBAM: left alone, or converted but for what is unlike, with the reason."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cbam_triton import convert_cbam

from .idioms import (
    FORMS,
    TOLERANCE,
    AttentionLayer,
    C,
    ChannelPart,
    ConvNorm,
    R,
    SpatialPart,
    conv_mlp,
    drawn,
    input_of,
    layer,
    results,
    spatial_conv,
)


class Doubled(AttentionLayer):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Asks(AttentionLayer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[1] == C else x


class ByMode(AttentionLayer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x * self.ca(x)


def as_class(kind: type[AttentionLayer]) -> nn.Module:
    model: Any = layer()
    return kind(model.ca, model.sa, model.combine)


def combined(combine: Callable[..., Tensor]) -> nn.Module:
    model: Any = layer()
    model.combine = combine
    return model


def changed(change: Callable[[Any], Any], form: str = "timm") -> nn.Module:
    model = FORMS[form]()
    change(model)
    return model


def input_in_place(ca: Any, sa: Any, x: Tensor) -> Tensor:
    x *= ca(x)
    return x * sa(x)


def of_another_map(ca: Any, sa: Any, x: Tensor) -> Tensor:
    first = x * ca(x)
    return first * sa(first * ca(first))


class HardSigmoid(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return (z + 3).clamp(0, 6) / 6  # nn.Hardsigmoid's gradient has a sixth in float32


def gelu_mlp() -> nn.Module:
    return nn.Sequential(nn.Conv2d(C, R, 1), nn.GELU(), nn.Conv2d(R, C, 1))


def two_mlps(ca: Any, sa: Any, x: Tensor) -> Tensor:
    gate = torch.sigmoid(ca.mlp(x.mean((2, 3), keepdim=True)) + ca.other(x.amax((2, 3), keepdim=True)))
    return x * gate * sa(x)


def summed_first(ca: Any, sa: Any, x: Tensor) -> Tensor:
    gate = torch.sigmoid(ca.mlp(x.mean((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True)))
    return x * gate * sa(x)


def with_other_mlp() -> nn.Module:
    model: Any = combined(two_mlps)
    model.ca.other = nn.Conv2d(C, C, 1)
    model.ca.mlp = nn.Sequential(nn.Conv2d(C, C, 1))
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a question to the data": (lambda: as_class(Asks), "cannot be followed past line .*depends on the values"),
    "a forward by mode": (lambda: as_class(ByMode), "another thing in training"),
    "the input changed": (lambda: combined(input_in_place), "changes its input in place"),
    "a gate of another map": (lambda: combined(of_another_map), "its MLP is given something else than pools of x"),
    "only added": (lambda: combined(lambda ca, sa, x: x + ca(x)), "not x times a channel gate"),
    "a gate twice": (lambda: combined(lambda ca, sa, x: x * ca(x) * ca(x) * sa(x)), "not x times a channel gate"),
    "a mean of gates": (lambda: combined(lambda ca, sa, x: x * (ca(x) + sa(x))), "not x times a channel gate"),
    "two MLPs": (with_other_mlp, "its pools go through different layers, ca.mlp.0 and ca.other"),
    "pools added first": (lambda: combined(summed_first), "its MLP is given something else than pools of x"),
    "a hooked child": (
        lambda: changed(lambda model: model.ca.register_forward_hook(lambda *_: None)),
        "its child ca has hooks",
    ),
    "a hooked weight": (
        lambda: changed(lambda model: model.sa.conv.conv.register_forward_pre_hook(lambda *_: None)),
        "its child sa.conv.conv has hooks",
    ),
    "a replaced forward": (
        lambda: changed(lambda model: setattr(model, "forward", torch.relu)),
        "forward of this module is replaced",
    ),
    "a child's replaced forward": (
        lambda: changed(lambda model: setattr(model.ca, "forward", torch.relu)),
        "forward of ca is replaced",
    ),
}
# With what is converted all the same.
HALF_REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a changed forward": (lambda: as_class(Doubled), "channel gate.*spatial gate", "its result is not x times"),
    "another activation": (lambda: layer(gelu_mlp()), "spatial gate", "uses GELU .ca.mlp.1., which CBAM has not"),
    "no activation": (
        lambda: layer(nn.Sequential(*(nn.Conv2d(C, C, 1) for _ in range(2)))),
        "spatial gate",
        "between its layers ca.mlp.0 and ca.mlp.1 is something else than ReLU",
    ),
    "sigmoid inside the MLP": (
        lambda: layer(nn.Sequential(*conv_mlp(C, R), nn.Sigmoid())),
        "spatial gate",
        "its convolution is given something else",
    ),
    "a grouped MLP": (
        lambda: layer(nn.Sequential(nn.Conv2d(C, R, 1, groups=2), nn.ReLU(), nn.Conv2d(R, C, 1))),
        "spatial gate",
        "neither linear nor a 1x1",
    ),
    "a dropout": (
        lambda: layer(nn.Sequential(nn.Dropout(0.1), *conv_mlp(C, R))),
        "spatial gate",
        "another thing in training .*: Dropout .ca.mlp.0.",
    ),
    "a dilated convolution": (
        lambda: layer(conv=nn.Conv2d(2, 1, 3, padding=2, dilation=2)),
        "channel gate",
        "not K x K with K odd",
    ),
    "an oblong convolution": (
        lambda: layer(conv=nn.Conv2d(2, 1, (5, 3), padding=(2, 1))),
        "channel gate",
        "not K x K with K odd",
    ),
    "reflected pixels": (
        lambda: layer(conv=nn.Conv2d(2, 1, 3, padding=1, padding_mode="reflect")),
        "channel gate",
        "not K x K with K odd",
    ),
    "ReLU after the norm": (
        lambda: layer(conv=ConvNorm(spatial_conv(3), nn.BatchNorm2d(1), nn.ReLU())),
        "channel gate",
        "its result is not x times",
    ),
    "two functions": (
        lambda: changed(lambda model: setattr(model.sa, "sigmoid", HardSigmoid()), "luuuyi, bubbliiiing, YOLO"),
        "channel gate",
        "its two gates differ in their function: sigmoid and hard_sigmoid",
    ),
    "only one light": (
        lambda: AttentionLayer(
            ChannelPart(conv_mlp(C, R), "methods", light=True),
            SpatialPart(spatial_conv(3), "amax", False, False),
            layer().combine,  # pyright: ignore
        ),
        "channel gate.*light.*spatial gate",
        "only one of its two gates is of the half",
    ),
}


# Of these the parts are converted that would be by themselves.
IN_PART = ("a hooked child", "a hooked weight", "a replaced forward", "a child's replaced forward")


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_nearly_a_cbam_is_left_alone_with_the_reason(name):
    make, reason = REFUSED[name]
    model = make()
    attributes = [dict(part.__dict__) for part in model.modules()]
    report = convert_cbam(nn.Sequential(nn.Conv2d(3, 8, 3), model))
    converted = [found.name for found in report.converted]
    assert set(converted) <= {"1.ca", "1.sa"}
    assert bool(converted) == (name in IN_PART)
    assert [found.name for found in report.skipped] == ["1"]
    assert re.search(reason, report.skipped[0].note), report.skipped[0].note
    assert converted or [part.__dict__ for part in model.modules()] == attributes


@pytest.mark.parametrize("name", HALF_REFUSED)
def test_gates_of_what_is_nearly_a_cbam_are_converted_in_its_forward(name, no_kernels):
    make, gates, reason = HALF_REFUSED[name]
    model, x = drawn(make()).eval(), input_of()
    expected = results(model, x)
    report = convert_cbam(nn.Sequential(nn.Conv2d(3, 8, 3), model))
    assert [found.name for found in report.converted] == ["1"]
    assert not report.skipped
    assert re.search(f"in its forward: {gates}.*; not the rest: .*({reason})", report.converted[0].note)
    torch.testing.assert_close(results(model, x), expected, **TOLERANCE)
