"""One suite for a GPU, for a Triton driver of CPU tensors installed before this file, and for the interpreter."""

import os
import sys
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch

from .interpreter import patch_once_a_kernel


def _has_active_driver() -> bool:
    # Asked of Triton only where it is loaded already: its own device functions, too, are made for the interpreter or
    # for the compiler when they are imported.
    if "triton" not in sys.modules:
        return torch.cuda.is_available()
    from triton.runtime import driver

    try:
        driver.active.get_active_torch_device()
    except Exception:  # each Triton release fails in its own way without a driver
        return False
    return True


# Before anything of ours is imported: @triton.jit decides there and then whether the interpreter runs the kernels.
if not _has_active_driver():
    os.environ["TRITON_INTERPRET"] = "1"
    patch_once_a_kernel()

# Workers beside one another on all cores: a second thread of each would only wait for a core. Children take it over.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def device() -> str:
    """Where the kernels run, or the CPU where they do not."""
    from cbam_triton.kernels.launch.hardware import device_type

    return device_type() or "cpu"


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which Triton has nothing to run on."""
    from cbam_triton import dispatch

    monkeypatch.setattr(dispatch, "_kernel_device_type", lambda: None)


@pytest.fixture
def nan_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN: what a kernel forgets to write, or reads before it is written, shows."""

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def fresh(*arguments: Any, **options: Any) -> torch.Tensor:
            memory = allocate(*arguments, **options)
            return memory.fill_(torch.nan) if memory.is_floating_point() else memory

        return fresh

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
