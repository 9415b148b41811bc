"""Tables that come with the package: a file for each kind of device, named after it, by `bench distill --ship`."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tuned"
# What a file must say of the run that it was measured in.
ENVIRONMENT = ("device", "driver", "torch", "triton", "kernels", "clock", "cache")
MARGIN = 0.98  # an entry's whole interval is below this part of the default's time, or it is the default itself
_KERNELS = Path(__file__).parents[1]
_NO_KERNEL = ("candidate.py", "choice.py", "hardware.py", "shipped.py", "space.py", "tables.py")  # they choose


def file_of(device: str) -> Path:
    """Where the table of a device lies, if the package has one.

    >>> from cbam_triton.kernels.launch import shipped
    >>> shipped.file_of("NVIDIA H100 80GB HBM3").name
    'NVIDIA_H100_80GB_HBM3.json'
    """
    return FOLDER / f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', device)}.json"


def fault(data: Mapping[str, Any], device: str) -> str | None:
    """What keeps the object of a file from being a table of this device; None if nothing does.

    Raises: KeyError, TypeError for an object of another form.
    """
    where = data["environment"]
    absent = [name for name in ENVIRONMENT if name not in where]
    if absent:
        return f"its environment has no {', '.join(absent)}"
    if data["device"] != device or where["device"] != device:
        return f"it is of {data['device']}, and its name is that of {device}"
    for entry in data["entries"]:
        middle, low, high = entry["ratio"]
        if not (0 < low <= middle <= high) or not (high < MARGIN or low == high == 1):
            return f"an entry of it was not proved faster than the default: {low} to {high} of its time"
    return None


def kernels_hash() -> str:
    """The text of all that a time depends on: kernels and their launches, but not what chooses among candidates."""
    digest = hashlib.sha256()
    for path in sorted(_KERNELS.rglob("*.py")):
        if path.parent.name != "launch" or path.name not in _NO_KERNEL:
            digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]
