"""Whatever happens to a module in its life, it computes what the same module of plain PyTorch computes."""

import copy
import pickle

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

pytest.importorskip("triton")

import cbam_triton
from cbam_triton import CBAM

C, R, K = 6, 2, 3
LAYERS = st.sampled_from(["channel.fc1", "channel.fc2", "spatial.conv"])


class Plain(nn.Module):
    """The layer in plain PyTorch, every child called, under the library's keys."""

    def __init__(self):
        super().__init__()
        self.channel = nn.Module()
        self.channel.fc1, self.channel.fc2 = nn.Linear(C, R), nn.Linear(R, C)
        self.spatial = nn.Module()
        self.spatial.conv, self.spatial.norm = nn.Conv2d(2, 1, K, padding=K // 2, bias=False), nn.BatchNorm2d(1)

    def forward(self, x):
        channel, spatial = self.channel, self.spatial
        q = sum(channel.fc2(F.relu(channel.fc1(pooled))) for pooled in (x.mean((2, 3)), x.amax((2, 3))))
        x = x * q.sigmoid()[:, :, None, None]
        maps = torch.stack([x.mean(1), x.amax(1)], 1)
        return x * spatial.norm(spatial.conv(maps)).sigmoid()


def doubled(module, inputs, output):
    """A forward hook."""
    return 2 * output


class Adapter(nn.Module):
    """A child's place taken by a sum of two."""

    def __init__(self, base):
        super().__init__()
        self.base, self.extra = base, copy.deepcopy(base)

    def forward(self, x):
        return self.base(x) - 0.5 * self.extra(x)


class Life(RuleBasedStateMachine):
    """Every rule does the same to both modules; after it they must agree, in float64."""

    @initialize(seed=st.integers(0, 99), training=st.booleans())
    def born(self, seed, training):
        torch.manual_seed(seed)
        self.plain = Plain().double().train(training)
        self.ours = CBAM(C, hidden_channels=R, kernel_size=K).double().train(training)
        self.ours.load_state_dict(self.plain.state_dict())
        self.seed = seed

    @property
    def both(self):
        return self.ours, self.plain

    def child(self, module, name):
        return module.get_submodule(name)

    def clean(self, name):
        """Whether the child is as it was made."""
        child = self.child(self.plain, name)
        return not (isinstance(child, Adapter) or prune.is_pruned(child) or parametrize.is_parametrized(child))

    @rule()
    def called(self):
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(2, C, 4, 5, generator=generator, dtype=torch.float64)
        dy = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        found = []
        for module in self.both:
            leaf = x.clone().requires_grad_()
            y = module(leaf)
            wanted = {name: p for name, p in module.named_parameters() if p.requires_grad}
            gradients = torch.autograd.grad(y, [leaf, *wanted.values()], dy)
            found.append({"y": y.detach(), "x": gradients[0], **dict(zip(wanted, gradients[1:], strict=True))})
        ours, plain = found
        assert ours.keys() == plain.keys()
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(self.ours.state_dict(), self.plain.state_dict(), rtol=1e-9, atol=1e-11)

    @rule()
    def stepped(self):
        x = torch.randn(2, C, 4, 5, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        for module in self.both:
            if parameters := [p for p in module.parameters() if p.requires_grad]:
                optimizer = torch.optim.SGD(parameters, 0.1)
                module(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        self.called()

    @rule(training=st.booleans())
    def in_mode(self, training):
        for module in self.both:
            module.train(training)
        self.called()

    @rule(name=LAYERS, wanted=st.booleans())
    def frozen(self, name, wanted):
        for module in self.both:
            self.child(module, name).requires_grad_(wanted)
        self.called()

    @rule(name=LAYERS)
    def pruned(self, name):
        if self.clean(name):
            for module in self.both:
                prune.l1_unstructured(self.child(module, name), "weight", 0.5)
        self.called()

    @rule(name=LAYERS)
    def parametrized(self, name):
        if self.clean(name):
            for module in self.both:
                parametrizations.weight_norm(self.child(module, name))
        self.called()

    @rule(name=LAYERS)
    def cleaned(self, name):
        for module in self.both:
            child = self.child(module, name)
            if prune.is_pruned(child):
                prune.remove(child, "weight")
            elif parametrize.is_parametrized(child):
                parametrize.remove_parametrizations(child, "weight")
        self.called()

    @rule(name=LAYERS)
    def adapted(self, name):
        if self.clean(name):
            parent, own = name.split(".")
            for module in self.both:
                setattr(self.child(module, parent), own, Adapter(self.child(module, name)))
        self.called()

    @rule(name=LAYERS)
    def hooked(self, name):
        handles = [self.child(module, name).register_forward_hook(doubled) for module in self.both]
        self.called()
        for handle in handles:
            handle.remove()
        self.called()

    # A weight norm, also one that was removed, leaves a hook that does not pickle; PyTorch copies no pruned weight.
    @precondition(lambda self: not any(child._load_state_dict_pre_hooks for child in self.plain.modules()))
    @precondition(lambda self: not prune.is_pruned(self.plain))
    @rule(how=st.sampled_from(["deepcopy", "pickle"]))
    def copied(self, how):
        again = copy.deepcopy if how == "deepcopy" else lambda module: pickle.loads(pickle.dumps(module))
        self.ours, self.plain = again(self.ours), again(self.plain)
        self.called()

    @rule(norm=st.sampled_from(["group", "none", "batch", "instance"]))
    def renormed(self, norm):
        made = {
            "group": lambda: nn.GroupNorm(1, 1),
            "none": nn.Identity,
            "batch": lambda: nn.BatchNorm2d(1, momentum=None),
            "instance": lambda: nn.InstanceNorm2d(1, affine=True),
        }[norm]
        for module in self.both:
            module.spatial.norm = made().double().train(module.training)
        self.called()

    @rule()
    def given_and_taken(self):
        state = {name: 0.9 * t if t.is_floating_point() else t for name, t in self.plain.state_dict().items()}
        for module in self.both:
            module.load_state_dict(state)
        self.called()

    @rule()
    def compiled(self):
        """A compiled copy; what comes after happens to the module itself."""
        torch.compiler.reset()
        one = torch.compile(self.ours, backend="eager")
        x = torch.randn(2, C, 4, 5, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        modes = self.ours.training
        with torch.no_grad():
            for module in self.both:
                module.eval()
            torch.testing.assert_close(one(x), self.plain(x), rtol=1e-9, atol=1e-11)
        for module in self.both:
            module.train(modes)


few, many = (
    settings(
        max_examples=count, stateful_step_count=steps, deadline=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    for count, steps in ((3, 6), (60, 20))
)  # fmt: skip


def lives(backend, profile):
    with cbam_triton.settings(backend=backend):
        run_state_machine_as_test(Life, settings=profile)


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_a_module_stays_what_it_is_through_its_life(backend):
    lives(backend, few)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_a_module_stays_what_it_is_through_a_long_life(backend):
    lives(backend, many)
