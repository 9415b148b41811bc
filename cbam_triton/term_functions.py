"""What PyTorch's functions make of terms, each by its name in a trace; None for what CBAM has no use for."""

from collections.abc import Callable
from typing import Any

from torch import nn

from .terms import Term, X, flat, is_vector, product, unknown


def _is_map(term: Any) -> bool:
    """Whether this is x, or what gates leave of it."""
    return term == X or (term.kind == "product" and X in term.parts)


def _pooled(ndim: int, name: str, term: Term, dims: Any, keepdim: bool) -> Term | None:
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    if term.kind == "flat":
        return Term("pool", (name, term.parts[0])) if dims in ((2,), (-1,)) else None
    if not _is_map(term):
        return None
    axes = sorted(dim % ndim for dim in dims)
    if axes == list(range(2, ndim)):
        return Term("pool", (name, term))
    # Without its axis of channels it is a map only once that is back.
    return Term("map" if keepdim else "plane", (name, term)) if axes == [1] else None


def _mean(ndim: int, term: Term, dim: Any, keepdim: bool = False) -> Any:
    return _pooled(ndim, "mean", term, dim, keepdim)


def _amax(ndim: int, term: Term, dim: Any, keepdim: bool = False) -> Any:
    return _pooled(ndim, "max", term, dim, keepdim)


def _max(ndim: int, term: Term, dim: int, keepdim: bool = False) -> Any:
    """Pair of values and indices."""
    found = _pooled(ndim, "max", term, dim, keepdim)
    return None if found is None else (found, unknown("the indices of a maximum"))


def _adaptive(name: str) -> Callable[..., Any]:
    def pool(ndim: int, term: Term, output_size: Any, return_indices: bool = False) -> Any:
        sizes = {output_size} if isinstance(output_size, int) else set(output_size)
        return Term("pool", (name, term)) if _is_map(term) and sizes == {1} and not return_indices else None

    return pool


def _window(name: str) -> Callable[..., Any]:
    def pool(ndim: int, term: Term, kernel_size: Any, stride: Any = None, **options: Any) -> Any:
        whole = tuple(Term("size", (dim,)) for dim in range(2, ndim))
        usual = all(value in (0, 1, False) for key, value in options.items())
        if _is_map(term) and tuple(kernel_size) == whole and stride in (None, whole, list(whole)) and usual:
            return Term("pool", (name, term))
        return None

    return pool


def _lp_window(ndim: int, term: Term, norm_type: float, kernel_size: Any, **options: Any) -> Any:
    return _window("lp")(ndim, term, kernel_size, **options) if norm_type == 2 else None


def _size(ndim: int, term: Term, dim: int | None = None) -> Any:
    if not (_is_map(term) or term.kind == "flat"):
        return None
    sizes = tuple(Term("size", (i,)) for i in range(ndim))
    return sizes if dim is None else sizes[dim]


def _item(ndim: int, pair: Any, index: Any) -> Any:
    return pair[index] if type(pair) is tuple else None


def _attribute(ndim: int, value: Any, name: str) -> Any:
    if name == "values" and type(value) is tuple:
        return value[0]
    return _size(ndim, value) if name == "shape" else None


def _view(ndim: int, term: Term, *shape: Any) -> Any:
    """The same vector; or x with its pixels in one axis."""
    if is_vector(term):
        return term
    shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    rows = shape == (Term("size", (0,)), Term("size", (1,)), -1)
    return Term("flat", (term,)) if rows and _is_map(term) else None


def _flatten(ndim: int, term: Term, start_dim: int = 0, end_dim: int = -1) -> Any:
    if is_vector(term):
        return term if start_dim == 1 else None
    return Term("flat", (term,)) if _is_map(term) and (start_dim, end_dim) == (2, -1) else None


def _same_vector(ndim: int, term: Term, *dims: Any) -> Any:
    return term if is_vector(term) else None


def _unsqueeze(ndim: int, term: Term, dim: int) -> Any:
    if term.kind == "plane":
        return Term("map", term.parts) if dim == 1 else None
    return term if is_vector(term) and (dim >= 2 or dim < 0) else None


def _same(ndim: int, term: Term, *others: Any) -> Any:
    return term if isinstance(term, Term) else None


def _cat(ndim: int, tensors: Any, dim: int = 0) -> Any:
    return Term("cat", tuple(tensors)) if dim == 1 and all(term.kind == "map" for term in tensors) else None


def _add(ndim: int, a: Any, b: Any) -> Any:
    if not isinstance(a, Term) or not isinstance(b, Term):
        term, number = (a, b) if isinstance(a, Term) else (b, a)
        return Term("plus three", (term,)) if number == 3 else None
    largest = next((term for term in (a, b) if term.kind == "pool" and term.parts[0] == "max"), None)
    if largest is not None and Term("log of centred", largest.parts[1:]) in (a, b):
        return Term("pool", ("lse", largest.parts[1]))
    return flat("sum", (a, b))


def _sub(ndim: int, a: Term, b: Term) -> Any:
    """The pixels less their largest: the stable way to a sum of exponentials."""
    return Term("centred", a.parts) if a.kind == "flat" and b == Term("pool", ("max", *a.parts)) else None


def _mul(ndim: int, a: Any, b: Any) -> Any:
    if isinstance(a, Term) and isinstance(b, Term):
        return product(a, b)
    term, number = (a, b) if isinstance(a, Term) else (b, a)
    return _half(term) if number == 0.5 else None


def _div(ndim: int, a: Term, b: Any) -> Any:
    if b == 6 and a.kind == "up to six" and a.parts[0].kind == "plus three":
        return Term("hard_sigmoid", a.parts[0].parts)
    return _half(a) if b == 2 else None


def _half(term: Term) -> Term:
    return flat("sum", tuple(map(_half, term.parts))) if term.kind == "sum" else Term("half", (term,))


def _clamp(ndim: int, term: Term, low: float, high: float) -> Any:
    return Term("up to six", (term,)) if (low, high) == (0, 6) else None


def _sum(ndim: int, term: Term, dim: int, keepdim: bool = False) -> Any:
    return Term("sum of centred", term.parts) if term.kind == "exp of centred" and dim in (2, -1) else None


def _function(name: str) -> Callable[..., Any]:
    def function(ndim: int, term: Term) -> Any:
        return Term(name, (term,))

    return function


def _step(name: str, before: str) -> Callable[..., Any]:
    """A function that is known of one kind of term only."""

    def function(ndim: int, term: Term) -> Any:
        return Term(f"{name} of centred", term.parts) if term.kind == before else None

    return function


# Modules without parameters, each with its settings as arguments of the function that it calls.
SETTINGS: dict[type, tuple[str, ...]] = {
    nn.AdaptiveAvgPool1d: ("output_size",),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.AdaptiveAvgPool3d: ("output_size",),
    nn.AdaptiveMaxPool1d: ("output_size", "return_indices"),
    nn.AdaptiveMaxPool2d: ("output_size", "return_indices"),
    nn.AdaptiveMaxPool3d: ("output_size", "return_indices"),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Hardsigmoid: (),
    nn.Identity: (),
    nn.ReLU: (),
    nn.Sigmoid: (),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "adaptive_avg_pool": _adaptive("mean"),
    "adaptive_max_pool": _adaptive("max"),
    "adaptiveavgpool": _adaptive("mean"),
    "adaptivemaxpool": _adaptive("max"),
    "add": _add,
    "amax": _amax,
    "avg_pool": _window("mean"),
    "cat": _cat,
    "clamp": _clamp,
    "concat": _cat,
    "contiguous": _same,
    "div": _div,
    "exp": _step("exp", "centred"),
    "expand_as": _same,
    "flatten": _flatten,
    "getattr": _attribute,
    "getitem": _item,
    "hardsigmoid": _function("hard_sigmoid"),
    "identity": _same,
    "log": _step("log", "sum of centred"),
    "lp_pool": _lp_window,
    "max": _max,
    "max_pool": _window("max"),
    "mean": _mean,
    "mul": _mul,
    "multiply": _mul,
    "relu": _function("relu"),
    "relu6": _function("up to six"),
    "reshape": _view,
    "sigmoid": _function("sigmoid"),
    "size": _size,
    "squeeze": _same_vector,
    "sub": _sub,
    "sum": _sum,
    "truediv": _div,
    "unsqueeze": _unsqueeze,
    "view": _view,
}
