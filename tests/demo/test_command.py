"""`python -m cbam_triton`: the report, the picture, the exit status."""

import contextlib
import io
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from cbam_triton.demo import check, command, photograph, report
from cbam_triton.demo.photograph import Stage, feature_maps, load_photograph, make_layer, square_views
from cbam_triton.kernels.launch import hardware as device
from cbam_triton.testing.agreement import Agreement
from cbam_triton.testing.published import jongchan_like
from cbam_triton.testing.timing import Timing

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("tqdm", "matplotlib", "PIL", "sklearn")), reason="needs the demo extra"
)

SMALL = (Stage("stage 1", 32, 8), Stage("stage 4", 64, 7))


def _shrink(monkeypatch, folder):
    monkeypatch.setattr(photograph, "STAGES", SMALL)
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
    for word in ("torch", "triton", "numpy", "china.jpg", "1x32x8x8", "channels_last", "reference", "error"):
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
    table = text[text.index("1x16x6x6 crop NCHW") :]
    rows = [line for line in table.splitlines() if line.startswith("  triton ")]
    assert len(rows) == len(SMALL) * 2 * 2
    assert all("not timed" in row and " ms" not in row for row in rows)


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


def _row(**options):
    values = {"agreement": Agreement(1.0, 1.0, 1.0), "gradients": Agreement(5.0, 1.0, 3.0)} | options
    return check.Row("1x2x3x4", "NCHW", "reference", None, **values)


def test_the_columns_agree_with_the_rule_below_them():
    rows = [_row(), _row(gradients=Agreement(5.1, 1.0, 3.0))]
    right, wrong = report.table(rows).splitlines()[2:]
    assert right.split() == ["reference", "0.33", "1.00", "not", "timed"]
    assert wrong.split() == ["reference", "0.33", "1.02", "not", "timed,", "DISAGREES"]
    assert "at most 1.00" in report.verdict(check.Outcome(rows))


def test_a_row_that_is_noisy_prints_no_ratio():
    quiet, noisy = Timing(1.0, 0.1), Timing(1.0, 0.3)
    assert check._speed(quiet, quiet) == "1.00x"
    assert check._speed(quiet, noisy) == check._speed(noisy, quiet) == "~"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_are_no_longer_than_the_terminal_is_wide(width, passed, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = (passed[2] / "report.txt").read_text()
    fitted = report.fit(text)
    assert max(map(len, fitted.splitlines())) <= width
    assert fitted.split() == text.split()


def test_the_table_fits_into_eighty_columns():
    timed = {"timing": Timing(1.234567, 0.9), "noisy": True, "over_eager": "100.00x", "over_compiled": "skipped"}
    rows = [
        check.Row("32x2048x56x56", "channels_last", "triton", "wavefront", *[Agreement(1.0, 1.0, 1.0)] * 2, **timed)
    ]
    assert max(map(len, report.table(rows).splitlines())) <= 80


@pytest.mark.slow
def test_the_command_passes_as_users_run_it(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command_line = [sys.executable, "-m", "cbam_triton", "--output", str(tmp_path)]
    found = subprocess.run(command_line, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "rows agree" in found.stdout
    assert found.stderr == "", "no progress bar where stderr is no terminal"
