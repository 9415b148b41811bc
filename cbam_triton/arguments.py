"""What the functional layer accepts; every error says what was expected, what came and what to do."""

import torch
from torch import Tensor


def check_x(x: Tensor) -> None:
    """x is (N, C, H, W), floating point, with at least one channel and one pixel."""
    shape = x.shape
    if len(shape) != 4:
        raise ValueError(
            f"x must have 4 dimensions (N, C, H, W), got shape {_shape(x)}: add one with "
            "x.unsqueeze or merge some with x.flatten"
        )
    if not x.dtype.is_floating_point:
        raise TypeError(f"x must have a floating-point dtype, got {x.dtype}: convert it, for instance with x.float()")
    if shape[1] == 0 or shape[2] == 0 or shape[3] == 0:
        raise ValueError(f"x must have at least one channel and one pixel, got shape {_shape(x)}: leave out such maps")


def check_mlp(
    x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor | None, fc2_weight: Tensor, fc2_bias: Tensor | None
) -> None:
    """The MLP takes x's C channels to R hidden units and back."""
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
    if hidden == 0:
        raise ValueError("fc1_weight (R, C) must have R >= 1, got no rows: use a hidden width of at least 1")
    _check_parameter("fc1_weight", fc1_weight, (hidden, channels), x)
    _check_parameter("fc2_weight", fc2_weight, (channels, hidden), x)
    if fc1_bias is not None:
        _check_parameter("fc1_bias", fc1_bias, (hidden,), x)
    if fc2_bias is not None:
        _check_parameter("fc2_bias", fc2_bias, (channels,), x)


def check_conv(x: Tensor, conv_weight: Tensor, conv_bias: Tensor | None) -> None:
    """The convolution is (1, 2, K, K) with K odd."""
    if conv_weight.ndim != 4:
        raise ValueError(f"conv_weight must have shape (1, 2, K, K), got {_shape(conv_weight)}: reshape it to that")
    size = conv_weight.shape[3]
    if size % 2 == 0:
        raise ValueError(
            f"conv_weight (1, 2, K, K) must have an odd K, so that the map keeps its size, got K = {size}: use "
            f"{size - 1 if size else 1} or {size + 1}"
        )
    _check_parameter("conv_weight", conv_weight, (1, 2, size, size), x)
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
