"""`python -m cbam_triton`: the report, the picture, the exit status, the errors."""

import contextlib
import io
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from cbam_triton import __main__ as command
from cbam_triton import check
from cbam_triton.compare import agreement, gradient_agreement, interleaved
from cbam_triton.forms import jongchan_like
from cbam_triton.kernels import device
from cbam_triton.photo import Stage, feature_maps, load_photograph, make_layer, square_views

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("tqdm", "matplotlib", "PIL", "sklearn")), reason="needs the demo extra"
)

SMALL = (Stage("stage 1", 32, 8), Stage("stage 4", 64, 7))


def _shrink(monkeypatch, folder):
    monkeypatch.setattr(command, "STAGES", SMALL)
    monkeypatch.setattr(check, "STAGES", SMALL)
    monkeypatch.setattr(check, "CROP_CHANNELS", 16)
    monkeypatch.setattr(check, "CROP_SIDE", 6)
    return ["--output", str(folder), "--compile-seconds", "0", "--device", "cpu"]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The command's arguments for a check of two small stages."""
    return _shrink(monkeypatch, tmp_path / "report")


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    """Exit status, text and folder of a check of two small stages."""
    folder = tmp_path_factory.mktemp("passed") / "report"
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(text):
        status = command.main(_shrink(monkeypatch, folder))
    return status, text.getvalue(), folder


def test_the_sample_photograph_passes(passed):
    status, text, folder = passed
    assert status == 0
    for word in ("torch", "triton", "numpy", "china.jpg", "1x32x8x8", "channels_last", "reference", "error/eager"):
        assert word in text
    assert "gradients" in text
    assert "agree" in text
    assert "DISAGREE" not in text
    assert (folder / "attention.png").read_bytes()[:4] == b"\x89PNG"
    assert "1x32x8x8" in (folder / "report.txt").read_text()


def test_interpreted_rows_are_crops_without_a_time(passed):
    if device.missing() is not None or not device.interpreted():
        pytest.skip("kernels are not interpreted here")
    status, text, _ = passed
    assert status == 0
    rows = [line for line in text.splitlines() if " triton " in line and "x6x6 crop" in line]
    assert len(rows) == len(SMALL) * 2 * 2
    assert all("interpreted, not timed" in row and " ms" not in row for row in rows)


def test_a_wrong_backend_is_exit_status_1(small, monkeypatch, capsys):
    right = check.run_with

    def wrong(backend, schedule, layer, x):
        y = right(backend, schedule, layer, x)
        return y * 1.001 if x.dtype != torch.float64 and x.is_contiguous() else y

    monkeypatch.setattr(check, "run_with", wrong)
    monkeypatch.setattr(check, "STAGES", SMALL[:1])
    assert command.main(small) == 1
    text = capsys.readouterr().out
    assert "DISAGREES" in text
    assert "not timed" in text


@pytest.mark.parametrize("name", ["x", "spatial.norm.weight"])
def test_a_wrong_gradient_is_exit_status_1(name, small, monkeypatch, capsys):
    right = check.gradients_with

    def wrong(backend, schedule, layer, x, dy):
        found = right(backend, schedule, layer, x, dy)
        return found if x.dtype == torch.float64 else found | {name: found[name] * 1.001}

    monkeypatch.setattr(check, "gradients_with", wrong)
    monkeypatch.setattr(check, "KERNELS", ())
    assert command.main(small) == 1
    text = capsys.readouterr().out
    assert "DISAGREES" in text
    assert "reference (gradients)" in text


def test_gradients_of_every_parameter_are_compared():
    x = feature_maps(square_views(load_photograph(None), 1, side=64), SMALL[0])
    layer = make_layer(x)
    found = check.gradients_with("reference", None, layer, x, x)
    assert list(found) == ["x", *(name for name, _ in layer.named_parameters())]
    published = check.published_gradients(jongchan_like(layer), x, x)
    torch.testing.assert_close(published, found, rtol=1e-4, atol=1e-4)


def test_gradients_are_judged_by_root_mean_square_and_by_part():
    want = {"x": torch.linspace(1, 2, 1000).double(), "spatial.norm.bias": torch.tensor([4.0]).double()}
    single = {name: tensor.float() for name, tensor in want.items()}
    assert gradient_agreement(single, single, want).ok
    moved = single | {"x": single["x"].clone()}
    moved["x"][0] += 0.01
    also = single | {"x": single["x"].clone()}
    also["x"][7] += 0.01
    assert gradient_agreement(moved, also, want).ok, "eager moved another arg-max"
    assert gradient_agreement(moved, also, want).ratio == pytest.approx(1, rel=1e-3)
    assert not gradient_agreement(moved, single, want).ok
    bias = single | {"spatial.norm.bias": torch.tensor([4.01])}
    assert not gradient_agreement(bias, also, want).ok, "a part that is wrong hides behind no other"
    assert not gradient_agreement(single | {"x": single["x"] * float("nan")}, also, want).ok


def test_a_nan_never_agrees():
    want = torch.ones(4, dtype=torch.float64)
    got = torch.tensor([1.0, 1.0, float("nan"), 1.0])
    assert agreement(got, got, want).ok is True, "eager is as wrong"
    assert not agreement(got, torch.ones(4), want).ok
    assert not agreement(torch.ones(4) * float("inf"), torch.ones(4), want).ok
    assert agreement(got, torch.ones(4), got.double()).ok, "NaN where the reference has it"


def test_interleaved_timing_tells_slow_from_fast():
    a, b = torch.ones(10), torch.ones(1_000_000)
    timings = interleaved({"small": a.sum, "large": b.exp}, torch.device("cpu"), seconds=0.05)
    assert 0 < timings["small"].median < timings["large"].median


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "none.jpg"], "there is no file 'none.jpg'"),
        (["--dtype", "int8"], "'int8' is not one of float16"),
        (["--device", "toaster"], "torch knows no device 'toaster'"),
        (["--batch", "0"], "at least 1, got 0"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_status_2(small, arguments, message, capsys):
    assert command.main([*small, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_image_is_an_error(small, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("not a picture")
    assert command.main([*small, "--image", str(tmp_path / "text.jpg")]) == 2
    assert "cannot be read as an image" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_gpu_is_an_error(small, capsys):
    assert command.main([*small, "--device", "cuda"]) == 2
    assert "sees no cuda device; try --device cpu" in capsys.readouterr().err


def test_a_missing_extra_names_the_command_that_installs_it(small, monkeypatch, capsys):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main(small) == 2
    assert 'pip install "cbam-triton[demo]"' in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_any_mode_and_size_are_read(tmp_path, mode):
    from PIL import Image

    Image.new(mode, (5, 9), 1).save(tmp_path / "image.png")
    photograph = load_photograph(str(tmp_path / "image.png"))
    assert photograph.shape == (3, 9, 5)
    assert 0 <= photograph.min() <= photograph.max() <= 1
    assert square_views(photograph, 3, side=32).shape == (3, 3, 32, 32)


def test_feature_maps_are_fixed_and_half_zeros():
    views = square_views(load_photograph(None), 2, side=64)
    x = feature_maps(views, SMALL[0])
    assert x.shape == (2, 32, 8, 8)
    assert torch.equal(x, feature_maps(views, SMALL[0]))
    assert 0.2 < (x == 0).float().mean() < 0.8
    assert not torch.equal(x[0], x[1])
    layer = make_layer(x)
    assert not layer.training
    assert layer.spatial.norm.running_mean.item() != 0


@pytest.mark.slow
def test_the_command_passes_as_users_run_it(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command_line = [sys.executable, "-m", "cbam_triton", "--output", str(tmp_path)]
    found = subprocess.run(command_line, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "rows agree" in found.stdout
