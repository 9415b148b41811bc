"""The order in which a search tries candidates; each is a generator that is sent the ratio of what it yielded."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Generator
from typing import Any

from cbam_triton.demo.options import need_extras
from cbam_triton.kernels.launch.candidate import Candidate

SEARCHES = ("grid", "random", "coordinate", "tpe")
Search = Generator[Candidate, float | None, None]


def search(how: str, kept: list[Candidate], seed: int, neighbours: Callable[[Candidate], list[Candidate]]) -> Search:
    """Candidates, each at most once, from the first of `kept` on. What fails is answered with None.

    "grid": all in order. "random": shuffled by the seed. "coordinate": the best so far with one knob changed, until no
    such neighbour is faster. "tpe": as optuna's sampler of that name proposes.
    Raises: InputError for "tpe" without optuna.
    """
    if how == "coordinate":
        return _coordinate(kept[0], neighbours)
    if how == "tpe":
        need_extras("optuna", extra='pip install "cbam-triton[lab]"')
        return _tpe(kept, seed)
    order = kept[1:]
    if how == "random":
        random.Random(seed).shuffle(order)
    return _in_order([kept[0], *order])


def _in_order(order: list[Candidate]) -> Search:
    for row in order:
        _ = yield row  # the answer changes nothing


def _coordinate(first: Candidate, neighbours: Callable[[Candidate], list[Candidate]]) -> Search:
    tried = {first}
    found = yield first
    best, ratio = first, 1.0 if found is None else found
    moved = True
    while moved:
        moved = False
        for row in neighbours(best):
            if row in tried:
                continue
            tried.add(row)
            found = yield row
            if found is not None and found < ratio:
                best, ratio, moved = row, found, True
                break


def _tpe(kept: list[Candidate], seed: int) -> Search:
    optuna: Any = importlib.import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = [name for name in Candidate.knobs() if len({row.to_json().get(name) for row in kept}) > 1]
    values = {name: sorted({str(row.to_json().get(name)) for row in kept}) for name in names}
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    left = list(kept)
    while left:
        trial = study.ask()
        asked = {name: trial.suggest_categorical(name, values[name]) for name in names}
        row = min(left, key=lambda row: sum(str(row.to_json().get(name)) != asked[name] for name in names))
        left.remove(row)
        found = yield row
        if found is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, found)
