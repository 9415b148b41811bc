"""`settings`: what a block changes, for whom, and until when."""

import gc
import os
import subprocess
import sys
import threading

import pytest
import torch

from cbam_triton import CBAM, settings
from cbam_triton.kernels.launch.hardware import device_type
from cbam_triton.settings import Labels, current_backend, current_schedule


def test_settings_hold_inside_the_block_and_are_restored_after_it():
    before = current_backend(), current_schedule()
    with settings(backend="reference", schedule="staged"):
        assert (current_backend(), current_schedule()) == ("reference", "staged")
        with settings(schedule="wavefront"):
            assert (current_backend(), current_schedule()) == ("reference", "wavefront")
        assert (current_backend(), current_schedule()) == ("reference", "staged")
    assert (current_backend(), current_schedule()) == before


def test_settings_are_restored_after_an_error():
    before = current_backend()

    def fail() -> None:
        with settings(backend="reference"):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert current_backend() == before


def test_one_settings_object_may_be_entered_again_inside_itself():
    before = current_backend()
    chosen = settings(backend="reference")
    with chosen, settings(backend="auto"), chosen:
        assert current_backend() == "reference"
    assert current_backend() == before


def test_a_block_that_ends_before_the_one_it_contains_takes_its_own_options_away_and_no_others():
    before = current_backend(), current_schedule()
    outer, inner = settings(backend="reference"), settings(schedule="staged")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert (current_backend(), current_schedule()) == (before[0], "staged")
    inner.__exit__(None, None, None)
    assert (current_backend(), current_schedule()) == before


def test_blocks_of_generators_may_end_in_the_order_in_which_they_began():
    def held(backend):
        with settings(backend=backend):
            yield current_backend()

    before = current_backend()
    first, second = held("reference"), held("triton")
    assert (next(first), next(second)) == ("reference", "triton")
    first.close()
    assert current_backend() == "triton"
    second.close()
    assert current_backend() == before


def test_a_block_that_another_thread_ends_is_over_for_everybody():
    def held():
        with settings(backend="reference"):
            yield

    before = current_backend()
    generator = held()
    next(generator)
    in_thread(generator.close)
    assert current_backend() == before
    with settings(schedule="staged"):
        assert (current_backend(), current_schedule()) == (before, "staged")


def test_a_block_that_the_garbage_collector_ends_is_over():
    def held():
        with settings(backend="reference"):
            yield

    before = current_backend()
    generator = held()
    next(generator)
    del generator
    gc.collect()
    assert current_backend() == before


def test_a_block_is_not_seen_by_other_threads():
    before = current_backend()
    with settings(backend="reference"):
        assert in_thread(current_backend) == before
        assert current_backend() == "reference"


def test_one_object_in_two_threads_at_once_ends_in_each_by_itself():
    chosen, begun, ended = settings(backend="reference"), threading.Event(), threading.Event()
    seen = []

    def longer():
        with chosen:
            begun.set()
            ended.wait(10)
            seen.append(current_backend())

    thread = threading.Thread(target=longer)
    thread.start()
    begun.wait(10)
    with chosen:
        pass
    ended.set()
    thread.join()
    assert seen == ["reference"]


def test_a_block_that_has_not_begun_cannot_end():
    with pytest.raises(RuntimeError, match="has not begun, or has ended: enter it first"):
        settings(backend="reference").__exit__(None, None, None)


@pytest.mark.parametrize("option, value", [("backend", "cuda"), ("schedule", "fast"), ("backend", "")])
def test_an_unknown_name_is_refused_with_the_known_ones(option, value):
    with pytest.raises(ValueError, match=f"{option} must be one of auto, .*, got '{value}': choose one of these"):
        settings(**{option: value})


@pytest.mark.parametrize("option", ["backend", "schedule"])
@pytest.mark.parametrize("value", [1, True, b"auto", ["auto"], print])
def test_a_value_that_is_no_name_is_a_type_error(option, value):
    with pytest.raises(TypeError, match=f"{option} must be one of auto, .*: choose one of these"):
        settings(**{option: value})


def test_profile_takes_a_bool_and_counts_its_blocks():
    with pytest.raises(TypeError, match="profile must be True or False, got 'yes'"):
        settings(profile="yes")
    before = Labels.blocks
    with settings(profile=True), settings(profile=False), settings(profile=True):
        assert Labels.blocks == before + 2
    assert Labels.blocks == before
    assert repr(settings(profile=True)) == "settings(backend=None, schedule=None, profile=True)"


@pytest.mark.parametrize("schedule, stages", [
    ("staged", {"channel_pool", "channel_mlp", "spatial_pool", "apply_gates"}), ("wavefront", {"cbam_wavefront"}),
])  # fmt: skip
def test_launches_have_labels_in_the_profiler_where_a_block_asks_for_them(schedule, stages, device):
    if device_type() is None:
        pytest.skip("kernels do not run here")
    layer, x = CBAM(8, device=device).eval(), torch.randn(1, 8, 4, 4, device=device)
    with torch.no_grad(), settings("triton", schedule):
        with torch.profiler.profile() as silent:
            layer(x)
        with torch.profiler.profile() as profiled, settings(profile=True):
            layer(x)
    assert not any(event.name.startswith("cbam_triton ") for event in silent.events())
    found = {event.name for event in profiled.events() if event.name.startswith("cbam_triton ")}
    assert found == {f"cbam_triton 1x8x4x4 float32: {stage}" for stage in stages}


def in_thread(function):
    """What the function returns in a thread of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_environment_variables_set_the_defaults_of_every_thread():
    code = """
import threading
from cbam_triton.settings import *
thread = threading.Thread(target=lambda: print(current_backend(), current_schedule()))
thread.start()
thread.join()
"""
    done = run_python(code, CBAM_TRITON_BACKEND="reference", CBAM_TRITON_SCHEDULE="staged")
    assert done.stdout.split() == ["reference", "staged"], done.stderr


@pytest.mark.parametrize("variable", ["CBAM_TRITON_BACKEND", "CBAM_TRITON_SCHEDULE"])
def test_a_bad_environment_variable_is_named(variable):
    done = run_python("import cbam_triton", **{variable: "speedy"})
    assert done.returncode != 0
    assert f"ValueError: {variable} must be one of auto" in done.stderr
