"""What a plan says, run and described: the layers are found in the module at every call, so copies have their own."""

from typing import Any

from torch import Tensor, fx, nn

from .dispatch import Activation, refined
from .parameters import weights_of
from .recognise import Path, Plan

fx.wrap("refined")  # one node of a torch.fx graph: its checks are not for placeholders


def run_plan(
    module: nn.Module, plan: Plan, x: Tensor, residual: Tensor | None = None, activation: Activation = None
) -> Tensor:
    """The CBAM of x by the module's layers; switches, weights and the norm's mode are read at each call."""
    mlp: Any = []
    for path in plan.mlp:
        weight, bias = weights_of(_at(module, path))
        mlp += [weight.flatten(1), bias]  # a 1x1 convolution's as a matrix
    mlp = (*mlp, None, None)[:4] if mlp else None
    conv, conv_bias = (None, None) if plan.conv is None else weights_of(_at(module, plan.conv))
    norm = None if plan.norm is None else _at(module, plan.norm)
    return refined(x, mlp, conv, conv_bias, norm, x if plan.add_input else residual, activation, plan.variant)


def described(module: nn.Module, plan: Plan) -> str:
    words = []
    if plan.mlp:
        shape = weights_of(_at(module, plan.mlp[0]))[0].shape
        hidden = f", R {shape[0]}" if len(plan.mlp) == 2 else ""
        words.append(f"channel gate of {'+'.join(plan.variant.channel_pools)}, C {shape[1]}{hidden}")
    if plan.conv:
        shape = weights_of(_at(module, plan.conv))[0].shape
        norm = f", {type(_at(module, plan.norm)).__name__}" if plan.norm else ""
        words.append(f"spatial gate of {'+'.join(plan.variant.spatial_pools)}, K {shape[-1]}{norm}")
    if plan.variant.arrangement != "channel_first":
        words.append(plan.variant.arrangement)
    words += ["light"] * plan.variant.light + [plan.variant.gate] * (plan.variant.gate != "sigmoid")
    return "; ".join(words) + " + x" * plan.add_input


def _at(module: nn.Module, path: Path) -> Any:
    found: Any = module
    for name in path:
        found = found._modules[name]
    return found
