"""What `torch.utils.flop_counter` counts in our operators: what it counts in the reference, two for a multiply-add.

The counter knows matrix products and convolutions; pools, gates and norms count nothing, here as everywhere in it.
"""

import gc
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from .spec.variant import decoded, passes_of


class _Products(NamedTuple):
    """Operations of each product of the forward; its two gradients take as many each."""

    fc1: int
    fc2: int
    conv: int


def register(namespace: Any) -> None:
    """Registers a formula for each operator in `torch.ops.cbam_triton`, also with counters that exist already."""
    for name, formula in _FORMULAS.items():
        operator = getattr(namespace, name)
        register_flop_formula(operator)(_by_name(operator, formula))
        for counter in _counters():
            counter.flop_registry.setdefault(operator, flop_registry[operator])


def _counters() -> list[FlopCounterMode]:
    """All counters that exist: each copied the formulas when it was made, and ours are registered at the first call."""
    return [thing for thing in gc.get_objects() if issubclass(type(thing), FlopCounterMode)]


def _by_name(operator: Any, formula: Callable[[dict[str, Any]], int]) -> Callable[..., int]:
    """The formula of an operator's arguments by their names, a tensor given as its shape."""
    names = [argument.name for argument in operator.default._schema.arguments]

    def of_arguments(*values: Any, out_shape: Any = None, **options: Any) -> int:
        return formula({**dict(zip(names, values, strict=False)), **options})

    return of_arguments


def _products(given: dict[str, Any]) -> _Products:
    variant = decoded(given.get("variant", ""))
    N, _, *pixels = given["x"]
    first, second, conv = given["fc1_weight"], given.get("fc2_weight"), given.get("conv_weight")
    return _Products(
        0 if first is None else 2 * passes_of(variant) * N * prod(first),
        0 if first is None or second is None else 2 * N * prod(second),
        0 if conv is None else 2 * N * prod(pixels) * prod(conv),
    )


def _forward(given: dict[str, Any]) -> int:
    return sum(_products(given))


def _backward(given: dict[str, Any]) -> int:
    """Of each product the gradients that are asked for, and those on the way to them."""
    x, _, fc1_weight, fc1_bias, fc2_weight, fc2_bias, conv_weight, *others = given["needed"]
    products, arrangement = _products(given), decoded(given["variant"]).arrangement
    in_mlp = fc1_weight or fc1_bias or fc2_weight or fc2_bias
    of_descriptors = x or (arrangement == "spatial_first" and (conv_weight or any(others)))
    of_hidden = of_descriptors or fc1_weight or fc1_bias
    of_maps = x or (arrangement == "channel_first" and in_mlp)
    return (
        products.fc1 * (fc1_weight + of_descriptors)
        + products.fc2 * (fc2_weight + of_hidden)
        + products.conv * (conv_weight + of_maps)
    )


_FORMULAS: dict[str, Callable[[dict[str, Any]], int]] = {
    "cbam": _forward,
    "gates": _forward,
    "apply_gates": lambda given: 0,
    "cbam_training": _forward,
    "cbam_backward": _backward,
}
