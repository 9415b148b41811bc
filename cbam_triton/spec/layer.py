"""What a layer computes with: one value, which a module or a function makes and passes down to the operators."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .norms import Norm
from .variant import DEFAULT, Variant

Mlp = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
Conv = tuple[Tensor | None, Tensor | None]
Descriptor = Callable[[Tensor], Tensor]

NO_MLP: Mlp = (None, None, None, None)
NO_CONV: Conv = (None, None)


class Layer(NamedTuple):
    """Parameters, norm and options of a layer."""

    mlp: Mlp = NO_MLP  # fc1 weight (R, C) and bias (R,), fc2 weight (C, R) and bias (C,); no weight: no channel gate
    conv: Conv = NO_CONV  # weight (1, M, K, K) and bias (1,); no weight: no spatial gate
    norm: Norm | None = None  # of the logits (N, 1, *pixels)
    variant: Variant = DEFAULT
    descriptor: Descriptor | None = None  # in the place of the spatial pools
