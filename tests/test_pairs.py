"""Blocks that multiply by the gates of their children, converted in their own forward."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_triton import convert_cbam, planned, restore_cbam, settings

from .idioms import (
    COMBINED,
    TOLERANCE,
    C,
    ChannelPart,
    ConvNorm,
    R,
    Residual,
    SpatialPart,
    channel_gate,
    conv_mlp,
    drawn,
    input_of,
    linear_mlp,
    results,
    spatial_conv,
    spatial_gate,
)


class Block(nn.Module):
    """A convolution, gates, and a forward that is a function of (block, x)."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **children: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, padding=1)
        self.ca, self.sa = channel_gate(), spatial_gate()
        self.act = nn.ReLU()
        self.scale = nn.Parameter(torch.ones(C))
        self.register_buffer("shift", torch.ones(C, 1, 1))
        self.table = torch.full((1,), 0.5, dtype=torch.float64)  # neither parameter nor buffer
        self.function = forward
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def combined(name: str) -> Callable[[Any, Tensor], Tensor]:
    return lambda self, x: F.relu(x + COMBINED[name](self.ca, self.sa, self.conv(x)))


def gates_first(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return y * (self.ca(y) * self.sa(y))


def in_place(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y *= self.ca(y)
    gate = self.sa(y)
    y *= gate
    y -= x
    return torch.relu_(y)


def scaled(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y = y * self.ca(y)
    y = y * self.sa(y)
    return x + y * self.scale.view(1, -1, 1, 1) * self.table - self.shift.exp()


def reshaped(self: Any, x: Tensor) -> Tensor:
    n, c = x.shape[:2]
    n *= 1
    y = self.conv(x)
    y = y * self.ca(y)
    return (y * self.sa(y)).view(n, c, -1).transpose(1, 2)


def twice(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y = self.ca(y) * y
    y = self.sa(y) * y
    y = self.act(y) + x
    y = self.more["channel"](y) * y
    return F.relu(self.more["spatial"](y) * y, inplace=True)


def only_channel(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return torch.mul(y, self.ca(y)) + x


def only_spatial(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.act(y.mul(self.sa(y)))


def broadcast(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y = y * self.ca(y)
    y = y * self.sa(y)
    y += x.mean((2, 3), keepdim=True)
    return self.act(y)


def two_branches(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return y * self.ca(y) + y * self.sa(y)


def added_to_another(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    z = x + 1
    same = z
    z += y * self.ca(y)
    return z + 2 * same


def sum_read_twice(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y = y * self.ca(y)
    y = y * self.sa(y) + x
    return y + F.relu(y)


def product_read(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    first = y * self.ca(y)
    return first * self.sa(first) + first.mean()


def other_things(self: Any, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    y = self.conv(x)
    y = y * self.ca(y)
    return F.max_pool2d(y * self.sa(y), 2), {"x": x}


def more() -> nn.ModuleDict:
    return nn.ModuleDict({
        "channel": ChannelPart(linear_mlp(C, R), "functions"),
        "spatial": SpatialPart(ConvNorm(spatial_conv(5), nn.BatchNorm2d(1)), "amax", True, False),
    })  # fmt: skip


# With the calls of the library that each makes: the arrangement or the only gate, "+" a residual, "r" a ReLU.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "basic": (lambda: Residual(C), ["channel_first+r"]),
    "with a projection": (lambda: Residual(C, 8, 2), ["channel_first+r"]),
    "channel first": (lambda: Block(combined("channel first")), ["channel_first+r"]),
    "spatial first": (lambda: Block(combined("spatial first")), ["spatial_first+r"]),
    "parallel": (lambda: Block(combined("parallel")), ["parallel+r"]),
    "in place": (lambda: Block(combined("in place")), ["channel_first+r"]),
    "gates multiplied first": (lambda: Block(gates_first), ["parallel"]),
    "everything in place": (lambda: Block(in_place), ["channel_first"]),
    "a scale after it": (lambda: Block(scaled), ["channel_first"]),
    "sizes": (lambda: Block(reshaped), ["channel_first"]),
    "two pairs": (lambda: Block(twice, more=more()), ["channel_firstr", "channel_firstr"]),
    "channel alone": (lambda: Block(only_channel), ["channel+"]),
    "spatial alone": (lambda: Block(only_spatial), ["spatialr"]),
    "another shape added": (lambda: Block(broadcast), ["channel_first"]),
    "two branches": (lambda: Block(two_branches), ["channel", "spatial+"]),
    "added to another": (lambda: Block(added_to_another), ["channel"]),
    "a sum read twice": (lambda: Block(sum_read_twice), ["channel_first+"]),
    "a product read between": (lambda: Block(product_read), ["channel", "spatial"]),
    "several results": (lambda: Block(other_things), ["channel_first"]),
}


def outputs(model: nn.Module, x: Tensor) -> dict[str, Any]:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            y = self.model(x)
            return y[0] if isinstance(y, tuple) else y

    return results(First(), x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "name, backend",
    [(name, "reference") for name in BLOCKS]
    + [(name, "auto") for name in ("basic", "in place", "everything in place")],
)
def test_every_block_computes_the_same_after_conversion(name, backend, training):
    model, x = drawn(BLOCKS[name][0]()), input_of()
    twin = copy.deepcopy(model)
    before = {key: id(tensor) for key, tensor in model.state_dict(keep_vars=True).items()}
    report = convert_cbam(model)
    assert [found.name for found in report.converted] == [""]
    assert not report.skipped
    # Converted in the one mode, used in the other: what runs of the block is asked at the call.
    model.train(training), twin.train(training)
    with settings(backend=backend):
        with torch.no_grad():
            torch.testing.assert_close(model(x.clone()), twin(x.clone()), **TOLERANCE)
        if name != "everything in place":  # in which eager has no gradients
            torch.testing.assert_close(outputs(model, x), outputs(twin, x), **TOLERANCE)
    assert {key: id(tensor) for key, tensor in model.state_dict(keep_vars=True).items()} == before


@pytest.mark.parametrize("name", BLOCKS)
def test_every_pair_is_one_call_of_the_library(name, monkeypatch, no_kernels):
    make, expected = BLOCKS[name]
    calls = []
    refined = planned.refined

    def spied(
        x: Tensor, mlp: Any, conv: Any, bias: Any, norm: Any, residual: Any, activation: Any, variant: Any
    ) -> Any:
        kind = variant.arrangement if mlp and conv is not None else "channel" if mlp else "spatial"
        calls.append(kind + "+" * (residual is not None) + "r" * (activation == "relu"))
        return refined(x, mlp, conv, bias, norm, residual, activation, variant)

    monkeypatch.setattr(planned, "refined", spied)
    model = drawn(make())
    convert_cbam(model)
    model(input_of())
    assert calls == expected


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


class Listing(Residual):
    def forward(self, x: Any) -> Tensor:
        x = torch.cat([x] if isinstance(x, Tensor) else x, 1)
        y = self.first(x)
        return self.who(y) * y


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
    "a question to the data": (lambda: Asking(C), "its forward cannot be traced: TraceError: .*"),
    "a question for a type": (
        lambda: Listing(C),
        "its forward cannot be traced: it asks for the type of a value, and a placeholder has none",
    ),
    "a mode": (lambda: Dropping(C), "its forward does another thing in training than in eval mode"),
    "an attribute": (lambda: Keeping(C), "its forward sets gate, which a converted one would not"),
    "a random number": (lambda: Drawing(C), "its forward cannot be traced: it calls rand on something else than .*"),
    "a tensor from elsewhere": (
        lambda: Reaching(C),
        "its forward cannot be traced: it uses a tensor that is no attribute of it",
    ),
    "no gradient": (lambda: WithoutGradient(C), "its forward cannot be traced: it calls _set_grad_enabled on .*"),
    "autocast": (lambda: InFullPrecision(C), "its forward cannot be traced: it sets autocast for a part of itself"),
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
    "a gate called twice": (lambda: Block(called_twice), "it calls sa twice for one product"),
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


class Network(nn.Module):
    """Blocks, and gates in the network's own forward, as in the ResNets of many copies."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.ModuleList([channel_gate(), spatial_gate()])
        self.stage = nn.Sequential(Residual(C, 8), Residual(8, 8, 2))
        self.late = nn.ModuleList([channel_gate(8), spatial_gate()])
        self.whole = Whole()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.early[0](x) * x
        x = self.early[1](x) * x
        x = self.whole(self.stage(x))
        x = self.late[0](x) * x
        x = self.late[1](x) * x
        return self.head(x.mean((2, 3)))


class Whole(nn.Module):
    """A CBAM of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.ca, self.sa = channel_gate(8), spatial_gate()

    def forward(self, x: Tensor) -> Tensor:
        return COMBINED["channel first"](self.ca, self.sa, x)


def test_a_network_and_its_blocks_are_converted_each_in_its_own_forward(no_kernels):
    model, x = drawn(Network()), input_of()
    twin = copy.deepcopy(model)
    report = convert_cbam(model)
    assert [found.name for found in report.converted] == ["", "stage.0", "stage.1", "whole"]
    assert not report.skipped
    torch.testing.assert_close(results(model, x), results(twin, x), **TOLERANCE)
    again = convert_cbam(model)
    assert [found.name for found in again.already] == ["", "stage.0", "stage.1", "whole"]
    assert again.converted == again.skipped == ()
    assert restore_cbam(model) == 4
    assert [vars(part).keys() for part in model.modules()] == [vars(part).keys() for part in twin.modules()]
    torch.testing.assert_close(results(model, x), results(twin, x), **TOLERANCE)


def test_the_report_names_the_block_and_its_gates():
    lines = str(convert_cbam(nn.ModuleDict({"plain": nn.Conv2d(3, 3, 1), "block": Residual(C)}))).splitlines()
    note = "in its forward: channel gate of avg+max, C 6, R 2; spatial gate of mean+max, K 3 + residual, ReLU"
    assert lines[1:] == [f"converted  block   Residual  {note}", "1 converted, 0 already, 0 skipped"]


def test_a_lone_gate_of_a_wrapper_is_converted_in_the_wrapper(no_kernels):
    class Lone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = spatial_gate()

        def forward(self, x: Tensor) -> Tensor:
            return x * self.one(x)

    model = drawn(nn.Sequential(Lone()))
    expected = results(model, input_of())
    assert [found.name for found in convert_cbam(model).converted] == ["0"]
    torch.testing.assert_close(results(model, input_of()), expected, **TOLERANCE)


def test_hooks_of_the_block_and_of_its_other_children_fire(no_kernels):
    model: Any = drawn(Residual(C))
    seen: list[str] = []

    def watched(names: tuple[str, ...]) -> None:
        for name in names:
            part = model.get_submodule(name)
            part.register_forward_hook(lambda *_, name=name: seen.append(name))
            part.register_full_backward_hook(lambda *_, name=name: seen.append(f"d {name}"))

    watched(("", "first", "norm2"))
    twin = copy.deepcopy(model)
    assert convert_cbam(model).converted
    torch.testing.assert_close(results(model, input_of()), results(twin, input_of()), **TOLERANCE)
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert set(seen) == {"", "first", "norm2", "d ", "d first", "d norm2"}
    # The ReLU after the addition, too, runs by itself from the call on from which it has a hook.
    model.act.inplace = False
    watched(("act",))
    seen.clear()
    model(input_of())
    assert seen == ["first", "act", "norm2", "act", ""]


def test_a_relu_that_is_put_in_place_of_the_blocks_own_runs(no_kernels):
    model: Any = drawn(Residual(C)).eval()
    twin: Any = copy.deepcopy(model)
    assert convert_cbam(model).converted
    model.act, twin.act = nn.GELU(), nn.GELU()
    torch.testing.assert_close(results(model, input_of()), results(twin, input_of()), **TOLERANCE)


def test_what_the_block_reads_of_itself_is_fixed_until_it_is_restored(no_kernels):
    model: Any = drawn(Residual(C)).eval()
    expected = model(input_of())
    convert_cbam(model)
    model.shortcut = nn.Conv2d(C, C, 1).double()
    torch.testing.assert_close(model(input_of()), expected, **TOLERANCE)
    restore_cbam(model)
    assert not torch.allclose(model(input_of()), expected)


class Optional(Residual):
    """With more arguments than its blocks before and after it give."""

    def forward(self, x: Tensor, residual: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        y = self.first(x)
        y = self.who(y) * y
        return self.where(y) * y * scale + (x if residual is None else residual)


def test_a_block_that_is_called_otherwise_runs_its_own_forward(monkeypatch, no_kernels):
    model, x = drawn(Optional(C)), input_of()
    twin = copy.deepcopy(model)
    assert convert_cbam(model).converted
    calls = []
    refined = planned.refined
    monkeypatch.setattr(planned, "refined", lambda *arguments: calls.append(1) or refined(*arguments))
    for arguments, options in [((x,), {}), ((x, 2 * x), {}), ((x,), {"scale": 2.0}), ((), {"x": x})]:
        torch.testing.assert_close(model(*arguments, **options), twin(*arguments, **options), **TOLERANCE)
    assert len(calls) == 1


def test_the_optimizer_goes_on_with_the_same_parameters(no_kernels):
    model, x = drawn(Network()), input_of()
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.01, momentum=0.9) for each in (model, twin)]
    convert_cbam(model)
    for _ in range(3):
        for each, optimizer in zip((model, twin), optimizers, strict=True):
            optimizer.zero_grad()
            each(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), **TOLERANCE)


def test_a_loaded_checkpoint_and_a_moved_model_are_used(no_kernels):
    model, other = drawn(Residual(C, 8)), drawn(Residual(C, 8), seed=5)
    convert_cbam(model)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model.eval()(input_of()), other.eval()(input_of()), **TOLERANCE)
    x = input_of().float()
    torch.testing.assert_close(model.float()(x), other.float()(x))


@pytest.mark.parametrize("name", ["basic", "two pairs", "another shape added"])
def test_a_converted_block_compiles_to_one_graph_and_traces(name, no_kernels):
    model, x = drawn(nn.Sequential(BLOCKS[name][0]())).eval(), input_of()
    expected = model(x)
    convert_cbam(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, **TOLERANCE)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), expected, **TOLERANCE)
    assert any(node.target is planned.refined for node in traced.graph.nodes)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), expected, **TOLERANCE)


def test_a_compiled_block_trains_by_the_kernels():
    model, x = drawn(Residual(C)), input_of()
    expected = results(copy.deepcopy(model), x)
    convert_cbam(model)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = {key.removeprefix("_orig_mod."): value for key, value in results(compiled, x).items()}
    torch.testing.assert_close(found, expected, **TOLERANCE)
