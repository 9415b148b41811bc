import os
import subprocess
import sys
import threading

import pytest

from cbam_triton import settings
from cbam_triton.settings import current_backend, current_schedule


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


def test_settings_decorate_a_function():
    @settings(schedule="staged")
    def inside() -> str:
        return current_schedule()

    assert inside() == "staged"


def test_settings_are_seen_by_every_thread():
    seen = []
    with settings(backend="reference"):
        thread = threading.Thread(target=lambda: seen.append(current_backend()))
        thread.start()
        thread.join()
    assert seen == ["reference"]


@pytest.mark.parametrize("option, value", [("backend", "cuda"), ("schedule", "fast"), ("backend", "")])
def test_an_unknown_name_is_refused_with_the_known_ones(option, value):
    with pytest.raises(ValueError, match=f"{option} must be one of auto, .*, got '{value}': choose one of these"):
        settings(**{option: value})


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_environment_variables_set_the_defaults():
    code = "from cbam_triton.settings import *; print(current_backend(), current_schedule())"
    done = run_python(code, CBAM_TRITON_BACKEND="reference", CBAM_TRITON_SCHEDULE="staged")
    assert done.stdout.split() == ["reference", "staged"], done.stderr


@pytest.mark.parametrize("variable", ["CBAM_TRITON_BACKEND", "CBAM_TRITON_SCHEDULE"])
def test_a_bad_environment_variable_is_named(variable):
    done = run_python("import cbam_triton", **{variable: "speedy"})
    assert done.returncode != 0
    assert f"ValueError: {variable} must be one of auto" in done.stderr
