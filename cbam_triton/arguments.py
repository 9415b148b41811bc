"""What the functional layer accepts; every error says what was expected, what came and what to do."""

import torch
from torch import Tensor

_AXES = {1: "L", 2: "H, W", 3: "D, H, W"}


def is_usual(
    x: Tensor,
    mlp: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None] | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
) -> bool:
    """Whether this is an image and a layer of the default variant that all checks below accept.

    One look at everything, half the time of the checks, which say what is wrong.
    """
    shape, dtype, device = x.shape, x.dtype, x.device
    if len(shape) != 4 or 0 in shape[1:] or not dtype.is_floating_point:
        return False
    channels = shape[1]
    parameters: tuple[Tensor | None, ...] = ()
    if mlp is not None:
        fc1_weight, fc1_bias, fc2_weight, fc2_bias = mlp
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
    return True


def check_x(x: Tensor) -> None:
    """x is (N, C, *pixels), floating point, with one to three axes of pixels, at least one channel and one pixel."""
    shape = x.shape
    if not 3 <= len(shape) <= 5:
        raise ValueError(
            f"x must have 4 dimensions (N, C, H, W), or 3 (N, C, L) or 5 (N, C, D, H, W), got shape {_shape(x)}: add "
            "one with x.unsqueeze or merge some with x.flatten"
        )
    if not x.dtype.is_floating_point:
        raise TypeError(f"x must have a floating-point dtype, got {x.dtype}: convert it, for instance with x.float()")
    if 0 in shape[1:]:
        raise ValueError(f"x must have at least one channel and one pixel, got shape {_shape(x)}: leave out such maps")


def check_mlp(
    x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor | None, fc2_weight: Tensor | None, fc2_bias: Tensor | None
) -> None:
    """The MLP takes x's C channels to R hidden units and back; without fc2_weight, to C at once."""
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
    axes = conv_weight.ndim - 2
    if axes not in _AXES or (axes != x.ndim - 2 and conv_weight.shape[0] != 1):
        wanted = ", ".join(["1", "M" if maps is None else str(maps), *"K" * (x.ndim - 2)])
        raise ValueError(f"conv_weight must have shape ({wanted}), got {_shape(conv_weight)}: reshape it to that")
    if axes != x.ndim - 2:
        raise ValueError(
            f"x must have {axes + 2} dimensions (N, C, {_AXES[axes]}), as conv_weight {_shape(conv_weight)} has, got "
            f"shape {_shape(x)}: add one with x.unsqueeze or merge some with x.flatten"
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


def check_epilogue(x: Tensor, residual: Tensor | None, activation: str | None) -> None:
    """The residual is like x; the activation is one that the kernels know."""
    if activation not in (None, "relu"):
        raise ValueError(f"activation must be 'relu' or None, got {activation!r}: apply any other to the result")
    if residual is None:
        return
    if residual.shape != x.shape:
        raise ValueError(
            f"residual must have x's shape {_shape(x)}, got {_shape(residual)}: project or expand it to that shape"
        )
    if residual.dtype is not x.dtype:
        raise TypeError(f"residual must have x's dtype {x.dtype}, got {residual.dtype}: convert it with .to(x.dtype)")
    if residual.device != x.device:
        raise ValueError(f"residual must be on x's device {x.device}, got {residual.device}: move one with .to(device)")


def _check_parameter(name: str, parameter: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if parameter.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {_shape(parameter)}: reshape it, or build it to match")
    if parameter.dtype is not x.dtype and parameter.dtype is not torch.float32:
        wanted = "torch.float32" if x.dtype is torch.float32 else f"x's dtype {x.dtype} or torch.float32"
        raise TypeError(f"{name} must have {wanted}, got {parameter.dtype}: convert it with .to(x.dtype)")
    if parameter.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device}, got {parameter.device}: move one with .to(device)")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
