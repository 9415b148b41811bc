"""Converted blocks in use: hooks, replaced children, other calls, optimizers, checkpoints, compilation."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cbam_triton import convert_cbam, restore_cbam
from cbam_triton.models import apply_cbam

from .block_forms import BLOCKS
from .idioms import (
    TOLERANCE,
    C,
    Residual,
    drawn,
    input_of,
    results,
    spatial_gate,
)
from .test_block_gates import Network


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
    refined = apply_cbam.refined
    monkeypatch.setattr(apply_cbam, "refined", lambda *arguments: calls.append(1) or refined(*arguments))
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
    assert any(node.target is apply_cbam.refined for node in traced.graph.nodes)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), expected, **TOLERANCE)


def test_a_compiled_block_trains_by_the_kernels():
    model, x = drawn(Residual(C)), input_of()
    expected = results(copy.deepcopy(model), x)
    convert_cbam(model)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = {key.removeprefix("_orig_mod."): value for key, value in results(compiled, x).items()}
    torch.testing.assert_close(found, expected, **TOLERANCE)
