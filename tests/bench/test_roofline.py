"""`python -m bench roofline`: the roof's formula, every launch under it, and the picture."""

import pytest

from bench.__main__ import main
from cbam_triton.kernels.launch import hardware
from cbam_triton.prediction.devices import shipped

roofline = pytest.importorskip("bench.model.roofline")
H100 = shipped()["H100"]


def test_the_roof_is_the_slowest_of_dram_l2_and_one_load():
    assert roofline.roof(1e9, 1e9, H100) == pytest.approx(H100.dram_gbs)
    assert roofline.roof(1e9, 0, H100) == pytest.approx(H100.l2_gbs)
    assert roofline.roof(1e9, 0.25e9, H100) == pytest.approx(min(4 * H100.dram_gbs, H100.l2_gbs))
    assert roofline.roof(391, 391, H100) == pytest.approx(391 / H100.dram_ns)


def test_the_picture_is_drawn_and_the_interpreter_refused(tmp_path, capsys):
    if hardware.interpreted():
        assert main(["roofline", "--out", str(tmp_path / "r.svg")]) == 2
        assert "the interpreter compiles nothing" in capsys.readouterr().err
    points = [roofline.Point("apply_gates_kernel", "1x8x2x2", "nchw", 1e6, 900.0, 2000.0, "DRAM")]
    roofline.draw({H100: points}, tmp_path / "r.svg")
    assert "<svg" in (tmp_path / "r.svg").read_text()[:600]
    assert roofline._line(points[0]).split()[-2:] == ["45%", "DRAM"]
