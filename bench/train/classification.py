"""ImageNet's task: one class an image, cross-entropy, top-1 and top-5."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import held_out_batches, image_folders, training_batches
from .models import classifier
from .processes import Processes


class Classification:
    """A `Task` on folders of images."""

    def __init__(self, arguments: argparse.Namespace, processes: Processes) -> None:
        train, held_out = image_folders(arguments.data, arguments.size)
        batch, workers = arguments.batch, arguments.workers
        self.loader, self.sampler = training_batches(train, batch, workers, arguments.seed, processes)
        self.held_out = held_out_batches(held_out, max(1, batch // processes.count), workers, processes)
        self.facts: dict[str, Any] = {"classes": train.classes, "images": [len(train), len(held_out)]}
        self.device = processes.device
        self.layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
        self.model = classifier(arguments, len(train.classes))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The cross-entropy of a batch."""
        images, labels = self._moved(batch)
        return F.cross_entropy(model(images), labels)

    def measure(self, model: nn.Module, processes: Processes) -> dict[str, float]:
        """The parts of the held-out images, from 0 to 1, whose class is the first, and among the first five."""
        right = torch.zeros(3, dtype=torch.int64, device=self.device)
        for batch in self.held_out:
            images, labels = self._moved(batch)
            logits = model(images)
            hits = logits.topk(min(5, logits.shape[1]), 1).indices == labels[:, None]
            right += torch.stack([hits[:, 0].sum(), hits.sum(), torch.tensor(len(labels), device=self.device)])
        first, five, count = processes.total(right).tolist()
        return {"top1": first / count, "top5": five / count}

    def _moved(self, batch: Any) -> tuple[Tensor, Tensor]:
        images, labels = batch
        images = images.to(self.device, non_blocking=True, memory_format=self.layout)
        return images, labels.to(self.device, non_blocking=True)
