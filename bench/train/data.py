"""Images in folders, a folder a class, as ImageNet is kept: `DATA/train/CLASS/*.jpg` and `DATA/val/CLASS/*.jpg`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from cbam_triton.demo.options import InputError

from .processes import Processes

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def image_folders(root: Path, size: int) -> tuple[Any, Any]:
    """The training and the held-out `ImageFolder`, with the transforms of the paper for images of `size` pixels.

    Raises: InputError for folders that are not there, have no classes, or have different ones.
    """
    from torchvision.transforms import v2

    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
    crops = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *end])
    centre = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size), *end])
    train, held_out = _folder(root, "train", crops), _folder(root, "val", centre)
    if train.classes != held_out.classes:
        only = sorted(set(train.classes) ^ set(held_out.classes))
        raise InputError(f"{root}/train and {root}/val have different classes: {', '.join(only[:5])} is in one of them")
    return train, held_out


def _folder(root: Path, name: str, transform: Any) -> Any:
    from torchvision.datasets import ImageFolder

    path = root / name
    if not path.is_dir():
        raise InputError(f"there is no folder {str(path)!r}: DATA has train/CLASS/*.jpg and val/CLASS/*.jpg")
    try:
        return ImageFolder(str(path), transform)
    except FileNotFoundError as error:
        raise InputError(f"{str(path)!r} has no folder of images for each class ({error})") from None


def training_batches(
    data: Dataset[Any], batch: int, workers: int, seed: int, processes: Processes, **options: Any
) -> tuple[DataLoader[Any], DistributedSampler[Any]]:
    """This process's part of every batch of `batch` samples, in an order drawn from the seed and the epoch.

    Raises: InputError for a batch that does not divide into the processes, or is larger than the data.
    """
    count: int = len(data)  # pyright: ignore[reportArgumentType]
    if batch % processes.count:
        raise InputError(
            f"--batch {batch} is over all processes, and not a multiple of their number, {processes.count}"
        )
    if count < batch:
        raise InputError(f"there are {count} images to train on, fewer than a batch: give --batch {count} or less")
    sampler = DistributedSampler(data, processes.count, processes.rank, seed=seed, drop_last=True)
    # Workers start anew each epoch: persistent ones would keep random states that no checkpoint sees.
    loader = DataLoader(
        data, batch // processes.count, sampler=sampler, num_workers=workers, drop_last=True,
        pin_memory=processes.device.type == "cuda", **options,
    )  # fmt: skip
    return loader, sampler


def held_out_batches(
    data: Dataset[Any], batch: int, workers: int, processes: Processes, **options: Any
) -> DataLoader[Any]:
    """This process's samples of the held-out data: each sample in exactly one process."""
    count: int = len(data)  # pyright: ignore[reportArgumentType]
    part = Subset(data, range(processes.rank, count, processes.count))
    pinned = processes.device.type == "cuda"
    return DataLoader(part, batch, num_workers=workers, pin_memory=pinned, **options)
