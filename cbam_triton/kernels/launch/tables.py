"""Tables of tuned problems: one that is in use by request, the user's own, and those that come with the package.

A table is read at most once, and asked once a plan. A file that cannot be used is a miss and one warning.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from . import shipped
from .candidate import Candidate
from .hardware import DeviceFacts, interpreted
from .problem import Problem

FORMAT = 1
STORE = "CBAM_TRITON_CACHE"
PINNED = "the default: nothing was proved faster"  # the reason of an entry that keeps it


class Found(NamedTuple):
    """An entry of a table."""

    candidate: Candidate
    source: str
    reason: str


class Table(NamedTuple):
    """Candidates by problem, for one kind of device; `name` is that of the file."""

    device: str
    entries: Mapping[Problem, Found]
    name: str

    def find(self, problem: Problem) -> Found | None:
        """The entry of this problem, or of the nearest N at most twice as large or small.

        Another N has its own default, so an entry that keeps the default says nothing of it.
        """
        exact = self.entries.get(problem)
        if exact is not None:
            return exact
        near = [other for other in self.entries if _batches_apart(other, problem) <= 2]
        if not near:
            return None
        found = self.entries[min(near, key=lambda other: _batches_apart(other, problem))]
        return None if found.reason == PINNED else found


_FORGET: list[Callable[[], object]] = []  # what `plan` sets, which keeps what was chosen


class _State:
    used: Table | None = None
    read: dict[str, list[Table]] = {}  # noqa: RUF012, by device: the store and what is shipped
    stale: dict[str, str] = {}  # noqa: RUF012, by device: what is said of a shipped table of other kernels


def lookup(problem: Problem, device: DeviceFacts) -> Found | None:
    """The first entry for a problem: of the table in use, of the user's store, of the package."""
    tables = [] if _State.used is None else [_State.used]
    for table in [*tables, *_kept(device.name)]:
        found = table.find(problem) if table.device == device.name else None
        if found is not None:
            return found
    return None


def passed_over(device: str) -> str:
    """What `explain` adds where the package has a table of this device that is of other kernels; nothing elsewhere."""
    return _State.stale.get(device, "")


def use(table: Table | None) -> None:
    """Ask this table first, from the next call on; None takes it away. What was planned is planned anew."""
    _State.used = table
    _changed()


def used() -> Table | None:
    """The table in use."""
    return _State.used


def forget() -> None:
    """Read the store and what is shipped again when they are asked next."""
    _State.read.clear()
    _State.stale.clear()
    _changed()


def when_changed(forget_plans: Callable[[], object]) -> None:
    """Call this whenever another table counts."""
    _FORGET.append(forget_plans)


def _changed() -> None:
    for forget_plans in _FORGET:
        forget_plans()


def read_table(path: Path) -> Table:
    """The table of a file that `write_table` wrote.

    Raises: OSError for a file that cannot be read, ValueError for one that is no table of this release.
    """
    return _read(path)[0]


def _read(path: Path, device: str | None = None) -> tuple[Table, str]:
    """The table of a file and the kernels that it was measured with; `device` is of a file that is shipped for it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, this release reads {FORMAT}")
        if device is not None and (why := shipped.fault(data, device)) is not None:
            raise ValueError(why)
        source = f"{path.name} ({data['device']})" if device is None else f"shipped table of {device}"
        entries = {}
        for entry in data["entries"]:
            problem = _problem(entry["problem"])
            candidate = Candidate.from_json(entry["candidate"])
            entries[problem] = Found(candidate, source, str(entry.get("reason", "tuned")))
        kernels = str(data["environment"]["kernels"]) if device is not None else ""
        return Table(str(data["device"]), entries, path.name), kernels
    except (KeyError, TypeError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        said = f"missing: {error}" if isinstance(error, KeyError) else str(error)
        remedy = "make one with `python -m bench distill`"
        raise ValueError(f"{path} is no table of tuned problems ({said}): {remedy}") from None


def write_table(
    path: Path,
    device: str,
    entries: Mapping[Problem, tuple[Candidate, str]],
    where: Mapping[str, Any] | None = None,
    ratios: Mapping[Problem, tuple[float, float, float]] | None = None,
) -> None:
    """Write candidates and the reasons for them as one file, whole or not at all.

    A table to be shipped also says where it was measured (`shipped.ENVIRONMENT`), and for each entry its time over the
    default's: the median and its interval.
    """
    rows: list[dict[str, Any]] = [
        {"problem": problem._asdict(), "candidate": candidate.to_json(), "reason": reason}
        for problem, (candidate, reason) in entries.items()
    ]
    for row, problem in zip(rows, entries, strict=True):
        row.update({} if ratios is None else {"ratio": list(ratios[problem])})
    data = {"format": FORMAT, "device": device, "environment": where or environment(), "entries": rows}
    write_whole(path, json.dumps(data, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """The text as a file; who reads it meanwhile, or is interrupted, sees the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def store_folder(device: str) -> Path:
    """Where the user's entries for a device and these versions lie."""
    root = os.environ.get(STORE)
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cbam_triton"
    key = json.dumps([device, *environment().values()])
    return base / hashlib.sha256(key.encode()).hexdigest()[:16]


def add_to_store(device: str, problem: Problem, candidate: Candidate, reason: str) -> Path:
    """Keep an entry in the user's store, in a file of its own: writers of other problems lose nothing.

    Raises: OSError where the store cannot be written.
    """
    name = hashlib.sha256(json.dumps(problem).encode()).hexdigest()[:16]
    path = store_folder(device) / f"{name}.json"
    write_table(path, device, {problem: (candidate, reason)})
    forget()
    return path


def environment() -> dict[str, str]:
    """What a tuned entry depends on besides the device: releases, and the text of the kernels."""
    return {"torch": torch.__version__, "triton": triton.__version__, "kernels": shipped.kernels_hash()}


def _kept(device: str) -> list[Table]:
    if device not in _State.read:
        folders = [] if interpreted() and not os.environ.get(STORE) else [store_folder(device)]
        merged: dict[Problem, Found] = {}
        for folder in folders:
            for table in (_read_or_warn(path) for path in _files(folder)):
                if table is not None and table.device == device:
                    merged.update(table.entries)
        own = [Table(device, merged, "store")] if merged else []
        packed = _read_or_warn(shipped.file_of(device), device)
        _State.read[device] = own if packed is None else [*own, packed]
    return _State.read[device]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.json"))
    except OSError:
        return []


def _read_or_warn(path: Path, device: str | None = None) -> Table | None:
    """The table of a file; None after a warning, or without one where the package has no file or one of other kernels.

    Users of a stale file can do nothing about it, so `passed_over` tells those who ask.
    """
    try:
        if device is not None and not path.exists():
            return None
        table, kernels = _read(path, device)
    except (OSError, ValueError) as error:
        warnings.warn(f"a tuned entry is left out: {error}", stacklevel=2)
        return None
    if device is not None and kernels != shipped.kernels_hash():
        _State.stale[device] = f"; the shipped table of {device} is of other kernels and was passed over"
        return None
    return table


def _problem(values: Mapping[str, Any]) -> Problem:
    if set(values) != set(Problem._fields):
        raise ValueError(f"a problem has {', '.join(Problem._fields)}, got {', '.join(map(str, values))}")
    wrong = [name for name, value in values.items() if type(value) not in (int, bool)]
    if wrong:
        raise ValueError(f"the sizes of a problem must be integers, got {wrong[0]}={values[wrong[0]]!r}")
    return Problem(**values)


def _batches_apart(one: Problem, other: Problem) -> float:
    """How many times N is larger; infinity where anything else differs."""
    if one._replace(N=0) != other._replace(N=0) or not (one.N and other.N):
        return float("inf")
    return max(one.N / other.N, other.N / one.N)
