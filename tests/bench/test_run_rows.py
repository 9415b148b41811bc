"""A row of `python -m bench run` marks noise, and says what was launched and from where."""

import csv
import json
import re

import pytest

from bench import contenders
from bench.__main__ import main
from cbam_triton import settings
from cbam_triton.kernels.launch import hardware
from cbam_triton.testing.timing import Timing

TINY = ["run", "--shapes", "1x8x4x4", "--device", "cpu", "--no-compile", "--seconds", "0", "--layout", "nchw"]


def rows_of(path):
    return {row["form"]: row for row in csv.DictReader(path.read_text().splitlines())}


@pytest.fixture
def timings(monkeypatch):
    """Medians and spreads by form; none that is not named is noisy."""
    found = {}
    monkeypatch.setattr(
        contenders, "interleaved", lambda calls, *_, **__: {name: found.get(name, Timing(1.0, 0.1)) for name in calls}
    )
    return found


def test_noise_is_marked_and_gives_no_ratio(timings, tmp_path, capsys):
    timings |= {"timm": Timing(1.0, 0.26), "ours": Timing(0.5, 0.125)}
    out = tmp_path / "results.csv"
    assert main([*TINY, "--out", str(out)]) == 0
    rows = rows_of(out)
    assert {name: row["noisy"] for name, row in rows.items()} == {"published": "", "timm": "noisy", "ours": ""}
    assert {name: row["over_published"] for name, row in rows.items()} == {
        "published": "1.000", "timm": "", "ours": "2.000",
    }  # fmt: skip
    assert {row["over_timm"] for row in rows.values()} == {""}
    printed = capsys.readouterr().out
    line = {name: re.search(rf"^  {name} +[\d.]+ us.*$", printed, re.MULTILINE)[0] for name in rows}
    assert re.search(r"us ~ .* ~ over published +~ over timm +- over timm compiled", line["timm"])
    assert re.search(r"us   .* 2\.000 over published +~ over timm +- over timm compiled", line["ours"])
    assert "~: no ratio" in printed
    pytest.importorskip("matplotlib")
    assert main(["plot", str(out)]) == 0


def test_without_noise_nothing_is_said_of_it(timings, tmp_path, capsys):
    assert main([*TINY, "--out", str(tmp_path / "results.csv")]) == 0
    assert "~" not in capsys.readouterr().out


@pytest.mark.parametrize("backward", [False, True])
def test_a_row_of_ours_says_what_was_launched(timings, backward, monkeypatch, tmp_path, capsys):
    if hardware.why_no_triton() is not None:
        pytest.skip("no Triton here")
    monkeypatch.setattr(contenders, "kernels_run_on", lambda device: True)
    out = tmp_path / "results.csv"
    assert main([*TINY, "--out", str(out), *["--backward"] * backward]) == 0
    rows = rows_of(out)
    for name in ("staged", "wavefront"):
        row = rows[f"ours {name}"]
        assert row["schedule"] == " + ".join([name] * (1 + backward))
        candidates = json.loads(row["candidates"])
        assert [one["schedule"] for one in candidates] == [name] * (1 + backward)
        assert candidates[0]["POOL_C"] >= 1
        assert row["source"] == "default"
    assert rows["ours"]["schedule"].split(" + ")[0] in ("staged", "wavefront")
    assert (rows["timm"]["schedule"], rows["timm"]["source"], rows["timm"]["candidates"]) == ("", "", "")
    assert f"{rows['ours']['schedule']} (default)" in capsys.readouterr().out


def test_a_candidate_of_settings_is_recorded_as_such(timings, monkeypatch, tmp_path):
    if hardware.why_no_triton() is not None:
        pytest.skip("no Triton here")
    monkeypatch.setattr(contenders, "kernels_run_on", lambda device: True)
    out = tmp_path / "results.csv"
    assert main([*TINY, "--out", str(out)]) == 0
    (candidate,) = json.loads(rows_of(out)["ours staged"]["candidates"])
    candidate["num_warps"] = 2
    with settings(config=json.dumps(candidate)):
        assert main([*TINY, "--out", str(out)]) == 0
    row = rows_of(out)["ours"]
    assert (row["source"], json.loads(row["candidates"])[0]["num_warps"]) == ("settings", 2)
