"""Terms: what a value of a traced forward is made of, as far as CBAM goes; whatever else there is, is "unknown".

Kinds: x; sum and product of terms, flat and sorted, so that the order in which a form writes them plays no part; pool
and map, a pool over the pixels or the channels, by name and source; layer, a module with parameters, by path and
source; functions by name. Views are left out: (N, C) and (N, C, 1, 1) are one term.
"""

from typing import Any, NamedTuple


class Term(NamedTuple):
    """A node of the tree; `parts` are terms, names and paths."""

    kind: str
    parts: tuple[Any, ...] = ()


X = Term("x")


def unknown_in(term: Any) -> str | None:
    """What an unknown part of the term is, if there is any."""
    if isinstance(term, Term) and term.kind == "unknown":
        return term.parts[0]
    if isinstance(term, tuple):
        return next((found for part in term if (found := unknown_in(part))), None)
    return None


def is_vector(term: Term) -> bool:
    """Whether this is a value a channel, and comes from pools over the pixels."""
    if term.kind == "layer":
        return is_vector(term.parts[1])
    if term.kind == "pool":
        return True
    return bool(term.parts) and all(isinstance(part, Term) and is_vector(part) for part in term.parts)


def product(*factors: Term) -> Term:
    return flat("product", factors)


def within(term: Term, path: tuple[str, ...], x: Term) -> Term:
    """The term of a module's result as one of the module that holds it at `path` and gives it x."""
    if term == X:
        return x
    if term.kind == "layer":
        return Term("layer", (path + term.parts[0], within(term.parts[1], path, x)))
    parts = tuple(within(part, path, x) if isinstance(part, Term) else part for part in term.parts)
    return flat(term.kind, parts) if term.kind in ("sum", "product") else Term(term.kind, parts)


def flat(kind: str, terms: tuple[Term, ...]) -> Term:
    parts = [part for term in terms for part in (term.parts if term.kind == kind else (term,))]
    return Term(kind, tuple(sorted(parts, key=repr)))


def unknown(what: str) -> Term:
    return Term("unknown", (what,))
