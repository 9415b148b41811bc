"""Which CBAM a forward seems to be, from what its layers are given on one map, and from its result.

The MLP's first layer must be given pools over the pixels, the convolution the maps of pools over the channels, each
of x or of x times the other gate. The result decides the rest.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...spec import reference
from ...spec.layer import NO_CONV, NO_MLP, Layer
from ...spec.variant import Variant, checked_variant
from .evaluate import Forward
from .layers import Call, DrawnLayers
from .plan import Plan, Unlike

_GATES = ("sigmoid", "hard_sigmoid")
_ARRANGEMENTS = ("channel_first", "parallel", "spatial_first")
_OTHER_RESULT = "its result is not x times a channel gate and a spatial gate of it"
_LIGHT = "the half of the sum"


class _Stage(Unlike):
    """Why a comparison ended after so many matched gates: the reason of the furthest one is told."""

    def __init__(self, words: str, matched: int = 0) -> None:
        super().__init__(words)
        self.matched = matched


class _Parts(NamedTuple):
    """Paths of the layers by what they do, and the calls of them."""

    mlp: list[str]
    conv: str | None
    norm: str | None
    calls: list[Call]

    def plan(self, kind: str, variant: Variant) -> Plan:
        """The plan of "both" gates, or of the "channel" or the "spatial" one alone."""
        mlp = tuple(tuple(path.split(".")) for path in self.mlp)
        conv, norm = (None if path is None else tuple(path.split(".")) for path in (self.conv, self.norm))
        mlp = () if kind == "spatial" else mlp
        conv, norm = (None, None) if kind == "channel" else (conv, norm)
        return Plan(mlp, conv, norm, False, variant)


def same(found: Any, expected: Tensor) -> bool:
    """Whether these are equal but for the rounding of float64."""
    if not isinstance(found, Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    largest = expected.abs().max().item() if expected.numel() else 0.0
    return torch.allclose(found, expected, rtol=1e-9, atol=1e-11 * largest, equal_nan=True)


def predicted(plan: Plan, x: Tensor, drawn: DrawnLayers) -> Tensor:
    """What the library computes for this plan with these layers."""
    mlp: list[Any] = []
    for path in plan.mlp:
        weight, bias = drawn.weights(".".join(path))
        mlp += [weight.flatten(1), bias]
    mlp += [None] * (len(NO_MLP) - len(mlp))
    conv = NO_CONV if plan.conv is None else drawn.weights(".".join(plan.conv))
    norm = None if plan.norm is None else functools.partial(drawn.function, ".".join(plan.norm))
    residual = x if plan.add_input else None
    return reference.cbam(x, Layer(tuple(mlp), conv, norm, plan.variant), residual)


def matched(forward: Forward, x: Tensor, y: Tensor, drawn: DrawnLayers) -> Plan:
    """The plan that gives y for x, after a run of the forward with these layers.

    Raises: Unlike, with what is otherwise.
    """
    parts = _parts(forward, drawn.calls)
    why: _Stage | None = None
    for gate in _GATES:
        for arrangement in _ARRANGEMENTS if parts.mlp and parts.conv else _ARRANGEMENTS[:1]:
            try:
                return _matched(parts, x, y, drawn, gate, arrangement)
            except _Stage as stage:  # noqa: PERF203
                why = stage if why is None or stage.matched > why.matched else why
    _check_mlp(parts, x)
    assert why is not None
    raise why


def _parts(forward: Forward, calls: list[Call]) -> _Parts:
    mlp, convs, norms = (forward.paths(role) for role in ("mlp", "conv", "norm"))
    if len(convs) > 1:
        raise Unlike(f"it has {len(convs)} convolutions from the pooled maps to one map, expected one")
    if len(mlp) > 2:
        raise Unlike(f"its MLP has {len(mlp)} layers ({', '.join(mlp)}), expected one or two")
    if len(norms) > 1 or (norms and not convs):
        raise Unlike(f"it has a norm ({norms[-1]}) besides that of the spatial gate")
    if not (mlp or convs):
        raise Unlike("it has no layer with parameters")
    for path in (*convs, *norms):
        if sum(call.path == path for call in calls) != 1:
            raise Unlike(f"its layer {path} is called several times")
    return _Parts(mlp, next(iter(convs), None), next(iter(norms), None), calls)


def _matched(parts: _Parts, x: Tensor, y: Tensor, drawn: DrawnLayers, gate: str, arrangement: str) -> Plan:
    """The plan with this gate function and arrangement.

    Raises: _Stage if the pools or the result are others.
    """
    found: list[dict[str, Any]] = []

    def gated(source: Tensor, kind: str) -> Tensor:
        """x times one gate of `source`."""
        pools = (_pools_given if kind == "channel" else _maps_given)(parts, source, drawn, len(found))
        found.append({"light": True} if pools == (_LIGHT,) else {"light": False, f"{kind}_pools": pools})
        return predicted(parts.plan(kind, _variant(len(found), gate=gate, **found[-1])), x, drawn)

    kinds = [kind for kind, path in (("channel", parts.mlp), ("spatial", parts.conv)) if path]
    if arrangement == "spatial_first":
        kinds.reverse()
    first = gated(x, kinds[0])
    if len(kinds) == 2:
        gated(x if arrangement == "parallel" else first, kinds[1])
    if len({options["light"] for options in found}) > 1:
        raise _Stage("only one of its two gates is of the half of the sum of both pools", 2)
    options = {name: value for each in found for name, value in each.items()}
    plan = parts.plan("both", _variant(2, gate=gate, arrangement=arrangement, **options))
    for candidate in (plan, plan._replace(add_input=True)):
        if same(y, predicted(candidate, x, drawn)):
            return candidate
    if len(kinds) == 2 and arrangement == "channel_first":
        _check_functions(parts, x, y, drawn, plan.variant)
    raise _Stage(_OTHER_RESULT, 2)


def _check_functions(parts: _Parts, x: Tensor, y: Tensor, drawn: DrawnLayers, variant: Variant) -> None:
    """Raises: Unlike for a CBAM but for the function of its spatial gate."""
    other = next(gate for gate in _GATES if gate != variant.gate)
    x = predicted(parts.plan("channel", variant), x, drawn)
    if same(y, predicted(parts.plan("spatial", variant._replace(gate=other)), x, drawn)):
        raise Unlike(f"its two gates differ in their function: {variant.gate} and {other}")


def _variant(matched: int, **options: Any) -> Variant:
    try:
        return checked_variant(**options)
    except ValueError as error:
        raise _Stage(str(error), matched) from None


def _pools_given(parts: _Parts, source: Tensor, drawn: DrawnLayers, matched: int) -> tuple[str, ...]:
    """The pools of `source` over its pixels that the MLP is given; a sum has no order."""
    known = _channel_pools(source)
    known[_LIGHT] = (known["avg"] + known["max"]) / 2
    C = source.shape[1]
    if drawn.weights(parts.mlp[0])[0].shape[1] != C:
        raise _Stage(f"its layer {parts.mlp[0]} does not take the {C} channels of x", matched)
    if drawn.weights(parts.mlp[-1])[0].shape[0] != C:
        raise _Stage(f"its layer {parts.mlp[-1]} does not return a number for each of the {C} channels of x", matched)
    rows = torch.cat([_rows(drawn, call, C) for call in parts.calls if call.path == parts.mlp[0]])
    hits = {name: torch.isclose(rows[:, None], pool, rtol=1e-9, atol=1e-11).all(-1) for name, pool in known.items()}
    found = tuple(sorted(name for name, hit in hits.items() if hit.any(0).all()))
    explained = torch.stack([hits[name].any(1) for name in found]).any(0) if found else torch.zeros(1)
    if not explained.all() or (len(found) > 1 and _LIGHT in found):
        raise _Stage("its MLP is given something else than pools of x over the pixels", matched)
    return found


def _channel_pools(source: Tensor) -> dict[str, Tensor]:
    return {name: pool(source) for name, pool in reference.CHANNEL_POOLS.items()}


def _check_mlp(parts: _Parts, x: Tensor) -> None:
    """Raises: Unlike unless ReLU alone comes between both layers of an MLP."""
    if len(parts.mlp) < 2:
        return
    first, second = parts.mlp
    hidden = [call.returned for call in parts.calls if call.path == first]
    for call in (call for call in parts.calls if call.path == second):
        given = call.given.flatten()
        if any(same(given, pool.flatten()) for pool in _channel_pools(x).values()):
            raise Unlike(f"its pools go through different layers, {first} and {second}")
        if not any(same(given, z.relu().flatten()) for z in hidden):
            raise Unlike(f"between its layers {first} and {second} is something else than ReLU")


def _rows(drawn: DrawnLayers, call: Call, C: int) -> Tensor:
    """What a layer of the MLP was given, a row for each of its vectors."""
    weight, _ = drawn.weights(call.path)
    if weight.ndim == 2:
        return call.given.reshape(-1, C)
    return call.given.movedim(-weight.ndim + 1, -1).reshape(-1, C)


def _maps_given(parts: _Parts, source: Tensor, drawn: DrawnLayers, matched: int) -> tuple[str, ...]:
    """The pools of `source` over its channels that the convolution is given, in their order."""
    (given,) = (call.given for call in parts.calls if call.path == parts.conv)
    known = {"mean": source.mean(1, keepdim=True), "max": source.amax(1, keepdim=True)}
    known[_LIGHT] = (known["mean"] + known["max"]) / 2
    found: list[str] = []
    for i in range(given.shape[1] if given.ndim == source.ndim else 0):
        found += [name for name, pool in known.items() if same(given[:, i : i + 1], pool)][:1]
    if len(found) != given.shape[1]:
        maps = "the mean and the maximum over the channels of x, or of x times its other gate"
        raise _Stage(f"its convolution is given something else than {maps}", matched)
    return tuple(found)
