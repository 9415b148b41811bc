"""The tuning lab with a made-up clock: what is kept, what goes on, what is refused, and what a table may say."""

import json

import pytest
import torch

pytest.importorskip("triton")

from bench.__main__ import main
from bench.lab import compare, distill, trials, tune
from bench.lab.case import Bench, Case
from bench.lab.search import SEARCHES, search
from bench.lab.worker import Worker, tried
from cbam_triton import CBAM, tuning
from cbam_triton.kernels.launch import tables
from cbam_triton.kernels.launch.candidate import Candidate
from cbam_triton.kernels.launch.hardware import interpreted

from .children import unreliable

pytestmark = pytest.mark.skipif(not interpreted(), reason="a made-up clock, where there is no GPU to time")

CASE = Case((2, 16, 6, 5), "float32", "nchw", "forward")
OPTIONS = ["tune", "--shapes", "2x16x6x5", "--dtype", "float32", "--layout", "nchw", "--clock", "stub"]


class InProcess:
    """A worker without a child."""

    benches: dict = {}  # noqa: RUF012

    def __init__(self, case, device, how, cache, rounds, seed, hook=None):
        self._bench = self.benches.setdefault(case, Bench(case, torch.device(device)))
        self._rest, self._hook = (how, cache, rounds, seed), hook

    def ask(self, candidate, seconds):
        if self._hook is not None:
            self._hook()
        return tried(self._bench, str(candidate), *self._rest)

    def close(self):
        pass


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(tune, "Worker", InProcess)


def tuned(path, budget=4, *more):
    return main([*OPTIONS, "--budget", str(budget), "--rounds", "5", "--out", str(path), *more])


@pytest.mark.usefixtures("in_process")
def test_a_run_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, capsys):
    path = tmp_path / "trials.jsonl"
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(tune, "Worker", lambda *arguments: InProcess(*arguments, hook=interrupt))
    assert tuned(path, 5, "--search", "grid") == 130
    assert "the same command goes on from there" in capsys.readouterr().out
    (kept, skipped) = trials.read([path])
    assert (len(kept), skipped) == (2, [])
    assert tuned(path, 5, "--search", "grid") == 0
    assert len(calls) == 3 + 3
    assert len(trials.read([path])[0]) == 5
    assert all(trial.error is None and trial.error_over_eager is not None for trial in trials.read([path])[0])


@pytest.mark.usefixtures("in_process")
def test_torn_and_foreign_lines_are_reported_and_skipped_and_files_join(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert tuned(one, 2, "--search", "grid") == 0
    assert tuned(two, 3, "--search", "grid") == 0
    text = one.read_text()
    one.write_text(text + '{"format": 1, "environment"')
    trials.append(one, trials.read([two])[0][2])  # ends the torn line first
    found, skipped = trials.read([one, two])
    assert len(found) == 3
    assert len(skipped) == 1
    assert "one.jsonl, line 3: skipped" in skipped[0]
    for line in ("[]", '{"format": 2}', '{"format": 1, "times": []}', "\x00"):
        one.write_text(text + line + "\n")
        assert len(trials.read([one])[1]) == 1


@pytest.mark.usefixtures("in_process")
def test_the_table_that_is_distilled_is_what_the_layer_runs(tmp_path, capsys, monkeypatch):
    path, table = tmp_path / "trials.jsonl", tmp_path / "table.json"
    assert tuned(path, 24, "--layout", "channels_last") == 0
    assert main(["distill", str(path), "--out", str(table)]) == 0
    assert "1 of 1 problems take one" in capsys.readouterr().out
    module, x = CBAM(16).eval(), torch.randn(2, 16, 6, 5).to(memory_format=torch.channels_last)
    fastest = min(trials.read([path])[0], key=lambda trial: trial.ratio[0])
    tuning.use(table)
    try:
        (found,) = tuning.explain(module, x)
        assert found.candidate == Candidate.from_json(fastest.candidate)
        assert "of the default's time, clock stub, L2 cold" in found.reason
    finally:
        tuning.use(None)
    monkeypatch.setenv(tables.STORE, str(tmp_path / "store"))
    assert main(["distill", str(path), "--out", str(table), "--store"]) == 2
    assert "clock that times none" in capsys.readouterr().err


@pytest.mark.usefixtures("in_process")
def test_a_report_a_csv_and_kernel_tuners_cache_are_written(tmp_path, capsys):
    path = tmp_path / "trials.jsonl"
    assert tuned(path, 4, "--search", "random") == 0
    assert main(["report", str(path), "--out", str(tmp_path / "report")]) == 0
    assert "| 2x16x6x5 float32 nchw forward | 4 |" in (tmp_path / "report" / "report.md").read_text()
    assert (tmp_path / "report" / "ratios.png").stat().st_size > 1000
    assert main(["export", str(path), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "trials.csv").read_text().count("\n") == 5
    assert main(["export", str(path), "--out", str(tmp_path), "--format", "kernel-tuner"]) == 0
    cache = json.loads((tmp_path / "2x16x6x5_float32_nchw_forward.json").read_text())
    assert len(cache["cache"]) == 4
    assert cache["tune_params_keys"] == list(Candidate.knobs())
    capsys.readouterr()


def made_up(ratio, N=2, device="GPU", spread=0.01, **changes):
    """A trial whose candidate takes `ratio` times as long as the default."""
    problem = Bench(CASE, torch.device("cpu")).problem._replace(N=N)
    default = Bench(CASE, torch.device("cpu")).default()
    row = default._replace(tiles=default.tiles._replace(**changes))
    noise = [1 + spread * ((i * 7) % 5 - 2) for i in range(20)]
    where = {"device": device, "clock": "events", "cache": "cold"}
    case = CASE._replace(shape=(N, 16, 6, 5))._asdict()
    times = [ratio * 1e-5 * noise[i] for i in range(20)]
    row_, default_ = row.to_json(), default.to_json()
    return trials.Trial(where, case, problem._asdict(), row_, default_, {}, 0.5, times, [1e-5] * 20)


def test_a_table_keeps_the_default_where_nothing_is_proved_faster():
    proved, doubtful = made_up(0.9, num_warps=2), made_up(0.99, spread=0.1, num_warps=8)
    rows = [str(Candidate.from_json(trial.candidate)) for trial in (proved, doubtful)]
    assert distill.entry_of([proved, doubtful], rows)[1][0] == proved.parsed()[1]
    assert distill.entry_of([doubtful], rows)[1] == (Candidate.from_json(doubtful.default), tables.PINNED)
    assert distill.entry_of([proved], [])[1][1] == tables.PINNED


def test_few_rows_are_those_that_make_all_problems_fastest():
    ratios = {"a": {"x": 0.5, "y": 0.9}, "b": {"x": 1.2, "y": 0.7}, "c": {"x": 0.9, "z": 0.95}}
    assert distill.few_rows(ratios, 1) == ["x"]
    assert distill.few_rows(ratios, 5) == ["x", "y"]


def test_only_a_proved_slowdown_on_one_device_is_exit_status_1(tmp_path, capsys):
    paths = {}
    for name, trial in {
        "before": made_up(1.0), "same": made_up(1.0, spread=0.02), "noisy": made_up(1.05, spread=0.3),
        "slower": made_up(1.2), "elsewhere": made_up(1.2, device="another GPU"), "other": made_up(1.2, num_warps=2),
    }.items():  # fmt: skip
        paths[name] = tmp_path / f"{name}.jsonl"
        trials.append(paths[name], trial)

    def status(name, *options):
        return main(["compare", str(paths["before"]), str(paths[name]), *options])

    assert [status(name) for name in ("same", "noisy", "slower", "elsewhere", "other")] == [0, 0, 1, 2, 2]
    said = capsys.readouterr().err
    assert "cannot be compared: times of one GPU can, or --any-device" in said
    assert "no candidate of one problem in common" in said
    assert status("elsewhere", "--any-device") == 1
    assert compare.ratio([1.0] * 9, [2.0] * 9) == (2.0, 2.0, 2.0)


def test_a_trial_that_hangs_or_crashes_is_an_error_and_the_next_one_runs(tmp_path):
    worker = Worker(str(tmp_path), target=unreliable)
    row = Bench(CASE, torch.device("cpu")).default()
    assert worker.ask(row, 0.2) == {"error": "no answer within 0.2 s"}
    assert worker.ask(row, 30) == {"error": "the child process ended with status 3"}
    worker.close()


def test_a_wrong_result_is_never_timed(monkeypatch):
    bench = Bench(CASE, torch.device("cpu"))
    right = bench.call
    monkeypatch.setattr(bench, "call", lambda row: lambda: right(row)() * 1.01)
    found = tried(bench, str(bench.default()), "stub", "cold", 3, 0)
    assert found["error"].startswith("wrong: ")
    assert "times" not in found


@pytest.mark.parametrize("how", [name for name in SEARCHES if name != "tpe"])
def test_a_search_tries_each_once_and_finds_the_best(how):
    default = Bench(CASE, torch.device("cpu")).default()
    kept = [default, *(default._replace(registers=n) for n in range(24, 40))]
    order = search(how, kept, 0, lambda row: [other for other in kept if other != row])
    seen, row = [], next(order)
    while row is not None:
        seen.append(row)
        try:
            row = order.send(None if row.registers == 30 else 1 + abs((row.registers or 99) - 33) / 100)
        except StopIteration:
            row = None
    assert seen[0] == default
    assert len(set(seen)) == len(seen) == len(kept)


def test_a_backward_is_checked_by_its_gradients():
    bench = Bench(CASE._replace(step="backward"), torch.device("cpu"))
    assert bench.problem.backward
    assert bench.agreement(bench.default()).ok


def test_recorded_problems_are_tuned(tmp_path, capsys):
    with tuning.record() as met:
        CBAM(16)(torch.randn(2, 16, 6, 5))
    met.save(tmp_path / "problems.json")
    assert main(["space", "--problems", str(tmp_path / "problems.json")]) == 0
    assert "2x16x6x5 float32 nchw forward: " in capsys.readouterr().out
    assert main(["space", "--shapes", "2x16x6x5", "--layout", "nchw", "--json"]) == 0
    assert all(Candidate.parse(line) for line in capsys.readouterr().out.splitlines())
    assert main(["space", "--problems", str(tmp_path / "absent.json")]) == 2


@pytest.mark.parametrize("options, message", [
    (["--budget", "soon"], "--budget must be a number of trials such as 60, or of seconds such as 90s, got 'soon'"),
    (["--clock", "events"], "--clock events times a GPU: here take stub, or interpreter"),
    (["--rounds", "1"], "--rounds"),
])  # fmt: skip
def test_what_cannot_be_tuned_is_one_line_before_the_work(options, message, capsys, tmp_path):
    assert main([*OPTIONS, "--out", str(tmp_path / "t.jsonl"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "t.jsonl").exists()


@pytest.mark.slow
def test_tune_runs_as_users_run_it(tmp_path):
    pytest.importorskip("optuna")
    assert tuned(tmp_path / "trials.jsonl", 3, "--search", "tpe") == 0
    assert tuned(tmp_path / "trials.jsonl", 3, "--clock", "interpreter") == 0
    assert len(trials.read([tmp_path / "trials.jsonl"])[0]) >= 4
