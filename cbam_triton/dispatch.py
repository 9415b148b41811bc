"""Which backend computes a call: `refined` and `gates` check their arguments, choose, and bring x into its form."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from . import reference
from .arguments import check_conv, check_epilogue, check_mlp, check_x, is_usual
from .kernels import device as kernel_device
from .norms import NO_NORM, check_batch, fixed_statistics, learns, normalises_by_batch, update_statistics
from .readers import reads
from .reference import Norm
from .settings import current_backend, current_schedule
from .variant import DEFAULT, Variant, encoded, maps_of

Activation = Literal["relu"] | None

_KERNEL_DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_MAX_KERNEL_SIZE = 15
_NO_MLP = (None, None, None, None)


Descriptor = Callable[[Tensor], Tensor]
Mlp = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class AttentionMaps(NamedTuple):
    """Both gates: channel (N, C) and spatial (N, 1, *pixels), in x's dtype."""

    channel: Tensor
    spatial: Tensor


def refined(
    x: Tensor,
    mlp: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None] | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None = None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    activation: Activation = None,
    variant: Variant = DEFAULT,
    descriptor: Descriptor | None = None,
) -> Tensor:
    """What the modules call: `cbam` of a variant that is known to be right, without the parts that are None."""
    check_epilogue(x, residual, activation)
    usual = variant == DEFAULT and descriptor is None and is_usual(x, mlp, conv_weight, conv_bias)
    if not usual:
        check_x(x)
        if conv_weight is not None:
            check_conv(x, conv_weight, conv_bias, None if descriptor is not None else maps_of(variant))
        if mlp is not None:
            check_mlp(x, *mlp)
    relu = activation == "relu"
    if _kernels_run(x, conv_weight) and descriptor is None:
        if variant.arrangement == "spatial_first" and norm is not None and not _is_batch_norm(norm, x):
            # The norm is called between the two: each gate by its own launches.
            alone = variant._replace(arrangement="channel_first")
            x = refined(x, None, conv_weight, conv_bias, norm, variant=alone) if conv_weight is not None else x
            return refined(x, mlp, None, residual=residual, activation=activation, variant=alone)
        if usual:
            y = _run_kernels(x, mlp or _NO_MLP, conv_weight, conv_bias, norm, residual, relu)
        else:
            y = _run_on_planes(x, mlp or _NO_MLP, conv_weight, conv_bias, norm, residual, relu, variant)
        if y is not None:
            return y
    return reference.cbam(x, *(mlp or _NO_MLP), conv_weight, conv_bias, norm, residual, relu, variant, descriptor)


def gates(
    x: Tensor,
    mlp: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    norm: Norm | None,
    variant: Variant,
    descriptor: Descriptor | None,
) -> AttentionMaps:
    """`attention_maps` of a variant that is known to be right."""
    check_x(x)
    check_conv(x, conv_weight, conv_bias, None if descriptor is not None else maps_of(variant))
    check_mlp(x, *mlp)
    by_kernels = _kernels_run(x, conv_weight) and descriptor is None and variant.arrangement != "spatial_first"
    if by_kernels and not _gradient_needed(x, (*mlp, conv_weight, conv_bias)):
        from . import ops

        flat, planes = _as_planes(x)
        weights, kernel = _canonical(mlp, conv_weight, variant)
        assert kernel is not None
        g, z = ops.gates(flat, *weights, kernel, conv_bias, current_schedule(), encoded(variant), planes)
        s = reference.gate(reference.normed(z.view(x.shape[0], 1, *x.shape[2:]), norm), variant)
    else:
        g, s = reference.attention_maps(x, mlp, conv_weight, conv_bias, norm, variant, descriptor)
    return AttentionMaps(g.to(x.dtype), s.to(x.dtype))


def _run_on_planes(
    x: Tensor,
    mlp: Mlp,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm: Norm | None,
    residual: Tensor | None,
    relu: bool,
    variant: Variant,
) -> Tensor | None:
    """`_run_kernels` for any variant and any number of axes of pixels."""
    flat, planes = _as_planes(x)
    if residual is not None:
        residual, _ = _as_planes(residual)
    mlp, conv_weight = _canonical(mlp, conv_weight, variant)
    y = _run_kernels(flat, mlp, conv_weight, conv_bias, norm, residual, relu, variant, planes, x.ndim)
    return y if y is None or x.ndim == 4 else y.view(x.shape)


def _is_batch_norm(norm: Norm, x: Tensor) -> bool:
    """Whether the kernels know this norm, with fixed statistics or those of the batch."""
    return fixed_statistics(norm, x, x.ndim) is not None or normalises_by_batch(norm, x, x.ndim)


def _as_planes(x: Tensor) -> tuple[Tensor, int]:
    """(x as N C H W, how many planes lie below one another in it)."""
    if x.ndim == 4:
        return x, 1
    if x.ndim == 3:
        return x.unsqueeze(2), 1
    if x.shape[2] > 1 and x.stride(2) != x.shape[3] * x.stride(3):
        last = x.stride(1) == 1 and x.shape[1] > 1
        x = x.contiguous(memory_format=torch.channels_last_3d if last else torch.contiguous_format)
    return x.flatten(2, 3), x.shape[2]


def _canonical(mlp: Mlp, conv_weight: Tensor | None, variant: Variant) -> tuple[Mlp, Tensor | None]:
    """Weights as the kernels have them: a hidden unit of zeros where there is none, the mean map before the maximum."""
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = mlp
    if fc1_weight is not None and fc1_weight.shape[0] == 0:
        fc1_weight = F.pad(fc1_weight, (0, 0, 0, 1))
        fc1_bias = None
        fc2_weight = None if fc2_weight is None else F.pad(fc2_weight, (0, 1))
    if conv_weight is not None and maps_of(variant) == 2 and variant.spatial_pools[0] == "max":
        conv_weight = conv_weight.flip(1)
    return (fc1_weight, fc1_bias, fc2_weight, fc2_bias), conv_weight


def _run_kernels(
    x: Tensor,
    mlp: Mlp,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm: Norm | None,
    residual: Tensor | None = None,
    relu: bool = False,
    variant: Variant = DEFAULT,
    planes: int = 1,
    ndim: int = 4,
) -> Tensor | None:
    """y by the kernels; None where a gradient is needed through a norm that they do not know.

    x has four axes; that of a user had `ndim`.
    """
    from . import ops

    layer = (*mlp, conv_weight, conv_bias)
    schedule, code = current_schedule(), encoded(variant)
    statistics = NO_NORM if norm is None else fixed_statistics(norm, x, ndim)
    by_batch = statistics is None and normalises_by_batch(norm, x, ndim)
    needed = _gradient_needed(x, (residual, *layer)) or (by_batch and variant.arrangement == "spatial_first")
    if not needed and not ((statistics is not None or by_batch) and learns(norm)):
        if statistics is not None:
            return ops.cbam(x, *layer, *statistics, schedule, residual, relu, code, planes)
        g, z = ops.gates(x, *layer, schedule, code, planes)
        z = reference.normed(_with_axes(z, ndim, planes), norm).view(z.shape)
        g = None if mlp[0] is None else g
        if z.requires_grad:
            return _gated(x, g, z, residual, relu, variant)
        return ops.apply_gates(x, g, z, residual, relu, code)
    if statistics is not None:
        return ops.cbam_training(x, residual, *layer, *statistics, False, relu, schedule, code, planes)[0]
    if not by_batch:
        return None
    check_batch(x)
    assert isinstance(norm, _BatchNorm)
    own = (norm.weight, norm.bias, None, None, norm.eps)
    found = ops.cbam_training(x, residual, *layer, *own, True, relu, schedule, code, planes)
    update_statistics(norm, found[-2], found[-1], x.shape[0] * x.shape[2] * x.shape[3])
    return found[0]


def _with_axes(z: Tensor, ndim: int, planes: int) -> Tensor:
    """z (N, 1, H, W) with the axes of pixels that x came with."""
    if ndim == 3:
        return z.squeeze(2)
    return z.unflatten(2, (planes, -1)) if ndim == 5 else z


def _kernels_run(x: Tensor, conv_weight: Tensor | None) -> bool:
    backend = current_backend()
    if backend == "reference":
        return False
    if _kernel_device_type() != x.device.type or x.dtype not in _KERNEL_DTYPES:
        if backend == "triton":
            raise RuntimeError(_why_not(x))
        return False
    too_wide = conv_weight is not None and conv_weight.shape[-1] > _MAX_KERNEL_SIZE
    return not too_wide and not reads()


def _gradient_needed(x: Tensor, others: tuple[Tensor | None, ...]) -> bool:
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(p is not None and p.requires_grad for p in others)


def _gated(x: Tensor, g: Tensor | None, z: Tensor, residual: Tensor | None, relu: bool, variant: Variant) -> Tensor:
    """What `ops.apply_gates` computes, for a norm with parameters that learn."""
    y = reference.apply_spatial_gate(x if g is None else reference.apply_channel_gate(x, g), reference.gate(z, variant))
    y = y if residual is None else y + residual
    return torch.relu(y) if relu else y


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
