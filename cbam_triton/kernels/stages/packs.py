"""What a kernel or a device function takes as one argument: pointers that belong together, sizes, constants.

Packs in capitals hold compile-time constants. A pointer that is None leaves its part out. docs/math.md has the
letters.
"""

from typing import Any, NamedTuple

import triton.language as tl
from torch import Tensor

from .reductions import INTERPRETED


def constants(pack: Any) -> Any:
    """The pack with its values as compile-time constants, for which Triton's interpreter takes plain values."""
    if INTERPRETED.value:
        return pack
    return type(pack)(*(tl.constexpr(value) for value in pack))


class Parameters(NamedTuple):
    """Parameters of the layer. Without fc1_weight there is no channel attention, without conv_weight no spatial one."""

    fc1_weight: Tensor | None  # R C
    fc1_bias: Tensor | None  # R
    fc2_weight: Tensor | None  # C R; None for an MLP of one layer
    fc2_bias: Tensor | None  # C
    conv_weight: Tensor | None  # MAPS K^DIMS
    conv_bias: Tensor | None  # 1
    norm_weight: Tensor | None  # 1
    norm_bias: Tensor | None  # 1
    norm_mean: Tensor | None  # 1
    norm_var: Tensor | None  # 1


class Saved(NamedTuple):
    """What a forward leaves for its backward besides x. Sums and gates are in the accumulator's dtype.

    An index is in the smallest type that holds it. Of a tie it is the first.
    """

    gate: Tensor | None = None  # N C
    descriptors: Tensor | None = None  # N SLOTS C: average, maximum (, 2-norm, logsumexp) over the pixels
    channel_argmax: Tensor | None = None  # N C: the pixel of each channel's maximum
    preactivation: Tensor | None = None  # N SLOTS R: the MLP's hidden vectors before ReLU
    maps: Tensor | None = None  # N H W MAPS: mean and maximum over the channels, in x's dtype
    spatial_argmax: Tensor | None = None  # N H W: the channel of each pixel's maximum
    z: Tensor | None = None  # N 1 H W: the convolution's output before the norm; without a norm the gate


class Scratch(NamedTuple):
    """What the stages of a forward tell each other."""

    partial: Tensor | None = None  # N BLOCKS CHUNKS SLOTS+1 POOL_C
    gate: Tensor | None = None  # N C
    maps: Tensor | None = None  # N padded MAPS
    s: Tensor | None = None  # N P: the spatial gate, where it is made before the channel gate or given


class GradientScratch(NamedTuple):
    """What the stages of a backward tell each other. The last three are for the gradients of the parameters."""

    partial: Tensor | None = None  # N BLOCKS CHUNKS POOL_C
    ddescriptors: Tensor | None = None  # N SLOTS C
    dmaps: Tensor | None = None  # N 2 P
    s: Tensor | None = None  # N P
    dz: Tensor | None = None  # N gradient_size
    dq: Tensor | None = None  # N C
    hidden: Tensor | None = None  # N SLOTS+1 R: dza, dzm, ..., h
    share: Tensor | None = None  # N TAP_CHUNKS SHARE


class View(NamedTuple):
    """One sample of x, or of a tensor of x's shape: C P."""

    ptr: Any
    stride_c: Any
    stride_p: Any


class Size(NamedTuple):
    """Sizes of one sample. The last four are those of `padded_map`."""

    C: Any
    P: Any
    W: Any
    R: Any
    plane: Any
    zeros: Any
    padded: Any
    lead: Any


class Layout(NamedTuple):
    """How x, y and, with ALIGNED, the gradient of y lie in memory."""

    VEC: Any  # elements of the widest access
    CHANNELS_LAST: Any
    INDEX: Any  # dtype of offsets inside one sample
    ALIGNED: Any  # whether the gradient can be read as x is


class Form(NamedTuple):
    """What the layer computes, and the sizes that follow from it."""

    CHANNEL_POOLS: Any  # bits of `descriptors`
    SLOTS: Any  # places for the descriptors of a channel
    BIASES: Any  # how often the bias of the second layer counts
    SPATIAL_POOLS: Any  # "mean", "max", "mean+max", or "half" of the sum of both
    MAPS: Any  # 2 for "mean+max", else 1
    ARRANGEMENT: Any  # "channel_first", "spatial_first", "parallel"
    HARD: Any  # whether a gate is a hard sigmoid
    C_MULTIPLE: Any  # the largest power of two up to 16 that divides C
    R_MULTIPLE: Any  # and R: weights are read so wide
    K: Any
    DIMS: Any  # axes of pixels
    TAP_ROWS: Any  # K^(DIMS-1)
    BLOCK_K: Any
    BLOCK_R: Any
    SHARE: Any  # elements of a share of the convolution's gradient
    NORM_EPS: Any
    ACC: Any  # dtype of sums, gates and maps


class Tiles(NamedTuple):
    """Tile sizes of the stages; None for those that the kernel has not.

    A stage of the backward has the sizes of the stage of the forward that walks the same tiles: POOL the channel
    gradient, SPATIAL the logit gradient, APPLY the input gradient.
    """

    POOL_C: Any = None
    POOL_P: Any = None
    POOL_SPLIT: Any = None
    POOL_KEEP: Any = None
    POOL_R: Any = None
    POOL_DEPTH: Any = None
    MLP_T: Any = None
    MLP_C: Any = None
    MLP_SPLIT: Any = None
    SPATIAL_C: Any = None
    SPATIAL_P: Any = None
    SPATIAL_KEEP: Any = None
    APPLY_C: Any = None
    APPLY_P: Any = None
    APPLY_SPLIT: Any = None
    MAP_P: Any = None
    MAP_SPLIT: Any = None
