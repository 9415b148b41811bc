"""CBAM as others publish it, eager: what every error and every speed of this library is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The authors' form's parameters under the names of a `cbam_triton.CBAM`'s; the convolution's inputs change places.
JONGCHAN_NAMES = {
    "mlp.1.weight": "channel.fc1.weight",
    "mlp.1.bias": "channel.fc1.bias",
    "mlp.3.weight": "channel.fc2.weight",
    "mlp.3.bias": "channel.fc2.bias",
    "conv.weight": "spatial.conv.weight",
    "norm.weight": "spatial.norm.weight",
    "norm.bias": "spatial.norm.bias",
}


class JongchanCBAM(nn.Module):
    """The authors' form: pooling over the whole map, linear layers, [max, mean] stacked, batch norm.

    x (N,C,H,W) -> (N,C,H,W).
    Source: Woo et al., ECCV 2018; github.com/Jongchan/attention-module.
    """

    def __init__(self, channels: int, reduction: int = 16, *, kernel_size: int = 7) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, eps=1e-5, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        whole_map = x.shape[2:]
        logits = self.mlp(F.avg_pool2d(x, whole_map)) + self.mlp(F.max_pool2d(x, whole_map))
        x = x * torch.sigmoid(logits)[:, :, None, None].expand_as(x)
        stacked = torch.cat((x.max(1)[0].unsqueeze(1), x.mean(1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.norm(self.conv(stacked)))


class TimmCBAM(nn.Module):
    """timm's form: mean and amax, 1x1 convolutions, [mean, max] stacked, batch norm.

    x (N,C,H,W) -> (N,C,H,W).
    Source: timm.layers.cbam.CbamModule.
    """

    def __init__(self, channels: int, reduction: int = 16, *, kernel_size: int = 7, mlp_bias: bool = True) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=mlp_bias)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=mlp_bias)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        avg = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        largest = self.fc2(F.relu(self.fc1(x.amax((2, 3), keepdim=True))))
        x = x * torch.sigmoid(avg + largest)
        stacked = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.norm(self.conv(stacked)))


def jongchan_like(layer: nn.Module) -> JongchanCBAM:
    """The authors' form with the weights of a `cbam_triton.CBAM`: the convolution's inputs change places.

    Raises: ValueError for a layer without batch norm or with a bias in the convolution.
    """
    state = _checked_state(layer)
    hidden, channels = state["channel.fc1.weight"].shape
    form = JongchanCBAM(channels, kernel_size=state["spatial.conv.weight"].shape[-1])
    form.mlp[1], form.mlp[3] = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
    renamed = {name: state[own] for name, own in JONGCHAN_NAMES.items()}
    renamed["conv.weight"] = renamed["conv.weight"].flip(1)
    return _loaded(form, renamed, state, layer.training)


def timm_like(layer: nn.Module) -> TimmCBAM:
    """timm's form with the weights of a `cbam_triton.CBAM`: a linear weight is a 1x1 convolution's.

    Raises: ValueError for a layer without batch norm or with a bias in the convolution.
    """
    state = _checked_state(layer)
    hidden, channels = state["channel.fc1.weight"].shape
    form = TimmCBAM(channels, kernel_size=state["spatial.conv.weight"].shape[-1])
    form.fc1, form.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
    renamed = {
        "fc1.weight": state["channel.fc1.weight"][:, :, None, None],
        "fc1.bias": state["channel.fc1.bias"],
        "fc2.weight": state["channel.fc2.weight"][:, :, None, None],
        "fc2.bias": state["channel.fc2.bias"],
        "conv.weight": state["spatial.conv.weight"],
    }
    return _loaded(form, renamed, state, layer.training)


def _checked_state(layer):
    state = layer.state_dict()
    if "spatial.norm.running_mean" not in state or "spatial.conv.bias" in state:
        raise ValueError("the published forms have a batch norm and no bias in the convolution: pass a CBAM made so")
    for name in ("fc1", "fc2"):
        weight = state[f"channel.{name}.weight"]
        state.setdefault(f"channel.{name}.bias", weight.new_zeros(weight.shape[0]))
    return state


def _loaded(form, renamed, state, training):
    norm = {key.removeprefix("spatial."): value for key, value in state.items() if key.startswith("spatial.norm.")}
    weight = state["channel.fc1.weight"]
    form.to(device=weight.device, dtype=weight.dtype)
    form.load_state_dict(renamed | norm)
    return form.train(training)
