"""timm's CBAM and squeeze-and-excitation layers by our kernels: its arguments, its defaults, its keys. Needs no timm.

    timm.create_model("resnet50", block_args=dict(attn_layer=cbam_triton.timm.CbamModule))

In a graph of `torch.fx` the layer is one call. A child that does more than its weights say, such as one with hooks, is
called, by plain PyTorch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .attention import Attention
from .dispatch import refined
from .spec.children import weights_of
from .spec.layer import Layer
from .spec.tracing_state import leaf
from .spec.values import check_bool, check_integer, check_place, check_positive
from .spec.variant import Gate, checked_variant
from .squeeze_excite import EffectiveSqueezeExcite, SqueezeExcite

_GATES: dict[str, Gate] = {"sigmoid": "sigmoid", "hardsigmoid": "hard_sigmoid"}


class CbamModule(Attention):
    """x (N, C, H, W) times its channel gate, times the spatial gate of that, as `timm.layers.cbam.CbamModule`.

    The hidden width is `rd_channels`, or `channels * rd_ratio` rounded to a multiple of `rd_divisor`, at least one.
    `gate_layer` is sigmoid or hard sigmoid, by timm's name or as a class.
    The output has x's shape, dtype and memory format.
    Keys: channel.fc1.weight (R, C, 1, 1), channel.fc2.weight (C, R, 1, 1), their biases with `mlp_bias`,
    spatial.conv.conv.weight (1, 2, K, K), spatial.conv.bn.*.

    Raises: ValueError for sizes below 1 and an even K, and for another `act_layer` or `gate_layer` than the kernels
    know; TypeError for sizes that are no integers.
    Source: arXiv 1807.06521, equation 1; the arguments are timm's.

        layer = CbamModule(64)
    """

    light = False
    channel: Any
    spatial: Any

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        spatial_kernel_size: int = 7,
        act_layer: type[nn.Module] | str = nn.ReLU,
        gate_layer: type[nn.Module] | str = "sigmoid",
        mlp_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_act(act_layer)
        gate = _gate(gate_layer, ("sigmoid",) if self.light else tuple(_GATES.values()))
        check_integer("channels", channels, 1, "pass the C of x (N, C, H, W)")
        check_integer("spatial_kernel_size", spatial_kernel_size, 1, "timm's is 7")
        if spatial_kernel_size % 2 == 0:
            raise ValueError(f"spatial_kernel_size must be odd and positive, got {spatial_kernel_size}: timm's is 7")
        check_bool("mlp_bias", mlp_bias)
        check_place(device, dtype)
        made: Any = {"device": device, "dtype": dtype}
        hidden = _hidden_channels(channels, rd_ratio, rd_channels, rd_divisor)
        self.channel = nn.Module()
        self.channel.fc1 = nn.Conv2d(channels, hidden, 1, bias=mlp_bias, **made)
        self.channel.fc2 = nn.Conv2d(hidden, channels, 1, bias=mlp_bias, **made)
        self.spatial = nn.Module()
        self.spatial.conv = nn.Module()
        maps, padding = 1 if self.light else 2, spatial_kernel_size // 2
        self.spatial.conv.conv = nn.Conv2d(maps, 1, spatial_kernel_size, padding=padding, bias=False, **made)
        self.spatial.conv.bn = nn.BatchNorm2d(1, **made)
        self.hard = gate == "hard_sigmoid"
        self.variant = checked_variant(gate=gate, light=self.light)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):
            node = leaf(self, x)
            return self._called(x) if node is None else node
        first, second = weights_of(self.channel.fc1), weights_of(self.channel.fc2)
        conv, norm = weights_of(self.spatial.conv.conv), self.spatial.conv.bn
        if first is None or second is None or conv is None:  # a child does more than its weights say
            return self._called(x)
        mlp = (first[0].flatten(1), first[1], second[0].flatten(1), second[1])
        return refined(x, Layer(mlp, conv, norm, self.variant))

    def _called(self, x: Tensor) -> Tensor:
        """The forward with every child called, by plain PyTorch."""
        mean, peak = x.mean((2, 3), keepdim=True), x.flatten(2).max(2)[0][:, :, None, None]
        logits = self._mlp(0.5 * mean + 0.5 * peak) if self.light else self._mlp(mean) + self._mlp(peak)
        x = x * self._gate(logits)
        mean, peak = x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]
        maps = 0.5 * mean + 0.5 * peak if self.light else torch.cat([mean, peak], 1)
        return x * self._gate(self.spatial.conv.bn(self.spatial.conv.conv(maps)))

    def _mlp(self, descriptor: Tensor) -> Tensor:
        return self.channel.fc2(F.relu(self.channel.fc1(descriptor)))

    def _gate(self, logits: Tensor) -> Tensor:
        return F.hardsigmoid(logits) if self.hard else torch.sigmoid(logits)


class LightCbamModule(CbamModule):
    """`CbamModule` on the half of the sum of both pools, as `timm.layers.cbam.LightCbamModule`.

    Its gates are sigmoids: timm's own takes another `gate_layer` and uses none. The convolution is (1, 1, K, K).

        layer = LightCbamModule(64)
    """

    light = True


class SEModule(SqueezeExcite):
    """x (N, C, H, W) times the channel gate of its average, as `timm.layers.squeeze_excite.SEModule`.

    The hidden width is `rd_channels`, or `channels * rd_ratio` rounded to a multiple of `rd_divisor`, at least one.
    `add_maxpool` takes the half of the sum of average and maximum.
    Keys: fc1.weight (R, C, 1, 1), fc2.weight (C, R, 1, 1), their biases unless `bias=False`.

    Raises: ValueError for sizes below 1, for another `act_layer` or `gate_layer` than the kernels know, and for a
    `norm_layer`; TypeError for sizes that are no integers.
    Source: arXiv 1709.01507, equations 2 to 4; the arguments are timm's.

        layer = SEModule(64)
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        add_maxpool: bool = False,
        bias: bool = True,
        act_layer: type[nn.Module] | str = nn.ReLU,
        norm_layer: None = None,
        gate_layer: type[nn.Module] | str = "sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_act(act_layer)
        if norm_layer is not None:
            raise ValueError(f"norm_layer must be None, got {norm_layer!r}: use timm's own layer for one")
        check_integer("channels", channels, 1, "pass the C of x (N, C, H, W)")
        check_bool("add_maxpool", add_maxpool)
        super().__init__(
            channels, hidden_channels=_hidden_channels(channels, rd_ratio, rd_channels, rd_divisor), mlp_bias=bias,
            gate=_gate(gate_layer), light=add_maxpool, device=device, dtype=dtype,
        )  # fmt: skip


class EffectiveSEModule(EffectiveSqueezeExcite):
    """x (N, C, H, W) times the gate that one layer makes of its average, as timm's `EffectiveSEModule`.

    `add_maxpool` takes the half of the sum of average and maximum. Arguments of timm's other layers are ignored, as
    timm's own does. Keys: fc.weight (C, C, 1, 1), fc.bias (C,).

    Raises: ValueError for sizes below 1 and another `gate_layer` than the kernels know, TypeError for other types.
    Source: arXiv 1911.06667, section 3.3; the arguments are timm's.

        layer = EffectiveSEModule(64)
    """

    def __init__(
        self,
        channels: int,
        add_maxpool: bool = False,
        gate_layer: type[nn.Module] | str = "hard_sigmoid",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **_: Any,
    ) -> None:
        check_bool("add_maxpool", add_maxpool)
        super().__init__(channels, gate=_gate(gate_layer), light=add_maxpool, device=device, dtype=dtype)


def _hidden_channels(channels: int, ratio: float, given: int | None, divisor: int) -> int:
    check_integer("rd_divisor", divisor, 1, "timm's is 1, that of its SEModule 8")
    check_positive("rd_ratio", ratio, "timm's is 1 / 16")
    if given is not None:
        check_integer("rd_channels", given, 0, "pass the hidden width, or None for the one of rd_ratio")
    return given or max(divisor, int(channels * ratio + divisor / 2) // divisor * divisor)


def _check_act(layer: type[nn.Module] | str) -> None:
    if _name(layer) != "relu":
        raise ValueError(f"act_layer must be torch.nn.ReLU, got {layer!r}: use timm's own layer for another")


def _gate(layer: type[nn.Module] | str, known: tuple[Gate, ...] = ("sigmoid", "hard_sigmoid")) -> Gate:
    gate = _GATES.get(_name(layer))
    if gate not in known:
        words = " or ".join(map(repr, known))
        raise ValueError(f"gate_layer must be {words}, got {layer!r}: use timm's own layer for another")
    return gate


def _name(layer: type[nn.Module] | str) -> str:
    name = layer if isinstance(layer, str) else getattr(layer, "__name__", "")
    return name.replace("_", "").lower()
