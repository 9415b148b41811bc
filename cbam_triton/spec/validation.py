"""What the functional layer accepts. Every error says what was expected, what came and what to do."""

from typing import Any

import torch
from torch import Tensor

from .layer import Layer, Mlp
from .values import described
from .variant import DEFAULT, maps_of

_AXES = {1: "L", 2: "H, W", 3: "D, H, W"}
_DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_HALF = (torch.float16, torch.bfloat16)


def check(x: Tensor, layer: Layer, residual: Tensor | None, activation: str | None) -> bool:
    """All arguments of a layer; returns whether x is an image and the layer the default variant.

    Raises: TypeError and ValueError, of the first argument that is wrong.
    """
    check_epilogue(x, residual, activation)
    mlp, (conv_weight, conv_bias), _, variant, descriptor = layer
    if descriptor is None and variant == DEFAULT and is_usual(x, mlp, conv_weight, conv_bias):
        return True
    check_x(x)
    if conv_weight is not None:
        check_conv(x, conv_weight, conv_bias, None if descriptor is not None else maps_of(variant))
    if mlp[0] is not None:
        check_mlp(x, *mlp)  # pyright: ignore[reportArgumentType]
    return False


def is_usual(
    x: Tensor,
    mlp: Mlp,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
) -> bool:
    """Whether x is an image and the layer the default variant, both as the checks below want them.

    This function looks at everything once, in half the time of the checks. It is False for wrong types too, which the
    checks name.
    """
    try:
        return _is_usual(x, mlp, conv_weight, conv_bias)
    except (AttributeError, TypeError, RuntimeError):  # no tensor at all, or one without a shape
        return False


def _is_usual(x: Tensor, mlp: Any, conv_weight: Tensor | None, conv_bias: Tensor | None) -> bool:
    shape, dtype, device = x.shape, x.dtype, x.device
    if len(shape) != 4 or 0 in shape[1:] or dtype not in _DTYPES or x.layout is not torch.strided:
        return False
    channels = shape[1]
    parameters: tuple[Tensor | None, ...] = ()
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = mlp
    if fc1_weight is not None:
        first = fc1_weight.shape
        if fc2_weight is None or len(first) != 2 or first[0] == 0:
            return False
        hidden = first[0]
        if first[1] != channels or fc2_weight.shape != (channels, hidden):
            return False
        if (fc1_bias is not None and fc1_bias.shape != (hidden,)) or (
            fc2_bias is not None and fc2_bias.shape != (channels,)
        ):
            return False
        parameters = mlp
    if conv_weight is not None:
        taps = conv_weight.shape
        if len(taps) != 4 or taps[3] % 2 == 0 or taps != (1, 2, taps[3], taps[3]):
            return False
        if conv_bias is not None and conv_bias.shape != (1,):
            return False
        parameters = (*parameters, conv_weight, conv_bias)
    for parameter in parameters:
        if parameter is None:
            continue
        own = parameter.dtype
        if (own is not dtype and own is not torch.float32) or parameter.device != device:
            return False
        if parameter.layout is not torch.strided:
            return False
    return True


def check_tensor(name: str, value: Any) -> None:
    """The value is a dense tensor, or what stands for one while torch.fx traces."""
    if not isinstance(value, Tensor):
        if hasattr(type(value), "__torch_function__"):
            return
        raise TypeError(
            f"{name} must be a torch.Tensor, got {described(value)}: pass a tensor, such as torch.as_tensor(values)"
        )
    if value.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one: pad it with torch.nested.to_padded_tensor")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}: convert it with .to_dense()")


def check_x(x: Tensor) -> None:
    """x is (N, C, *pixels), floating point, with one to three axes of pixels, at least one channel and one pixel."""
    check_tensor("x", x)
    shape = x.shape
    if not 3 <= len(shape) <= 5:
        raise ValueError(
            f"x must have 4 dimensions (N, C, H, W), or 3 (N, C, L) or 5 (N, C, D, H, W), got shape {_shape(x)}: add "
            "one with x.unsqueeze or merge some with x.flatten"
        )
    check_floating("x", x)
    if 0 in shape[1:]:
        raise ValueError(f"x must have at least one channel and one pixel, got shape {_shape(x)}: leave out such maps")


def check_like(name: str, value: Any, x: Tensor) -> None:
    """The value is a tensor of x's shape."""
    check_tensor("x", x)
    check_tensor(name, value)
    if value.shape != x.shape:
        raise ValueError(f"{name} must have x's shape {_shape(x)}, got {_shape(value)}: expand it to that shape")


def check_floating(name: str, tensor: Tensor) -> None:
    """The tensor's dtype is one of the four that the layer computes in."""
    if tensor.dtype in _DTYPES:
        return
    remedy = "dequantize()" if tensor.is_quantized else "abs()" if tensor.is_complex() else "float()"
    raise TypeError(
        f"{name} must have a floating-point dtype, float16, bfloat16, float32 or float64, got {tensor.dtype}: convert "
        f"it, for instance with {name}.{remedy}"
    )


def check_mlp(
    x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor | None, fc2_weight: Tensor | None, fc2_bias: Tensor | None
) -> None:
    """The MLP takes x's C channels to R hidden units and back; without fc2_weight, to C at once."""
    check_tensor("fc1_weight", fc1_weight)
    if fc1_weight.ndim != 2:
        raise ValueError(
            f"fc1_weight must have shape (R, C), got {_shape(fc1_weight)}: a 1x1 convolution's weight becomes one with "
            ".flatten(1)"
        )
    hidden, channels = fc1_weight.shape
    if x.shape[1] != channels:
        raise ValueError(
            f"x must have the {channels} channels of fc1_weight (R, C) = {_shape(fc1_weight)}, got {x.shape[1]} in "
            f"shape {_shape(x)}: build the layer for {x.shape[1]} channels, or permute x to (N, C, H, W)"
        )
    _check_parameter("fc1_weight", fc1_weight, (hidden, channels), x)
    if fc2_weight is not None:
        _check_parameter("fc2_weight", fc2_weight, (channels, hidden), x)
    elif hidden != channels or fc2_bias is not None:
        raise ValueError(
            f"an MLP without fc2_weight has one layer: fc1_weight (C, C) and no fc2_bias, got {_shape(fc1_weight)}"
            f" {'and' if fc2_bias is not None else 'without'} an fc2_bias: pass fc2_weight (C, R) for one of two layers"
        )
    if fc1_bias is not None:
        _check_parameter("fc1_bias", fc1_bias, (hidden,), x)
    if fc2_bias is not None:
        _check_parameter("fc2_bias", fc2_bias, (channels,), x)


def check_conv(x: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, maps: int | None = 2) -> None:
    """The convolution is (1, M, K, K), K odd, with as many K as x has axes of pixels; any M where maps is None."""
    check_tensor("conv_weight", conv_weight)
    axes = conv_weight.ndim - 2
    if axes not in _AXES or (axes != x.ndim - 2 and conv_weight.shape[0] != 1):
        wanted = ", ".join(["1", "M" if maps is None else str(maps), *"K" * (x.ndim - 2)])
        raise ValueError(f"conv_weight must have shape ({wanted}), got {_shape(conv_weight)}: reshape it to that")
    if axes != x.ndim - 2:
        raise ValueError(
            f"x must have {axes + 2} dimensions (N, C, {_AXES[axes]}), as conv_weight {_shape(conv_weight)} has, got "
            f"shape {_shape(x)}: add one with x.unsqueeze or merge some with x.flatten, or build the layer with "
            f"dims={x.ndim - 2}"
        )
    size = conv_weight.shape[-1]
    if size % 2 == 0:
        raise ValueError(
            f"conv_weight (1, 2, K, K) must have an odd K, so that the map keeps its size, got K = {size}: use "
            f"{size - 1 if size else 1} or {size + 1}"
        )
    maps = conv_weight.shape[1] if maps is None else maps
    _check_parameter("conv_weight", conv_weight, (1, maps) + (size,) * (x.ndim - 2), x)
    if conv_bias is not None:
        _check_parameter("conv_bias", conv_bias, (1,), x)


def check_maps(maps: Tensor, x: Tensor, conv_weight: Tensor) -> None:
    """What a descriptor returned is what the convolution takes: (N, M, *pixels)."""
    wanted = (x.shape[0], conv_weight.shape[1], *x.shape[2:])
    found = _shape(maps) if isinstance(maps, Tensor) else described(maps)
    if found != wanted:
        raise ValueError(
            f"descriptor must return a tensor of shape (N, M, *pixels) = {wanted}, got {found}: pass one that does, or "
            "a conv_weight (1, M, ...) for its maps"
        )


def check_epilogue(x: Tensor, residual: Tensor | None, activation: str | None) -> None:
    """The residual has x's shape; the activation is one that the kernels know."""
    if activation is not None and (not isinstance(activation, str) or activation != "relu"):
        raise ValueError(f"activation must be 'relu' or None, got {activation!r}: apply any other to the result")
    if residual is None:
        return
    check_tensor("x", x)
    check_tensor("residual", residual)
    if residual.shape != x.shape:
        raise ValueError(
            f"residual must have x's shape {_shape(x)}, got {_shape(residual)}: project or expand it to that shape"
        )
    if residual.dtype is not x.dtype:
        check_floating("residual", residual)
    if residual.device != x.device:
        raise ValueError(f"residual must be on x's device {x.device}, got {residual.device}: move one with .to(device)")


def _check_parameter(name: str, parameter: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    check_tensor(name, parameter)
    if parameter.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {_shape(parameter)}: reshape it, or build it to match")
    if parameter.dtype is not x.dtype and parameter.dtype is not torch.float32 and not _autocast(parameter, x):
        wanted = "torch.float32" if x.dtype is torch.float32 else f"x's dtype {x.dtype} or torch.float32"
        raise TypeError(f"{name} must have {wanted}, got {parameter.dtype}: convert it with .to(x.dtype)")
    if parameter.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device}, got {parameter.device}: move one with .to(device)")


def _autocast(parameter: Tensor, x: Tensor) -> bool:
    """Whether autocast makes one dtype of these two: PyTorch then takes any but float64."""
    return parameter.dtype in _HALF and x.dtype is not torch.float64 and torch.is_autocast_enabled(x.device.type)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
