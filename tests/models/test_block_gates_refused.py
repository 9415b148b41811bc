"""Blocks that do something else with their gates are left alone, with the reason."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_triton import convert_cbam

from .block_forms import Block, combined, only_channel
from .idioms import (
    TOLERANCE,
    C,
    ChannelPart,
    R,
    Residual,
    channel_gate,
    conv_mlp,
    drawn,
    input_of,
    spatial_gate,
)


class Returned(Residual):
    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        gate = self.who(y)
        return gate * y, gate


class Asking(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = self.who(y) * y
        return y + x if y.shape == x.shape else y


class Dropping(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return F.dropout(self.who(y) * y, 0.1, self.training)


class Keeping(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        self.gate = self.who(y)
        return self.gate * y


class Drawing(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.who(y) * y * torch.rand(1)


ELSEWHERE = torch.ones(1)


class Reaching(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.who(y) * y * ELSEWHERE


class WithoutGradient(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        with torch.no_grad():
            gate = self.who(y)
        return gate * y


class InFullPrecision(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        with torch.autocast("cpu", enabled=False):
            return self.who(y) * y


def caller_keeps(self: Any, x: Tensor) -> Tensor:
    x *= self.ca(x)
    return x * self.sa(x)


def view_is_read(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    flat = y.flatten(2)
    y *= self.ca(y)
    return flat + y.flatten(2)


def old_name_is_read(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y.mul_(self.ca(y))
    return y * self.sa(y)


def module_gives_a_view(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    z = self.pooled(y)
    z *= self.ca(z)
    return y + z


def changed_between(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    gate = self.ca(y)
    y += 1
    return y * gate


def changed_by_a_module(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    gate = self.ca(y)
    return self.pooled(y) * gate + y


def of_another_map(self: Any, x: Tensor) -> Tensor:
    return self.conv(x) * self.ca(x)


def added(self: Any, x: Tensor) -> Tensor:
    return self.conv(x) + self.ca(x)


def called_twice(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.ca(self.sa(y) * y) * (self.sa(y) * y)


def hooked(block: Any, *path: str) -> nn.Module:
    for name in path:
        block.get_submodule(name).register_forward_hook(lambda *_: None)
    return block


def with_forward(block: Any, path: str) -> nn.Module:
    block.get_submodule(path).forward = torch.relu
    return block


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a gate that is returned": (lambda: Returned(C), "it uses a gate, or a product with one, for something else too"),
    "a question to the data": (
        lambda: Asking(C),
        "its forward cannot be followed past line .*, `return y .* else y`: .* depends on .*",
    ),
    "a mode": (lambda: Dropping(C), "its forward does another thing in training than in eval mode: dropout"),
    "an attribute": (lambda: Keeping(C), "its forward sets gate, which a converted one would not"),
    "a random number": (
        lambda: Drawing(C),
        ".* cannot be followed past .*: it calls rand on something else than the map",
    ),
    "a tensor from elsewhere": (
        lambda: Reaching(C),
        "its forward cannot be followed past .*: it uses a tensor that is no attribute of it",
    ),
    "no gradient": (
        lambda: WithoutGradient(C),
        ".*`with torch.no_grad..:`: it switches gradients off .*",
    ),
    "autocast": (
        lambda: InFullPrecision(C),
        ".* cannot be followed past .*: it sets autocast for .*",
    ),
    "the caller's x changed": (lambda: Block(caller_keeps), "it multiplies in place what may be read again"),
    "a view that is read": (lambda: Block(view_is_read), "it multiplies in place what may be read again"),
    "an old name that is read": (lambda: Block(old_name_is_read), "it multiplies in place what may be read again"),
    "a module that may give a view": (
        lambda: Block(module_gives_a_view, pooled=nn.Identity()),
        "it multiplies in place what may be read again",
    ),
    "a change between": (
        lambda: Block(changed_between),
        "it multiplies a gate with another map than it is of",
    ),
    "a module's change between": (
        lambda: Block(changed_by_a_module, pooled=nn.ReLU(inplace=True)),
        "it multiplies a gate with another map than it is of",
    ),
    "another map": (lambda: Block(of_another_map), "it multiplies a gate with another map than it is of"),
    "no product": (lambda: Block(added), "it does not multiply the gate that ca returns with the map it is of"),
    "a gate called twice": (lambda: Block(called_twice), "its layer sa.conv is called several times"),
    "a hooked gate": (
        lambda: hooked(Residual(C), "who"),
        "its child who has hooks, which would no longer run: remove them first",
    ),
    "a hooked layer of a gate": (
        lambda: hooked(Residual(C), "where.conv"),
        "its child where.conv has hooks, which would no longer run: remove them first",
    ),
    "a replaced forward": (
        lambda: with_forward(Residual(C), ""),
        "the forward of this module is replaced by another one",
    ),
    "a gate's replaced forward": (
        lambda: with_forward(Residual(C), "who.mlp.0"),
        "the forward of who.mlp.0 is replaced by another one",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_block_that_does_anything_else_with_its_gates_is_left_alone(name):
    make, reason = REFUSED[name]
    model = make()
    attributes = [dict(vars(part)) for part in model.modules()]
    report = convert_cbam(nn.Sequential(nn.Conv2d(3, 8, 3), model))
    assert [found.name for found in report.skipped] == ["1"]
    assert re.fullmatch(reason, report.skipped[0].note), report.skipped[0].note
    assert not report.converted
    assert [vars(part) for part in model.modules()] == attributes


def test_a_change_in_place_between_gate_and_product_is_seen():
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        gate = self.ca(y)
        y.add_(1)
        return y * gate

    assert [found.note for found in convert_cbam(Block(forward)).skipped] == [
        "it changes something in place between a gate and the product"
    ]


def test_a_residual_that_changes_something_in_place_is_added_by_the_block(no_kernels):
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        out = y * self.ca(y)
        return out + self.shortcut(y)

    model = drawn(Block(forward, shortcut=nn.Sequential(nn.ReLU(inplace=True)))).eval()
    twin = copy.deepcopy(model)
    (found,) = convert_cbam(model).converted
    assert found.note == "in its forward: channel gate of avg+max, C 6, R 2"
    with torch.no_grad():
        torch.testing.assert_close(model(input_of()), twin(input_of()), **TOLERANCE)


def test_squeeze_and_excitation_is_neither_converted_nor_reported():
    block = Block(only_channel)
    block.ca = ChannelPart(conv_mlp(C, R), "average")
    assert convert_cbam(nn.Sequential(nn.Conv2d(3, 8, 3), block)).converted == ()
    both = Block(combined("channel first"))
    both.ca = ChannelPart(conv_mlp(C, R), "average")
    (found,) = convert_cbam(both).converted
    assert found.note == "in its forward: channel gate of avg, C 6, R 2; spatial gate of mean+max, K 3 + residual, ReLU"


def test_gates_that_no_forward_around_them_calls_are_reported_themselves():
    model = nn.ModuleDict({"ca": channel_gate(), "sa": spatial_gate()})
    report = convert_cbam(model)
    assert [found.name for found in report.skipped] == ["ca", "sa"]
    assert all("it returns a gate, which the code around it multiplies" in found.note for found in report.skipped)
