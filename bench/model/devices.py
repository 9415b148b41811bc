"""`--device` of the commands: a shipped GPU by its name, or a device file."""

from __future__ import annotations

import json
from pathlib import Path

from cbam_triton.demo.options import InputError
from cbam_triton.prediction.devices import Gpu, gpu_of, shipped


def gpu(name: str) -> Gpu:
    """A shipped GPU by its name, or the one of a device file. Raises: InputError for another name or a bad file."""
    known = shipped()
    if name in known:
        return known[name]
    path = Path(name)
    if not path.exists():
        raise InputError(f"{name!r} is no device: give one of {', '.join(known)}, or a device file")
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{name} is no device file ({error}): it holds one JSON object") from None
    try:
        return gpu_of(values, name)
    except ValueError as error:
        raise InputError(str(error)) from None
