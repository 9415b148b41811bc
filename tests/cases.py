"""Layers and inputs drawn from a seed, and what eager makes of them in the same dtype and in fp64."""

from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cbam_triton.kernels.launch.tensors import Weights
from cbam_triton.spec import reference

from .errors import assert_as_good_as_eager, worst_error

SCHEDULES = ("staged", "wavefront")
FORMATS = (torch.contiguous_format, torch.channels_last)
HALF = (torch.float16, torch.bfloat16)

MLP = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
CONV = ("conv_weight", "conv_bias")
AFFINE = ("norm_weight", "norm_bias")

both_schedules = pytest.mark.parametrize("schedule", SCHEDULES)
both_formats = pytest.mark.parametrize("memory_format", FORMATS, ids=("nchw", "channels_last"))
# The interpreter's exp is numpy's, and the sigmoid of a large negative number overflows on its way to 0.
of_interpreted_exp = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


def normal(shape, *, dtype=torch.float32, memory_format=torch.contiguous_format, device="cpu", seed=0) -> Tensor:
    """x with normal values."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(device, dtype).contiguous(memory_format=memory_format)


def integers(shape, *, dtype=torch.float32, memory_format=torch.contiguous_format, device="cpu", seed=0) -> Tensor:
    """x with integers from -4 to 4: many ties, and sums that are exact in every dtype."""
    x = torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed))
    return x.to(device, dtype).contiguous(memory_format=memory_format)


def layer(
    C, R=4, K=3, *, mlp_bias=True, conv_bias=True, norm=None, dtype=torch.float32, device="cpu", seed=1
) -> Weights:
    """Normal parameters; no channel attention for R = 0, no spatial one for K = 0; norm: None, "affine" or "fixed"."""

    def parameter(wanted, *shape, scale=0.5):
        return normal(shape, dtype=dtype, device=device, seed=seed + prod(shape)) * scale if wanted else None

    return Weights(
        parameter(R, R, C),
        parameter(R and mlp_bias, R),
        parameter(R, C, R),
        parameter(R and mlp_bias, C),
        parameter(K, 1, 2, K, K),
        parameter(K and conv_bias, 1),
        *(torch.full((1,), value, dtype=dtype, device=device) if norm == "affine" else None for value in (1.5, -0.25)),
        *(torch.full((1,), value, dtype=dtype, device=device) if norm else None for value in (0.375, 0.625)),
        norm_eps=1e-3 if norm else 0.0,
    )


def picked(weights: Weights, names: tuple[str, ...]) -> list[Tensor | None]:
    """The parameters by these names."""
    return [getattr(weights, name) for name in names]


def changed(weights: Weights, change) -> Weights:
    """`weights` with every tensor replaced by `change` of it."""
    return Weights(*(change(w) if isinstance(w, Tensor) else w for w in weights))


def eager_gates(x: Tensor, weights: Weights) -> tuple[Tensor | None, Tensor | None]:
    """g (N, C) and the normed logits z (N, 1, H, W) by the reference; None for what `weights` leaves out."""
    g = z = None
    if weights.fc1_weight is not None:
        g = reference.channel_gate(x, *picked(weights, MLP))
    if weights.conv_weight is not None:
        y = x if g is None else reference.apply_channel_gate(x, g)
        z = reference.spatial_logit(y, *picked(weights, CONV))
    if weights.norm_mean is not None:
        affine = picked(weights, AFFINE)
        z = F.batch_norm(z, weights.norm_mean, weights.norm_var, *affine, eps=weights.norm_eps)
    return g, z


def eager(x: Tensor, weights: Weights) -> Tensor:
    """y by the reference."""
    g, z = eager_gates(x, weights)
    if g is not None:
        x = reference.apply_channel_gate(x, g)
    return x if z is None else reference.apply_spatial_gate(x, torch.sigmoid(z))


def assert_refined(y: Tensor, x: Tensor, weights: Weights) -> None:
    """y is CBAM of x, as well as eager in x's dtype computes it.

    For fp64, whose own error nothing here measures, by the error of float32, scaled by the two dtypes' rounding.
    """
    exact = eager(x.double(), changed(weights, Tensor.double))
    if x.dtype != torch.float64:
        assert_as_good_as_eager(y, eager(x, weights), exact)
        return
    assert y.dtype == x.dtype
    single = worst_error(eager(x.float(), changed(weights, Tensor.float)), exact)
    assert worst_error(y, exact) <= 2 * single * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
