"""The eager specification of CBAM, one line an equation; also the CPU path and the form that is exported.

Shapes: x (N, C, H, W); fc1 weight (R, C); fc2 weight (C, R); conv weight (1, 2, K, K); biases 1-D or None.
x and the results keep one dtype and memory format; the gates are computed in the wider of x's and the weight's dtype.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[Tensor], Tensor]


def channel_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """avg, max (N, C) over the pixels."""
    return x.mean((2, 3)), _pixel_max(x)


def channel_gate(
    x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor | None, fc2_weight: Tensor, fc2_bias: Tensor | None
) -> Tensor:
    """g (N, C) = sigmoid(MLP(avg) + MLP(max)); the second layer, being linear, runs once, on the summed hidden vector.

    Source: the paper's equation 2.
    """
    avg, peak = channel_pool(x)
    hidden = F.relu(_linear(avg, fc1_weight, fc1_bias)) + F.relu(_linear(peak, fc1_weight, fc1_bias))
    return torch.sigmoid(_linear(hidden, fc2_weight, None if fc2_bias is None else 2 * fc2_bias))


def spatial_pool(x: Tensor) -> Tensor:
    """[mean; max] (N, 2, H, W) over the channels."""
    return torch.cat((x.mean(1, keepdim=True), _channel_max(x)), 1)


def spatial_logit(x: Tensor, conv_weight: Tensor, conv_bias: Tensor | None) -> Tensor:
    """z (N, 1, H, W) = conv([mean; max]), before norm and sigmoid."""
    dtype = torch.promote_types(x.dtype, conv_weight.dtype)
    bias = None if conv_bias is None else conv_bias.to(dtype)
    return F.conv2d(spatial_pool(x).to(dtype), conv_weight.to(dtype), bias, padding=conv_weight.shape[-1] // 2)


def normed(z: Tensor, norm: Norm | None) -> Tensor:
    """norm(z), with z in the norm's own dtype."""
    if norm is None:
        return z
    parameter = next(norm.parameters(), None) if isinstance(norm, nn.Module) else None
    return norm(z if parameter is None else z.to(parameter.dtype))


def spatial_gate(x: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, norm: Norm | None) -> Tensor:
    """s (N, 1, H, W) = sigmoid(norm(z)).

    Source: the paper's equation 3; the norm is the published code's.
    """
    return torch.sigmoid(normed(spatial_logit(x, conv_weight, conv_bias), norm))


def apply_channel_gate(x: Tensor, g: Tensor) -> Tensor:
    """x * g."""
    return x * g.to(x.dtype)[:, :, None, None]


def apply_spatial_gate(x: Tensor, s: Tensor) -> Tensor:
    """x * s."""
    return x * s.to(x.dtype)


def cbam(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    norm: Norm | None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """y = act(x * g * s + residual), where s is the spatial gate of x * g and act is ReLU or nothing."""
    refined = apply_channel_gate(x, channel_gate(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias))
    s = spatial_gate(refined, conv_weight, conv_bias, norm)
    if _gradient_needed(refined) or _gradient_needed(s):
        y = apply_spatial_gate(refined, s)
    else:
        y = refined.mul_(s.to(x.dtype))  # a third of the time of a large map goes into fresh memory
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y


def _linear(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = torch.promote_types(a.dtype, weight.dtype)
    return F.linear(a.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


# Where a gradient is needed, max(dim) and max_pool2d: they send a tie's gradient to the first index. amax splits it,
# and its half-precision gradient compiled by Inductor is NaN.
def _pixel_max(x: Tensor) -> Tensor:
    if not _gradient_needed(x):
        return x.amax((2, 3))
    # Here max(dim) takes 20 times as long as max_pool2d, whose gradient is not deterministic on CUDA.
    if x.is_cpu and _eager_channels_last(x):
        return F.max_pool2d(x, x.shape[2:]).flatten(1)
    return x.flatten(2).max(2).values


def _channel_max(x: Tensor) -> Tensor:
    if not _gradient_needed(x):
        return x.amax(1, keepdim=True)
    if _eager_channels_last(x):  # the gradient then is channels_last too
        return x.permute(0, 2, 3, 1).max(3).values[:, None]
    return x.max(1, keepdim=True).values


def _eager_channels_last(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and x.is_contiguous(memory_format=torch.channels_last)


def _gradient_needed(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()
