"""Tuned problems: which table counts, what a bad file does, and that nothing about a model changes by being asked."""

import json
import multiprocessing
import warnings

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from cbam_triton import CBAM, settings, tuning
from cbam_triton.kernels.launch import hardware, tables
from cbam_triton.kernels.launch.choice import warn_of_autotune
from cbam_triton.kernels.launch.tensors import plan_of

from .cases import layer, normal
from .checkpoints.published import randomised
from .errors import assert_same


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    """A store of the test's own, and no table in use after it."""
    monkeypatch.setenv(tables.STORE, str(tmp_path / "store"))
    tables.forget()
    yield tmp_path
    tables.use(None)
    monkeypatch.delenv(tables.STORE)
    tables.forget()


def name(device):
    return hardware.facts(torch.device(device)).name


def planned(device, N=2):
    return plan_of(normal((N, 16, 6, 5), device=device), layer(16, device=device), "auto")


def other_than(plan):
    return plan.candidate._replace(tiles=plan.candidate.tiles._replace(num_warps=2, APPLY_P=8))


def table_of(path, here, N=2, **changes):
    plan = planned(here, N)
    tables.write_table(path, name(here), {plan.problem: (other_than(plan), "faster by 1.4")})
    if changes:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return other_than(plan)


def test_a_table_in_use_is_asked_first_and_the_layer_computes_the_same(own_store, device):
    module, x = randomised(CBAM(16, 4, kernel_size=3)).to(device).eval(), normal((2, 16, 6, 5), device=device)
    expected = module(x)
    row = table_of(own_store / "table.json", device)
    tuning.use(own_store / "table.json")
    (found,) = tuning.explain(module, x)
    assert found.candidate == row
    assert found.source == f"table.json ({name(device)})"
    assert found.reason == "faster by 1.4"
    assert (module(x) - expected).abs().max() < 1e-5
    assert "from table.json" in str(tuning.explain(module, x))
    tuning.use(None)
    assert tuning.explain(module, x)[0].source == "default"


def test_the_nearest_batch_counts_up_to_twice_as_large(own_store, device):
    row = table_of(own_store / "table.json", device, N=4)
    tuning.use(own_store / "table.json")
    assert [planned(device, N).candidate == row for N in (1, 2, 4, 8, 9)] == [False, True, True, True, False]


def test_the_store_is_read_after_the_table_in_use_and_a_schedule_that_is_asked_for_passes_over_both(own_store, device):
    plan = planned(device)
    path = tables.add_to_store(name(device), plan.problem, other_than(plan), "timed")
    assert planned(device).candidate == other_than(plan)
    assert planned(device).source == f"{path.name} ({name(device)})"
    asked = plan_of(normal((2, 16, 6, 5), device=device), layer(16, device=device), "staged")
    assert asked.source == "default"
    tables.write_table(own_store / "table.json", name(device), {plan.problem: (plan.candidate, "pinned")})
    tuning.use(own_store / "table.json")
    assert planned(device).reason == "pinned"


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b'{"format": 1}', b'{"format": 1, "entries": [{}]}'])
def test_a_bad_file_in_the_store_is_a_miss_and_one_warning(text, device):
    plan = planned(device)
    path = tables.add_to_store(name(device), plan.problem, other_than(plan), "timed")
    path.with_name("torn.json").write_bytes(text)
    tables.forget()
    with pytest.warns(UserWarning, match=r"a tuned entry is left out: .*torn\.json is no table") as caught:
        assert planned(device).candidate == other_than(plan)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        planned(device, 8)


def test_another_release_has_a_store_of_its_own(monkeypatch, device):
    plan = planned(device)
    tables.add_to_store(name(device), plan.problem, other_than(plan), "timed")
    changed = tables.environment() | {"triton": "99.0"}
    monkeypatch.setattr(tables, "environment", lambda: changed)
    tables.forget()
    assert planned(device).source == "default"


def _write(folder, device, first):
    import os

    os.environ[tables.STORE] = folder
    for N in range(first, 12, 2):
        plan = planned(device, N)
        tables.add_to_store(name(device), plan.problem, other_than(plan), "timed")


def test_two_writers_at_once_lose_nothing(own_store, device):
    if device != "cpu":
        pytest.skip("a GPU's processes are started in another way")
    writers = [
        multiprocessing.get_context("fork").Process(target=_write, args=(str(own_store / "store"), device, first))
        for first in (2, 3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    tables.forget()
    assert all(planned(device, N).reason == "timed" for N in range(2, 12))
    assert not list((own_store / "store").rglob("*.tmp"))


def test_a_home_that_cannot_be_read_or_written_is_no_error(own_store, monkeypatch, device):
    (own_store / "file").write_text("")
    monkeypatch.setenv(tables.STORE, str(own_store / "file" / "below"))
    tables.forget()
    plan = planned(device)
    assert plan.source == "default"
    with pytest.raises(OSError, match="below"):
        tables.add_to_store(name(device), plan.problem, other_than(plan), "timed")


def test_a_table_of_another_device_is_a_miss_and_a_warning(own_store, device):
    table_of(own_store / "table.json", device, device="another GPU")
    with pytest.warns(UserWarning, match=r"table\.json is of another GPU, and here is"):
        tuning.use(own_store / "table.json")
    assert planned(device).source == "default"


@pytest.mark.parametrize("changes, message", [
    ({"format": 99}, "its format is 99, this release reads 1"),
    ({"entries": [{"problem": {"N": 1}, "candidate": {}}]}, "a problem has N, C, P"),
    ({"entries": None}, "is no table of tuned problems"),
])  # fmt: skip
def test_what_is_no_table_is_refused_and_the_one_in_use_stays(own_store, device, changes, message):
    row = table_of(own_store / "good.json", device)
    tuning.use(own_store / "good.json")
    table_of(own_store / "bad.json", device, **changes)
    with pytest.raises(ValueError, match="python -m bench distill") as caught:
        tuning.use(own_store / "bad.json")
    assert message in str(caught.value)
    assert planned(device).candidate == row
    with pytest.raises(FileNotFoundError):
        tuning.use(own_store / "absent.json")
    with pytest.raises(TypeError, match="path must be the path of a table, or None, got int"):
        tuning.use(3)


def test_warming_up_leaves_the_model_as_it_is(device):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), CBAM(16, 4)).to(device)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = tuning.warmup(model, [(1, 3, 8, 8), (2, 3, 8, 8)], [torch.float32], training=True)
    assert [entry.problem.N for entry in found if not entry.problem.backward] == [1, 2]
    assert any(entry.problem.backward for entry in found)
    for name_, tensor in model.state_dict().items():
        assert_same(tensor, before[name_])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="at least one shape and one dtype"):
        tuning.warmup(model, [])


def test_a_model_in_channels_last_is_warmed_up_in_it(device):
    model = nn.Sequential(nn.Conv2d(3, 16, 3), CBAM(16, 4)).to(device, memory_format=torch.channels_last)
    assert tuning.warmup(model, [(2, 3, 8, 8)])[0].problem.channels_last


def test_what_a_program_met_is_recorded_and_saved(own_store, device):
    module = CBAM(16, 4).to(device).eval()
    with torch.no_grad(), tuning.record() as met:
        for N in (2, 2, 3):
            module(normal((N, 16, 8, 8), device=device))
    module(normal((4, 16, 8, 8), device=device))
    met.save(own_store / "problems.json")
    rows = json.loads((own_store / "problems.json").read_text())
    assert [(row["shape"], row["calls"]) for row in rows] == [([2, 16, 8, 8], 2), ([3, 16, 8, 8], 1)]
    assert rows[0]["problem"]["C"] == 16
    assert rows[0]["dtype"] == "float32"


def test_the_variable_that_is_gone_says_what_to_run(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_autotune()
        monkeypatch.setenv("CBAM_TRITON_AUTOTUNE", "1")
        with pytest.raises(FutureWarning, match=r"run `python -m bench tune`"):
            warn_of_autotune()


def test_where_the_reference_runs_nothing_is_explained(device):
    with settings(backend="reference"):
        found = tuning.explain(CBAM(16).to(device), normal((2, 16, 4, 4), device=device))
    assert found == []
    assert str(found) == "no kernel was launched: the reference computes this"
    with pytest.raises(TypeError, match="layer must be a module, got str"):
        tuning.explain("CBAM", torch.zeros(1))
    with pytest.raises(TypeError, match="x must be a tensor, got list"):
        tuning.explain(CBAM(16), [1])
