"""Norms on the logits: which of them are part of the kernels, and what is kept of a batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Norm = Callable[[Tensor], Tensor]

NO_NORM: tuple[Any, ...] = (None, None, None, None, 0.0)
_BATCH_NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}  # by x's axes


def plain_type(norm: nn.Module) -> type:
    """Its class; for timm's batch norm with neither drop nor activation PyTorch's, whose arithmetic it has then."""
    kind = type(norm)
    if kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm.") and isinstance(norm, nn.BatchNorm2d):
        after = norm._modules
        if all(type(after.get(name)) is nn.Identity for name in ("drop", "act")):
            return nn.BatchNorm2d
    return kind


def fixed_statistics(norm: Norm, x: Tensor, ndim: int) -> tuple[Any, ...] | None:
    """(weight, bias, mean, variance, eps) of a norm that is an affine map of fixed statistics, else None.

    A batch norm that does not fit x is not taken apart but called, so that PyTorch refuses it in its own words.
    """
    # Exact types: a subclass may compute something else.
    if not isinstance(norm, _BatchNorm) or plain_type(norm) not in (_BATCH_NORMS[ndim], nn.SyncBatchNorm):
        return None
    own, buffers = norm._parameters, norm._buffers  # a fifth of the time of norm.weight and the rest
    if "weight" not in own:  # the replicas of nn.DataParallel have plain attributes instead
        own = vars(norm)
    mean = buffers["running_mean"]
    if norm.training or mean is None or norm._forward_hooks or norm._forward_pre_hooks:
        return None
    if mean.device != x.device or mean.shape != (1,) or mean.dtype not in (torch.float32, x.dtype):
        return None
    return own["weight"], own["bias"], mean, buffers["running_var"], norm.eps


def normalises_by_batch(norm: Norm | None, x: Tensor, ndim: int) -> bool:
    """Whether this is a plain batch norm of one channel that takes its statistics from the batch."""
    if not isinstance(norm, _BatchNorm) or plain_type(norm) is not _BATCH_NORMS[ndim] or norm.num_features != 1:
        return False
    if norm._forward_hooks or norm._forward_pre_hooks:
        return False
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    fits = all(t is None or (t.device == x.device and t.dtype in (torch.float32, x.dtype)) for t in tensors)
    return fits and (norm.training or norm.running_mean is None) and x.shape[0] > 0


def check_batch(x: Tensor) -> None:
    """x (N, C, H, W) has more than one logit.

    Raises: ValueError, as PyTorch's batch norm does.
    """
    N, _, H, W = x.shape
    if N * H * W == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, got one sample of one pixel: the variance of a "
            "single logit is nothing to divide by; use a larger batch, or eval()"
        )


def update_statistics(norm: _BatchNorm, mean: Tensor, var: Tensor, count: int) -> None:
    """What a batch norm of PyTorch does to its buffers; var is the biased one."""
    if not norm.training or norm.running_mean is None or norm.running_var is None:
        return
    with torch.no_grad():
        momentum: float | Tensor | None = norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / norm.num_batches_tracked.to(mean.dtype)
        if momentum is None:
            momentum = 0.0
        norm.running_mean.mul_(1 - momentum).add_(mean * momentum)
        norm.running_var.mul_(1 - momentum).add_(var * (momentum * (count / (count - 1))))


def learns(norm: Norm | None) -> bool:
    """Whether a gradient of its parameters is needed."""
    if not torch.is_grad_enabled() or not isinstance(norm, nn.Module):
        return False
    if any(parameter.requires_grad for parameter in norm.parameters()):
        return True
    # In the replicas of nn.DataParallel they are plain attributes, and listed here.
    return any(tensor.requires_grad for tensor in norm.__dict__.get("_former_parameters", {}).values())
