"""The published layer typed anew from the paper and its authors' code: the yardstick, in any dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_triton import CBAM


def published_channel_gate(x: Tensor, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """sigmoid(MLP(AvgPool(F)) + MLP(MaxPool(F))), the whole MLP run twice."""

    def mlp(descriptor: Tensor) -> Tensor:
        return fc2(F.relu(fc1(descriptor.flatten(1))))

    return torch.sigmoid(mlp(F.adaptive_avg_pool2d(x, 1)) + mlp(F.adaptive_max_pool2d(x, 1)))


def published_spatial_gate(x: Tensor, conv: nn.Conv2d, norm: nn.Module | None) -> Tensor:
    """sigmoid(BN(conv([AvgPool_c; MaxPool_c])))."""
    pooled = torch.cat((torch.mean(x, 1).unsqueeze(1), torch.max(x, 1)[0].unsqueeze(1)), 1)
    z = conv(pooled)
    return torch.sigmoid(z if norm is None else norm(z))


def published_cbam(layer: CBAM, x: Tensor) -> Tensor:
    """The refined map, by the weights of `layer`, which must have x's dtype."""
    channel, spatial = layer.channel, layer.spatial
    refined = x * published_channel_gate(x, channel.fc1, channel.fc2)[:, :, None, None]
    return refined * published_spatial_gate(refined, spatial.conv, spatial.norm)


def randomised(layer: CBAM, seed: int = 0) -> CBAM:
    """`layer` with every parameter and statistic drawn from a seed, so that none is at its neutral default."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in layer.state_dict().items():
        if not tensor.is_floating_point():
            continue
        fresh = torch.randn(tensor.shape, generator=generator, dtype=torch.float32) * 0.5
        tensor.copy_(fresh.abs() + 0.5 if name.endswith("running_var") else fresh)
    return layer
