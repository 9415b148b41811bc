"""CBAM without state: each function checks its arguments, chooses Triton or the reference, and calls it.

Common to all functions:

Shapes: x (N, C, H, W) in float16, bfloat16, float32 or float64, NCHW or channels_last, or with one or three axes of
pixels, (N, C, L) and (N, C, D, H, W); fc1_weight (R, C), fc2_weight (C, R) or None for an MLP of one layer (C, C);
conv_weight (1, M, K, K) with K odd, an input channel for each of `spatial_pools` in their order, and as many K as x has
axes of pixels; biases (R,), (C,), (1,) or None. Parameters have x's dtype or float32, results x's dtype and memory
format.
Options: `channel_pools`, some of "avg", "max", "lp" (the 2-norm) and "lse" (log of the sum of exponentials);
`spatial_pools`, some of "mean" and "max"; `arrangement`, "channel_first", "spatial_first" (the channel gate is of what
the spatial one leaves) or "parallel" (both gates are of x); `gate`, "sigmoid" or "hard_sigmoid"; `light`, the half of
the sum of both pools instead of both.
Autocast: kernels ignore it, read x and parameters in their own dtypes and accumulate in float32 (float64 for float64
x); the reference's linear layers and convolution follow it. Either way results have x's dtype, as eager CBAM's. Under
autocast parameters may be of half precision beside an x of float32.
Strides: kernels read x as it lies as long as its pixels are evenly spaced (stride_h = W * stride_w), so any slice of N
or C is free; anything else, such as a crop, is copied once to a dense tensor in x's suggested memory format.
Norm: None or any callable on the logits (N, 1, H, W). PyTorch's batch norms are part of the kernels: in eval mode by
their fixed statistics, in training mode by the batch's, and their buffers are updated as they do it. Any other norm is
called between two launches where no gradient is needed.
Backend: the reference runs in export and tracing, under forward-mode and `torch.func` transforms, for K above 15, for
an MLP without hidden units, for a `descriptor`, where a gradient is needed through a norm other than a batch norm, and,
unless `settings(backend="triton")`, for dtypes and devices that kernels do not take.
Subclasses and placeholders: the functions ask for `__torch_function__`, so a result has the type that PyTorch gives it.
Raises: ValueError for shapes, devices and options, TypeError for dtypes, layouts and values of another type,
RuntimeError for a Triton backend that cannot run.
"""

from torch import Tensor

from .dispatch import Activation, AttentionMaps, gates, refined
from .spec.layer import NO_MLP, Descriptor, Layer
from .spec.norms import Norm
from .spec.validation import check_tensor
from .spec.values import check_callable
from .spec.variant import DEFAULT, Arrangement, ChannelPool, Gate, SpatialPool, checked_variant


def cbam(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    activation: Activation = None,
    channel_pools: tuple[ChannelPool, ...] = DEFAULT.channel_pools,
    spatial_pools: tuple[SpatialPool, ...] = DEFAULT.spatial_pools,
    arrangement: Arrangement = DEFAULT.arrangement,
    gate: Gate = DEFAULT.gate,
    light: bool = False,
    descriptor: Descriptor | None = None,
) -> Tensor:
    """y (N, C, *pixels) = act(x * g * s + residual): the channel gate, then the spatial gate of what it leaves.

    `residual` has x's shape; with one of another dtype y has the dtype that PyTorch promotes both to. `activation` is
    "relu" or None: together the end of a residual block. `descriptor` takes the place of the spatial pools: any
    callable from (N, C, *pixels) to the convolution's (N, M, *pixels).
    Traffic: 2 passes over x (wavefront), 3 with a norm that is not folded, to 4 (staged); 1 more for a residual.
    Source: arXiv 1807.06521, equation 1; the options, its tables 1 to 3.

    >>> x, fc1, fc2, conv = torch.randn(2, 32, 7, 7), torch.randn(2, 32), torch.randn(32, 2), torch.randn(1, 2, 7, 7)
    >>> cbam(x, fc1, None, fc2, None, conv, residual=x, activation="relu").shape
    torch.Size([2, 32, 7, 7])
    """
    variant = checked_variant(channel_pools, spatial_pools, arrangement, gate, light)
    check_tensor("fc1_weight", fc1_weight)
    _check_spatial(conv_weight, norm, descriptor)
    mlp, conv = (fc1_weight, fc1_bias, fc2_weight, fc2_bias), (conv_weight, conv_bias)
    return refined(x, Layer(mlp, conv, norm, variant, descriptor), residual, activation)


def channel_attention(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    *,
    channel_pools: tuple[ChannelPool, ...] = DEFAULT.channel_pools,
    gate: Gate = DEFAULT.gate,
    light: bool = False,
) -> Tensor:
    """x * g, with g (N, C) = gate(sum of MLP(pool) over the pools).

    Traffic: 2 to 3 passes over x.
    Source: arXiv 1807.06521, equation 2.

    >>> x, fc1, fc2 = torch.randn(2, 32, 7, 7), torch.randn(2, 32), torch.randn(32, 2)
    >>> channel_attention(x, fc1, None, fc2, None, channel_pools=("avg",)).shape
    torch.Size([2, 32, 7, 7])
    """
    variant = checked_variant(channel_pools, gate=gate, light=light)
    check_tensor("fc1_weight", fc1_weight)
    return refined(x, Layer((fc1_weight, fc1_bias, fc2_weight, fc2_bias), variant=variant))


def spatial_attention(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    spatial_pools: tuple[SpatialPool, ...] = DEFAULT.spatial_pools,
    gate: Gate = DEFAULT.gate,
    light: bool = False,
    descriptor: Descriptor | None = None,
) -> Tensor:
    """x * s, with s (N, 1, *pixels) = gate(norm(conv(pools))).

    Traffic: 2 to 3 passes over x.
    Source: arXiv 1807.06521, equation 3.

    >>> x, conv = torch.randn(2, 32, 7, 7), torch.randn(1, 2, 7, 7)
    >>> spatial_attention(x, conv, norm=torch.nn.BatchNorm2d(1)).shape
    torch.Size([2, 32, 7, 7])
    """
    variant = checked_variant(spatial_pools=spatial_pools, gate=gate, light=light)
    _check_spatial(conv_weight, norm, descriptor)
    return refined(x, Layer(NO_MLP, (conv_weight, conv_bias), norm, variant, descriptor))


def attention_maps(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    channel_pools: tuple[ChannelPool, ...] = DEFAULT.channel_pools,
    spatial_pools: tuple[SpatialPool, ...] = DEFAULT.spatial_pools,
    arrangement: Arrangement = DEFAULT.arrangement,
    gate: Gate = DEFAULT.gate,
    light: bool = False,
    descriptor: Descriptor | None = None,
) -> AttentionMaps:
    """The two gates that `cbam` applies. A norm in training mode updates its statistics here too.

    Traffic: 1 to 2 passes over x.

    >>> x, fc1, fc2, conv = torch.randn(2, 32, 7, 7), torch.randn(2, 32), torch.randn(32, 2), torch.randn(1, 2, 7, 7)
    >>> maps = attention_maps(x, fc1, None, fc2, None, conv)
    >>> maps.channel.shape, maps.spatial.shape
    (torch.Size([2, 32]), torch.Size([2, 1, 7, 7]))
    """
    variant = checked_variant(channel_pools, spatial_pools, arrangement, gate, light)
    check_tensor("fc1_weight", fc1_weight)
    _check_spatial(conv_weight, norm, descriptor)
    mlp, conv = (fc1_weight, fc1_bias, fc2_weight, fc2_bias), (conv_weight, conv_bias)
    return gates(x, Layer(mlp, conv, norm, variant, descriptor))


def _check_spatial(conv_weight: Tensor, norm: Norm | None, descriptor: Descriptor | None) -> None:
    """What a module has by its construction: a convolution, and callables or nothing around it."""
    check_tensor("conv_weight", conv_weight)
    check_callable("norm", norm)
    check_callable("descriptor", descriptor)
