"""Squeeze-and-excitation by the kernels of CBAM: its channel gate on the average alone, under its own names and keys.

SE is the channel gate of CBAM without the maximum, and effective SE that with one layer. Both are variants of the same
stages. What these stages do not compute is not here: docs/squeeze_excite.md says what and why.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import called
from .attention import Attention
from .checkpoints.given import check_state_dict, check_weights, tensors_in
from .dispatch import refined
from .spec import reference
from .spec.children import weights_of, why_called
from .spec.layer import Layer
from .spec.tracing_state import leaf
from .spec.validation import check_x
from .spec.values import check_bool, check_integer, check_place, check_reduction
from .spec.variant import Gate, checked_variant

__all__ = ["EffectiveSqueezeExcite", "SqueezeExcite"]

# The names of both layers in state dicts, our own first.
_FORMS = (
    ("fc1", "fc2"),  # timm, torchvision
    ("fc.0", "fc.2"),  # copies of the paper's code
    ("conv_reduce", "conv_expand"),  # timm's EfficientNets and MobileNets
    ("excitation.0", "excitation.2"),
    ("down", "up"),  # RepVGG
)


class _Squeeze(Attention):
    """x times a channel gate of the average, or of the half of average and maximum, by the children `layers`."""

    layers: tuple[str, ...]

    def __init__(self, gate: Gate, light: bool) -> None:
        super().__init__()
        check_bool("light", light)
        self.variant = checked_variant(("avg", "max") if light else ("avg",), gate=gate, light=light)

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is not Tensor and (node := leaf(self, x)) is not None:
            return node
        mlp: list[Any] = []
        for name in self.layers:
            weights = weights_of(self._modules[name])  # pyright: ignore[reportArgumentType]
            if weights is None:
                return reference.apply_channel_gate(x, self._called_gate(x))
            mlp += [weights[0].flatten(1), weights[1]]
        mlp += [None] * (4 - len(mlp))
        return refined(x, Layer(tuple(mlp), variant=self.variant))

    def _called_gate(self, x: Tensor) -> Tensor:
        """g (N, C), with every child called."""
        check_x(x)
        (z,) = reference.channel_pool(x, self.variant)
        z = z[:, :, None, None]
        for i, name in enumerate(self.layers):
            child: Any = self._modules[name]
            z = called.called(child, F.relu(z) if i else z, name)
        if z.shape != (*x.shape[:2], 1, 1):
            raise ValueError(
                f"the child {self.layers[-1]} must return a tensor of shape {(*x.shape[:2], 1, 1)}, got "
                f"{tuple(z.shape)}: assign a module that does"
            )
        return reference.gate(z.flatten(1), self.variant)

    def extra_repr(self) -> str:
        children = [(name, self._modules[name]) for name in self.layers]
        words = ["light=True"] * self.variant.light + [f"gate={self.variant.gate!r}"]
        reasons = [(name, why_called(child)) for name, child in children if child is not None]
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons if reason)
        return ", ".join([*words, f"called=({told})"] if told else words)


class SqueezeExcite(_Squeeze):
    """x * g, with g (N, C) = gate(fc2(relu(fc1(average)))) over the pixels of x (N, C, *pixels).

    `hidden_channels` is the width R between the layers, max(1, channels // reduction) if None; `mlp_bias` gives each
    layer a bias; `gate` is "sigmoid" or "hard_sigmoid"; `light` takes the half of the sum of average and maximum, which
    is timm's `add_maxpool`. A state dict of timm's `SEModule` or torchvision's `SqueezeExcitation` loads strictly, and
    ours into theirs; `from_state_dict` takes the other forms.
    Keys: fc1.weight (R, C, 1, 1), fc1.bias (R,), fc2.weight (C, R, 1, 1), fc2.bias (C,).

    Shapes: x (N, C, *pixels) with one to three axes of pixels, in float16, bfloat16, float32 or float64; y like x.
    Traffic: 2 to 3 passes over x.
    Raises: ValueError for a size below 1 and an unknown gate, TypeError for arguments of other types.
    Source: arXiv 1709.01507, equations 2 to 4.

    >>> SqueezeExcite(32, reduction=8)(torch.randn(2, 32, 7, 7)).shape
    torch.Size([2, 32, 7, 7])
    """

    layers = ("fc1", "fc2")

    def __init__(
        self,
        channels: int,
        reduction: float = 16,
        *,
        hidden_channels: int | None = None,
        mlp_bias: bool = True,
        gate: Gate = "sigmoid",
        light: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(gate, light)
        check_integer("channels", channels, 1, "pass the C of x (N, C, H, W)")
        check_reduction(reduction)
        check_bool("mlp_bias", mlp_bias)
        check_place(device, dtype)
        if hidden_channels is None:
            hidden_channels = max(1, int(channels // reduction))
        check_integer("hidden_channels", hidden_channels, 1, "pass a width or None")
        self.fc1 = nn.Conv2d(channels, hidden_channels, 1, bias=mlp_bias, device=device, dtype=dtype)
        self.fc2 = nn.Conv2d(hidden_channels, channels, 1, bias=mlp_bias, device=device, dtype=dtype)

    @classmethod
    def from_state_dict(
        cls, state_dict: Mapping[str, Any], *, prefix: str = "", gate: Gate = "sigmoid", light: bool = False
    ) -> "SqueezeExcite":
        """The layer with the weights of a published one, on their device and in their dtype.

        The layers may be linear or 1x1 convolutions, called fc1 and fc2 (timm, torchvision), fc.0 and fc.2, conv_reduce
        and conv_expand (timm's EfficientNets), excitation.0 and excitation.2, or down and up (RepVGG). Keys tell
        neither the gate, which is hard in MobileNetV3, nor the function between the layers: that of EfficientNet is
        SiLU, which no layer of ours computes.

        Raises: ValueError for keys of no known form and shapes of another layer, TypeError for what is no state dict.

        >>> theirs = torch.nn.Sequential(torch.nn.Linear(16, 4), torch.nn.ReLU(), torch.nn.Linear(4, 16))
        >>> SqueezeExcite.from_state_dict(torch.nn.ModuleDict({"fc": theirs}).state_dict()).fc1.weight.shape
        torch.Size([4, 16, 1, 1])
        """
        weights = _weights(state_dict, prefix)
        first = weights["fc1.weight"]
        layer = cls.__new__(cls)
        SqueezeExcite.__init__(  # a subclass has other arguments
            layer, first.shape[1], hidden_channels=first.shape[0], mlp_bias="fc1.bias" in weights, gate=gate,
            light=light, device=first.device, dtype=first.dtype,
        )  # fmt: skip
        layer.load_state_dict(weights)
        return layer


class EffectiveSqueezeExcite(_Squeeze):
    """x * g, with g (N, C) = gate(fc(average)) over the pixels of x (N, C, *pixels): one layer, as wide as x.

    `gate` is "hard_sigmoid" or "sigmoid"; `light` takes the half of the sum of average and maximum, which is timm's
    `add_maxpool`. A state dict of timm's `EffectiveSEModule` loads strictly, and ours into it.
    Keys: fc.weight (C, C, 1, 1), fc.bias (C,).

    Shapes: x (N, C, *pixels) with one to three axes of pixels, in float16, bfloat16, float32 or float64; y like x.
    Traffic: 2 to 3 passes over x.
    Raises: ValueError for a size below 1 and an unknown gate, TypeError for arguments of other types.
    Source: arXiv 1911.06667, section 3.3.

    >>> EffectiveSqueezeExcite(32)(torch.randn(2, 32, 7, 7)).shape
    torch.Size([2, 32, 7, 7])
    """

    layers = ("fc",)

    def __init__(
        self,
        channels: int,
        *,
        gate: Gate = "hard_sigmoid",
        light: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(gate, light)
        check_integer("channels", channels, 1, "pass the C of x (N, C, H, W)")
        check_place(device, dtype)
        self.fc = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)


def _weights(state_dict: Any, prefix: str) -> dict[str, Tensor]:
    """The weights in a state dict of any known form, by our keys and in our shapes.

    Raises: ValueError for keys of no known form and shapes of another layer, TypeError for what is no state dict.
    """
    tensors = tensors_in(check_state_dict(state_dict, lambda one: _form(one) is not None), prefix)
    form = _form(tensors)
    if form is None:
        known = ", or ".join(f"{first}.weight and {second}.weight" for first, second in _FORMS)
        keys = ", ".join(list(tensors)[:6]) or f"none at the prefix {prefix!r}"
        raise ValueError(f"state_dict must have the keys {known}, got {keys}: pass the layer's own, or its prefix")
    check_weights(tensors)
    found: dict[str, Tensor] = {}
    for ours, theirs in zip(_FORMS[0], form, strict=True):
        weight = tensors[f"{theirs}.weight"]
        if weight.ndim < 2 or set(weight.shape[2:]) - {1}:
            raise ValueError(
                f"{theirs}.weight must be of a linear layer (out, in) or a 1x1 convolution (out, in, 1, 1), got shape "
                f"{tuple(weight.shape)}: this is another layer"
            )
        found[f"{ours}.weight"] = weight.reshape(*weight.shape[:2], 1, 1)
        if f"{theirs}.bias" in tensors:
            found[f"{ours}.bias"] = tensors[f"{theirs}.bias"]
    first, second = found["fc1.weight"].shape[:2], found["fc2.weight"].shape[:2]
    if first != second[::-1]:
        raise ValueError(
            f"{form[0]}.weight and {form[1]}.weight must be (R, C) and (C, R), got {tuple(first)} and {tuple(second)}: "
            "this is another layer"
        )
    return found


def _form(tensors: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of the layers, if the keys are those of a known form and no others."""
    for names in _FORMS:
        weights, biases = ({f"{name}.{kind}" for name in names} for kind in ("weight", "bias"))
        if set(tensors) in (weights, weights | biases):
            return names
    return None
