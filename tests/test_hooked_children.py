"""Hooks on the children of a layer run, as in PyTorch, and see what PyTorch's children see."""

import copy

import pytest
import torch
from torch.nn.utils import prune

from cbam_triton import CBAM, settings

from .cases import normal
from .checkpoints.published import published_cbam, randomised
from .errors import assert_same


@pytest.fixture(autouse=True)
def _reference():
    with settings(backend="reference"):
        yield


def image(device="cpu"):
    return normal((3, 16, 6, 5), device=device)


@pytest.mark.parametrize("arrangement", ["channel_first", "spatial_first", "parallel"])
def test_hooks_of_both_attentions_run(arrangement, device):
    layer = randomised(CBAM(16, 4, arrangement=arrangement)).to(device).eval()
    x, seen = image(device), []
    with torch.no_grad():
        expected = layer(x)
        for name in ("channel", "spatial"):
            child = layer.get_submodule(name)
            child.register_forward_hook(lambda m, inputs, output, name=name: seen.append((name, inputs[0], output)))
        torch.testing.assert_close(layer(x), expected)
    names = [name for name, *_ in seen]
    assert names == (["spatial", "channel"] if arrangement == "spatial_first" else ["channel", "spatial"])
    assert_same(seen[0][1], x)
    assert_same(seen[1][1], x if arrangement == "parallel" else seen[0][2])
    assert_same(seen[1][2], layer(x))


def test_what_a_hook_kept_stays_what_it_was(device):
    layer = randomised(CBAM(16, 4, activation="relu", add_input=True)).to(device).eval()
    kept = []
    for child in layer.modules():
        child.register_forward_hook(lambda m, inputs, y: kept.append((y, y.clone())) and None)
    x = image(device)
    with torch.no_grad():
        layer(x, residual=x)
    assert len(kept) == 9
    for tensor, copied in kept:
        assert_same(tensor, copied)


def test_a_hook_may_change_what_an_attention_returns(device):
    layer = randomised(CBAM(16, 4)).to(device).eval()
    layer.spatial.register_forward_hook(lambda m, inputs, y: y + 1)
    with torch.no_grad():
        torch.testing.assert_close(layer(image(device)), published_cbam(layer, image(device)) + 1)


def test_gradients_of_full_backward_hooks_arrive(device):
    layer = randomised(CBAM(16, 4)).to(device)
    seen = {}
    for name, child in layer.named_modules():
        child.register_full_backward_hook(lambda m, dx, dy, name=name: seen.update({name: dy}))
    layer(image(device).requires_grad_()).sum().backward()
    assert set(seen) == {"", "channel", "channel.fc1", "channel.fc2", "spatial", "spatial.conv", "spatial.norm"}


def test_per_sample_gradients_by_hooks_are_those_of_single_samples():
    layer = randomised(CBAM(16, 4, spatial_norm=None))
    fc1, found, inputs = layer.channel.fc1, 0.0, []
    twin = copy.deepcopy(layer)
    fc1.register_forward_hook(lambda m, i, y: inputs.append(i[0]))

    def collect(module, dx, dy):
        nonlocal found
        found = found + torch.einsum("nr,nc->nrc", dy[0], inputs.pop())

    fc1.register_full_backward_hook(collect)
    layer(image().requires_grad_()).sum().backward()
    for x, gradient in zip(image().split(1), found, strict=True):
        (expected,) = torch.autograd.grad(twin(x).sum(), twin.channel.fc1.weight)
        torch.testing.assert_close(gradient, expected)


def test_a_hook_added_after_compilation_is_seen(device):
    layer = randomised(CBAM(16, 4)).to(device).eval()
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="eager")
    with torch.no_grad():
        compiled(image(device))
        prune.l1_unstructured(layer.channel.fc1, "weight", 0.5)
        torch.testing.assert_close(compiled(image(device)), layer(image(device)))


@pytest.mark.parametrize("change", ["patched forward", "backward hook"])
def test_a_changed_norm_is_called(change, device):
    layer = randomised(CBAM(16, 4)).to(device).eval()
    expected, seen = layer(image(device)), []
    if change == "patched forward":
        own = layer.spatial.norm.forward
        layer.spatial.norm.forward = lambda z: (seen.append(z), own(z))[1]
    else:
        layer.spatial.norm.register_full_backward_hook(lambda *_: seen.append(1))
    y = layer(image(device))
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    assert seen
