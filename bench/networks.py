"""The networks of `python -m bench network`, all with the same weights, and what one step of each computes."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_triton import convert_cbam, insert_cbam, settings
from cbam_triton.models import remove_cbam
from cbam_triton.testing.agreement import Agreement, agreement, gradient_agreement
from cbam_triton.testing.published import TimmCBAM, timm_like

NETWORKS = ("none", "published", "converted", "inserted")
_SCALE = 1024.0  # of the loss in float16: gradients of a first step are far from both of its ends
_LAST_NORMS = ("bn3", "bn2")  # of torchvision's blocks with and without a bottleneck

Call = Callable[[Tensor], Tensor]


class PublishedCBAM(TimmCBAM):
    """timm's form as another's code has it: `convert_cbam` leaves the classes of cbam_triton alone."""


class Batch(NamedTuple):
    """What a step gets: images (N,3,S,S) in the network's dtype and layout, classes (N), and autocast's dtype."""

    images: Tensor
    classes: Tensor
    dtype: torch.dtype


def build(name: str, size: int, device: torch.device) -> dict[str, nn.Module]:
    """torchvision's ResNet of that name in four forms, float32 and NCHW, with seeded weights.

    `none` has no attention; `published` has timm's CBAM at the end of each block's branch; `converted` is that after
    `convert_cbam`; `inserted` has layers of `insert_cbam` there, which compute the addition and the ReLU too. The last
    three compute the same. Batch norms have the statistics of one batch, as those of a trained network fit its maps.
    """
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = models.get_model(name, weights=None).to(device)
        inserted = copy.deepcopy(plain)
        insert_cbam(inserted)
    images = torch.randn((8, 3, size, size), generator=torch.Generator().manual_seed(1)).to(device)
    for model in (plain, inserted):
        _calibrate(model, images)
    published = copy.deepcopy(inserted)
    layers = {block: published.get_submodule(f"{block}.cbam") for block in remove_cbam(copy.deepcopy(inserted))}
    remove_cbam(published)
    for block, layer in layers.items():
        _put_at_end(published.get_submodule(block), timm_like(layer))
    converted = copy.deepcopy(published)
    report = convert_cbam(converted)
    if len(report.converted) != len(layers):
        raise RuntimeError(f"convert_cbam left some CBAMs of {name} alone, please report it:\n{report}")
    return {"none": plain, "published": published, "converted": converted, "inserted": inserted}


def _calibrate(model: nn.Module, images: Tensor) -> None:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad(), settings(backend="reference"):
        model.train()(images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def _put_at_end(block: nn.Module, attention: TimmCBAM) -> None:
    name = next(name for name in _LAST_NORMS if hasattr(block, name))
    form = PublishedCBAM(attention.fc1.in_channels)
    form.load_state_dict(attention.state_dict())
    pair = OrderedDict([("norm", getattr(block, name)), ("cbam", form.to(attention.fc1.weight.device))])
    setattr(block, name, nn.Sequential(pair))


def prepared(model: nn.Module, training: bool, dtype: torch.dtype, layout: torch.memory_format) -> nn.Module:
    """A copy for training, with float32 weights, or for inference, with weights of this dtype."""
    model = copy.deepcopy(model).train(training)
    return model.to(memory_format=layout) if training else model.to(dtype=dtype, memory_format=layout)


def make_batch(
    size: int, count: int, device: torch.device, training: bool, dtype: torch.dtype, layout: torch.memory_format
) -> Batch:
    """Seeded images and classes; the images of training stay float32, since autocast converts them."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn((count, 3, size, size), generator=generator)
    classes = torch.randint(1000, (count,), generator=generator)
    images = images.to(device, torch.float32 if training else dtype).contiguous(memory_format=layout)
    return Batch(images, classes.to(device), dtype)


def results(call: Call, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits (N,1000), and the gradients of a model in training mode, flat, under names that the forms share."""
    if not model.training:
        with torch.no_grad():
            return call(batch.images), {}
    with _autocast(batch):
        logits = call(batch.images)
        loss = F.cross_entropy(logits, batch.classes) * _SCALE
    found = torch.autograd.grad(loss, list(model.parameters()))
    return logits.detach(), dict(zip(_shared_names(model), (one.flatten() for one in found), strict=True))


def exact_results(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """`results` in float64, of a model and a batch as they are."""
    exact = copy.deepcopy(model).to(dtype=torch.float64, memory_format=torch.contiguous_format)
    images = batch.images.double().contiguous()
    with torch.backends.cudnn.flags(benchmark=False):
        return results(exact, exact, Batch(images, batch.classes, torch.float64))


def agreements(got, eager, want) -> list[Agreement]:
    """Of logits and, in training, of the worst group of gradients: first layers, stages, each attention, classifier."""
    found = [agreement(got[0], eager[0], want[0])]
    return [*found, gradient_agreement(got[1], eager[1], want[1])] if want[1] else found


def step_of(call: Call, model: nn.Module, batch: Batch) -> Callable[[], object]:
    """What is timed: a forward pass in eval mode; in training mode also the backward pass and a step of SGD."""
    if not model.training:
        return torch.no_grad()(lambda: call(batch.images))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(
        batch.images.device.type, _SCALE, growth_interval=1 << 30, enabled=batch.dtype == torch.float16
    )

    def step() -> None:
        with _autocast(batch):
            loss = F.cross_entropy(call(batch.images), batch.classes)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _autocast(batch: Batch) -> torch.autocast:
    half = batch.dtype in (torch.float16, torch.bfloat16)
    return torch.autocast(batch.images.device.type, batch.dtype if half else torch.bfloat16, enabled=half)


def _shared_names(model: nn.Module) -> Iterator[str]:
    """A name for each parameter; those of attention, which all forms hold in one order, are numbered in their block."""
    counts: dict[str, int] = {}
    for name, _ in model.named_parameters():
        block, inside, _ = name.partition(".cbam.")
        if inside:
            block = block.removesuffix(".bn2").removesuffix(".bn3")
            counts[block] = counts.get(block, -1) + 1
            yield f"attention of {block.replace('.', ' ')}.{counts[block]}"
        else:
            yield name.replace(".norm.", ".")
