"""Counters of operations see in the kernels what they see in the reference, for every gradient that is computed."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cbam_triton import CBAM, settings

from .cases import of_interpreted_exp
from .checkpoints.published import randomised
from .test_layers import run_python

pytestmark = of_interpreted_exp

LAYERS = [
    {},
    {"mlp_layers": 1, "channel_pools": ("avg",)},
    {"channel_pools": ("avg", "max", "lp"), "spatial_pools": ("max",)},
    {"light": True},
    {"arrangement": "parallel"},
    {"arrangement": "spatial_first"},
    {"arrangement": "channel_only"},
    {"arrangement": "spatial_only"},
    {"spatial_norm": None, "activation": "relu"},
    {"dims": 1},
    {"dims": 3},
]
LEARN = {
    "everything": ("x", "channel", "spatial"),
    "the map": ("x",),
    "the layer": ("channel", "spatial"),
    "channel attention": ("channel",),
    "spatial attention": ("spatial",),
    "one bias": ("fc1.bias",),
    "the norm": ("norm",),
}


def flops(layer: CBAM, x: torch.Tensor, backend: str, gradient: bool) -> dict[str, int]:
    layer, x = copy.deepcopy(layer), x.clone().requires_grad_(x.requires_grad)
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with settings(backend=backend), torch.set_grad_enabled(gradient):
        with forward:
            y = layer(x)
        with backward:
            if y.requires_grad:
                y.sum().backward()
    return {"forward": forward.get_total_flops(), "backward": backward.get_total_flops()}


def layer_of(options: dict, device: str) -> tuple[CBAM, torch.Tensor]:
    layer = randomised(CBAM(8, 2, kernel_size=3, **options)).to(device)
    return layer, torch.randn(2, 8, *[4] * options.get("dims", 2), device=device)


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_the_kernels_count_what_the_reference_counts(options, device):
    layer, x = layer_of(options, device)
    for learning in (True, False):
        layer.requires_grad_(learning)
        counted = flops(layer.eval(), x, "auto", learning)
        assert counted == flops(layer, x, "reference", learning)
        assert counted["forward"] > 0
        assert (counted["backward"] > 0) == learning


@pytest.mark.parametrize("learn", LEARN.values(), ids=LEARN)
@pytest.mark.parametrize("arrangement", ["channel_first", "spatial_first", "parallel"])
def test_only_gradients_that_are_computed_count(learn, arrangement, device):
    layer, x = layer_of({"arrangement": arrangement}, device)
    x.requires_grad_("x" in learn)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(any(word in name for word in learn if word != "x"))
    counted = flops(layer, x, "auto", True)
    assert counted == flops(layer, x, "reference", True)


def test_a_counter_that_is_older_than_the_operators_knows_them():
    code = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from torch.utils.flop_counter import FlopCounterMode
import cbam_triton
from cbam_triton.kernels.launch.hardware import device_type
counter = FlopCounterMode(display=False)
layer = cbam_triton.CBAM(8, 2, kernel_size=3, device=device_type())
with torch.no_grad():
    layer(torch.randn(1, 8, 2, 2, device=device_type()))
    with counter:
        layer(torch.randn(1, 8, 2, 2, device=device_type()))
print(counter.get_total_flops())
"""
    pytest.importorskip("triton")
    done = run_python(code, warnings="ignore")
    assert done.stdout.strip() == str(2 * (2 * 8 * 4) + 2 * 4 * 8 + 2 * 4 * 2 * 9), done.stderr


class TestOtherCounters:
    """Packages that put hooks on modules, or trace: what they count in timm's layer they count in ours."""

    layer = staticmethod(lambda: CBAM(32, mlp_bias=False).eval())
    timm = staticmethod(lambda: pytest.importorskip("timm.layers.cbam").CbamModule(32).eval())
    x = torch.ones(1, 32, 6, 6)
    products = 2 * 2 * (2 * 32) + 98 * 36  # two pools through an MLP of two layers of width 2, and the convolution

    def test_thop(self):
        profile = pytest.importorskip("thop").profile
        layer = self.layer()
        operations, parameters = profile(layer, (self.x,), verbose=False)
        assert self.products <= operations < 1.05 * self.products
        assert parameters == sum(parameter.numel() for parameter in layer.parameters())

    def test_torchinfo(self):
        summary = pytest.importorskip("torchinfo").summary
        found, expected = (summary(m, input_data=self.x, verbose=0) for m in (self.layer(), self.timm()))
        assert found.total_params == expected.total_params
        assert abs(found.total_mult_adds - self.products) < 8  # those of the norm

    def test_ptflops(self):
        count = pytest.importorskip("ptflops").get_model_complexity_info
        found = count(self.layer(), (32, 6, 6), as_strings=False, print_per_layer_stat=False, backend="pytorch")[0]
        assert self.products <= found < 1.05 * self.products

    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
    def test_fvcore(self):
        fvcore = pytest.importorskip("fvcore.nn")
        counted = []
        for model in (self.layer(), self.timm()):
            analysis = fvcore.FlopCountAnalysis(model, self.x)
            counted.append(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())
        assert abs(counted[0] - counted[1]) < 0.05 * counted[1]
