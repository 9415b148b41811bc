"""Whole networks: the four forms compute the same, nothing wrong is timed, and a row says what ran."""

import argparse
import json

import pytest
import torch
from torch import nn

from bench import network, networks, precompile
from bench.__main__ import main
from cbam_triton import settings
from cbam_triton.kernels.launch import hardware
from cbam_triton.testing.timing import Timing

TINY = ["network", "--model", "resnet18", "--size", "32", "--batch", "2", "--device", "cpu", "--seconds", "0"]
ONE = [*TINY, "--layout", "nchw", "--mode", "inference"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models():
    return networks.build("resnet18", 32, CPU)


@pytest.fixture
def built(models, monkeypatch):
    monkeypatch.setattr(network, "build", lambda *given: models)
    return models


@pytest.fixture
def quiet(monkeypatch):
    """Seconds of a step that no noise reaches."""
    seconds = {"none": 0.5, "published": 1.0, "converted": 0.8, "inserted": 0.625}
    monkeypatch.setattr(network, "interleaved", lambda calls, *_, **__: {k: Timing(seconds[k], 0.0) for k in calls})


def rows_of(path):
    return {row["network"]: row for row in map(json.loads, path.read_text().splitlines())}


@pytest.mark.parametrize("training", [False, True])
def test_three_networks_compute_the_same_and_the_one_without_attention_does_not(models, training):
    batch = networks.make_batch(32, 2, CPU, training, torch.float64, torch.contiguous_format)
    found = {}
    with settings(backend="reference"):
        for name, model in models.items():
            model = networks.prepared(model, training, torch.float64, torch.contiguous_format)
            found[name] = networks.exact_results(model, batch)
    want, gradients = found["published"]
    for name in ("converted", "inserted"):
        torch.testing.assert_close(found[name][0], want, rtol=1e-9, atol=1e-9)
        assert found[name][1].keys() == gradients.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(found[name][1][key], gradient, rtol=1e-6, atol=1e-6)
    assert (found["none"][0] - want).abs().max() > 0.01
    assert bool(gradients) == training


def test_maps_have_the_size_of_a_trained_networks(models):
    with torch.no_grad(), settings(backend="reference"):
        for model in models.values():
            x = torch.randn((4, 3, 32, 32), generator=torch.Generator().manual_seed(5))
            assert 0.01 < model.eval()(x).std() < 10
            images = torch.randn((8, 3, 32, 32), generator=torch.Generator().manual_seed(1))
            torch.testing.assert_close(model.bn1.running_mean, model.conv1(images).mean((0, 2, 3)), rtol=0, atol=1e-5)
            assert model.bn1.momentum == 0.1


def test_a_row_has_images_a_second_and_ratios_of_one_state(built, quiet, tmp_path, capsys):
    out = tmp_path / "new" / "network.jsonl"
    assert main([*ONE, "--out", str(out)]) == 0
    rows = rows_of(out)
    assert list(rows) == list(networks.NETWORKS)
    assert [row["images_per_second"] for row in rows.values()] == [4.0, 2.0, 2.5, 3.2]
    assert [row["over_published"] for row in rows.values()] == [2.0, 1.0, 1.25, 1.6]
    assert [row["attention_share"] for row in rows.values()] == [None, 0.5, pytest.approx(0.375), pytest.approx(0.2)]
    for row in rows.values():
        assert (row["mode"], row["layout"], row["dtype"]) == ("inference", "nchw", "float32")
        assert (row["model"], row["batch"], row["size"], row["torch"]) == ("resnet18", 2, 32, torch.__version__)
        assert 0 < row["error_over_eager"][0] <= 3
        assert (row["note"], row["noisy"]) == ("", False)
    printed = capsys.readouterr().out
    assert "checking converted" in printed
    assert "1.60x over published   20% is attention" in printed


def test_noise_is_marked_and_gives_no_ratio(built, monkeypatch, tmp_path, capsys):
    def noisy(calls, *_, **__):
        return {name: Timing(1.0, 0.3 if name == "published" else 0.0) for name in calls}

    monkeypatch.setattr(network, "interleaved", noisy)
    out = tmp_path / "network.jsonl"
    assert main([*ONE, "--out", str(out)]) == 0
    rows = rows_of(out)
    assert [row["noisy"] for row in rows.values()] == [False, True, False, False]
    assert [row["over_published"] for row in rows.values()] == [None] * 4
    assert rows["converted"]["attention_share"] == 0
    assert "images/s ~" in capsys.readouterr().out


def test_training_takes_the_steps_that_are_timed(built, quiet, tmp_path):
    out = tmp_path / "network.jsonl"
    words = ["--layout", "channels_last", "--mode", "training", "--networks", "published", "converted"]
    assert main([*TINY, *words, "--dtype", "bfloat16", "--out", str(out)]) == 0
    rows = rows_of(out)
    assert list(rows) == ["published", "converted"]
    assert rows["converted"]["over_published"] == 1.25
    assert rows["converted"]["attention_share"] is None
    assert len(rows["converted"]["error_over_eager"]) == 2
    assert not rows["converted"]["note"]


def test_a_step_of_training_moves_the_weights_and_one_of_inference_does_not(models):
    for training, dtype in ((False, torch.float32), (True, torch.float16)):
        model = networks.prepared(models["converted"], training, dtype, torch.channels_last)
        batch = networks.make_batch(64, 4, CPU, training, dtype, torch.channels_last)
        before = [parameter.clone() for parameter in model.parameters()]
        with settings(backend="reference"):
            networks.step_of(model, model, batch)()
        moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert (all(moved), any(moved)) == (training, training)


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_a_network_of_ours_that_fails_gets_no_time_and_fails_the_run(built, quiet, monkeypatch, tmp_path, fault):
    def prepare(model, *given):
        model = right(model, *given)
        if model_is_ours(model):
            block = model.layer4[1].cbam
            if fault == "raises":
                block.register_forward_pre_hook(lambda *_: 1 / 0)
            else:
                block.register_forward_hook(lambda module, given, y: y * 1.001)
        return model

    def model_is_ours(model):
        return any(name.endswith("layer4.1.cbam") for name, _ in model.named_modules())

    right = networks.prepared
    monkeypatch.setattr(network, "prepared", prepare)
    out = tmp_path / "network.jsonl"
    assert main([*ONE, "--out", str(out)]) == 1
    rows = rows_of(out)
    assert rows["inserted"]["note"] == ("wrong" if fault == "wrong" else "ZeroDivisionError: division by zero")
    assert "seconds" not in rows["inserted"]
    assert rows["converted"]["over_published"] == 1.25


@pytest.mark.parametrize("training", [False, True])
def test_the_rule_sees_a_wrong_attention_layer(models, training):
    batch = networks.make_batch(32, 2, CPU, training, torch.float32, torch.contiguous_format)
    published = networks.prepared(models["published"], training, torch.float32, torch.contiguous_format)
    wrong = networks.prepared(models["published"], training, torch.float32, torch.contiguous_format)
    yardstick = networks.results(published, published, batch), networks.exact_results(published, batch)
    wrong.layer2[0].bn2.cbam.fc2.bias.register_hook(lambda gradient: gradient * 1.5) if training else (
        nn.init.constant_(wrong.layer2[0].bn2.cbam.norm.bias, 1e-3)
    )
    assert network.check(published, published, batch, yardstick)["note"] == ""
    assert network.check(wrong, wrong, batch, yardstick)["note"] == "wrong"


def test_gradients_that_overflow_get_no_time(models):
    batch = networks.make_batch(32, 2, CPU, True, torch.float16, torch.contiguous_format)
    model = networks.prepared(models["published"], True, torch.float16, torch.contiguous_format)
    model.layer3[0].bn2.cbam.fc2.bias.register_hook(lambda gradient: gradient * torch.inf)
    yardstick = networks.results(model, model, batch), networks.exact_results(model, batch)
    assert network.check(model, model, batch, yardstick)["note"].startswith("overflow")


def test_a_row_says_what_was_launched_and_from_where(models):
    if hardware.why_no_triton() is not None:
        pytest.skip("no Triton here")
    batch = networks.make_batch(32, 2, CPU, False, torch.float32, torch.contiguous_format)
    model = networks.prepared(models["converted"], False, torch.float32, torch.contiguous_format)
    stage = model.layer4[1].bn2.cbam
    x = torch.randn(2, 512, 1, 1)
    with settings(backend="triton"):
        row = network.check(lambda _: stage(x), model, batch, (((stage(x)), {}), (stage(x).double(), {})))
    (launch,) = row["launches"]
    assert (launch["shape"], launch["pass"], launch["source"], launch["layers"]) == (
        [2, 512, 1, 1],
        "forward",
        "default",
        1,
    )
    assert launch["schedule"] == launch["candidate"]["schedule"]


@pytest.fixture
def launched(monkeypatch):
    """What tells compiled kernels apart, of every launch; none of them runs."""
    if hardware.why_no_triton() is not None:
        pytest.skip("no Triton here")
    from cbam_triton.kernels.launch import prepared

    found = set()

    def note(launch, arguments):
        kernel = launch._kernel.__name__
        found.add((kernel, repr(sorted(launch._known.items(), key=str)), prepared._kind(arguments)))

    monkeypatch.setattr(prepared.Launch, "__call__", note)
    return found


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_kernels_compiled_before_are_those_of_the_networks(models, launched, mode):
    training, dtype = mode == "training", torch.bfloat16
    given = argparse.Namespace(dtype="bfloat16", size=32, batch=2, layout=["channels_last"], mode=[mode])
    given.networks = list(networks.NETWORKS)
    calls = network.layer_calls(models["inserted"], given)
    assert len(calls) == 4 * 2
    batch = networks.make_batch(32, 2, CPU, training, dtype, torch.channels_last)
    with settings(backend="triton"):
        for call in calls:
            precompile.run_layer(call, "cpu")
        before = launched.copy()
        assert len(before) >= 4
        launched.clear()
        for name in network.OURS:
            model = networks.prepared(models[name], training, dtype, torch.channels_last)
            networks.results(model, model, batch)
    assert launched == before


def test_a_call_that_fails_in_its_process_is_told_and_stops_nothing():
    wrong = precompile.LayerCall((1, 8, 2, 2), torch.int32, False, False, False)
    right = precompile.LayerCall((1, 8, 2, 2), torch.float32, False, False, False)
    (line,) = precompile.precompile([wrong, right], CPU)
    assert line.startswith("1x8x2x2: ")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--model", "resnet51"], "--model: 'resnet51' is not one of resnet101, "),
        (["--batch", "0"], "--batch is the number of images of a step, from 1 to"),
        (["--batch", "1"], "--batch: batch norm trains on at least 2 images"),
        (["--size", "8"], "--size is the number of pixels a side, from 32 to 4096, got 8"),
        (["--out", "."], "--out: cannot write '.'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_status_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, *words]) == 2
    found = capsys.readouterr()
    assert message in found.err
    assert (found.out, found.err.count("\n")) == ("", 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # Inductor's own
def test_a_compiled_network_has_a_row_beside_the_eager_one(built, tmp_path):
    out = tmp_path / "network.jsonl"
    assert main([*ONE, "--networks", "published", "converted", "--compile", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = [("published", False), ("published", True), ("converted", False), ("converted", True)]
    assert [(row["network"], row["compiled"]) for row in rows] == names
    assert all(row["seconds"] > 0 and not row["note"] for row in rows)
