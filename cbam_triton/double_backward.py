"""The gradients of a layer as a composition that has gradients itself, for gradients of gradients."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels.launch.statistics import total
from .spec import reference
from .spec.layer import Layer
from .spec.variant import decoded


def reference_gradients(
    dy: Tensor, x: Tensor, y: Tensor | None, weights: Any, needed: Any, batch_norm: bool, group: str | None = None
) -> dict[str, Tensor | None]:
    """The gradients that `needed` asks for, by the names of its fields, with a graph of their own.

    `weights` are the operator's. y is its output where it ended in a ReLU. With `batch_norm` the logits are normalised
    by their own statistics, with the name of a process group by those of all its processes.
    """
    dr = dy if y is None else torch.where(y <= 0, torch.zeros_like(dy), dy)
    inputs = {"x": x, **weights._asdict()}
    # Fresh leaves would cut the graph: these are the forward's own inputs.
    wanted = {name: inputs[name] for name, want in needed._asdict().items() if want and name != "residual"}
    found: dict[str, Tensor | None] = {"residual": dr} if needed.residual else {}
    if wanted:
        with torch.enable_grad():
            gated = _composition(x, weights, batch_norm, group)
            made = torch.autograd.grad(gated, list(wanted.values()), dr, create_graph=True, allow_unused=True)
        found |= zip(wanted, made, strict=True)
    return found


def _composition(x: Tensor, weights: Any, batch_norm: bool, group: str | None) -> Tensor:
    """x * g * s by the reference, from an operator's arguments."""
    weight, bias, mean, var = weights.norm_weight, weights.norm_bias, weights.norm_mean, weights.norm_var

    def norm(z: Tensor) -> Tensor:
        z = z.to(torch.promote_types(z.dtype, (z if weight is None else weight).dtype))
        if group is not None:
            return _synced(z, weight, bias, weights.norm_eps, group)
        return F.batch_norm(z, mean, var, weight, bias, batch_norm, eps=weights.norm_eps)

    shape = x.shape
    if weights.dims == 3:
        x = x.unflatten(2, (weights.planes, -1))
    elif weights.dims == 1:
        x = x.squeeze(2)
    mlp = (weights.fc1_weight, weights.fc1_bias, weights.fc2_weight, weights.fc2_bias)
    conv = (weights.conv_weight, weights.conv_bias)
    has_norm = batch_norm or mean is not None
    layer = Layer(mlp, conv, norm if has_norm else None, decoded(weights.variant))
    return reference.cbam(x, layer).reshape(shape)


def _synced(z: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: str) -> Tensor:
    """The batch norm of z by the statistics of all processes' batches."""
    count = total(z.new_full((), z.numel()), group)
    mean = total(z.sum(), group) / count
    centred = z - mean
    normal = centred * torch.rsqrt(total(centred.square().sum(), group) / count + eps)
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias
