"""Facts about strides: which memory formats the kernels take, how wide an access may be, what an output looks like."""

from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

ACCESS_BYTES = 16  # the widest global access of one thread


class PixelStrides(NamedTuple):
    """Strides of (N, C, H, W) seen as (N, C, P) with P = H * W pixels, in elements."""

    n: int
    c: int
    p: int
    channels_last: bool


def pixel_strides(x: Tensor) -> PixelStrides | None:
    """Strides of x as (N, C, P); None where H and W do not merge or neither C nor P has unit stride."""
    if x.shape[2] * x.shape[3] > 1:
        found = pixel_strides_as(x, channels_last=False)
        return found or pixel_strides_as(x, channels_last=True)
    return pixel_strides_as(x, channels_last=x.stride(1) == 1 or x.shape[1] == 1)


def pixel_strides_as(x: Tensor, channels_last: bool) -> PixelStrides | None:
    """Strides of x as (N, C, P) with unit stride along the channels or the pixels; None where x has not that form.

    The stride along an axis of one element never counts: it is 0 here, unless it is the unit stride.
    """
    found = even_strides(x)
    if found is None:
        return None
    n, c, p = found
    N, C, H, W = x.shape
    n, c, p = 0 if N == 1 else n, 0 if C == 1 else c, 0 if H * W == 1 else p
    if channels_last:
        return PixelStrides(n, 1, p, True) if c == 1 or C == 1 else None
    return PixelStrides(n, c, 1, False) if p == 1 or H * W == 1 else None


def even_strides(x: Tensor) -> tuple[int, int, int] | None:
    """Strides of x as (N, C, P) if its pixels are evenly spaced, whatever the unit stride, also 0; else None."""
    H, W = x.shape[2:]
    n, c, h, w = x.stride()
    if W == 1:
        return n, c, h
    return (n, c, w) if H == 1 or h == W * w else None


def merged(x: Tensor) -> Tensor:
    """x itself where the kernels can take it, else one dense copy in x's suggested memory format."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) or pixel_strides(x) is not None:
        return x
    return x.contiguous(memory_format=_format(_suggests_channels_last(x)))


def output_like(x: Tensor) -> Tensor:
    """Uninitialised output for x: dense, in x's memory format.

    The strides of x are kept where they are dense. Elsewhere PyTorch infers an order of the axes, and the axis that has
    unit stride in x may lose it.
    """
    like = torch.empty_like(x)
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return like
    strides = pixel_strides(x)
    if strides is not None and pixel_strides_as(like, strides.channels_last) is not None:
        return like
    last = _suggests_channels_last(x) if strides is None else strides.channels_last
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=_format(last))


def laid_out_like(tensor: Tensor | None, x: Tensor) -> Tensor | None:
    """A tensor of x's shape with the strides of `output_like(x)`; copied if it has others."""
    if tensor is None:
        return None
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    if dense and tensor.stride() == x.stride():
        return tensor
    like = output_like(x)
    return tensor if tensor.stride() == like.stride() else like.copy_(tensor)


def access_width(C: int, P: int, itemsize: int, address: int, *tensors: PixelStrides) -> int:
    """Elements of the widest access that every tensor's strides allow: 1, 2, 4, ... up to 16 bytes.

    `address` is in bytes, that of the tensor aligned worst.
    """
    width = gcd(C if tensors[0].channels_last else P, address // itemsize, ACCESS_BYTES // itemsize)
    for strides in tensors:
        width = gcd(width, strides.n, strides.p if strides.channels_last else strides.c)
    return width


def needs_wide_offsets(C: int, P: int, stride_c: int, stride_p: int) -> bool:
    """Whether offsets inside one sample need 64 bits."""
    return (C - 1) * stride_c + (P - 1) * stride_p >= 1 << 30


def _suggests_channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1 and x.shape[1] > 1


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
