"""Which backend computes a call: `refined` and `gates` check their arguments, choose, and bring x into its form."""

import functools
from types import NoneType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .kernels.launch import hardware as kernel_device
from .settings import current_backend, current_schedule
from .spec import reference
from .spec.layer import NO_CONV, NO_MLP, Conv, Layer
from .spec.norms import Kind, Statistics, asked, check_batch, group_of, update_statistics
from .spec.tracing_state import is_watched, reads, unrecorded
from .spec.validation import check
from .spec.variant import Variant, encoded, maps_of

Activation = Literal["relu"] | None

_KERNEL_DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_HALF = frozenset((torch.float16, torch.bfloat16))
_MAX_KERNEL_SIZE = 15
_PLAIN = (Tensor, NoneType)
_PLAIN_ARGUMENTS = frozenset((Tensor, Parameter, NoneType, float))
_NO_DISPATCH = Tensor.__torch_dispatch__  # pyright: ignore[reportAttributeAccessIssue]


class AttentionMaps(NamedTuple):
    """Both gates: channel (N, C) and spatial (N, 1, *pixels), in x's dtype."""

    channel: Tensor
    spatial: Tensor


def refined(x: Tensor, layer: Layer, residual: Tensor | None = None, activation: Activation = None) -> Tensor:
    """y = act(x * g * s + residual) of a layer whose variant is known to be right; what the modules call."""
    if type(x) is not Tensor or type(residual) not in _PLAIN:
        # A subclass, or a placeholder of torch.fx, says what the call is and what type its result has.
        if has_torch_function((x, residual)):
            return handle_torch_function(refined, (x, residual), x, layer, residual, activation)
        x, residual = _plain(x), _plain(residual)
    if isinstance(x, Tensor) and x.dtype in _HALF:
        x = _promoted(x)
    usual = unrecorded(check, x, layer, residual, activation)
    relu = activation == "relu"
    if layer.descriptor is None and _kernels_run(x, layer):
        y = _by_kernels(x, layer, residual, relu, usual)
        if y is not None:
            return y
    return reference.cbam(x, layer, residual, relu)


def gates(x: Tensor, layer: Layer) -> AttentionMaps:
    """`attention_maps` of a layer whose variant is known to be right."""
    found = _gates(x, layer)
    return AttentionMaps(found[0], found[1])


def _gates(x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    if type(x) is not Tensor:
        if has_torch_function((x,)):
            return handle_torch_function(_gates, (x,), x, layer)
        x = _plain(x)
    if isinstance(x, Tensor) and x.dtype in _HALF:
        x = _promoted(x)
    unrecorded(check, x, layer, None, None)
    mlp, conv, norm, variant, descriptor = layer
    by_kernels = descriptor is None and variant.arrangement != "spatial_first" and _kernels_run(x, layer)
    if by_kernels and not _gradient_needed(x, *mlp, *conv):
        from . import ops

        flat, planes = _as_planes(x)
        g, z = ops.gates(flat, *mlp, *_canonical(conv, variant), current_schedule(), encoded(variant), planes)
        s = reference.gate(reference.normed(z.view(x.shape[0], 1, *x.shape[2:]), norm), variant)
    else:
        g, s = reference.attention_maps(x, layer)
    return g.to(x.dtype), s.to(x.dtype)


def _promoted(x: Tensor) -> Tensor:
    """x in half precision; where autocast has the other half precision, in float32, as PyTorch promotes the two."""
    kind = x.device.type
    other = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) not in (x.dtype, torch.float32)
    return x.float() if other else x


def _plain(x: Any) -> Any:
    """x without the methods of its subclass, which may allocate in their own way; x itself if it is no such tensor."""
    kind = type(x)
    own_operators = kind is Tensor or not isinstance(x, Tensor) or kind.__torch_dispatch__ is not _NO_DISPATCH
    return x if own_operators else x.as_subclass(Tensor)


def _by_kernels(x: Tensor, layer: Layer, residual: Tensor | None, relu: bool, usual: bool) -> Tensor | None:
    """y by the kernels; None where a gradient is needed through a norm that they do not know."""
    kind, statistics = asked(layer.norm, x)
    if usual and (residual is None or residual.dtype is x.dtype):
        return _launched(x, layer, kind, statistics, residual, relu)
    if residual is not None and residual.dtype is not x.dtype:
        return _with_other_dtype(x, layer, residual, relu)
    mlp, conv, norm, variant, _ = layer
    if variant.arrangement == "spatial_first" and kind == "called":
        # The norm is called between the two: each gate by its own launches.
        alone = variant._replace(arrangement="channel_first")
        x = x if conv[0] is None else refined(x, Layer(NO_MLP, conv, norm, alone))
        return refined(x, Layer(mlp, NO_CONV, None, alone), residual, "relu" if relu else None)
    flat, planes = _as_planes(x)
    if residual is not None:
        residual, _ = _as_planes(residual)
    layer = layer._replace(conv=_canonical(conv, variant))
    y = _launched(flat, layer, kind, statistics, residual, relu, encoded(variant), planes, x.ndim)
    return y if y is None or x.ndim == 4 else y.view(x.shape)


def _with_other_dtype(x: Tensor, layer: Layer, residual: Tensor, relu: bool) -> Tensor:
    """y with a residual of another dtype than x, in the dtype that PyTorch promotes the two to."""
    if torch.promote_types(x.dtype, residual.dtype) is x.dtype:
        return refined(x, layer, residual.to(x.dtype), "relu" if relu else None)
    y = refined(x, layer) + residual
    return torch.relu(y) if relu else y


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


def _canonical(conv: Conv, variant: Variant) -> Conv:
    """The convolution as the kernels have it: for the mean map before the maximum."""
    weight, bias = conv
    if weight is not None and maps_of(variant) == 2 and variant.spatial_pools[0] == "max":
        return weight.flip(1), bias
    return conv


def _launched(
    x: Tensor,
    layer: Layer,
    kind: Kind,
    statistics: Statistics,
    residual: Tensor | None,
    relu: bool,
    code: str = "",
    planes: int = 1,
    ndim: int = 4,
) -> Tensor | None:
    """`_by_kernels` for an x (N, C, H, W), which came with `ndim` axes; `code` is the encoded variant."""
    from . import ops

    mlp, conv, norm, variant, _ = layer
    schedule = current_schedule()
    own = (*mlp, *conv, *statistics)
    needed = _gradient_needed(x, residual, *own[:-1])
    if kind == "none" or kind == "fixed":
        if not needed:
            # An operator is for who watches, and for tensors with operators of their own.
            seen = is_watched() or type(x) is not Tensor or not _PLAIN_ARGUMENTS.issuperset(map(type, own))
            run = ops.cbam if seen else ops.cbam_directly
            return run(x, *own, schedule, residual, relu, code, planes)
        return ops.cbam_training(x, residual, *own, False, None, relu, schedule, code, planes)[0]
    # All processes of a group exchange alike, whether or not this one needs a gradient.
    if kind == "synced" or (kind == "batch" and (needed or variant.arrangement == "spatial_first")):
        group = group_of(norm) if kind == "synced" else None
        if group is None:
            check_batch(x)
        found = ops.cbam_training(x, residual, *own, True, group, relu, schedule, code, planes)
        count = x.shape[0] * x.shape[2] * x.shape[3] if group is None else found[-1]
        update_statistics(norm, found[-3], found[-2], count)  # pyright: ignore[reportArgumentType]
        return found[0]
    if needed:
        return None
    g, z = ops.gates(x, *mlp, *conv, schedule, code, planes)
    z = reference.normed(_with_axes(z, ndim, planes), norm).view(z.shape)
    g = None if mlp[0] is None else g
    if z.requires_grad:
        return _gated(x, g, z, residual, relu, variant)
    return ops.apply_gates(x, g, z, residual, relu, code)


def _with_axes(z: Tensor, ndim: int, planes: int) -> Tensor:
    """z (N, 1, H, W) with the axes of pixels that x came with."""
    if ndim == 3:
        return z.squeeze(2)
    return z.unflatten(2, (planes, -1)) if ndim == 5 else z


def _kernels_run(x: Tensor, layer: Layer) -> bool:
    backend = current_backend()
    if backend == "reference":
        return False
    if _kernel_device_type() != x.device.type or x.dtype not in _KERNEL_DTYPES:
        if backend == "triton":
            raise RuntimeError(_why_not(x))
        return False
    conv_weight, fc1_weight = layer.conv[0], layer.mlp[0]
    if conv_weight is not None and conv_weight.shape[-1] > _MAX_KERNEL_SIZE:
        return False
    if fc1_weight is not None and fc1_weight.shape[0] == 0:
        return False  # the gate then is of the biases alone, whatever x holds
    # Of a sharded tensor the kernels would see one part.
    return not reads() and (type(x) is Tensor or not is_traceable_wrapper_subclass(x))


def _gradient_needed(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


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
