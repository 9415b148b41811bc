"""Norms on the logits: which of them are part of the kernels, and what is kept of a batch."""

from collections.abc import Callable
from math import prod
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .children import is_hooked

Norm = Callable[[Tensor], Tensor]

Kind = Literal["none", "fixed", "batch", "synced", "called"]
Statistics = tuple[Any, Any, Any, Any, float]  # weight, bias, mean, variance, eps

NO_NORM: Statistics = (None, None, None, None, 0.0)
_BATCH_NORMS: dict[int, type] = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}  # by x's axes


def plain_type(norm: Any) -> type:
    """Its class; for timm's batch norm with neither drop nor activation PyTorch's, whose arithmetic it has then."""
    kind = type(norm)
    if kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm.") and isinstance(norm, nn.BatchNorm2d):
        after = norm._modules
        if all(type(after.get(name)) is nn.Identity for name in ("drop", "act")):
            return nn.BatchNorm2d
    return kind


def asked(norm: Norm | None, x: Tensor) -> tuple[Kind, Statistics]:
    """What the norm of the logits of x is in this call, and what the kernels need of it.

    "fixed" is an affine map of fixed statistics. "batch" takes the statistics of this batch, "synced" those of the
    batches of all processes, of which some may be empty: both are told without mean and variance. Any other norm is
    "called": also one with hooks, and one that does not fit x, so that PyTorch refuses it in its own words.
    """
    if norm is None:
        return "none", NO_NORM
    wanted = _BATCH_NORMS[x.ndim]
    kind = type(norm)
    # Exact types: a subclass may compute something else.
    if kind is not wanted and kind is not nn.SyncBatchNorm and plain_type(norm) is not wanted:
        return _CALLED
    if is_hooked(norm):  # pyright: ignore[reportArgumentType]
        return _CALLED
    state = norm.__dict__  # a module's attributes cost twice as much, on the path of every call
    own, buffers = state["_parameters"], state["_buffers"]
    if "weight" not in own:  # the replicas of nn.DataParallel have plain attributes instead
        own = state
    weight, bias, mean, var = own["weight"], own["bias"], buffers["running_mean"], buffers["running_var"]
    if mean is not None and not state["training"]:
        if mean.device != x.device or mean.shape != (1,) or mean.dtype not in (torch.float32, x.dtype):
            return _CALLED
        return "fixed", (weight, bias, mean, var, state["eps"])
    fits = all(
        t is None or (t.device == x.device and t.dtype in (torch.float32, x.dtype)) for t in (weight, bias, mean)
    )
    if state["num_features"] != 1 or not fits:
        return _CALLED
    statistics = (weight, bias, None, None, state["eps"])
    if kind is nn.SyncBatchNorm and group_of(norm) is not None:
        return "synced", statistics
    return _CALLED if x.shape[0] == 0 else ("batch", statistics)


_CALLED: tuple[Kind, Statistics] = ("called", NO_NORM)


def group_of(norm: Any) -> str | None:
    """Name of the process group whose batches a SyncBatchNorm takes together; None where it has but its own to take."""
    if not (norm.training and dist.is_available() and dist.is_initialized()):
        return None
    group: Any = norm.process_group or dist.group.WORLD
    return group.group_name if dist.get_world_size(group) > 1 else None


def check_batch(x: Tensor) -> None:
    """x (N, C, *pixels) has more than one logit.

    Raises: ValueError, as PyTorch's batch norm does.
    """
    if prod(x.shape) == x.shape[1]:
        raise ValueError(
            "Expected more than 1 value per channel when training, got one sample of one pixel: the variance of a "
            "single logit is nothing to divide by; use a larger batch, or eval()"
        )


def update_statistics(norm: _BatchNorm, mean: Tensor, var: Tensor, count: int | Tensor) -> None:
    """What a batch norm of PyTorch does to its buffers; var is the biased one, of so many logits."""
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
        for running, found in ((norm.running_mean, mean), (norm.running_var, var * (count / (count - 1)))):
            wide = running.to(found.dtype)  # itself, but for buffers of half precision, which are rounded once
            wide.lerp_(found, momentum)
            if wide is not running:
                running.copy_(wide)
