"""The space of candidates: the default is in it, what is left out has a reason, what is not computes the layer."""

import pytest
import torch

pytest.importorskip("triton")

from hypothesis import given
from hypothesis import strategies as st

from cbam_triton import CBAM, settings
from cbam_triton.kernels.launch.choice import default, unfit
from cbam_triton.kernels.launch.hardware import DeviceFacts
from cbam_triton.kernels.launch.space import LEVELS, candidates, reject
from cbam_triton.kernels.launch.tensors import plan_of

from ...cases import assert_refined, layer, normal
from ...checkpoints.published import randomised
from .test_tile_sizes import problems

H100 = DeviceFacts("H100", 132, 50 << 20)


@given(problems, st.sampled_from(LEVELS[:2]))
def test_the_default_comes_first_and_no_candidate_twice(problem, level):
    found = list(candidates(problem, H100, level))
    assert found[0] == default(problem, H100).candidate
    assert len(set(found)) == len(found)
    if (problem.C if problem.channels_last else problem.P) % problem.vec == 0:  # as it is where an access is so wide
        assert unfit(found[0], problem) is None


def test_a_higher_level_has_more():
    problem = plan_of(normal((2, 32, 14, 14)), layer(32), "auto").problem
    counts = [len(list(candidates(problem, H100, level))) for level in LEVELS]
    assert counts[0] < counts[1] < counts[2]
    with pytest.raises(ValueError, match="level must be one of table, tiles, all, got 'most'"):
        next(candidates(problem, H100, "most"))


@pytest.mark.parametrize("change, reason", [
    ({"POOL_C": 4096}, "POOL_C=4096 is beyond C = 32"),
    ({"num_warps": 64}, "at most 32 warps, got 64"),
    ({"APPLY_C": 1, "APPLY_P": 4, "APPLY_SPLIT": 1}, "values a thread: most threads would do nothing"),
    ({"POOL_C": 32, "POOL_P": 256, "num_warps": 1}, "a thread would hold 256 values of a tile of POOL"),
    ({"POOL_P": 3}, "POOL_P must be"),
])  # fmt: skip
def test_what_is_left_out_has_a_reason(change, reason):
    problem = plan_of(normal((2, 32, 14, 14)), layer(32), "auto").problem
    row = default(problem, H100).candidate
    assert reject(row, problem, H100) is None
    assert reason in str(reject(row._replace(tiles=row.tiles._replace(**change)), problem, H100))


def test_candidates_that_are_not_left_out_compute_the_layer(device):
    x, weights = normal((2, 16, 6, 5), device=device), layer(16, device=device)
    problem = plan_of(x, weights, "auto").problem
    kept = [row for row in candidates(problem, H100) if reject(row, problem, H100) is None]
    assert len(kept) > 30
    from cbam_triton.kernels.launch import forward as launch

    for row in kept[:: len(kept) // 6]:
        assert_refined(launch.forward(x, weights, str(row)), x, weights)


def test_a_config_reaches_the_launch_of_a_layer_and_of_its_compiled_code(device):
    module, x = randomised(CBAM(16, 4)).to(device).eval(), normal((2, 16, 6, 5), device=device)
    expected = module(x)
    plan = plan_of(x, layer(16, device=device), "staged")
    row = plan.candidate._replace(tiles=plan.candidate.tiles._replace(num_warps=2, APPLY_P=8))
    with settings(backend="triton", config=row):
        found = module(x)
        assert plan_of(x, layer(16, device=device), str(row)).source == "settings"
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)(x)
    for y in (found, compiled):
        assert (y - expected).abs().max() < 1e-5


def test_a_config_that_a_layer_does_not_take_is_an_error_of_the_call(device):
    module, x = CBAM(16, 4).to(device), normal((2, 16, 8, 8), device=device)
    row = default(plan_of(x, layer(16, device=device), "auto").problem, H100).candidate
    bad = row._replace(tiles=row.tiles._replace(APPLY_P=2))
    with settings(backend="triton", config=str(bad)), pytest.raises(ValueError, match="must be a multiple of the 4"):
        module(x)


@pytest.mark.parametrize("options, error, message", [
    ({"config": "{}", "schedule": "staged"}, ValueError, "config has a schedule of its own"),
    ({"config": "[1]"}, FileNotFoundError, "[1]"),
    ({"config": 3}, ValueError, "config must be a Candidate, its JSON, or a file with that, got '3'"),
    ({"config": "{"}, ValueError, "config must be a Candidate"),
])  # fmt: skip
def test_what_is_no_config_is_refused(options, error, message):
    with pytest.raises(error) as caught:
        settings(**options)
    assert message in str(caught.value)


def test_a_config_may_be_a_file(tmp_path, device):
    row = plan_of(normal((2, 16, 8, 8)), layer(16), "staged").candidate
    path = tmp_path / "candidate.json"
    path.write_text(str(row))
    from cbam_triton.settings import current_schedule

    with settings(config=path):
        assert current_schedule() == str(row)
