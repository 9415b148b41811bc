"""The proof that a forward is a CBAM: run beside the library's own on maps of many sizes, it gives the same.

Both run in float64 on the CPU with drawn layers, so nothing of the model is run or changed. The sizes differ from each
other and from C, some are one, one is larger than any number that is written in the forward.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .evaluate import Forward
from .layers import CONVOLUTIONS, DrawnLayers
from .match import matched, predicted, same
from .plan import Plan, Unlike

_ANY_CHANNELS = 3  # of the first map for a forward without an MLP
_SCALES = (1.0, 30.0, 1e-3)  # the second saturates every function that has a limit

_OVER_CHANNELS = "its 1-D convolution is not of pooled maps; over the channels, as in ECA, the kernels have none"


class Gate(NamedTuple):
    """A module that returns a gate of CBAM unmultiplied, with the plan of x times it."""

    forward: Forward
    plan: Plan


def proven(forward: Forward, drawn: DrawnLayers) -> Plan:
    """The plan of a CBAM, proven with these layers.

    Raises: Unlike for a forward that computes anything else on any map.
    """
    plan, why = None, None
    for axes in _axes_to_try(forward):
        try:
            found = _proven(forward, axes, drawn)
        except Unlike as unlike:
            why = why or unlike
            continue
        if plan is None or plan._replace(axes=()) == found._replace(axes=()):
            plan = found if plan is None else plan._replace(axes=(*plan.axes, axes))
    if plan is None:
        assert why is not None
        raise why if not _runs_over_channels(forward) else Unlike(_OVER_CHANNELS)
    return plan


def gate_of(forward: Forward, drawn: DrawnLayers) -> Gate | None:
    """The gate that a forward returns, None if it returns anything else."""

    def multiplied(x: Tensor, drawn: DrawnLayers) -> Any:
        y = forward.run(x, drawn)
        if isinstance(y, Tensor) and y.shape == x.shape[:2]:
            y = y.view(*y.shape, *(1,) * (x.ndim - 2))
        return x * y

    product = forward._replace(run=multiplied)
    for axes in _axes_to_try(forward):
        try:
            x, y, called = _first_run(product, axes, drawn)
            plan = matched(product, x, y, called)
        except Unlike:
            continue
        return None if plan.add_input else Gate(forward, plan)
    return None


def _runs_over_channels(forward: Forward) -> bool:
    """Whether its one layer is a 1-D convolution from one map to one."""
    layers = list(forward.layers.values())
    return len(layers) == 1 and isinstance(layers[0], nn.Conv1d) and layers[0].in_channels == 1


def _axes_to_try(forward: Forward) -> list[int]:
    """The numbers of axes that x may have, the likeliest first."""
    sides = {role: [forward.layers[path] for path in forward.paths(role)] for role in ("conv", "mlp")}
    likely = {role: max((_axes_of(layer) for layer in found), default=0) for role, found in sides.items()}
    if likely["conv"]:
        return [likely["conv"]]
    return sorted((4, 3, 5), key=lambda axes: axes != (likely["mlp"] or 4))


def _axes_of(layer: Any) -> int:
    return next((len(layer.kernel_size) + 2 for kind in CONVOLUTIONS if isinstance(layer, kind)), 0)


def _widths(layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a layer of the MLP."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _proven(forward: Forward, axes: int, drawn: DrawnLayers) -> Plan:
    x, y, called = _first_run(forward, axes, drawn)
    plan = matched(forward, x, y, called)
    mlp = forward.paths("mlp")
    if mlp or x.shape[1] != _ANY_CHANNELS:
        plan = plan._replace(channels=x.shape[1])
    if mlp:
        _check_refused(forward, x, drawn)
    modes = (False, True) if plan.norm else (False,)
    for seed, (shape, needed) in enumerate(_shapes(axes, plan.channels, _longest(forward, mlp))):
        for training, negated in itertools.product(modes, (False, True)):
            _check(forward, plan, shape, needed, drawn.again(training, negated), seed)
    return plan._replace(axes=(axes,))


def _first_run(forward: Forward, axes: int, drawn: DrawnLayers) -> tuple[Tensor, Any, DrawnLayers]:
    """(x, y, the layers) of the first map on which the forward runs."""
    why: Exception | None = None
    for channels in _channels_to_try(forward):
        called, x = drawn.again(), _drawn((2, channels, *_sides(axes, channels)), 0)
        try:
            return x, _run(forward, x, called), called
        except Unlike:
            raise
        except Exception as error:  # whatever the code of others raises
            why = why or error
    words = (str(why).splitlines() or [""])[0]
    channels = _channels_to_try(forward)[0]
    whose = "the channels of its MLP" if forward.paths("mlp") else "any channels"
    shape = (2, channels, *_sides(axes, channels))
    raise Unlike(f"its forward fails on a map of {whose}, of shape {shape}: {words}")


def _channels_to_try(forward: Forward) -> list[int]:
    mlp = forward.paths("mlp")
    if mlp:
        return [_widths(forward.layers[mlp[0]])[0]]
    return [_ANY_CHANNELS, *sorted(number for number in forward.numbers if _ANY_CHANNELS < number <= 4096)]


def _check_refused(forward: Forward, x: Tensor, drawn: DrawnLayers) -> None:
    """Only an MLP of x's channels refuses a map of one channel more.

    Raises: Unlike if the forward runs on it.
    """
    wider = _drawn((x.shape[0], x.shape[1] + 1, *x.shape[2:]), 0)
    try:
        _run(forward, wider, drawn.again())
    except Exception:  # whatever the code of others raises
        return
    raise Unlike("its MLP is of another width than x's channels, as it runs on any number of them")


def _check(forward: Forward, plan: Plan, shape: tuple[int, ...], needed: bool, drawn: DrawnLayers, seed: int) -> None:
    """Raises: Unlike where the forward and the plan disagree, or where the forward fails on a needed map."""
    x = _drawn(shape, seed)
    try:
        y = _run(forward, x, drawn)
    except Unlike:
        raise
    except Exception as error:  # whatever the code of others raises
        if needed:
            words = (str(error).splitlines() or [""])[0]
            raise Unlike(f"its forward fails on a map of shape {shape}, but not on every map: {words}") from None
        return
    if not same(y, predicted(plan, x, drawn)):
        raise Unlike(f"on a map of shape {shape} its result is not that of the CBAM that it is on other maps")


def _run(forward: Forward, x: Tensor, drawn: DrawnLayers) -> Any:
    given = x.clone()
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        y = forward.run(given, drawn)
    if not torch.equal(given, x):
        raise Unlike("its forward changes its input in place")
    return y


def _longest(forward: Forward, mlp: list[str]) -> int:
    """A side of a map that no window or slice of the forward covers."""
    widths = {width for path in mlp for width in _widths(forward.layers[path])}
    return min(2 * max({20, *(forward.numbers - widths)}) + 3, 2051)


def _shapes(axes: int, channels: int | None, longest: int) -> Iterator[tuple[tuple[int, ...], bool]]:
    """(shape of a map, whether the forward must run on it)."""
    C = channels or 4
    sides = _sides(axes, C)
    yield (2, C, *sides), True
    yield (3, C, *(side + 1 for side in reversed(sides))), True
    yield (2, C if channels else 5, *(side - 1 for side in sides)), True
    yield (1, C, *sides), False
    yield (1, C, *(longest, 3, 2)[: axes - 2]), False
    yield (2, C, *(2, longest, 3)[: axes - 2]), False
    for i in range(axes - 2):
        yield (2, C, *(1 if i == j else side for j, side in enumerate(sides))), False
    yield (3, C, *(1,) * (axes - 2)), False
    yield (2, C if channels else 1, *(2,) * (axes - 2)), False


def _sides(axes: int, channels: int) -> tuple[int, ...]:
    """The pixels of a map: sides that differ from each other, from N and from C."""
    sides = [side for side in (5, 7, 9, 11, 13) if channels not in (side - 1, side, side + 1)]
    return tuple(sides[: axes - 2])


def _drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(1000 + seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") * _SCALES[seed % len(_SCALES)]
