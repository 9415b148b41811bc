"""The kernels as PyTorch operators: schemas, fakes. One operator a call, opaque to torch.compile, never a layout copy.

Shapes and dtypes are checked in `functional`; a None among the parameters leaves its stage out. The operators are for
inference: autograd through them raises.
"""

from typing import Any

import torch
from torch import Tensor

from . import layout
from .kernels import launch
from .kernels.launch import Weights


@torch.library.custom_op("cbam_triton::cbam", mutates_args=())
def cbam(
    x: Tensor,
    fc1_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_mean: Tensor | None,
    norm_var: Tensor | None,
    norm_eps: float,
    schedule: str,
) -> Tensor:
    """y = x * g * s for x (N, C, H, W), with x's dtype and memory format.

    Without fc1_weight there is no channel attention, without conv_weight no spatial one, without norm_mean no norm.
    Traffic: 2 passes over x (wavefront) to 4 (staged). Source: Woo et al. 2018, equations 1 to 3.
    """
    parameters = _dense(
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, conv_weight, conv_bias, norm_weight, norm_bias, norm_mean, norm_var
    )
    return launch.forward(layout.merged(x), Weights(*parameters, norm_eps=norm_eps), schedule)


@cbam.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return layout.output_like(x)


@torch.library.custom_op("cbam_triton::gates", mutates_args=())
def gates(
    x: Tensor,
    fc1_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    schedule: str,
) -> tuple[Tensor, Tensor]:
    """g (N, C) after the sigmoid, (N, 0) without channel attention, and z (N, 1, H, W), the convolution's output.

    Both float32 (float64 for float64 x). Traffic: 1 pass over x (wavefront) or 2 (staged).
    """
    layer = _dense(fc1_weight, fc1_bias, fc2_weight, fc2_bias, conv_weight, conv_bias)
    return launch.gates(layout.merged(x), Weights(*layer), schedule)


@gates.register_fake
def _(x: Tensor, fc1_weight: Tensor | None, *_: object) -> tuple[Tensor, Tensor]:
    N, C, H, W = x.shape
    dtype = launch.accumulator(x.dtype)
    g = torch.empty((N, 0 if fc1_weight is None else C), dtype=dtype, device=x.device)
    return g, torch.empty((N, 1, H, W), dtype=dtype, device=x.device)


@torch.library.custom_op("cbam_triton::apply_gates", mutates_args=())
def apply_gates(x: Tensor, g: Tensor | None, z: Tensor | None) -> Tensor:
    """y = x * g * sigmoid(z) for x (N, C, H, W), g (N, C), z (N, 1, H, W); either gate may be None.

    Traffic: 2 passes over x.
    """
    return launch.apply_gates(layout.merged(x), *_dense(g, z))


@apply_gates.register_fake
def _(x: Tensor, g: Tensor | None, z: Tensor | None) -> Tensor:
    return layout.output_like(x)


def _dense(*small: Tensor | None) -> list[Any]:
    """Parameters or gates in row-major order; a copy only of those that a user transposed or sliced."""
    return [tensor if tensor is None or tensor.is_contiguous() else tensor.contiguous() for tensor in small]
