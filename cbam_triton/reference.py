"""The eager specification of CBAM, one line an equation; also the CPU path and the form that is exported.

Shapes: x (N, C, *) with one to three axes of pixels; fc1 weight (R, C); fc2 weight (C, R); conv weight (1, M, K, ...)
for M pooled maps; biases 1-D or None. x and the results keep one dtype and memory format; the gates are computed in the
wider of x's and the weight's dtype.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from .norms import Norm
from .readers import is_exporting
from .variant import DEFAULT, Variant, passes_of

# Inductor of PyTorch 2.6 to 2.9 makes any cumsum of ones an arange of int64, and reads it as what it was declared; that
# of 2.14 does not. Those between were not tried.
_ORDER = torch.int32 if TorchVersion(torch.__version__) >= "2.14" else torch.int64
_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def channel_pool(x: Tensor, variant: Variant = DEFAULT) -> list[Tensor]:
    """Descriptors (N, C) over the pixels, in the order of the variant's pools; with `light` one, half their sum."""
    found = [_CHANNEL_POOLS[name](x) for name in variant.channel_pools]
    return [0.5 * found[0] + 0.5 * found[1]] if variant.light else found


def channel_gate(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    variant: Variant = DEFAULT,
) -> Tensor:
    """g (N, C) = gate(sum of MLP(pool)); the second layer, being linear, runs once, on the summed hidden vector.

    Without fc2_weight the MLP is its first layer, with neither ReLU nor a second.
    Source: the paper's equation 2.
    """
    hidden = _linear(torch.stack(channel_pool(x, variant)), fc1_weight, fc1_bias)
    if fc2_weight is None:
        return gate(hidden.sum(0), variant)
    # Not the product of a parameter and a number, which several releases fail to export to ONNX.
    bias = None if fc2_bias is None else fc2_bias.expand(passes_of(variant), -1).sum(0)
    return gate(_linear(F.relu(hidden).sum(0), fc2_weight, bias), variant)


def spatial_pool(x: Tensor, variant: Variant = DEFAULT) -> Tensor:
    """The maps (N, M, *) over the channels, in the order of the variant's pools; with `light` one, half their sum."""
    found = [_SPATIAL_POOLS[name](x) for name in variant.spatial_pools]
    return 0.5 * found[0] + 0.5 * found[1] if variant.light else torch.cat(found, 1)


def spatial_logit(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    variant: Variant = DEFAULT,
    descriptor: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """z (N, 1, *) = conv of the pooled maps, or of descriptor(x), before norm and gate."""
    maps = spatial_pool(x, variant) if descriptor is None else descriptor(x)
    dtype = torch.promote_types(x.dtype, conv_weight.dtype)
    bias = None if conv_bias is None else conv_bias.to(dtype)
    convolution = _CONVOLUTIONS[conv_weight.ndim]
    padding = [size // 2 for size in conv_weight.shape[2:]]
    return convolution(maps.to(dtype), conv_weight.to(dtype), bias, padding=padding)


def normed(z: Tensor, norm: Norm | None) -> Tensor:
    """norm(z), with z in the norm's own dtype."""
    if norm is None:
        return z
    parameters = list(norm.parameters()) if isinstance(norm, nn.Module) else []
    return norm(z.to(parameters[0].dtype) if parameters else z)


def gate(logits: Tensor, variant: Variant = DEFAULT) -> Tensor:
    """sigmoid(logits), or its piecewise linear form: F.hardsigmoid, whose fp64 gradient has the digits of fp32."""
    return F.relu6(logits + 3) / 6 if variant.gate == "hard_sigmoid" else torch.sigmoid(logits)


def apply_channel_gate(x: Tensor, g: Tensor) -> Tensor:
    """x * g."""
    return x * g.to(x.dtype).view(*g.shape, *(1,) * (x.ndim - 2))


def apply_spatial_gate(x: Tensor, s: Tensor) -> Tensor:
    """x * s."""
    return x * s.to(x.dtype)


def cbam(
    x: Tensor,
    fc1_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm: Norm | None,
    residual: Tensor | None = None,
    relu: bool = False,
    variant: Variant = DEFAULT,
    descriptor: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """y = act(x * g * s + residual), with act ReLU or nothing; a gate without weights is one.

    Channel first, s is of x * g; spatial first, g is of x * s; parallel, both are of x.
    """
    mlp = (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    steps = _STEPS[variant.arrangement]
    y = x
    for step in steps:
        source = x if variant.arrangement == "parallel" else y
        if step == "channel" and fc1_weight is not None:
            y = _gated(y, apply_channel_gate, channel_gate(source, *mlp, variant), y is x)  # pyright: ignore[reportArgumentType]
        elif step == "spatial" and conv_weight is not None:
            logits = spatial_logit(source, conv_weight, conv_bias, variant, descriptor)
            y = _gated(y, apply_spatial_gate, gate(normed(logits, norm), variant), y is x)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y


def attention_maps(
    x: Tensor,
    mlp: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    norm: Norm | None,
    variant: Variant = DEFAULT,
    descriptor: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The gates that `cbam` applies: g (N, C) and s (N, 1, *)."""
    g = s = None
    for step in _STEPS[variant.arrangement]:
        if step == "channel":
            source = x if s is None or variant.arrangement == "parallel" else apply_spatial_gate(x, s)
            g = channel_gate(source, *mlp, variant)
        else:
            source = x if g is None or variant.arrangement == "parallel" else apply_channel_gate(x, g)
            s = gate(normed(spatial_logit(source, conv_weight, conv_bias, variant, descriptor), norm), variant)
    assert g is not None
    assert s is not None
    return g, s


_STEPS = {
    "channel_first": ("channel", "spatial"),
    "spatial_first": ("spatial", "channel"),
    "parallel": ("channel", "spatial"),
}


def _gated(y: Tensor, apply: Callable[[Tensor, Tensor], Tensor], factor: Tensor, first: bool) -> Tensor:
    if first or _gradient_needed(y) or _gradient_needed(factor):
        return apply(y, factor)
    # A third of the time of a large map goes into fresh memory.
    return y.mul_(factor.to(y.dtype).view(*factor.shape, *(1,) * (y.ndim - factor.ndim)))


def _linear(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = torch.promote_types(a.dtype, weight.dtype)
    return F.linear(a.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def _pixels(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


# Where a gradient is needed, max(dim), max_pool2d and _fused_max: they send a tie's gradient to the first index. amax
# splits it, and its half-precision gradient compiled by Inductor is NaN.
def _pixel_max(x: Tensor) -> Tensor:
    if not _gradient_needed(x):
        return x.amax(_pixels(x))
    if _inductor_on_cpu(x):
        return _fused_max(x, _pixels(x)).flatten(1)
    # Here max(dim) takes 20 times as long as max_pool2d, whose gradient is not deterministic on CUDA.
    if x.is_cpu and x.ndim == 4 and _eager_channels_last(x):
        return F.max_pool2d(x, x.shape[2:]).flatten(1)
    return x.flatten(2).max(2).values


def _channel_max(x: Tensor) -> Tensor:
    if not _gradient_needed(x):
        return x.amax(1, keepdim=True)
    if _inductor_on_cpu(x):
        return _fused_max(x, (1,))
    if x.ndim == 4 and _eager_channels_last(x):  # the gradient then is channels_last too
        return x.permute(0, 2, 3, 1).max(3).values[:, None]
    return x.max(1, keepdim=True).values


def _fused_max(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """max over dims, kept, without the arg-max and the scatter of max(dim), of which Inductor makes slow code."""
    sizes = [size if dim in dims else 1 for dim, size in enumerate(x.shape)]
    # -1, -2, ...: by cumsum, which lies in memory; an arange would be computed anew, element by element.
    order = torch.full((prod(sizes),), -1, dtype=_ORDER, device=x.device).cumsum(0, dtype=_ORDER)
    return _FirstMax.apply(x, order.view(sizes), dims)


class _FirstMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, dims: tuple[int, ...]) -> Tensor:
        # In Inductor's registers half precision is not rounded, in memory it is: a maximum of halves equals no element.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        peak = wide.amax(dims, keepdim=True)
        ctx.save_for_backward(order, torch.where(wide < peak, -(2**31), order).amax(dims, keepdim=True))
        return peak.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        order, first = ctx.saved_tensors
        return torch.where(order == first, gradients[0], 0), None, None


def _inductor_on_cpu(x: Tensor) -> bool:
    return x.is_cpu and torch.compiler.is_dynamo_compiling() and not is_exporting()


def _pixel_norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, 2, _pixels(x))


def _pixel_logsumexp(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.logsumexp(x.to(wide), _pixels(x)).to(x.dtype)


_CHANNEL_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean(_pixels(x)),
    "max": _pixel_max,
    "lp": _pixel_norm,
    "lse": _pixel_logsumexp,
}
_SPATIAL_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(1, keepdim=True),
    "max": _channel_max,
}


def _eager_channels_last(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and x.is_contiguous(memory_format=torch.channels_last)


def _gradient_needed(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()
