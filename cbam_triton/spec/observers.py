"""Who is told of each gate that the reference computes: nobody, except while `viz.record` is at work."""

from collections.abc import Callable

from torch import Tensor

# Each is called with g (N, C) or s (N, 1, *pixels).
OBSERVERS: list[Callable[[Tensor], None]] = []


def observed(gate: Tensor) -> Tensor:
    """The gate, after all observers have been told of it."""
    for observer in OBSERVERS:
        observer(gate)
    return gate
