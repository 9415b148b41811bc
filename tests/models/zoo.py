"""The published CBAMs, each with its own keys and order of maps, typed anew from the mathematics; any dtype.

All take (C, R, K): channels, hidden width, side of the convolution's kernel. Where a form exists for volumes, dims=3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def _tree(**children: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(children)


def _linear_mlp(C: int, R: int, bias: bool = True) -> tuple[nn.Module, ...]:
    return nn.Linear(C, R, bias), nn.ReLU(), nn.Linear(R, C, bias)


def _conv_mlp(C: int, R: int, dims: int = 2, bias: bool = False) -> tuple[nn.Module, ...]:
    return _CONV[dims](C, R, 1, bias=bias), nn.ReLU(), _CONV[dims](R, C, 1, bias=bias)


def _stack(K: int, dims: int = 2, bias: bool = False, maps: int = 2) -> nn.Module:
    return _CONV[dims](maps, 1, K, padding=K // 2, bias=bias)


def _pooled(x: Tensor, pool: str) -> Tensor:
    """(N, C, 1, ...)."""
    flat = x.flatten(2)
    descriptor = {
        "avg": lambda: flat.mean(2),
        "max": lambda: flat.max(2)[0],
        "lp": lambda: flat.square().sum(2).sqrt(),
        "lse": lambda: flat.exp().sum(2).log(),
    }[pool]()
    return descriptor.view(*descriptor.shape, *(1,) * (x.ndim - 2))


def _maps(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]


class _TwoGates(nn.Module):
    """x * sigmoid(mlp(avg) + mlp(max)), then the spatial gate of that on [mean, max]; `parts` finds mlp and conv."""

    def parts(self):
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        mlp, conv = self.parts()
        avg, peak = _pooled(x, "avg"), _pooled(x, "max")
        x = x * torch.sigmoid(mlp(avg) + mlp(peak)).view(avg.shape)
        return x * torch.sigmoid(conv(torch.cat(_maps(x), 1)))


class Jongchan(nn.Module):
    """Source: github.com/Jongchan/attention-module."""

    def __init__(self, C, R, K=7, dims=2, pools=("avg", "max"), no_spatial=False, norm=True, bias=False):
        super().__init__()
        self.pools = pools
        self.ChannelGate = _tree(mlp=nn.Sequential(nn.Flatten(), *_linear_mlp(C, R)))
        if not no_spatial:
            self.SpatialGate = _tree(spatial=_tree(conv=_stack(K, dims, bias)))
            if norm:
                self.SpatialGate["spatial"]["bn"] = _NORM[dims](1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.stack([self.ChannelGate["mlp"](_pooled(x, pool)) for pool in self.pools]).sum(0)
        x = x * torch.sigmoid(logits).view(_pooled(x, "avg").shape)
        if not hasattr(self, "SpatialGate"):
            return x
        mean, peak = _maps(x)
        z = torch.cat((peak, mean), 1)
        for layer in self.SpatialGate["spatial"].values():
            z = layer(z)
        return x * torch.sigmoid(z)


def Stcn(C, R, K=7):
    """Source: github.com/hkchengrex/STCN and XMem; the x + cbam(x) is outside the layer."""
    return Jongchan(C, R, K, norm=False, bias=True)


class Timm(nn.Module):
    """Source: timm.layers.cbam."""

    def __init__(self, C, R, K=7, mlp_bias=False, light=False):
        super().__init__()
        self.light = light
        fc1, self.act, fc2 = _conv_mlp(C, R, bias=mlp_bias)
        self.channel = _tree(fc1=fc1, fc2=fc2)
        self.spatial = _tree(conv=_tree(conv=_stack(K, maps=1 if light else 2), bn=nn.BatchNorm2d(1)))

    def mlp(self, pool: Tensor) -> Tensor:
        return self.channel["fc2"](self.act(self.channel["fc1"](pool)))

    def forward(self, x: Tensor) -> Tensor:
        avg, peak = _pooled(x, "avg"), _pooled(x, "max")
        logits = self.mlp(0.5 * avg + 0.5 * peak) if self.light else self.mlp(avg) + self.mlp(peak)
        x = x * torch.sigmoid(logits)
        mean, peak = _maps(x)
        maps = 0.5 * mean + 0.5 * peak if self.light else torch.cat((mean, peak), 1)
        return x * torch.sigmoid(self.spatial["conv"]["bn"](self.spatial["conv"]["conv"](maps)))


def TimmLight(C, R, K=7):
    return Timm(C, R, K, light=True)


class Ultralytics(nn.Module):
    """Source: ultralytics.nn.modules.conv."""

    def __init__(self, C, R=None, K=7):
        super().__init__()
        self.channel_attention = _tree(fc=nn.Conv2d(C, C, 1))
        self.spatial_attention = _tree(cv1=_stack(K))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.channel_attention["fc"](_pooled(x, "avg")))
        return x * torch.sigmoid(self.spatial_attention["cv1"](torch.cat(_maps(x), 1)))


class ExternalAttention(nn.Module):
    """Source: github.com/xmu-xiaoma666/External-Attention-pytorch."""

    def __init__(self, C, R, K=49):
        super().__init__()
        self.ca = _tree(se=nn.Sequential(*_conv_mlp(C, R)))
        self.sa = _tree(conv=_stack(K, bias=True))

    def forward(self, x: Tensor) -> Tensor:
        se = self.ca["se"]
        y = x * torch.sigmoid(se(_pooled(x, "max")) + se(_pooled(x, "avg")))
        mean, peak = _maps(y)
        return y * torch.sigmoid(self.sa["conv"](torch.cat((peak, mean), 1))) + x


class Luuuyi(_TwoGates):
    """Source: github.com/luuuyi/CBAM.PyTorch; `old`: its first commits."""

    def __init__(self, C, R, K=7, dims=2, old=False):
        super().__init__()
        fc1, act, fc2 = _conv_mlp(C, R, dims)
        self.ca = _tree(fc1=fc1, relu1=act, fc2=fc2) if old else _tree(fc=nn.Sequential(fc1, act, fc2))
        self.sa = _tree(conv1=_stack(K, dims))

    def parts(self):
        children = list(self.ca.values())
        return children[0] if len(children) == 1 else nn.Sequential(*children), self.sa["conv1"]


def LuuuyiOld(C, R, K=7):
    return Luuuyi(C, R, K, old=True)


class Bubbliiiing(_TwoGates):
    """Source: github.com/bubbliiiing/yolov4-tiny-pytorch."""

    def __init__(self, C, R, K=7):
        super().__init__()
        fc1, act, fc2 = _conv_mlp(C, R)
        self.channelattention = _tree(fc1=fc1, relu1=act, fc2=fc2)
        self.spatialattention = _tree(conv1=_stack(K))

    def parts(self):
        return nn.Sequential(*self.channelattention.values()), self.spatialattention["conv1"]


class YoloFork(_TwoGates):
    """Source: the models/common.py of many forks of YOLOv5; the convolution's name varies."""

    def __init__(self, C, R, K=7, conv="conv"):
        super().__init__()
        f1, act, f2 = _conv_mlp(C, R)
        self.channel_attention = _tree(f1=f1, relu=act, f2=f2)
        self.spatial_attention = _tree(**{conv: _stack(K)})

    def parts(self):
        return nn.Sequential(*self.channel_attention.values()), next(iter(self.spatial_attention.values()))


class MMYolo(_TwoGates):
    """Source: mmyolo.models.plugins.cbam."""

    def __init__(self, C, R, K=7):
        super().__init__()
        fc1, act, fc2 = _conv_mlp(C, R, bias=True)
        self.channel_attention = _tree(fc=nn.Sequential(_tree(conv=fc1, activate=act), _tree(conv=fc2)))
        self.spatial_attention = _tree(conv=_tree(conv=_stack(K, bias=True)))

    def parts(self):
        layers = [layer for pair in self.channel_attention["fc"] for layer in pair.values()]
        return nn.Sequential(*layers), self.spatial_attention["conv"]["conv"]


class Pytorchcv(nn.Module):
    """Source: pytorchcv.models.cbamresnet."""

    def __init__(self, C, R, K=7):
        super().__init__()
        fc1, act, fc2 = _linear_mlp(C, R)
        self.ch_gate = _tree(mlp=_tree(fc1=fc1, activ=act, fc2=fc2))
        self.sp_gate = _tree(conv=_tree(conv=_stack(K), bn=nn.BatchNorm2d(1)))

    def forward(self, x: Tensor) -> Tensor:
        mlp = nn.Sequential(nn.Flatten(), *self.ch_gate["mlp"].values())
        x = x * torch.sigmoid(mlp(_pooled(x, "avg")) + mlp(_pooled(x, "max")))[:, :, None, None]
        mean, peak = _maps(x)
        z = self.sp_gate["conv"]["conv"](torch.cat((peak, mean), 1))
        return x * torch.sigmoid(self.sp_gate["conv"]["bn"](z))


class Copy(_TwoGates):
    """A copy of luuuyi's two classes under other names, as in many segmentation networks for volumes."""

    def __init__(self, C, R, K=7, dims=3, linear=False, add_input=False):
        super().__init__()
        self.add_input = add_input
        if linear:
            self.channel_att = _tree(fc=nn.Sequential(*_linear_mlp(C, R)))
            self.spatial_att = _tree(conv=_stack(K, dims, bias=True))
        else:
            fc1, act, fc2 = _conv_mlp(C, R, dims)
            self.channel_attention = _tree(fc1=fc1, relu1=act, fc2=fc2)
            self.spatial_attention = _tree(conv1=_stack(K, dims))

    def parts(self):
        if hasattr(self, "channel_att"):
            return nn.Sequential(nn.Flatten(), self.channel_att["fc"]), self.spatial_att["conv"]
        return nn.Sequential(*self.channel_attention.values()), self.spatial_attention["conv1"]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x if self.add_input else super().forward(x)


class _Kernel(nn.Module):
    def __init__(self, *shape: int, bias: int | None = None) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(shape))
        self.register_parameter("bias", None if bias is None else nn.Parameter(torch.randn(bias)))


class Keras(nn.Module):
    """Source: github.com/kobiso/CBAM-keras, with the layers renamed; kernels (C, R), (R, C), (K, K, 2, 1)."""

    def __init__(self, C, R, K=7):
        super().__init__()
        self.dense_1, self.dense_2 = _Kernel(C, R, bias=R), _Kernel(R, C, bias=C)
        self.conv2d = _Kernel(K, K, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        def mlp(pool: Tensor) -> Tensor:
            hidden = torch.relu(pool.flatten(1) @ self.dense_1.kernel + self.dense_1.bias)
            return hidden @ self.dense_2.kernel + self.dense_2.bias

        x = x * torch.sigmoid(mlp(_pooled(x, "avg")) + mlp(_pooled(x, "max")))[:, :, None, None]
        weight = self.conv2d.kernel.permute(3, 2, 0, 1)
        return x * torch.sigmoid(F.conv2d(torch.cat(_maps(x), 1), weight, padding=weight.shape[-1] // 2))
