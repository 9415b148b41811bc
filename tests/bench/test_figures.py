"""The figures of docs/: the model of L2 behind one, the table behind the other."""

import pytest

from bench import figures
from bench.__main__ import main
from cbam_triton.demo.options import InputError


def test_the_wavefront_reads_x_once_from_dram_where_l2_holds_its_lags():
    reads = figures.wavefront(16, 2)
    assert len(reads) == len(set(reads)) == 48
    assert sum(figures.from_dram(reads, held=8)) == 16
    assert sum(figures.from_dram(reads, held=2)) > 16  # too few: stages find nothing of the one before


def test_staged_reads_again_what_l2_did_not_hold_of_the_launch_before():
    parts = figures.from_dram(figures.staged(20), held=11)
    assert sum(parts) / 20 == pytest.approx(1 + 0.45 + 0.45)  # docs/schedules.md, for an L2 of 0.55 of x
    assert sum(figures.from_dram(figures.staged(20), held=0)) == 60


def test_the_figures_are_drawn_from_the_table_of_the_page(tmp_path):
    pytest.importorskip("matplotlib")
    assert main(["figures", "--out", str(tmp_path)]) == 0
    for name in ("schedules.svg", "cost.svg"):
        assert (tmp_path / name).read_text("utf-8").rstrip().endswith("</svg>")
        assert (figures.DOCS / name).is_file()


def test_a_row_without_a_shape_has_that_of_the_row_above():
    page = "a\n\n| x | layout | copy | timm eager |\n|---|---|---|---|\n| 1x2 | a | 3 | 4 |\n| | b | 5 | 6 |\n\nb\n"
    assert figures.times(page) == {
        "copy": {("1x2", "a"): 3, ("1x2", "b"): 5}, "timm eager": {("1x2", "a"): 4, ("1x2", "b"): 6},
    }  # fmt: skip
    with pytest.raises(InputError, match="no table"):
        figures.times("no table")
