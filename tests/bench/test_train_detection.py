"""Detection by `python -m bench train`: COCO's and VOC's formats as published, average precision, runs that go on."""

import json

import numpy as np
import pytest
import torch

from bench.train import boxes
from cbam_triton.demo.options import InputError

from . import data_sets
from .test_train import assert_same_state, log, refused, saved, train

pytest.importorskip("torchvision")
pytest.importorskip("PIL")
pytest.importorskip("tqdm")
pytest.importorskip("pycocotools")

from bench.train.detection import Detection, average_precision

SMALL = ["--model", "fasterrcnn_resnet18_fpn", "--min-size", "64", "--max-size", "64", "--batch", "2"]
SMALL += ["--warmup", "2", "--lr", "0.01", "--workers", "0"]
COCO, VOC = ["--format", "coco"], ["--format", "voc", "--train", "2007/trainval"]


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return data_sets.coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return data_sets.voc(tmp_path_factory.mktemp("voc"))


def test_cocos_boxes_are_read_as_corners_with_crowds_ignored(coco):
    samples = boxes.coco_samples(coco, "train2017")
    assert len(samples) == 7
    empty, first = samples[:2]  # by their ids, 99 and 100
    assert empty.boxes.shape == (0, 4)
    assert first.boxes.tolist() == [[8, 8, 28, 32], [0, 40, 64, 60]]
    assert (first.names, first.ignored.tolist(), first.areas.tolist()) == (["left"] * 2, [False, True], [480, 900])
    assert samples[2].names == ["right"]


def test_vocs_first_pixel_is_one_and_difficult_boxes_are_ignored(voc):
    samples = boxes.voc_samples(voc, "2007/test")
    assert len(samples) == 3
    assert samples[0].boxes.tolist() == [[8, 8, 28, 32], [0, 0, 9, 9]]
    assert (samples[0].ignored.tolist(), samples[0].areas.tolist()) == ([False, True], [480, 81])


def test_what_is_trained_on_lies_on_the_square_in_every_augmentation(coco):
    samples = [one for one in boxes.coco_samples(coco, "train2017") if boxes.usable(one).any()]
    assert len(samples) == 6
    for augmentation in ("flip", "ssd"):
        torch.manual_seed(0)
        data = boxes.Boxes(samples, ["left", "right"], boxes.transforms(augmentation), True)
        sides, labels = set(), set()
        for index in [*range(6)] * 3:
            image, target = data[index]
            assert image.dtype == torch.float32
            assert 0 <= image.min() < image.max() <= 1
            assert target["boxes"].shape == (1, 4)  # no crowd
            left, top, right, bottom = target["boxes"][0].round().int().tolist()
            inside, everywhere = image[:, top:bottom, left:right].mean(), image.mean()
            assert inside > everywhere or inside > 0.5
            sides.add(left)
            labels.add((index % 2, target["labels"].item()))
        assert len(sides) > 2, augmentation  # flipped, or cropped
        assert labels == {(0, 1), (1, 2)}


def rows_of(samples, scores):
    """Each box that counts, found exactly: image, left, top, width, height, score, label."""
    rows = []
    for image, (sample, score) in enumerate(zip(samples, scores, strict=True)):
        left, top, right, bottom = sample.boxes[0].tolist()
        rows.append([image, left, top, right - left, bottom - top, score, 1 + (sample.names[0] == "right")])
    return np.array(rows)


def test_average_precision_is_one_for_the_truth_and_falls_with_what_is_wrong(voc):
    samples = boxes.voc_samples(voc, "2007/trainval")
    truth = rows_of(samples, [0.9] * 6)
    measures = average_precision(samples, ["left", "right"], truth)
    assert measures["ap"] == measures["ap50"] == pytest.approx(1)
    assert "ap_large" not in measures  # there is no large box
    in_difficult = np.concatenate([truth, [[0, 1, 1, 8, 8, 0.95, 1]]])
    assert average_precision(samples, ["left", "right"], in_difficult)["ap"] == pytest.approx(1)
    shifted = truth.copy()
    shifted[:, 1] += 0.2 * shifted[:, 3]  # an IoU of 0.8 / 1.2: right at 0.5 to 0.65, 4 of COCO's 10 thresholds
    assert average_precision(samples, ["left", "right"], shifted)["ap"] == pytest.approx(0.4)
    swapped = truth.copy()
    swapped[:, 6] = 3 - swapped[:, 6]
    assert average_precision(samples, ["left", "right"], swapped)["ap"] == 0
    assert average_precision(samples, ["left", "right"], truth[:0]) == {"ap": 0, "ap50": 0, "ap75": 0, "ap_small": 0}


def test_a_detector_trains_and_is_measured(tmp_path):
    folder = data_sets.voc(tmp_path / "voc", train=2, held_out=1)
    small = ["--model", "ssdlite320_mobilenet_v3_large", "--augment", "flip", "--batch", "2", "--workers", "0"]
    assert train(folder, tmp_path, *VOC, "--epochs", "1", task="detection", small=small) == 0
    (line,) = log(tmp_path)
    assert line["loss"] > 0
    assert 0 <= line["ap"] <= line["ap50"] <= 1
    assert line["lr"] == pytest.approx(0.02 / 1000)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["coco", "voc"])
def test_a_detector_that_was_stopped_ends_where_one_that_was_not_does(form, request, tmp_path, monkeypatch):
    folder, options = request.getfixturevalue(form), {"coco": COCO, "voc": VOC}[form]
    options = [*options, "--epochs", "2", "--ema", "0.5"]
    assert train(folder, tmp_path / "whole", *options, task="detection", small=SMALL) == 0
    losses = []

    def stopped(task, model, batch):
        losses.append(loss(task, model, batch))
        if len(losses) == 5:
            raise KeyboardInterrupt
        return losses[-1]

    loss = Detection.loss
    with monkeypatch.context() as patch:
        patch.setattr(Detection, "loss", stopped)
        assert train(folder, tmp_path / "stopped", *options, task="detection", small=SMALL) == 130
    assert len(saved(tmp_path / "stopped")["history"]) == 1
    assert train(folder, tmp_path / "stopped", *options, task="detection", small=SMALL) == 0
    assert_same_state(saved(tmp_path / "stopped"), saved(tmp_path / "whole"))
    assert {"ap", "ap50", "ema_ap", "loss", "lr"} <= log(tmp_path / "whole")[1].keys()


@pytest.mark.slow
def test_a_detector_learns_to_find_the_squares(coco, tmp_path):
    options = [*COCO, "--epochs", "12", "--warmup", "10", "--drops", "10", "--lr", "0.02"]
    assert train(coco, tmp_path, *options, task="detection", small=SMALL) == 0
    assert log(tmp_path)[-1]["ap50"] > 0.5


@pytest.mark.slow
def test_ssd_trains_with_its_augmentation(coco, tmp_path):
    small = ["--model", "ssd300_vgg16", "--batch", "2", "--warmup", "3", "--lr", "0.001", "--workers", "0"]
    assert train(coco, tmp_path, *COCO, "--epochs", "1", task="detection", small=small) == 0
    assert any(".cbam." in name for name in saved(tmp_path)["model"])


@pytest.mark.parametrize("options, message", [
    ([*COCO, "--train", "train2014"], "instances_train2014.json': --train and --val name sets"),
    (["--format", "voc", "--train", "2012/trainval"], "there is no set '2012/trainval' under"),
    (["--format", "voc", "--train", "1999/trainval"], "there is no set '1999/trainval' under"),
    ([*COCO, "--model", "ssd300"], "has no 'ssd300' for this task; there is ssd300_vgg16"),
])  # fmt: skip
def test_sets_that_are_not_there_are_one_line(coco, tmp_path, capsys, options, message):
    assert message in refused(capsys, coco, tmp_path, *options, task="detection", small=SMALL)


def test_sets_without_boxes_or_with_other_classes_are_one_line(tmp_path, capsys):
    folder = data_sets.coco(tmp_path)
    file = folder / "annotations" / "instances_val2017.json"
    known = json.loads(file.read_text())

    def of(**changed):
        file.write_text(json.dumps(known | changed))
        return refused(capsys, folder, tmp_path / "out", *COCO, task="detection", small=SMALL)

    assert "have no box to measure on" in of(annotations=[])
    names = [{"id": 7, "name": "left"}, {"id": 18, "name": "middle"}]
    assert "classes that --train has no box of: middle" in of(categories=names)
    assert "is not an instances file of COCO (KeyError: " in of(images=[{"id": 100}])
    file.write_text("{")
    with pytest.raises(InputError, match="is not an instances file of COCO"):
        boxes.coco_samples(folder, "val2017")
    train_file = folder / "annotations" / "instances_train2017.json"
    train_file.write_text(json.dumps(json.loads(train_file.read_text()) | {"annotations": []}))
    file.write_text(json.dumps(known))
    error = refused(capsys, folder, tmp_path / "out", *COCO, task="detection", small=SMALL)
    assert "the sets of --train have no box to train on" in error
