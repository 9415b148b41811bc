"""A traced forward, run on a map with drawn layers."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from .layers import DrawnLayers, role_of
from .plan import Unlike
from .steps import check_steps, constants, resembles_cbam, resembles_squeeze
from .tracing import Tracer, Untraceable, in_both_modes


class Forward(NamedTuple):
    """What a module, or a part of its forward, does with a map: `run` by the layers, found by path.

    `numbers` are the whole numbers that are written in it; `resembles` and `squeezes` are those of `Unlike`.
    """

    run: Callable[[Tensor, DrawnLayers], Any]
    layers: dict[str, Any]
    numbers: set[int]
    resembles: bool = True
    squeezes: bool = True

    def paths(self, role: str) -> list[str]:
        """The layers of this role, in the order of their first calls."""
        return [path for path, layer in self.layers.items() if role_of(path, layer) == role]


def forward_of(module: nn.Module) -> Forward:
    """The forward of a module of one input.

    Raises: Unlike where it cannot be traced or has steps that a CBAM has not.
    """
    try:
        graph = in_both_modes(module, lambda part: Tracer().graph_of(part))
    except Untraceable as error:
        unlike = Unlike(str(error))
        unlike.resembles = resembles_cbam(error.nodes) or (not error.nodes and _resembles_cbam(module))
        unlike.squeezes = resembles_squeeze(error.nodes) or (not error.nodes and _resembles_squeeze(module))
        raise unlike from None
    nodes = list(graph.nodes)
    try:
        x, layers, last = _checked(module, nodes)
    except Unlike as unlike:
        unlike.resembles, unlike.squeezes = resembles_cbam(nodes), resembles_squeeze(nodes)
        raise
    steps = [node for node in nodes if node.op not in ("placeholder", "output")]

    def run(z: Tensor, drawn: DrawnLayers) -> Any:
        def called(node: fx.Node, *args: Any, **kwargs: Any) -> Tensor:
            return drawn(str(node.target), *args, **kwargs)

        return evaluate(steps, {x: z}, called)[last]

    return Forward(run, layers, constants(nodes), resembles_cbam(nodes), resembles_squeeze(nodes))


def _checked(module: nn.Module, nodes: list[fx.Node]) -> tuple[fx.Node, dict[str, Any], fx.Node]:
    """(the input, the layers by path, the result) of a forward in which every step is one of a CBAM.

    Raises: Unlike for any other.
    """
    inputs = [node for node in nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise Unlike(f"its forward takes {len(inputs)} inputs, expected the map alone")
    layers = check_steps(module, nodes)
    (output,) = (node for node in nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node):
        raise Unlike("its result is not one tensor")
    return inputs[0], layers, output.args[0]


def _resembles_cbam(module: nn.Module) -> bool:
    """Whether a module that cannot be traced looks like one all the same; only what is reported depends on it."""
    named = re.search("att|cbam|channel|gate|spatial", type(module).__name__, re.IGNORECASE)
    return named is not None or any(type(part).__name__.startswith("AdaptiveMaxPool") for part in module.modules())


def _resembles_squeeze(module: nn.Module) -> bool:
    name = type(module).__name__
    return re.search("squeeze|excit", name, re.IGNORECASE) is not None or re.match("SE([A-Z_]|$)", name) is not None


def evaluate(steps: Iterable[fx.Node], values: dict[fx.Node, Any], called: Callable[..., Any]) -> dict[fx.Node, Any]:
    """The values of these steps, in their order, from the `values` before them; `called(node, ...)` calls a child."""
    for node in steps:
        args: Any = map_arg(node.args, values.__getitem__)
        kwargs: Any = map_arg(node.kwargs, values.__getitem__)
        if node.op == "call_module":
            values[node] = called(node, *args, **kwargs)
        elif node.op == "call_method":
            values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            function: Any = node.target
            values[node] = function(*args, **kwargs)
    return values
