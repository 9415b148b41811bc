"""One suite for a GPU, for a Triton driver of CPU tensors installed before this file, and for the interpreter."""

import importlib.util
import os

import hypothesis
import pytest


def _has_active_driver() -> bool:
    try:
        from triton.runtime import driver

        driver.active.get_active_torch_device()
    except Exception:  # each Triton release fails in its own way without a driver
        return False
    return True


# Before anything of ours is imported: @triton.jit decides there and then whether the interpreter runs the kernels.
if importlib.util.find_spec("triton") is not None and not _has_active_driver():
    os.environ["TRITON_INTERPRET"] = "1"

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels run, or the CPU where they do not."""
    from cbam_triton.kernels.device import device_type

    return device_type() or "cpu"


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which Triton has nothing to run on."""
    from cbam_triton import functional

    monkeypatch.setattr(functional, "_kernel_device_type", lambda: None)
