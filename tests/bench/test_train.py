"""`python -m bench train`: a run that was stopped ends where one that was not does, and mistakes are one line."""

import argparse
import json

import pytest
import torch

from bench.__main__ import main
from cbam_triton import settings

from . import data_sets

pytest.importorskip("torchvision")
pytest.importorskip("PIL")
pytest.importorskip("tqdm")

from bench.train import checkpoint, command, loop
from bench.train.classification import Classification

SMALL = ["--model", "mnasnet0_5", "--size", "32", "--batch", "8", "--lr", "0.01", "--workers", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return data_sets.image_folder(tmp_path_factory.mktemp("images"))


def train(folder, out, *options, task="classification", small=SMALL):
    with settings(backend="reference"), torch.random.fork_rng():
        return main(["train", task, str(folder), "--out", str(out), *small, *options])


def saved(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_state(one, other):
    """Equal to the last bit, however nested; times aside."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one.keys() - {"train_seconds"}:
            assert_same_state(one[name], other[name])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same_state(left, right)
    else:
        assert one == other


def test_a_run_that_was_stopped_ends_where_one_that_was_not_does(folder, tmp_path, monkeypatch, capsys):
    options = ["--epochs", "3", "--ema", "0.5", "--drops", "1", "2", "--warmup", "3"]
    assert train(folder, tmp_path / "whole", *options) == 0  # MNASNet has a dropout, which draws numbers as crops do
    losses = []

    def stopped(task, model, batch):
        losses.append(loss(task, model, batch))
        if len(losses) == 4:  # the last batch of the second epoch
            raise KeyboardInterrupt
        return losses[-1]

    loss = Classification.loss
    with monkeypatch.context() as patch:
        patch.setattr(Classification, "loss", stopped)
        assert train(folder, tmp_path / "stopped", *options) == 130
    assert len(saved(tmp_path / "stopped")["history"]) == len(log(tmp_path / "stopped")) == 1
    torch.manual_seed(99)
    assert train(folder, tmp_path / "stopped", *options) == 0
    assert "Goes on after epoch 1" in capsys.readouterr().out
    assert_same_state(saved(tmp_path / "stopped"), saved(tmp_path / "whole"))
    assert [line["epoch"] for line in log(tmp_path / "stopped")] == [1, 2, 3]
    assert {path.name for path in (tmp_path / "stopped").iterdir()} == {"checkpoint.pt", "log.jsonl"}


def test_a_write_that_is_broken_off_leaves_the_file_before_it(tmp_path, monkeypatch):
    checkpoint.write(tmp_path / "checkpoint.pt", {"epoch": 1})

    def half(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.write(tmp_path / "checkpoint.pt", {"epoch": 2})
    assert saved(tmp_path) == {"epoch": 1}
    checkpoint.write(tmp_path / "checkpoint.pt", {"epoch": 3})
    assert saved(tmp_path) == {"epoch": 3}


def test_a_finished_run_says_so_and_more_epochs_go_on(folder, tmp_path, capsys):
    assert train(folder, tmp_path, "--epochs", "1") == 0
    (tmp_path / "log.jsonl").write_text('{"torn')  # by a kill between the two files
    assert train(folder, tmp_path, "--epochs", "1") == 0
    assert [line["epoch"] for line in log(tmp_path)] == [1]
    assert "All 1 epochs are done" in capsys.readouterr().out
    assert train(folder, tmp_path, "--epochs", "2", "--workers", "1") == 0
    assert "Not bit for bit what an uninterrupted run gives: --workers 0, now 1" in capsys.readouterr().out
    assert [line["epoch"] for line in log(tmp_path)] == [1, 2]


def test_every_epoch_has_its_own_order_and_averages_have_their_own_statistics(folder, tmp_path, monkeypatch):
    from torchvision.datasets import ImageFolder

    read, item = [], ImageFolder.__getitem__
    monkeypatch.setattr(
        ImageFolder, "__getitem__", lambda data, index: read.append((data.root, index)) or item(data, index)
    )
    assert train(folder, tmp_path, "--epochs", "2", "--ema", "0.5") == 0
    trained = [index for root, index in read if root.endswith("train")]
    first, second = trained[:16], trained[16:]
    assert sorted(first) == sorted(second) == [*range(16)]
    assert first != second
    state = saved(tmp_path)
    name = "layers.1.running_mean"
    assert not torch.equal(state["average"][f"module.{name}"], state["model"][name])


def test_the_rate_warms_up_and_drops_as_the_paper_has_it():
    paper = argparse.Namespace(lr=0.1, warmup=0, factor=0.1, drops=[30, 60])
    rates = [loop.learning_rate(paper, epoch, 5 * epoch) for epoch in range(90)]
    assert rates == pytest.approx([0.1] * 30 + [0.01] * 30 + [0.001] * 30)
    warm = argparse.Namespace(lr=1.0, warmup=4, factor=0.5, drops=[1])
    assert [loop.learning_rate(warm, step // 3, step) for step in range(6)] == [0.25, 0.5, 0.75, 0.5, 0.5, 0.5]


def test_the_paper_is_the_default():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    got = parser.parse_args(["classification", "data"])
    assert (got.epochs, got.batch, got.lr, got.drops, got.factor) == (90, 256, 0.1, [30, 60], 0.1)
    assert (got.momentum, got.weight_decay, got.size, got.attention) == (0.9, 1e-4, 224, "cbam")


def test_a_step_learns_with_the_options_that_change_how_it_is_computed(folder, tmp_path):
    plain = ["--model", "resnet18", "--epochs", "1", "--attention", "se", "--reduction", "8"]
    assert train(folder, tmp_path / "float32", *plain) == 0
    for name, options in {"half": ["--amp", "bfloat16"], "layout": ["--channels-last"]}.items():
        assert train(folder, tmp_path / name, *plain, *options) == 0
    losses = {name: log(tmp_path / name)[0]["loss"] for name in ("float32", "half", "layout")}
    assert 1e-6 < abs(losses["half"] - losses["float32"]) < 0.1
    assert losses["layout"] == pytest.approx(losses["float32"], rel=1e-3)
    assert saved(tmp_path / "layout")["model"]["layer1.0.conv1.weight"].is_contiguous(memory_format=torch.channels_last)


def refused(capsys, folder, out, *options, **kinds):
    assert train(folder, out, *options, **kinds) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench train: error: ")
    assert len(error.splitlines()) == 1
    return error


@pytest.mark.parametrize("options, message", [
    (["--batch", "17"], "16 images to train on, fewer than a batch: give --batch 16"),
    (["--model", "resnet19"], "has no 'resnet19' for this task; there is resnet1"),
    (["--model", "vit_b_16"], "--attention: VisionTransformer has no residual block"),
    (["--attention", "none", "--arrangement", "parallel"], "--arrangement is of another attention than 'none'"),
    (["--attention", "se", "--kernel-size", "3"], "--kernel-size is of another attention"),
    (["--attention", "none", "--reduction", "8"], "--reduction is of another attention"),
    (["--channel-pools", "median"], "channel_pools must be"),
    (["--device", "tpu9"], "--device"),
    (["--ema", "1"], "--ema"),
    (["--lr", "0"], "--lr is above 0"),
    (["--drops", "3", "2"], "--drops grow"),
    (["--sync-bn", "--device", "cpu"], "--sync-bn: PyTorch's SyncBatchNorm takes no tensors of a CPU"),
    (["--weights", "nothing.pt"], "--weights: there is no file 'nothing.pt'"),
])  # fmt: skip
def test_what_cannot_be_trained_is_one_line(folder, tmp_path, capsys, options, message):
    assert message in refused(capsys, folder, tmp_path / "out", *options)
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_folders_without_classes_or_with_others_are_refused(tmp_path, capsys):
    out = tmp_path / "out"
    assert "there is no folder" in refused(capsys, tmp_path / "nowhere", out)
    assert "train/CLASS/*.jpg" in refused(capsys, tmp_path, out)
    (tmp_path / "train").mkdir()
    assert "has no folder of images for each class" in refused(capsys, tmp_path, out)
    (tmp_path / "train" / "empty").mkdir()
    assert "has no folder of images for each class" in refused(capsys, tmp_path, out)
    data = data_sets.image_folder(tmp_path / "data")
    (data / "val" / "right").rename(data / "val" / "wrong")
    assert "different classes: right, wrong" in refused(capsys, data, out)


def test_a_run_of_another_configuration_is_refused_and_left_alone(folder, tmp_path, capsys):
    assert train(folder, tmp_path, "--epochs", "1") == 0
    before = (tmp_path / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    error = refused(capsys, folder, tmp_path, "--epochs", "2", "--lr", "0.02", "--attention", "se")
    assert "is of another run: --attention cbam, now se; --lr 0.01, now 0.02. Give its options" in error
    other = data_sets.image_folder(tmp_path / "other", train=18)
    assert "images 16 3, now 18 3" in refused(capsys, other, tmp_path, "--epochs", "2")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    torch.save({"model": {}}, tmp_path / "checkpoint.pt")
    assert "is not a checkpoint of this command" in refused(capsys, folder, tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(before[:1000])
    assert "is not a file of torch.save" in refused(capsys, folder, tmp_path)


def test_a_loss_that_is_not_finite_ends_a_run_before_it_is_saved(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Classification, "loss", lambda task, model, batch: model(batch[0]).sum() * float("nan"))
    assert "the loss of epoch 1 is nan" in refused(capsys, folder, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_weights_of_a_network_without_attention_start_one_with_it(folder, tmp_path, capsys):
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=7).state_dict(), tmp_path / "plain.pt")
    start = [
        "--model",
        "resnet18",
        "--weights",
        str(tmp_path / "plain.pt"),
        "--lr",
        "1e-30",
        "--epochs",
        "1",
        "--weight-decay",
        "0",
    ]
    assert train(folder, tmp_path / "out", *start) == 0
    plain, got = torch.load(tmp_path / "plain.pt"), saved(tmp_path / "out")["model"]
    assert got["fc.weight"].shape == (2, 512)
    assert all((got[name] - plain[name]).abs().max() < 1e-20 for name in plain if "conv" in name)
    torch.save(resnet18().layer1.state_dict(), tmp_path / "part.pt")
    options = ["--model", "resnet18", "--weights", str(tmp_path / "part.pt")]
    assert "has no fitting conv1.weight" in refused(capsys, folder, tmp_path / "other", *options)
