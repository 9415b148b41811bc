"""The gradients of a layer as a composition that has gradients itself, for gradients of gradients."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .variant import decoded


def reference_gradients(
    ctx: Any, dy: Tensor, x: Tensor, y: Tensor | None, parameters: Sequence[Any]
) -> list[Tensor | None]:
    """The gradients as a composition that has a gradient itself."""
    dr = dy if y is None else torch.where(y <= 0, torch.zeros_like(dy), dy)
    inputs = [x, *parameters[:8]]  # all but the fixed statistics
    asked = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:10]]
    with torch.enable_grad():
        # Fresh leaves would cut the graph: these are the forward's own inputs.
        gated = _composition(x, parameters, ctx)
        wanted = [tensor for tensor, want in zip(inputs, asked, strict=True) if want]
        found = iter(torch.autograd.grad(gated, wanted, dr, create_graph=True, allow_unused=True) if wanted else ())
    of_x, *of_parameters = (next(found) if want else None for want in asked)
    return [of_x, dr if ctx.needs_input_grad[1] else None, *of_parameters]


def _composition(x: Tensor, parameters: Sequence[Any], ctx: Any) -> Tensor:
    """x * g * s by the reference, from an operator's arguments."""
    layer = parameters[:6]
    weight, bias, mean, var = parameters[6:]

    def norm(z: Tensor) -> Tensor:
        z = z.to(torch.promote_types(z.dtype, (z if weight is None else weight).dtype))
        return F.batch_norm(z, mean, var, weight, bias, ctx.batch_norm, eps=ctx.norm_eps)

    shape = x.shape
    if layer[4] is not None and layer[4].ndim == 5:
        x = x.unflatten(2, (ctx.planes, -1))
    elif layer[4] is not None and layer[4].ndim == 3:
        x = x.squeeze(2)
    has_norm = ctx.batch_norm or mean is not None
    fc1_weight, fc1_bias, fc2_weight, fc2_bias, conv_weight, conv_bias = layer
    y = reference.cbam(
        x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, conv_weight, conv_bias,
        norm if has_norm else None, variant=decoded(ctx.variant),
    )  # fmt: skip
    return y.reshape(shape)
