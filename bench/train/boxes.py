"""Images with boxes in COCO's and Pascal VOC's formats, as they are published, and the transforms of a detector."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cbam_triton.demo.options import InputError


class Sample(NamedTuple):
    """An image and its boxes: corners in pixels from 0, class names, areas, and whether a box only counts as ignored.

    Arrays, since worker processes would share a file for each tensor.
    """

    path: str
    boxes: np.ndarray  # (boxes, 4) float32: left, top, right, bottom
    names: list[str]
    areas: np.ndarray  # (boxes) float32
    ignored: np.ndarray  # (boxes) bool: COCO's crowds, VOC's difficult ones


def coco_samples(root: Path, name: str) -> list[Sample]:
    """The samples of `root/NAME/*.jpg` with `root/annotations/instances_NAME.json`, in the order of the image ids.

    Raises: InputError for a folder or a file that is not there, or is something else.
    """
    from torchvision.datasets import CocoDetection

    folder, file = root / name, root / "annotations" / f"instances_{name}.json"
    if not folder.is_dir() or not file.is_file():
        raise InputError(
            f"there is no {str(folder)!r} with {str(file)!r}: --train and --val name sets of COCO's format"
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            source = CocoDetection(str(folder), str(file))
        names = {category["id"]: category["name"] for category in source.coco.cats.values()}
        return [
            _coco_sample(folder / source.coco.imgs[image]["file_name"], source.coco.imgToAnns[image], names)
            for image in source.ids
        ]
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(f"{str(file)!r} is not an instances file of COCO ({type(error).__name__}: {error})") from None


def _coco_sample(path: Path, found: list[dict[str, Any]], names: dict[int, str]) -> Sample:
    boxes = np.array([item["bbox"] for item in found], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    areas = np.array([item["area"] for item in found], np.float32)
    crowds = np.array([bool(item.get("iscrowd")) for item in found], bool)
    return Sample(str(path), boxes, [names[item["category_id"]] for item in found], areas, crowds)


def voc_samples(root: Path, name: str) -> list[Sample]:
    """The samples of the set YEAR/SPLIT, such as 2007/trainval, under `root/VOCdevkit/VOCYEAR`.

    Raises: InputError for a set that is not there.
    """
    from torchvision.datasets import VOCDetection

    year, _, split = name.partition("/")
    try:
        source = VOCDetection(str(root), year, split)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise InputError(
            f"there is no set {name!r} under {str(root / 'VOCdevkit')!r} ({error}); --train and --val are YEAR/SPLIT"
        ) from None
    return [_voc_sample(image, file) for image, file in zip(source.images, source.annotations, strict=True)]


def _voc_sample(image: str, file: str) -> Sample:
    import xml.etree.ElementTree as ElementTree

    try:
        objects = ElementTree.parse(file).getroot().findall("object")
        corners = [
            [float(item.findtext(f"bndbox/{end}", "")) for end in ("xmin", "ymin", "xmax", "ymax")] for item in objects
        ]
        names = [item.findtext("name", "") for item in objects]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{file!r} is not an annotation of Pascal VOC ({error})") from None
    boxes = np.array(corners, np.float32).reshape(-1, 4)
    boxes[:, :2] -= 1  # VOC's first pixel is 1, and its last one belongs to the box
    sides = boxes[:, 2:] - boxes[:, :2]
    difficult = np.array([item.findtext("difficult", "0").strip() == "1" for item in objects], bool)
    return Sample(image, boxes, names, sides.prod(1), difficult)


class Boxes(Dataset[Any]):
    """The images of samples, and for each what torchvision's detectors take: boxes and labels, 0 for no class."""

    def __init__(self, samples: list[Sample], classes: list[str], transform: Any, training: bool) -> None:
        self.samples, self.transform, self.training = samples, transform, training
        self.labels = {name: label for label, name in enumerate(classes, 1)}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        from PIL import Image
        from torchvision.tv_tensors import BoundingBoxes

        sample = self.samples[index]
        with Image.open(sample.path) as file:
            image = file.convert("RGB")
        kept = usable(sample) if self.training else np.ones(len(sample.names), bool)
        labels = np.array([self.labels[name] for name in sample.names], np.int64)[kept]
        boxes = BoundingBoxes(sample.boxes[kept], format="XYXY", canvas_size=(image.height, image.width))  # pyright: ignore
        return self.transform(image, {"boxes": boxes, "labels": torch.from_numpy(labels), "index": index})


def usable(sample: Sample) -> np.ndarray:
    """Which boxes can be trained on: (boxes) bool. Not the ignored ones, nor those without an area."""
    return ~sample.ignored & (sample.boxes[:, 2:] > sample.boxes[:, :2]).all(1)


def transforms(augmentation: str | None) -> Any:
    """From an image to a float tensor in [0, 1]; "flip", or "ssd" with crops and colours; None changes nothing."""
    from torchvision.transforms import v2

    to_float = v2.ToDtype(torch.float32, scale=True)
    if augmentation is None:
        return v2.Compose([v2.ToImage(), to_float])
    if augmentation == "flip":
        return v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(), to_float])
    return v2.Compose([
        v2.ToImage(), v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=[123, 117, 104]), v2.RandomIoUCrop(),
        v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes(), to_float,
    ])  # fmt: skip
