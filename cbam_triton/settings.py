"""Which backend and schedule run: one process-wide choice, from the environment or a `with` block."""

import os
from contextlib import ContextDecorator
from types import TracebackType
from typing import Literal

Backend = Literal["auto", "triton", "reference"]
Schedule = Literal["auto", "staged", "wavefront"]

_BACKENDS = ("auto", "triton", "reference")
_SCHEDULES = ("auto", "staged", "wavefront")


def _checked(value: str, allowed: tuple[str, ...], name: str) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}: choose one of these")
    return value


# Plain module state, not a ContextVar: torch.compile guards on it, so a changed setting compiles anew.
_backend = _checked(os.environ.get("CBAM_TRITON_BACKEND", "auto"), _BACKENDS, "CBAM_TRITON_BACKEND")
_schedule = _checked(os.environ.get("CBAM_TRITON_SCHEDULE", "auto"), _SCHEDULES, "CBAM_TRITON_SCHEDULE")


def current_backend() -> str:
    """The backend asked for: "auto", "triton" or "reference"."""
    return _backend


def current_schedule() -> str:
    """The schedule asked for: "auto", "staged" or "wavefront"."""
    return _schedule


class settings(ContextDecorator):
    """Choose the backend and the schedule inside a `with` block or a decorated function.

    `backend`: "triton" (an error where kernels cannot run), "reference" (plain PyTorch), or "auto" (Triton where its
    active driver, or its interpreter, takes x's device; else the reference). `schedule`: "staged", "wavefront", or
    "auto" (by shape and device). None leaves a choice as it is. Blocks nest, and one object may be entered again.
    The choice is process-wide: every thread sees it.

    Raises: ValueError for an unknown name.
    """

    def __init__(self, backend: Backend | None = None, schedule: Schedule | None = None) -> None:
        self.backend = None if backend is None else _checked(backend, _BACKENDS, "backend")
        self.schedule = None if schedule is None else _checked(schedule, _SCHEDULES, "schedule")
        self._outer: list[tuple[str, str]] = []

    def __enter__(self) -> "settings":
        global _backend, _schedule
        self._outer.append((_backend, _schedule))
        _backend = self.backend or _backend
        _schedule = self.schedule or _schedule
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _backend, _schedule
        _backend, _schedule = self._outer.pop()

    def __repr__(self) -> str:
        return f"settings(backend={self.backend!r}, schedule={self.schedule!r})"
