"""Kernels of a network's attention compiled side by side, before the network is run: one after another takes minutes.

Triton keeps what it compiled on disk, so that processes of their own can do it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

import torch
from torch import nn

from cbam_triton import CBAM, settings

_MOST_PROCESSES = 12  # each has a context on the GPU, some 500 MiB


class LayerCall(NamedTuple):
    """A call of one layer: x's shape and dtype, whether it trains, and whether it ends its block (`inserted`)."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    channels_last: bool
    training: bool
    ends_block: bool


def shapes_in(model: nn.Module, size: int, batch: int) -> list[tuple[int, int, int, int]]:
    """The maps (N,C,H,W), each once, that the layers of `insert_cbam` get of images (N,3,S,S)."""
    found: dict[tuple[int, int, int, int], None] = {}

    def note(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        found[batch, given[0].shape[1], given[0].shape[2], given[0].shape[3]] = None

    layers = [module for module in model.modules() if isinstance(module, CBAM)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    device = next(model.parameters()).device
    trains = model.training
    try:
        with torch.no_grad(), settings(backend="reference"):
            model.eval()(torch.zeros((1, 3, size, size), device=device))
    finally:
        model.train(trains)
        for hook in hooks:
            hook.remove()
    return list(found)


def run_layer(call: LayerCall, device: str) -> None:
    """One call of such a layer, with its gradients in training, where parameters are float32 beside x's own dtype."""
    layer = CBAM(call.shape[1], activation="relu" if call.ends_block else None).train(call.training)
    layer.to(device, torch.float32 if call.training else call.dtype)
    layout = torch.channels_last if call.channels_last else torch.contiguous_format
    x, residual = (
        torch.zeros(call.shape, dtype=call.dtype, device=device)
        .contiguous(memory_format=layout)
        .requires_grad_(call.training)
        for _ in range(2)
    )
    with torch.set_grad_enabled(call.training):
        y = layer(x, residual=residual) if call.ends_block else layer(x)
        if call.training:
            y.backward(torch.zeros_like(y))


def precompile(calls: Iterable[LayerCall], device: torch.device) -> Iterator[str]:
    """Run each call in one of several processes; a line for each that failed there. It will be tried again here."""
    calls = list(calls)
    count = min(_MOST_PROCESSES, os.cpu_count() or 1, len(calls))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        running = {pool.submit(run_layer, call, str(device)): call for call in calls}
        for future in as_completed(running):
            error = future.exception()
            if error is not None:
                yield f"{'x'.join(map(str, running[future].shape))}: {type(error).__name__}: {error}"[:160]
