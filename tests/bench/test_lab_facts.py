"""What a trial keeps besides its times: facts of the compiled launches, a prediction, and no error for want of them."""

import csv
import io
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from bench.__main__ import main
from bench.lab import export, facts, trials
from bench.lab.case import Bench, Case
from bench.lab.worker import tried
from cbam_triton.kernels.launch.hardware import interpreted
from cbam_triton.prediction.code import Code, Part
from cbam_triton.prediction.devices import shipped
from cbam_triton.prediction.here import noted

pytestmark = pytest.mark.skipif(not interpreted(), reason="a made-up clock, where there is no GPU to time")

CASE = Case((2, 16, 6, 5), "float16", "nchw", "forward")
STAGES = ["channel_pool_kernel", "channel_mlp_kernel", "spatial_pool_kernel", "apply_gates_kernel"]
H100 = shipped()["H100"]
ROW = {"registers": 64, "spills": 0, "occupancy": 0.5}


@pytest.fixture(scope="module")
def bench():
    return Bench(CASE, torch.device("cpu"))


@pytest.fixture
def compiled(bench, monkeypatch):
    """The launches of the default, with code that was made up."""
    run = bench.call(bench.default())
    with noted() as calls:
        run()
    target = SimpleNamespace(backend="cuda", arch=90)
    code = SimpleNamespace(metadata=SimpleNamespace(target=target))
    monkeypatch.setattr(facts, "static_of", lambda code, *where: {"where": where, **ROW})
    loop = Part(instructions=10, load_bytes=16, loads=1)
    monkeypatch.setattr(facts, "code_of", lambda code, warps: Code(64, 0, warps, Part(instructions=50), (loop,)))
    (call,) = calls
    return [facts.Compiled(one.name, code, one.programs, one.warps, call.plan) for one in call.launches]


def test_each_launch_has_its_facts_and_the_call_a_prediction(compiled):
    found = facts.facts_of(compiled, 1e6, 2, 132, H100)
    rows = found["static"]["launches"]
    assert [row["kernel"] for row in rows] == STAGES
    assert rows[0]["where"] == ("sm_90", compiled[0].programs, compiled[0].warps, 132)
    tiles = compiled[0].plan.candidate.tiles
    assert rows[0]["iterations"] == min(6 * 5, tiles.POOL_SPLIT) // tiles.POOL_P == 1  # the rest is outside the loop
    assert rows[2]["iterations"] == -(-16 // tiles.SPATIAL_C)
    assert (found["static"]["target"], found["static"]["sms"]) == ("sm_90", 132)
    assert 3e-6 < found["predicted"] < 1e-4  # three gaps of 1 us, and four small launches


def test_what_cannot_be_predicted_has_its_facts_all_the_same(compiled):
    assert "predicted" not in facts.facts_of(compiled, 1e6, 4, 132, H100)
    assert "predicted" not in facts.facts_of(compiled, 1e6, 2, 132, None)
    other = SimpleNamespace(schedule="wavefront")
    found = facts.facts_of([one._replace(plan=other) for one in compiled], 1e6, 2, 132, H100)
    assert set(found) == {"static"}
    assert "iterations" not in found["static"]["launches"][0]


def test_tools_that_fail_leave_a_trial_without_facts(compiled, bench, monkeypatch):
    def broken(*arguments):
        raise OSError("no cuobjdump")

    monkeypatch.setattr(facts, "code_of", broken)
    assert set(facts.facts_of(compiled, 1e6, 2, 132, H100)) == {"static"}
    monkeypatch.setattr(facts, "static_of", broken)
    assert facts.facts_of(compiled, 1e6, 2, 132, H100) == facts.facts_of([], 1e6, 2, 132, H100) == {}
    monkeypatch.setattr(facts, "facts_here", broken)
    found = tried(bench, str(bench.default()), "stub", "cold", 3, 0)
    assert set(found) == {"error_over_eager", "times", "default_times"}


def test_the_interpreter_compiles_nothing_and_a_compiler_that_fails_says_nothing(bench, monkeypatch):
    assert facts.facts_here(bench, bench.default()) == {}
    compiler = facts.Compiler(CASE, H100)
    monkeypatch.setattr(compiler, "ask", lambda row, seconds: {"error": "no answer within 120 s"})
    assert compiler.facts(bench.default()) == {}


def test_a_csv_has_the_facts_of_the_worst_launch(bench):
    row, default = bench.default().to_json(), bench.default().to_json()
    launches = [ROW, {"registers": 80, "spills": 4, "occupancy": 0.25}, {"registers": 32, "spills": 8}]
    where = {"device": "GPU", "clock": "events", "cache": "cold"}
    trial = trials.Trial(
        where, CASE._asdict(), bench.problem._asdict(), row, default, {"target": "sm_90", "launches": launches},
        0.5, [1e-5] * 3, [1e-5] * 3, predicted=2e-6,
    )  # fmt: skip
    one, other = csv.DictReader(io.StringIO(export.csv_of([trial, trial._replace(static={}, predicted=None)])))
    names = ("predicted_us", "registers", "spills", "occupancy", "target")
    assert [one[name] for name in names] == ["2.0", "80", "12", "0.25", "sm_90"]
    assert [other[name] for name in names] == [""] * 5


OPTIONS = ["tune", "--shapes", "2x16x6x5", "--layout", "nchw", "--clock", "stub", "--budget", "1", "--rounds", "3"]


def test_an_unknown_target_is_refused_before_the_work(tmp_path, capsys):
    assert main([*OPTIONS, "--target", "H1000", "--out", str(tmp_path / "t.jsonl")]) == 2
    assert "'H1000' is no device: give one of H100" in capsys.readouterr().err
    assert not (tmp_path / "t.jsonl").exists()


@pytest.mark.slow
def test_trials_without_a_gpu_are_compiled_for_the_target(tmp_path):
    path = tmp_path / "t.jsonl"
    assert main([*OPTIONS, "--step", "forward", "backward", "--target", "H100", "--out", str(path)]) == 0
    forward, backward = trials.read([path])[0]
    assert [row["kernel"] for row in forward.static["launches"]] == STAGES
    assert all(16 <= row["registers"] <= 255 and 0 < row["occupancy"] <= 1 for row in forward.static["launches"])
    assert backward.static["launches"][0]["kernel"] == "logit_gradient_kernel"
    assert 1e-6 < forward.predicted < backward.predicted < 1e-3
