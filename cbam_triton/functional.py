"""CBAM without state: each function checks its arguments, chooses Triton or the reference, and calls it.

Common to all functions:

Shapes: x (N, C, H, W) in float16, bfloat16, float32 or float64, NCHW or channels_last; fc1_weight (R, C), fc2_weight
(C, R), conv_weight (1, 2, K, K) with K odd, its input channels being [mean, max]; biases (R,), (C,), (1,) or None.
Parameters have x's dtype or float32. Results have x's dtype and memory format.
Autocast: kernels ignore it, read x and parameters in their own dtypes and accumulate in float32 (float64 for float64
x); the reference's linear layers and convolution follow it. Either way results have x's dtype, as eager CBAM's.
Strides: kernels read x as it lies as long as its pixels are evenly spaced (stride_h = W * stride_w), so any slice of N
or C is free; anything else, such as a crop, is copied once to a dense tensor in x's suggested memory format.
Norm: None or any callable on the logits (N, 1, H, W). An `nn.BatchNorm2d` in eval mode is folded into the kernels; any
other is called between them, so a batch norm in training mode updates its own statistics.
Backend: the reference runs in export and tracing, under forward-mode and `torch.func` transforms, for K above 15,
where a gradient is needed through a norm other than an `nn.BatchNorm2d`, and, unless `settings(backend="triton")`, for
dtypes and devices that kernels do not take.
Norm in training: an `nn.BatchNorm2d` is part of the kernels' forward and backward; its buffers are updated as it does.
Raises: ValueError for shapes and devices, TypeError for dtypes, RuntimeError for a Triton backend that cannot run.
"""

import functools
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.autograd import forward_ad
from torch.jit._trace import is_tracing
from torch.nn.modules.batchnorm import _BatchNorm

from . import reference
from .arguments import check_conv, check_epilogue, check_mlp, check_x
from .kernels import device as kernel_device
from .reference import Norm
from .settings import current_backend, current_schedule

Activation = Literal["relu"] | None

_KERNEL_DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_MAX_KERNEL_SIZE = 15
_NO_NORM: tuple[Any, ...] = (None, None, None, None, 0.0)

_is_exporting = getattr(torch.compiler, "is_exporting", torch.onnx.is_in_onnx_export)


class AttentionMaps(NamedTuple):
    """Both gates: channel (N, C) and spatial (N, 1, H, W), in x's dtype."""

    channel: Tensor
    spatial: Tensor


def cbam(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    activation: Activation = None,
) -> Tensor:
    """y (N, C, H, W) = act(x * g * s + residual): the channel gate, then the spatial gate of what it leaves.

    `residual` (N, C, H, W) has x's dtype; `activation` is "relu" or None: together the end of a residual block.
    Traffic: 2 passes over x (wavefront), 3 with a norm that is not folded, to 4 (staged); 1 more for a residual.
    Source: arXiv 1807.06521, equation 1.
    """
    check_x(x)
    check_epilogue(x, residual, activation)
    check_mlp(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    check_conv(x, conv_weight, conv_bias)
    mlp = (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    relu = activation == "relu"
    if _kernels_run(x, conv_weight.shape[-1]):
        y = _run_kernels(x, mlp, conv_weight, conv_bias, norm, residual, relu)
        if y is not None:
            return y
    return reference.cbam(x, *mlp, conv_weight, conv_bias, norm, residual, relu)


def channel_attention(
    x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor | None, fc2_weight: Tensor, fc2_bias: Tensor | None
) -> Tensor:
    """x * g, with g (N, C) = sigmoid(MLP(avg) + MLP(max)).

    Traffic: 2 to 3 passes over x.
    Source: arXiv 1807.06521, equation 2.
    """
    check_x(x)
    mlp = (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    check_mlp(x, *mlp)
    if _kernels_run(x):
        y = _run_kernels(x, mlp, None, None, None)
        if y is not None:
            return y
    return reference.apply_channel_gate(x, reference.channel_gate(x, *mlp))


def spatial_attention(
    x: Tensor, conv_weight: Tensor, conv_bias: Tensor | None = None, *, norm: Norm | None = None
) -> Tensor:
    """x * s, with s (N, 1, H, W) = sigmoid(norm(conv([mean; max]))).

    Traffic: 2 to 3 passes over x.
    Source: arXiv 1807.06521, equation 3.
    """
    check_x(x)
    check_conv(x, conv_weight, conv_bias)
    if _kernels_run(x, conv_weight.shape[-1]):
        y = _run_kernels(x, (None, None, None, None), conv_weight, conv_bias, norm)
        if y is not None:
            return y
    return reference.apply_spatial_gate(x, reference.spatial_gate(x, conv_weight, conv_bias, norm))


def attention_maps(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
) -> AttentionMaps:
    """The two gates that `cbam` applies. A norm in training mode updates its statistics here too.

    Traffic: 1 to 2 passes over x.
    """
    check_x(x)
    mlp = (fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    check_mlp(x, *mlp)
    check_conv(x, conv_weight, conv_bias)
    parameters = (*mlp, conv_weight, conv_bias)
    if _kernels_run(x, conv_weight.shape[-1]) and not _gradient_needed(x, parameters):
        from . import ops

        g, z = ops.gates(x, *mlp, conv_weight, conv_bias, current_schedule())
        s = torch.sigmoid(reference.normed(z, norm))
    else:
        g = reference.channel_gate(x, *mlp)
        s = reference.spatial_gate(reference.apply_channel_gate(x, g), conv_weight, conv_bias, norm)
    return AttentionMaps(g.to(x.dtype), s.to(x.dtype))


def _run_kernels(
    x: Tensor,
    mlp: tuple[Tensor | None, ...],
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm: Norm | None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor | None:
    """y by the kernels; None where a gradient is needed through a norm that they do not know."""
    from . import ops

    layer = (*mlp, conv_weight, conv_bias)
    schedule = current_schedule()
    fixed = _NO_NORM if norm is None else _fixed(norm, x)
    by_batch = fixed is None and _normalises_by_batch(norm, x)
    needed = _gradient_needed(x, (residual, *layer))
    if not needed and not ((fixed is not None or by_batch) and _learns(norm)):
        if fixed is not None:
            return ops.cbam(x, *layer, *fixed, schedule, residual, relu)
        g, z = ops.gates(x, *layer, schedule)
        g, z = None if mlp[0] is None else g, reference.normed(z, norm)
        return _gated(x, g, z, residual, relu) if z.requires_grad else ops.apply_gates(x, g, z, residual, relu)
    if fixed is not None:
        return ops.cbam_training(x, residual, *layer, *fixed, False, relu, schedule)[0]
    if not by_batch:
        return None
    _check_batch(x)
    assert isinstance(norm, nn.BatchNorm2d)
    statistics = (norm.weight, norm.bias, None, None, norm.eps)
    found = ops.cbam_training(x, residual, *layer, *statistics, True, relu, schedule)
    _update_statistics(norm, found[-2], found[-1], x.shape[0] * x.shape[2] * x.shape[3])
    return found[0]


def _fixed(norm: Norm, x: Tensor) -> tuple[Any, ...] | None:
    """(weight, bias, mean, variance, eps) of a norm that is an affine map of fixed statistics, else None.

    A batch norm that does not fit x is not taken apart but called, so that PyTorch refuses it in its own words.
    """
    # Exact types: a subclass may compute something else.
    if type(norm) not in (nn.BatchNorm2d, nn.SyncBatchNorm) or not isinstance(norm, _BatchNorm):
        return None
    own, buffers = norm._parameters, norm._buffers  # a fifth of the time of norm.weight and the rest
    mean = buffers["running_mean"]
    if norm.training or mean is None or norm._forward_hooks or norm._forward_pre_hooks:
        return None
    if mean.device != x.device or mean.shape != (1,) or mean.dtype not in (torch.float32, x.dtype):
        return None
    return own["weight"], own["bias"], mean, buffers["running_var"], norm.eps


def _normalises_by_batch(norm: Norm | None, x: Tensor) -> bool:
    """Whether this is a plain batch norm of one channel that takes its statistics from the batch."""
    if not isinstance(norm, nn.BatchNorm2d) or type(norm) is not nn.BatchNorm2d or norm.num_features != 1:
        return False
    if norm._forward_hooks or norm._forward_pre_hooks:
        return False
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    fits = all(t is None or (t.device == x.device and t.dtype in (torch.float32, x.dtype)) for t in tensors)
    return fits and (norm.training or norm.running_mean is None) and x.shape[0] > 0


def _check_batch(x: Tensor) -> None:
    N, _, H, W = x.shape
    if N * H * W == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, got one sample of one pixel: the variance of a "
            "single logit is nothing to divide by; use a larger batch, or eval()"
        )


def _update_statistics(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """What `nn.BatchNorm2d.forward` does to its buffers; var is the biased one."""
    if not norm.training or norm.running_mean is None or norm.running_var is None:
        return
    with torch.no_grad():
        momentum: float | Tensor | None = norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / norm.num_batches_tracked.to(mean.dtype)
        if momentum is None:
            momentum = 0.0
        norm.running_mean.mul_(1 - momentum).add_(mean * momentum)
        norm.running_var.mul_(1 - momentum).add_(var * (momentum * (count / (count - 1))))


def _kernels_run(x: Tensor, kernel_size: int = 1) -> bool:
    backend = current_backend()
    if backend == "reference":
        return False
    if _kernel_device_type() != x.device.type or x.dtype not in _KERNEL_DTYPES:
        if backend == "triton":
            raise RuntimeError(_why_not(x))
        return False
    # Inside a forward-mode level any tensor may carry a tangent, which no kernel would propagate.
    if kernel_size > _MAX_KERNEL_SIZE or forward_ad._current_level >= 0:
        return False
    # One of the first two is on in ONNX export. The transforms of torch.func need rules that operators have not.
    return not (_is_exporting() or is_tracing() or _transformed())


def _transformed() -> bool:
    return _functorch.maybe_current_level() is not None


def _gradient_needed(x: Tensor, others: tuple[Tensor | None, ...]) -> bool:
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(p is not None and p.requires_grad for p in others)


def _gated(x: Tensor, g: Tensor | None, z: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """What `ops.apply_gates` computes, for a norm with parameters that learn."""
    y = reference.apply_spatial_gate(x if g is None else reference.apply_channel_gate(x, g), torch.sigmoid(z))
    y = y if residual is None else y + residual
    return torch.relu(y) if relu else y


def _learns(norm: Norm | None) -> bool:
    return torch.is_grad_enabled() and isinstance(norm, nn.Module) and any(p.requires_grad for p in norm.parameters())


def _kernel_device_type() -> str | None:
    return _probed_device_type()


# What torch.compiler.assume_constant_result sets, without the second that its import of torch._dynamo takes.
_kernel_device_type._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@functools.cache
def _probed_device_type() -> str | None:
    return kernel_device.device_type()


def _why_not(x: Tensor) -> str:
    remedy = 'or allow the reference with settings(backend="auto")'
    if x.dtype not in _KERNEL_DTYPES:
        return f"Triton kernels take float16, bfloat16, float32 and float64, got {x.dtype}: convert x {remedy}"
    expected = _kernel_device_type()
    if expected is None:
        return f"the Triton backend cannot run: {kernel_device.missing()}"
    return f"Triton kernels run on {expected} tensors here, got one on {x.device}: move x to {expected} {remedy}"
