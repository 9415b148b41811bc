"""The layers of a CBAM: which modules they are, and plain functions with drawn weights that stand in for them.

A stand-in has the layer's settings but weights of its own, in float64 on the CPU. So nothing of the user's model is
run or written, whatever device, dtype or hooks its layers have.
"""

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from ...spec.norms import plain_type
from .plan import Unlike

CONVOLUTIONS: dict[type, Any] = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_WIDEST = 63  # K of the convolutions whose weights are read
_AXES = {"1d": (2, 3), "2d": (4,), "3d": (5,)}  # of a norm's argument, by the end of its name


class Call(NamedTuple):
    """A call of a layer: its path, what it was given, what it returned."""

    path: str
    given: Tensor
    returned: Tensor


def is_norm(layer: nn.Module) -> bool:
    """Whether this is a norm of PyTorch's, or timm's batch norm with nothing after it."""
    if isinstance(layer, _BatchNorm) and plain_type(layer) in _BATCH_NORMS:
        return True
    return type(layer) in (nn.GroupNorm, *_INSTANCE_NORMS)


def is_layer(module: nn.Module) -> bool:
    """Whether a trace takes this module as one step: a norm, or something with tensors of its own."""
    if is_norm(module) or is_parametrized(module):
        return True
    plain = type(module).__module__.startswith("torch.nn.") or not any(module._modules.values())
    return plain and has_own_tensors(module)


def has_own_tensors(module: nn.Module) -> bool:
    return any(tensor is not None for tensor in (*module._parameters.values(), *module._buffers.values()))


def gathers_maps(layer: Any) -> bool:
    """Whether this is like the convolution of the pooled maps: from one or two maps to one."""
    if not isinstance(layer, tuple(CONVOLUTIONS)) or layer.out_channels != 1:
        return False
    return layer.in_channels == 2 or (layer.in_channels == 1 and layer.kernel_size[0] > 1)


def is_linear(layer: Any) -> bool:
    if isinstance(layer, tuple(CONVOLUTIONS)):
        return set(layer.kernel_size) == {1}
    return isinstance(layer, nn.Linear)


def role_of(path: str, layer: Any) -> str:
    """What this layer may be in a CBAM: "mlp", "conv" or "norm".

    Raises: Unlike for a layer that a CBAM has not, or that is set otherwise.
    """
    what = f"its layer {path} ({type_before_parametrizations(layer).__name__})"
    kind = type_before_parametrizations(layer)
    if is_norm(layer):
        width = getattr(layer, "num_features", getattr(layer, "num_channels", None))
        if width != 1:
            raise Unlike(f"{what} normalises {width} channels, expected only the one map of the spatial gate")
        return "norm"
    if kind in CONVOLUTIONS and gathers_maps(layer):
        if not _keeps_size(layer) or layer.kernel_size[0] > _WIDEST:
            raise Unlike(f"{what} is not K x K with K odd, padding K // 2 by zeros, stride and dilation 1")
        return "conv"
    if kind is not nn.Linear and not (kind in CONVOLUTIONS and set(layer.kernel_size) == {1} and _keeps_size(layer)):
        raise Unlike(f"{what} is neither linear nor a 1x1 convolution, nor one from the pooled maps to one map")
    return "mlp"


def _keeps_size(layer: Any) -> bool:
    """Whether a convolution of all channels returns a map of the size that it is given, padded by zeros."""
    size = layer.kernel_size[0]
    square = set(layer.kernel_size) == {size} and size % 2 == 1
    centred = layer.padding == "same" or set(layer.padding) == {size // 2}
    ones = {*layer.stride, *layer.dilation, layer.groups} == {1}
    return square and centred and ones and layer.padding_mode == "zeros"


def _has(layer: nn.Module, name: str) -> bool:
    """Whether the layer has this tensor; a parametrized one is not computed for it."""
    return layer._parameters.get(name) is not None or is_parametrized(layer, name)


class DrawnLayers:
    """Stand-ins for layers, by path; each call is kept in `calls`."""

    def __init__(self, layers: dict[str, Any]) -> None:
        self._layers, self._training = layers, False
        self._generator = torch.Generator("cpu").manual_seed(0)
        self._weights = {path: self._drawn(layer) for path, layer in layers.items()}
        self.calls: list[Call] = []

    def again(self, training: bool = False, negated: bool = False) -> "DrawnLayers":
        """The same layers with the same weights, or their negatives, without a call as yet.

        A hidden unit that ReLU makes zero with the ones is seen with the others.
        """
        twin = copy.copy(self)
        twin._training, twin.calls = training, []
        if negated:
            twin._weights = {
                path: (None if weight is None else -weight, None if bias is None else -bias)
                for path, (weight, bias) in self._weights.items()
            }
        return twin

    def __call__(self, path: str, *args: Any, **kwargs: Any) -> Tensor:
        """What the layer at this path returns.

        Raises: TypeError, RuntimeError and ValueError as PyTorch's layers do.
        """
        if len(args) + len(kwargs) != 1 or not set(kwargs) <= {"input"}:
            raise TypeError(f"{path} takes one tensor")
        (z,) = (*args, *kwargs.values())
        result = self.function(path, z)
        self.calls.append(Call(path, z.clone(), result.clone()))
        return result

    def function(self, path: str, z: Tensor) -> Tensor:
        """What the layer at this path returns, without a note of the call."""
        layer, (weight, bias) = self._layers[path], self._weights[path]
        if is_norm(layer):
            return self._normed(layer, z, weight, bias)
        assert weight is not None
        kind = type_before_parametrizations(layer)
        if kind is nn.Linear:
            return F.linear(z, weight, bias)
        return CONVOLUTIONS[kind](z, weight, bias, layer.stride, layer.padding, layer.dilation)

    def _normed(self, layer: Any, z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        axes = _AXES.get(type(layer).__name__[-2:])
        if axes is not None and z.ndim not in axes:
            raise ValueError(f"expected {' or '.join(map(str, axes))} axes, got {z.ndim}")
        if type(layer) is nn.GroupNorm:
            return F.group_norm(z, layer.num_groups, weight, bias, layer.eps)
        mean, var = (torch.full((1,), value, dtype=torch.float64, device="cpu") for value in (0.25, 1.75))
        fixed = layer.running_mean is not None and not self._training
        statistics = (mean, var) if fixed else (None, None)
        norm = F.batch_norm if isinstance(layer, _BatchNorm) else F.instance_norm
        return norm(z, *statistics, weight, bias, not fixed, 0, layer.eps)

    def weights(self, path: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of an MLP's layer or of the convolution, as matrices and kernels of the functional layer."""
        weight, bias = self._weights[path]
        assert weight is not None
        return weight, bias

    def _drawn(self, layer: Any) -> tuple[Tensor | None, Tensor | None]:
        if is_norm(layer):
            shape: tuple[int, ...] = (1,)
            given = [_has(layer, "weight"), _has(layer, "bias")]
        else:
            linear = type_before_parametrizations(layer) is nn.Linear
            shape = (layer.out_features, layer.in_features) if linear else self._kernel_shape(layer)
            given = [True, _has(layer, "bias")]
        fan_in = max(1, torch.Size(shape[1:]).numel())
        shapes = (shape, shape[:1])
        weight, bias = (
            torch.randn(size, generator=self._generator, dtype=torch.float64, device="cpu") if there else None
            for size, there in zip(shapes, given, strict=True)
        )
        return (None if weight is None else weight / fan_in**0.5), bias

    @staticmethod
    def _kernel_shape(layer: Any) -> tuple[int, ...]:
        return (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
