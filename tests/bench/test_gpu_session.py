"""`bench/gpu_session.sh` and the page that it ends in."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from bench.__main__ import main

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu_session.sh"
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="a script for bash")


def run(*arguments, **environment):
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True, check=False, env=os.environ | environment
    )


@needs_bash
@pytest.mark.parametrize("arguments", [(), ("out", "many"), ("out", "0")])
def test_wrong_arguments_are_told_how_it_is_used(arguments, tmp_path):
    found = run(*(str(tmp_path / one) if one == "out" else one for one in arguments))
    assert found.returncode == 2
    assert found.stderr.startswith("usage: bash bench/gpu_session.sh OUT [MINUTES]")
    assert not list(tmp_path.iterdir())


@needs_bash
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    found = run(str(tmp_path / "out"))
    assert found.returncode == 2
    assert "sees no GPU" in found.stderr


@needs_bash
@pytest.mark.slow
def test_every_step_runs_and_the_page_has_it(tmp_path):
    found = run(str(tmp_path), "30", CBAM_TRITON_SESSION="dry")
    steps = [line.split("\t") for line in (tmp_path / "steps.tsv").read_text().splitlines()[1:]]
    assert {name: status for name, status, _ in steps if status != "0"} == {}, found.stdout
    assert "<h2>Inference" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "table.json").is_file()


def folder(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "steps.tsv").write_text("step\tstatus\tseconds\ntests\t124\t240\n")
    (tmp_path / "run.csv").write_text("form,median_us,note\nours,12.5,<b>\n")
    (tmp_path / "network.jsonl").write_text('{"network": "converted", "images_per_second": 77}\n{"torn')
    (tmp_path / "logs" / "tests.log").write_text("3 passed & done\n")
    (tmp_path / "logs" / "ratios.png").write_bytes(b"\x89PNG")
    return tmp_path


def test_the_page_holds_what_the_steps_left(tmp_path, capsys):
    assert main(["session", str(folder(tmp_path))]) == 0
    page = (tmp_path / "report.html").read_text()
    for part in ("<td>124</td>", "<td>12.5</td>", "&lt;b&gt;", "<td>77</td>", "3 passed &amp; done"):
        assert part in page
    assert 'src="data:image/png;base64,' in page
    assert "ceilings" not in page  # device.json is not there
    assert "Wrote" in capsys.readouterr().out


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    assert main(["session", str(tmp_path)]) == 2
    assert "has no steps.tsv" in capsys.readouterr().err
