"""The published layers by name, with drawn weights, and the comparison of one with its conversion."""

import functools

import torch
from torch import nn

import cbam_triton
from cbam_triton import convert_state_dict

from ..models import zoo
from .published import randomised

FORMS = {
    "jongchan": zoo.Jongchan,
    "stcn": zoo.Stcn,
    "timm": zoo.Timm,
    "timm_light": zoo.TimmLight,
    "ultralytics": zoo.Ultralytics,
    "external_attention": zoo.ExternalAttention,
    "luuuyi": zoo.Luuuyi,
    "luuuyi old": zoo.LuuuyiOld,
    "luuuyi 1d": functools.partial(zoo.Luuuyi, dims=1),
    "bubbliiiing": zoo.Bubbliiiing,
    "yolo_fork": zoo.YoloFork,
    "yolo_fork conv1": functools.partial(zoo.YoloFork, conv="conv1"),
    "mmyolo": zoo.MMYolo,
    "pytorchcv": zoo.Pytorchcv,
    "keras": zoo.Keras,
    "timm biased": functools.partial(zoo.Timm, mlp_bias=True),
    "copy conv 3d": zoo.Copy,
    "copy linear 3d": functools.partial(zoo.Copy, linear=True),
    "copy 2d": functools.partial(zoo.Copy, dims=2),
    "jongchan 3d": functools.partial(zoo.Jongchan, dims=3),
    "jongchan no norm": functools.partial(zoo.Jongchan, norm=False),
    "jongchan channel only": functools.partial(zoo.Jongchan, no_spatial=True),
}
# What no key tells, as the caller says it.
UNTOLD = {
    "jongchan lp, lse": (functools.partial(zoo.Jongchan, pools=("lp", "lse")), {"channel_pools": ["lp", "lse"]}),
    "jongchan max": (functools.partial(zoo.Jongchan, pools=("max",)), {"channel_pools": ("max",)}),
    "copy + x 3d": (functools.partial(zoo.Copy, linear=True, add_input=True), {"add_input": True}),
}
CASES = {name: (make, {}) for name, make in FORMS.items()} | UNTOLD
# The hidden widths of timm at C = 8, 24, 40, where C // 16 is another, and R above C.
SIZES = [(8, 1, 7), (24, 2, 3), (40, 3, 3), (3, 5, 7)]


def made(make, C, R, K, seed=0) -> nn.Module:
    return randomised(make(C, R, K=K), seed).double()


def input_of(name, C, seed=0):
    pixels = {"1d": (9,), "3d": (2, 3, 2)}.get(name[-2:], (5, 4))
    return torch.randn(2, C, *pixels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def assert_equal_layers(layer, module, x, options=None):
    """Outputs, dx, every parameter's gradient under its new key, and running statistics afterwards."""
    dy = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with cbam_triton.settings(backend="reference"):
        y = layer(ours)
    expected = module(theirs)
    assert_close(y, expected)
    y.backward(dy)
    expected.backward(dy)
    assert_close(ours.grad, theirs.grad)
    # The conversion only reorders, so it converts gradients too.
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    gradients = convert_state_dict(gradients | dict(module.named_buffers()), options=options).state_dict
    parameters = dict(layer.named_parameters())
    assert parameters
    for name, parameter in parameters.items():
        assert_close(parameter.grad, gradients[name])
    after = convert_state_dict(module.state_dict(), options=options).state_dict
    assert_close(layer.state_dict(), after)


def has_norm(module: nn.Module) -> bool:
    return any(isinstance(child, nn.modules.batchnorm._BatchNorm) for child in module.modules())
