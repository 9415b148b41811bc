"""What a plan says, run and described: the layers are found in the module at every call, so copies have their own."""

from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from ..dispatch import Activation, refined
from ..spec.children import weights_of
from ..spec.layer import NO_CONV, NO_MLP, Layer
from ..spec.tracing_state import leaf
from .recognition.plan import Path, Plan
from .unchanged import Part, is_unchanged


class Converted(NamedTuple):
    """A plan, and what its module was made of when the plan was proven."""

    plan: Plan
    seen: tuple[Part, ...]


def run_module(module: nn.Module, converted: Converted, memory: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """The forward of a converted module; its own where the call or a child is another than was proven."""
    plan = converted.plan
    if args and (node := leaf(module, *args)) is not None:
        return node
    if len(args) == 1 and not kwargs and fits(plan, args[0]) and is_unchanged(module, converted.seen, memory):
        layer = layer_of(module, plan)
        if layer is not None:
            return run_layer(layer, plan, args[0])
    return type(module).forward(module, *args, **kwargs)


def fits(plan: Plan, x: Any) -> bool:
    """Whether x is a map such as the plan was proven for; a placeholder is taken for one."""
    if not isinstance(x, Tensor):
        return isinstance(x, fx.Proxy)
    return x.ndim in plan.axes and (plan.channels is None or x.shape[1] == plan.channels)


def layer_of(module: nn.Module, plan: Plan) -> Layer | None:
    """The layer of a plan; None if a child does more by now than its weights say."""
    mlp: list[Any] = []
    for path in plan.mlp:
        weights = weights_of(_at(module, path))
        if weights is None:
            return None
        mlp += [weights[0].flatten(1), weights[1]]  # a 1x1 convolution's as a matrix
    mlp += [None] * (len(NO_MLP) - len(mlp))
    conv = NO_CONV if plan.conv is None else weights_of(_at(module, plan.conv))
    if conv is None:
        return None
    norm = None if plan.norm is None else _at(module, plan.norm)
    return Layer(tuple(mlp), conv, norm, plan.variant)


def run_layer(
    layer: Layer, plan: Plan, x: Tensor, residual: Tensor | None = None, activation: Activation = None
) -> Tensor:
    """The CBAM of x."""
    return refined(x, layer, x if plan.add_input else residual, activation)


def described(module: nn.Module, plan: Plan) -> str:
    """The plan in words, for the report."""
    words = []
    if plan.mlp:
        first = _at(module, plan.mlp[0])
        hidden = f", R {getattr(first, 'out_features', getattr(first, 'out_channels', '?'))}"
        pools = "+".join(plan.variant.channel_pools)
        words.append(f"channel gate of {pools}, C {plan.channels}{hidden if len(plan.mlp) == 2 else ''}")
    if plan.conv:
        norm = f", {type(_at(module, plan.norm)).__name__}" if plan.norm else ""
        size = _at(module, plan.conv).kernel_size[0]
        words.append(f"spatial gate of {'+'.join(plan.variant.spatial_pools)}, K {size}{norm}")
    if plan.variant.arrangement != "channel_first":
        words.append(plan.variant.arrangement)
    words += ["light"] * plan.variant.light + [plan.variant.gate] * (plan.variant.gate != "sigmoid")
    return "; ".join(words) + " + x" * plan.add_input


def _at(module: nn.Module, path: Path) -> Any:
    found: Any = module
    for name in path:
        found = found._modules[name]
    return found
