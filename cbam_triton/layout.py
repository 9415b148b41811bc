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
    N, C, H, W = x.shape
    n, c, h, w = x.stride()
    if N == 1:
        n = 0  # any stride would do
    if W == 1:
        w = h
    elif H != 1 and h != W * w:
        return None
    if H * W == 1:
        w = C
    if w == 1 and H * W > 1:
        return PixelStrides(n, c, 1, False)
    if c == 1 or C == 1:
        return PixelStrides(n, 1, w, True)
    if H * W == 1:
        return PixelStrides(n, c, 1, False)
    return None


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
    return x.contiguous(memory_format=_suggested_format(x))


def output_like(x: Tensor) -> Tensor:
    """Uninitialised output for x: x's memory format, dense."""
    if pixel_strides(x) is not None:
        return torch.empty_like(x)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=_suggested_format(x))


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


def sample_span(C: int, P: int, strides: PixelStrides) -> int:
    """Largest offset inside one sample, in elements."""
    return (C - 1) * strides.c + (P - 1) * strides.p


def _suggested_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.stride(1) == 1 and x.shape[1] > 1 else torch.contiguous_format
