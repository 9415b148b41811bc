"""COCO's and Pascal VOC's task: boxes of classes; the detector's own losses, COCO's average precision."""

from __future__ import annotations

import argparse
import contextlib
import io
from typing import Any

import numpy as np
from torch import Tensor, nn

from cbam_triton.demo.options import InputError

from .boxes import Boxes, Sample, coco_samples, transforms, usable, voc_samples
from .data import held_out_batches, training_batches
from .models import detector
from .processes import Processes

SETS = {
    "coco": (["train2017"], ["val2017"]),
    "voc": (["2007/trainval", "2012/trainval"], ["2007/test"]),
}  # fmt: skip
_MEASURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class Detection:
    """A `Task` on images with boxes."""

    def __init__(self, arguments: argparse.Namespace, processes: Processes) -> None:
        read = {"coco": coco_samples, "voc": voc_samples}[arguments.format]
        train_sets, held_out_sets = SETS[arguments.format]
        train = [one for name in arguments.train or train_sets for one in read(arguments.data, name)]
        self.samples = [one for name in arguments.val or held_out_sets for one in read(arguments.data, name)]
        train = [one for one in train if usable(one).any()]
        classes = sorted({name for one in train for name in one.names})
        _check(classes, self.samples)
        augmentation = arguments.augment or ("ssd" if arguments.model.startswith("ssd") else "flip")
        batch, workers, seed = arguments.batch, arguments.workers, arguments.seed
        training, held_out = Boxes(train, classes, transforms(augmentation), True), None
        held_out = Boxes(self.samples, classes, transforms(None), False)
        self.loader, self.sampler = training_batches(training, batch, workers, seed, processes, collate_fn=_lists)
        self.held_out = held_out_batches(
            held_out, max(1, batch // processes.count), workers, processes, collate_fn=_lists
        )
        self.classes = classes
        self.facts: dict[str, Any] = {"classes": classes, "images": [len(train), len(self.samples)]}
        self.device = processes.device
        self.model = detector(arguments, len(classes) + 1)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The sum of the detector's losses."""
        images, targets = batch
        images = [image.to(self.device, non_blocking=True) for image in images]
        targets = [{name: target[name].to(self.device) for name in ("boxes", "labels")} for target in targets]
        losses: dict[str, Tensor] = model(images, targets)
        return sum(losses.values(), start=next(iter(losses.values())).new_zeros(()))

    def measure(self, model: nn.Module, processes: Processes) -> dict[str, float]:
        """COCO's average precision of all held-out images, from 0 to 1, for each size of box among them."""
        rows = [np.zeros((0, 7))]
        for images, targets in self.held_out:
            found = model([image.to(self.device, non_blocking=True) for image in images])
            rows += [_rows(target["index"], one) for target, one in zip(targets, found, strict=True)]
        everywhere = np.concatenate(processes.gathered(np.concatenate(rows)))
        measures = average_precision(self.samples, self.classes, everywhere) if processes.first else None
        return processes.gathered(measures)[0]


def _check(classes: list[str], held_out: list[Sample]) -> None:
    if not classes:
        raise InputError("the sets of --train have no box to train on")
    unknown = sorted({name for one in held_out for name in one.names} - set(classes))
    if unknown:
        raise InputError(f"the sets of --val have classes that --train has no box of: {', '.join(unknown[:5])}")
    if not any((~one.ignored).any() for one in held_out):
        raise InputError("the sets of --val have no box to measure on")


def _lists(samples: list[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """A batch as detectors take it: images differ in size."""
    return [image for image, _ in samples], [target for _, target in samples]


def _rows(index: int, found: dict[str, Tensor]) -> np.ndarray:
    """A row a box: image, left, top, width, height, score, label; pycocotools' form."""
    boxes, scores, labels = (found[name].double().cpu().numpy() for name in ("boxes", "scores", "labels"))
    sides = boxes[:, 2:] - boxes[:, :2]
    images = np.full((len(boxes), 1), index)
    return np.concatenate([images, boxes[:, :2], sides, scores[:, None], labels[:, None]], 1)


def average_precision(samples: list[Sample], classes: list[str], rows: np.ndarray) -> dict[str, float]:
    """COCO's measures of `rows` (boxes, 7): image, left, top, width, height, score, label.

    `image` is a place in `samples`, the label one more than a place in `classes`. Ignored boxes are COCO's crowds: what
    falls into one is neither right nor wrong.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels = {name: label for label, name in enumerate(classes, 1)}
    truth: list[dict[str, Any]] = []
    for image, sample in enumerate(samples):
        columns = zip(sample.boxes.tolist(), sample.names, sample.areas.tolist(), sample.ignored.tolist(), strict=True)
        for (left, top, right, bottom), name, area, ignored in columns:
            box = [left, top, right - left, bottom - top]
            truth.append({"id": len(truth) + 1, "image_id": image, "category_id": labels[name], "bbox": box})
            truth[-1] |= {"area": area, "iscrowd": int(ignored)}
    categories = [{"id": label, "name": name} for name, label in labels.items()]
    images = [{"id": image} for image in range(len(samples))]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, "images": images, "annotations": truth, "categories": categories}
        coco.createIndex()
        if not len(rows):  # pycocotools takes no empty list: a box off the image, which is wrong and worth nothing
            rows = np.array([[0, -2, -2, 1, 1, 0, 1]], float)
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    measures = zip(_MEASURES, evaluation.stats.tolist(), strict=False)
    return {name: value for name, value in measures if value >= 0}
