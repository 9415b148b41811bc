"""Tiny data sets in the formats of ImageNet, COCO and Pascal VOC, drawn from a seed: a bright square a class."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("left", "right")
BOXES = {"left": (8, 8, 28, 32), "right": (36, 20, 60, 52)}  # corners of the pixels, from 0, in images of 64


def picture(path, name, generator, side=64):
    """Noise with the class's bright box, as a JPEG."""
    pixels = generator.integers(0, 90, (side, side, 3), dtype=np.uint8)
    left, top, right, bottom = (corner * side // 64 for corner in BOXES[name])
    pixels[top:bottom, left:right] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def image_folder(root, train=16, held_out=3, side=32):
    """`root/train/CLASS/*.jpg` and `root/val/CLASS/*.jpg`; `held_out` is odd, so processes get unequal parts."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", held_out)):
        for number in range(count):
            name = CLASSES[number % 2]
            picture(root / split / name / f"{number}.jpg", name, generator, side)
    return root


def coco(root, train=6, held_out=3):
    """COCO's layout for the year 2017, with a crowd, an image without boxes, and ids that are not 1, 2, ..."""
    generator = np.random.default_rng(0)
    for split, count in (("train2017", train), ("val2017", held_out)):
        images, annotations = [], []
        for number in range(count):
            name = CLASSES[number % 2]
            picture(root / split / f"{number:012}.jpg", name, generator)
            images.append({"id": 100 + number, "file_name": f"{number:012}.jpg", "width": 64, "height": 64})
            left, top, right, bottom = BOXES[name]
            box = [left, top, right - left, bottom - top]
            item = {"image_id": 100 + number, "category_id": 7 + 11 * (number % 2), "bbox": box}
            annotations.append(item | {"id": 500 + number, "area": box[2] * box[3], "iscrowd": 0})
        crowd = {"id": 900, "image_id": 100, "category_id": 7, "bbox": [0, 40, 64, 20], "area": 900, "iscrowd": 1}
        images.append({"id": 99, "file_name": "empty.jpg", "width": 64, "height": 64})
        Image.new("RGB", (64, 64)).save(root / split / "empty.jpg")
        categories = [{"id": 7, "name": "left"}, {"id": 18, "name": "right"}]
        instances = {"images": images, "annotations": [*annotations, crowd], "categories": categories}
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(instances))
    return root


_OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


def voc(root, train=6, held_out=3):
    """`root/VOCdevkit/VOC2007` with the sets trainval and test; each image also has a difficult box."""
    generator = np.random.default_rng(0)
    home = root / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (home / folder).mkdir(parents=True)
    for split, first, count in (("trainval", 0, train), ("test", train, held_out)):
        names = [f"{number:06}" for number in range(first, first + count)]
        (home / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for number, stem in enumerate(names):
            name = CLASSES[number % 2]
            picture(home / "JPEGImages" / f"{stem}.jpg", name, generator)
            left, top, right, bottom = BOXES[name]
            objects = _OBJECT.format(name, 0, left + 1, top + 1, right, bottom) + _OBJECT.format(name, 1, 1, 1, 9, 9)
            (home / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{objects}</annotation>")
    return Path(root)
