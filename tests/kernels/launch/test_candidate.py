"""A candidate is written down and read back as it was; what no kernel can take is said before a launch."""

import pytest

pytest.importorskip("triton")

from cbam_triton.kernels.launch.candidate import Candidate
from cbam_triton.kernels.launch.problem import Problem
from cbam_triton.kernels.launch.tile_sizes import Config, configs

PROBLEM = Problem(8, 64, 784, 4, 7, 2, 8, False)


def usual(schedule="wavefront"):
    return Candidate(schedule, configs(schedule, PROBLEM)[0])


@pytest.mark.parametrize("candidate", [usual(), usual("staged"), usual()._replace(lag=3, registers=0)])
def test_a_candidate_comes_back_from_its_text(candidate):
    assert Candidate.parse(str(candidate)) == candidate
    assert Candidate.from_json(candidate.to_json()) == candidate


def test_every_knob_is_in_the_text():
    values = usual()._replace(lag=3, registers=128).to_json()
    assert tuple(values) == Candidate.knobs()
    assert set(Config._fields) < set(values)


@pytest.mark.parametrize("changes, message", [
    ({"schedule": "sideways"}, "must be one of staged, wavefront, got 'sideways'"),
    ({"schedule": "staged", "lag": 2}, "a lag is a wavefront's"),
    ({"lag": 0}, "at least 1, got 0"),
    ({"registers": 300}, "registers must be 0 or from 24 to 255, got 300"),
    ({"POOL_C": 24}, "POOL_C must be a power of two, got 24"),
    ({"MAP_P": 0}, "MAP_P must be positive, got 0"),
    ({"num_warps": 64}, "at most 32 warps, got 64"),
    ({"APPLY_C": 1 << 11, "APPLY_P": 1 << 10}, "at most 2^20"),
    ({"POOL_KEEP": 1 << 13}, "POOL_KEEP must be at most POOL_P"),
    ({"APPLY_C": 32, "APPLY_SPLIT": 48}, "APPLY_SPLIT must be a multiple of APPLY_C, got 48 and 32"),
    ({"POOL_C": 8.0}, "must be integers, got POOL_C=8.0"),
    ({"POOL_C": True}, "must be integers, got POOL_C=True"),
    ({"SHINE": 3}, "unknown: SHINE; missing: "),
])  # fmt: skip
def test_what_no_kernel_takes_is_said(changes, message):
    values = usual().to_json() | changes
    if "SHINE" in changes:
        del values["POOL_C"]
    with pytest.raises(ValueError, match="candidate") as error:
        Candidate.from_json(values)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schedule": "staged"}'])
def test_another_text_is_no_candidate(text):
    with pytest.raises(ValueError, match="candidate"):
        Candidate.parse(text)
