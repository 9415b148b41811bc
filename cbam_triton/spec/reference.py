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
from torch.nn.modules.batchnorm import _BatchNorm
from torch.torch_version import TorchVersion

from .layer import Layer
from .norms import NO_NORM, Norm, asked, check_batch
from .observers import observed
from .tracing_state import is_transformed, reads, unrecorded
from .validation import check_maps
from .variant import DEFAULT, Variant, passes_of

# Inductor of PyTorch 2.8 and 2.9 makes any cumsum of ones an arange of int64, and reads it as what it was declared.
# That of 2.14 does not. Those between were not tried.
_ORDER = torch.int32 if TorchVersion(torch.__version__) >= "2.14" else torch.int64
_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def channel_pool(x: Tensor, variant: Variant = DEFAULT) -> list[Tensor]:
    """Descriptors (N, C) over the pixels, in the order of the variant's pools; with `light` one, half their sum."""
    found = [CHANNEL_POOLS[name](x) for name in variant.channel_pools]
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
    hidden = _linear(torch.stack(_joinable(channel_pool(x, variant))), fc1_weight, fc1_bias)
    if fc2_weight is None:
        return gate(hidden.sum(0), variant)
    # Not the product of a parameter and a number, which several releases fail to export to ONNX.
    bias = None if fc2_bias is None else fc2_bias.expand(passes_of(variant), -1).sum(0)
    return gate(_linear(F.relu(hidden).sum(0), fc2_weight, bias), variant)


def spatial_pool(x: Tensor, variant: Variant = DEFAULT) -> Tensor:
    """The maps (N, M, *) over the channels, in the order of the variant's pools; with `light` one, half their sum."""
    found = [_SPATIAL_POOLS[name](x) for name in variant.spatial_pools]
    return 0.5 * found[0] + 0.5 * found[1] if variant.light else torch.cat(_joinable(found), 1)


def spatial_logit(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    variant: Variant = DEFAULT,
    descriptor: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """z (N, 1, *) = conv of the pooled maps, or of descriptor(x), before norm and gate."""
    maps = spatial_pool(x, variant) if descriptor is None else _learnt_maps(x, descriptor, conv_weight)
    dtype = torch.promote_types(x.dtype, conv_weight.dtype)
    bias = None if conv_bias is None else conv_bias.to(dtype)
    convolution = _CONVOLUTIONS[conv_weight.ndim]
    padding = [size // 2 for size in conv_weight.shape[2:]]
    return convolution(maps.to(dtype), conv_weight.to(dtype), bias, padding=padding)


def normed(z: Tensor, norm: Norm | None) -> Tensor:
    """norm(z), with z in the norm's own dtype."""
    if norm is None:
        return z
    z = _in_own_dtype(z, norm)
    if isinstance(norm, _BatchNorm) and (norm.training or norm.running_mean is None):
        unrecorded(check_batch, z)
    # On CUDA F.batch_norm refuses the tensors that torch.func.vmap makes.
    kind, statistics = asked(norm, z) if is_transformed() else ("called", NO_NORM)
    return _batch_normed(z, *statistics) if kind == "fixed" else norm(z)


def gate(logits: Tensor, variant: Variant = DEFAULT) -> Tensor:
    """sigmoid(logits), or its piecewise linear form: F.hardsigmoid, whose fp64 gradient has the digits of fp32."""
    return observed(F.relu6(logits + 3) / 6 if variant.gate == "hard_sigmoid" else torch.sigmoid(logits))


def apply_channel_gate(x: Tensor, g: Tensor) -> Tensor:
    """x * g."""
    return x * g.to(x.dtype).view(*g.shape, *(1,) * (x.ndim - 2))


def apply_spatial_gate(x: Tensor, s: Tensor) -> Tensor:
    """x * s."""
    return x * s.to(x.dtype)


def cbam(x: Tensor, layer: Layer, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """y = act(x * g * s + residual), with act ReLU or nothing; a gate without weights is one.

    Channel first, s is of x * g; spatial first, g is of x * s; parallel, both are of x.
    """
    mlp, conv, norm, variant, descriptor = layer
    y = x
    for step in _STEPS[variant.arrangement]:
        in_place = y is not x and descriptor is None  # a descriptor, or a hook on it, may keep what it was given
        source = x if variant.arrangement == "parallel" else y
        if step == "channel" and mlp[0] is not None:
            y = _gated(y, apply_channel_gate, channel_gate(source, *mlp, variant), in_place)  # pyright: ignore[reportArgumentType]
        elif step == "spatial" and conv[0] is not None:
            logits = spatial_logit(source, *conv, variant, descriptor)  # pyright: ignore[reportArgumentType]
            y = _gated(y, apply_spatial_gate, gate(normed(logits, norm), variant), in_place)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y


def attention_maps(x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """The gates that `cbam` applies: g (N, C) and s (N, 1, *)."""
    mlp, conv, norm, variant, descriptor = layer
    g = s = None
    for step in _STEPS[variant.arrangement]:
        if step == "channel":
            source = x if s is None or variant.arrangement == "parallel" else apply_spatial_gate(x, s)
            g = channel_gate(source, *mlp, variant)  # pyright: ignore[reportArgumentType]
        else:
            source = x if g is None or variant.arrangement == "parallel" else apply_channel_gate(x, g)
            z = spatial_logit(source, *conv, variant, descriptor)  # pyright: ignore[reportArgumentType]
            s = gate(normed(z, norm), variant)
    assert g is not None
    assert s is not None
    return g, s


_STEPS = {
    "channel_first": ("channel", "spatial"),
    "spatial_first": ("spatial", "channel"),
    "parallel": ("channel", "spatial"),
}


def _gated(y: Tensor, apply: Callable[[Tensor, Tensor], Tensor], factor: Tensor, in_place: bool) -> Tensor:
    if not in_place or _differentiable(y) or _differentiable(factor):
        return apply(y, factor)
    # A third of the time of a large map goes into fresh memory.
    return y.mul_(factor.to(y.dtype).view(*factor.shape, *(1,) * (y.ndim - factor.ndim)))


def _learnt_maps(x: Tensor, descriptor: Callable[[Tensor], Tensor], conv_weight: Tensor) -> Tensor:
    # Autocast gives the descriptor's layers their dtypes by itself.
    own = x if torch.is_autocast_enabled(x.device.type) else _in_own_dtype(x, descriptor)
    maps = descriptor(own)
    unrecorded(check_maps, maps, x, conv_weight)
    return maps


def _in_own_dtype(z: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """z in the dtype of a module's parameters, or of its buffers where it has none; z itself for any other function."""
    if not isinstance(function, nn.Module):
        return z
    for tensor in (*function.parameters(), *function.buffers()):
        if tensor.is_floating_point():
            return z.to(tensor.dtype)
    return z


def _batch_normed(
    z: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """F.batch_norm of one channel by fixed statistics, as plain arithmetic."""
    normal = (z - mean) * torch.rsqrt(var + eps)
    normal = normal if weight is None else normal * weight
    return (normal if bias is None else normal + bias).to(z.dtype)


def _linear(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    dtype = torch.promote_types(a.dtype, weight.dtype)
    return F.linear(a.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def _joinable(found: list[Tensor]) -> list[Tensor]:
    # Autocast on a CPU refuses to join tensors of float16.
    refused = found[0].dtype is torch.float16 and found[0].is_cpu and torch.is_autocast_enabled("cpu")
    return [one.float() for one in found] if refused else found


def _pixels(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


# A gradient goes through max(dim), max_pool2d or _fused_max: they send a tie's gradient to the first index. amax splits
# it, and its half-precision gradient compiled by Inductor is NaN.
def _pixel_max(x: Tensor) -> Tensor:
    if not _differentiable(x):
        return x.amax(_pixels(x))
    if _inductor_on_cpu(x):
        return _fused_max(x, _pixels(x)).flatten(1)
    # Here max(dim) takes 20 times as long as max_pool2d, whose gradient is not deterministic on CUDA.
    if x.is_cpu and x.ndim == 4 and _eager_channels_last(x):
        return F.max_pool2d(x, x.shape[2:]).flatten(1)
    return x.flatten(2).max(2).values


def _channel_max(x: Tensor) -> Tensor:
    if not _differentiable(x):
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
    return x.is_cpu and torch.compiler.is_dynamo_compiling() and not reads()


def _pixel_norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, 2, _pixels(x))


def _pixel_logsumexp(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.logsumexp(x.to(wide), _pixels(x)).to(x.dtype)


CHANNEL_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
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
    # A trace serves other layouts too, and a batched tensor cannot be asked for its layout.
    return not torch.compiler.is_compiling() and not reads() and x.is_contiguous(memory_format=torch.channels_last)


def _differentiable(x: Tensor) -> bool:
    """Whether a gradient through x is needed, by this call or later by what reads it."""
    return (x.requires_grad and torch.is_grad_enabled()) or reads()
