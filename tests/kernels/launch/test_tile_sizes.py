"""Launch configuration: the table, the lag, the choice of schedule and the device facts that they are made from."""

import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from cbam_triton.kernels.launch import grid
from cbam_triton.kernels.launch import hardware as device_facts
from cbam_triton.kernels.launch import schedule as schedules
from cbam_triton.kernels.launch import tile_sizes as table
from cbam_triton.kernels.launch.hardware import DeviceFacts
from cbam_triton.kernels.launch.problem import Problem
from cbam_triton.kernels.launch.tile_sizes import Config

SCHEDULES = ("staged", "wavefront")
H100 = DeviceFacts("H100", 132, 50 << 20)
T4 = DeviceFacts("T4", 40, 4 << 20)

problems = st.builds(
    Problem, st.integers(1, 128), st.integers(1, 2048), st.integers(1, 12544), st.integers(0, 128),
    st.sampled_from([0, 1, 3, 7, 15]), st.sampled_from([2, 4, 8]), st.sampled_from([1, 2]), st.booleans(),
    st.booleans(), st.integers(1, 3), st.booleans(),
).filter(lambda problem: (problem.R and problem.K) if problem.spatial_first else (problem.R or problem.K))  # fmt: skip


@given(problems, st.sampled_from(SCHEDULES))
def test_every_row_of_the_table_is_one_that_kernels_can_take(problem, schedule):
    for row in table.configs(schedule, problem):
        constants = row.of("POOL", "MLP", "SPATIAL", "APPLY", "MAP")
        assert set(constants) == {name for name in Config._fields if name.isupper()}
        tiles = {name: size for name, size in constants.items() if not name.endswith(("SPLIT", "DEPTH"))}
        assert all(size >= 1 and size & (size - 1) == 0 for size in tiles.values()), tiles
        assert all(size >= 1 for size in constants.values())
        assert row.POOL_KEEP <= row.POOL_P
        assert row.SPATIAL_KEEP <= row.SPATIAL_C
        assert row.APPLY_SPLIT >= row.APPLY_C
        assert row.num_warps in (1, 2, 4, 8)
        for width, height in (("POOL_C", "POOL_P"), ("SPATIAL_C", "SPATIAL_P"), ("APPLY_C", "APPLY_P")):
            elements = tiles[width] * tiles[height] / (32 * row.num_warps)
            assert elements <= 128, f"{width} x {height} takes {elements} registers a thread"


@given(problems, st.integers(1, 128), st.sampled_from(SCHEDULES))
def test_a_new_batch_or_map_of_the_same_class_gets_the_same_rows(problem, N, schedule):
    class_P = 1 << (problem.P - 1).bit_length()
    assert table.configs(schedule, problem) == table.configs(schedule, problem._replace(N=N, P=class_P))
    assert table.configs(schedule, problem) == table.configs(schedule, problem._replace(P=class_P // 2 + 1))


@given(problems, st.integers(1, 200), st.integers(1 << 16, 1 << 27))
def test_the_lag_covers_resident_programs_unless_l2_holds_less(problem, sm_count, l2_bytes):
    row = table.configs("wavefront", problem)[0]
    tiles = grid.backward_tiles if problem.backward else grid.wavefront_tiles
    in_flight = row.programs_per_sm * sm_count / tiles(problem, row._asdict())
    sample_bytes = problem.C * problem.P * problem.itemsize * (1 + problem.backward)
    stages = (2 if problem.R and problem.K else 1) + (
        1 if problem.K and (problem.backward or problem.spatial_first) else 0
    )
    lag = schedules.lag(problem, row, DeviceFacts("", sm_count, l2_bytes))
    assert 1 <= lag <= in_flight + 1
    alive = (stages * lag + in_flight + 1) * sample_bytes
    assert lag == 1 or alive <= l2_bytes
    assert lag > in_flight or alive + stages * sample_bytes > schedules.L2_SHARE * l2_bytes


@pytest.mark.parametrize("size, device, schedule", [
    ((32, 256, 56 * 56, 16), H100, "staged"),
    ((128, 256, 56 * 56, 16), H100, "wavefront"),
    ((128, 64, 112 * 112, 4), H100, "wavefront"),
    ((32, 256, 56 * 56, 16), T4, "staged"),
    ((8, 2048, 49, 128), H100, "staged"),
    ((1024, 2048, 49, 128), H100, "staged"),
    ((4, 64, 1 << 20, 4), H100, "staged"),
])  # fmt: skip
def test_the_schedule_follows_from_l2_and_the_pixels(size, device, schedule):
    N, C, P, R = size
    chosen, reason = schedules.choose_schedule(Problem(N, C, P, R, 7, 2, 8, False), device)
    assert chosen == schedule, reason
    assert reason


def test_no_batch_has_a_schedule():
    assert schedules.choose_schedule(Problem(0, 64, 49, 4, 7, 2, 1, False), H100)[0] in SCHEDULES


def _with_environment(text, monkeypatch):
    """The module as it is when it is first imported under CBAM_TRITON_DEVICE=text."""
    monkeypatch.setenv("CBAM_TRITON_DEVICE", text)
    spec = importlib.util.spec_from_file_location("cbam_triton.kernels.launch.hardware_anew", device_facts.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_environment_overrides_device_facts_one_by_one(device, monkeypatch):
    here = torch.device(device)
    found = _with_environment("", monkeypatch).facts(here)
    assert found.sm_count >= 1
    assert found.l2_bytes >= 1
    both = _with_environment("sm_count=132, l2_bytes=52428800", monkeypatch).facts(here)
    assert both == found._replace(sm_count=132, l2_bytes=52428800)
    one = _with_environment("l2_bytes=4194304", monkeypatch).facts(here)
    assert one == found._replace(l2_bytes=4194304)


@pytest.mark.parametrize("text", ["sm_count", "sm_count=", "sm_count=0", "sm=4", "l2_bytes=4MB", "sm_count=4;"])
def test_a_bad_override_is_quoted_beside_a_good_one(text, monkeypatch):
    with pytest.raises(ValueError, match=r"CBAM_TRITON_DEVICE must look like 'sm_count=132,.*got '") as error:
        _with_environment(text, monkeypatch)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("C, backward, schedule, training, limit", [
    (256, False, "wavefront", False, 0), (256, False, "wavefront", True, 0), (256, False, "staged", True, 168),
    (512, False, "wavefront", False, 168), (300, False, "staged", False, 168), (2048, False, "wavefront", True, 200),
    (64, True, "wavefront", True, 168),
])  # fmt: skip
def test_registers_are_limited_where_ptxas_would_spill(C, backward, schedule, training, limit):
    problem = Problem(8, C, 784, 32, 7, 2, 8, False, backward)
    assert schedules.registers(problem, schedule, training) == limit
    assert schedules.registers(problem._replace(itemsize=4), schedule, training) == (168 if training else limit)
    every_pool = problem._replace(spatial_first=True, slots=4)
    assert schedules.registers(every_pool, schedule, training) == (200 if backward else limit)
