"""Tables that come with the package: when one counts, what a bad or stale one does, and that a wheel holds them."""

import json
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.__main__ import main
from bench.lab import distill, trials
from cbam_triton import CBAM, tuning
from cbam_triton.demo.options import InputError
from cbam_triton.kernels.launch import hardware, shipped, tables
from cbam_triton.kernels.launch.candidate import Candidate

from .cases import normal

ROOT = Path(__file__).parents[1]
DEVICE = hardware.DeviceFacts("Made-up GPU 9000 (80 GB)", 1, 1 << 26)
WHERE = {"device": DEVICE.name, "driver": "1.2", "clock": "events", "cache": "cold"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A made-up device, a package without tables, an empty store."""
    monkeypatch.setenv(tables.STORE, str(tmp_path / "store"))
    monkeypatch.setattr(hardware, "facts", lambda device: DEVICE)
    monkeypatch.setattr("cbam_triton.kernels.launch.tensors.facts", lambda device: DEVICE, raising=False)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "tuned")
    tables.forget()
    yield tmp_path / "tuned"
    tables.use(None)
    monkeypatch.undo()
    tables.forget()


def planned(device, N=2):
    (found,) = tuning.explain(CBAM(16, 4).to(device).eval(), normal((N, 16, 6, 5), device=device))
    return found


def other_than(plan, warps=2):
    return plan.candidate._replace(tiles=plan.candidate.tiles._replace(num_warps=warps, APPLY_P=8))


def ship(place, N=2, **changes):
    """The table of the made-up device, with one problem; what it has for it."""
    plan = planned(place, N)
    where = {**WHERE, **tables.environment()}
    path = shipped.file_of(DEVICE.name)
    tables.write_table(
        path, DEVICE.name, {plan.problem: (other_than(plan), "faster")}, where, {plan.problem: (0.8, 0.7, 0.9)}
    )
    if changes:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    tables.forget()
    return other_than(plan)


def test_the_table_of_the_device_counts_after_the_store_and_the_table_in_use(tmp_path, device):
    default = planned(device).candidate
    row = ship(device)
    x = normal((2, 16, 6, 5), device=device)
    assert (planned(device).candidate, planned(device).reason) == (row, "faster")
    explained = str(tuning.explain(CBAM(16, 4).to(device).eval(), x))
    assert "from shipped table of Made-up GPU 9000 (80 GB): faster" in explained
    assert tuning.explain(CBAM(16, 8).to(device).eval(), x)[0].source == "default"  # R is another
    tables.add_to_store(DEVICE.name, planned(device).problem, other_than(planned(device), 8), "mine")
    assert planned(device).reason == "mine"
    tables.write_table(tmp_path / "used.json", DEVICE.name, {planned(device).problem: (default, "used")})
    tuning.use(tmp_path / "used.json")
    assert planned(device).candidate == default


def test_a_plan_asks_once_and_a_launch_never(monkeypatch, device):
    ship(device)
    asked = []
    found = tables.lookup
    monkeypatch.setattr(tables, "lookup", lambda *arguments: asked.append("lookup") or found(*arguments))
    read = shipped.fault
    monkeypatch.setattr(shipped, "fault", lambda *arguments: asked.append("read") or read(*arguments))
    module, x = CBAM(16, 4).to(device).eval(), normal((2, 16, 6, 5), device=device)
    for _ in range(3):
        module(x)
    assert asked == ["lookup", "read"]


def test_a_table_of_other_kernels_is_a_miss_and_explain_says_so(device):
    default = planned(device).candidate
    ship(device, environment={**WHERE, **tables.environment(), "kernels": "older"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert planned(device).candidate == default
    assert planned(device).reason.endswith(
        f"; the shipped table of {DEVICE.name} is of other kernels and was passed over"
    )
    ship(device, environment={**WHERE, **tables.environment(), "triton": "99.0"})
    assert planned(device).candidate != default


@pytest.mark.parametrize("changes, message", [
    ({"format": 99}, "its format is 99"),
    ({"device": "another GPU"}, "it is of another GPU, and its name is that of Made-up GPU"),
    ({"environment": {"device": DEVICE.name, "kernels": "x"}}, "has no driver, torch, triton, clock, cache"),
    ({"environment": None}, "is no table"),
    ({"entries": 3}, "is no table"),
    ({"entries": [{}]}, "missing: 'ratio'"),
    ({"entries": [{"ratio": [0.9, 0.8, 0.99]}]}, "not proved faster than the default: 0.8 to 0.99"),
    ({"entries": [{"ratio": [float("nan")] * 3}]}, "not proved faster"),
])  # fmt: skip
def test_a_bad_or_foreign_file_is_a_miss_and_one_warning(device, changes, message):
    default = planned(device).candidate
    ship(device, **changes)
    with pytest.warns(UserWarning, match="a tuned entry is left out") as caught:
        assert planned(device).candidate == default
    assert message in str(caught[0].message)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planned(device, 8)


def test_a_pinned_default_is_of_its_own_batch_alone(tmp_path, device):
    plan = planned(device, 4)
    tables.write_table(tmp_path / "t.json", DEVICE.name, {plan.problem: (other_than(plan), tables.PINNED)})
    tuning.use(tmp_path / "t.json")
    assert [planned(device, N).source == "default" for N in (2, 4, 8)] == [True, False, True]


def tried(device, N, ratio, **changes):
    """A trial whose candidate takes `ratio` times as long as the default."""
    plan = planned(device, N)
    case = {"shape": [N, 16, 6, 5], "dtype": "float32", "layout": "nchw", "step": "forward"}
    where = {**WHERE, **tables.environment(), "sm_clock_mhz": 1000 + N} | changes
    times = [ratio * 1e-5 * (1 + 0.001 * (i % 5)) for i in range(20)]
    row, default = other_than(plan).to_json(), plan.candidate.to_json()
    return trials.Trial(where, case, plan.problem._asdict(), row, default, {}, 0.5, times, [1e-5] * 20)


def test_what_is_distilled_is_shipped_and_the_default_stays_where_less_was_proved(tmp_path, device, capsys):
    path = tmp_path / "trials.jsonl"
    for N, ratio in ((2, 0.8), (16, 0.985), (128, 1.2)):
        trials.append(path, tried(device, N, ratio))
    default = planned(device).candidate
    assert main(["distill", str(path), "--out", str(tmp_path / "table.json"), "--ship"]) == 0
    assert f"Wrote {shipped.file_of(DEVICE.name)}." in capsys.readouterr().out
    tables.forget()
    assert planned(device).source == f"shipped table of {DEVICE.name}"
    assert planned(device).candidate == other_than(planned(device)) != default
    assert [planned(device, N).reason == tables.PINNED for N in (16, 128, 8)] == [True, True, False]
    data = json.loads(shipped.file_of(DEVICE.name).read_text())
    assert set(data["environment"]) == set(shipped.ENVIRONMENT)
    assert [entry["ratio"][2] < 0.98 or entry["ratio"] == [1, 1, 1] for entry in data["entries"]] == [True] * 3


@pytest.mark.parametrize("changes, message", [
    ({"driver": "9.9"}, "trials of one environment, these differ in driver"),
    ({"cache": "warm"}, "these differ in cache"),
])  # fmt: skip
def test_trials_of_two_environments_are_not_shipped(device, changes, message):
    with pytest.raises(InputError, match=message):
        distill.one_environment([tried(device, 2, 0.8), tried(device, 8, 0.8, **changes)])


@pytest.mark.parametrize("changes, message", [
    ({"clock": "stub"}, "a clock that times none"), ({"kernels": "older"}, "these have others: tune again"),
])  # fmt: skip
def test_trials_of_no_gpu_or_other_kernels_are_not_shipped(device, changes, message):
    with pytest.raises(InputError, match=message):
        distill.one_environment([tried(device, 2, 0.8, **changes)])


def test_a_trial_is_the_same_whatever_the_clock_rate_was(device):
    assert tried(device, 2, 0.8).key == tried(device, 2, 0.8, sm_clock_mhz=7).key
    assert tried(device, 2, 0.8).key != tried(device, 2, 0.8, driver="9.9").key


def test_the_tables_of_the_package_can_be_read():
    stale = []
    for path in sorted((ROOT / "cbam_triton" / "kernels" / "launch" / "tuned").glob("*.json")):
        data = json.loads(path.read_text("utf-8"))
        assert path.name == shipped.file_of(data["device"]).name
        assert shipped.fault(data, data["device"]) is None
        assert all(Candidate.from_json(entry["candidate"]) for entry in data["entries"])
        assert tables.read_table(path).entries
        if data["environment"]["kernels"] != shipped.kernels_hash():
            stale.append(path.name)
    if stale:
        pytest.skip(f"of other kernels, and passed over until somebody tunes again: {', '.join(stale)}")


@pytest.mark.slow
def test_a_wheel_from_a_folder_with_spaces_holds_the_tables(tmp_path):
    pytest.importorskip("hatchling")
    clone = tmp_path / "a clone with spaces"
    shutil.copytree(ROOT / "cbam_triton", clone / "cbam_triton", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, clone / name)
    table = clone / "cbam_triton" / "kernels" / "launch" / "tuned" / shipped.file_of(DEVICE.name).name
    table.parent.mkdir(exist_ok=True)
    table.write_text("{}")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command = [*pip, "--wheel-dir", str(tmp_path), str(clone)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert f"cbam_triton/kernels/launch/tuned/{table.name}" in zipfile.ZipFile(wheel).namelist()
