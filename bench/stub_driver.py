"""A Triton driver whose launches do nothing: kernels are compiled, every argument is looked at, no program runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch


class _Driver:
    """What Triton asks of a driver; facts are those of the GPU that is there, or of an H100."""

    def __init__(self, target: Any, device: torch.device) -> None:
        self._target, self._device = target, device
        self.launcher_cls = lambda source, metadata: _no_launch
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {
                "max_shared_mem": 232448,
                "multiprocessor_count": 132,
                "l2_cache_size": 50 << 20,
                "warpSize": 32,
            },
            load_binary=lambda *_: (1, 1, 0, 0, 1024),
            unload_module=lambda *_: None,
        )

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return self._device


def _no_launch(*arguments: Any, **options: Any) -> None:
    pass


@contextmanager
def stub_driver() -> Iterator[None]:
    """Inside, launches do nothing. Without a GPU they do nothing afterwards either: no other driver is there."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    there = torch.cuda.is_available()
    if there:
        target, device = driver.active.get_current_target(), torch.device("cuda", torch.cuda.current_device())
    else:
        target, device = GPUTarget("cuda", 90, 32), torch.device("cpu")
    driver.set_active(_Driver(target, device))
    try:
        yield
    finally:
        if there:
            driver.reset_active()
