"""How two ways to compute the same thing are compared: the error rule, for results and for gradients."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, isfinite, isinf, log2
from typing import NamedTuple

import torch
from torch import Tensor


class Agreement(NamedTuple):
    """Largest errors against fp64, this one's and eager's at the same dtype, and one ulp of the result's scale."""

    error: float
    eager_error: float
    ulp: float

    @property
    def ok(self) -> bool:
        """At most twice eager's own error plus one ulp; a NaN on one side only never agrees."""
        return self.error <= 2 * self.eager_error + self.ulp

    @property
    def ratio(self) -> float:
        """Error over eager's error; over one ulp where eager is exact."""
        return self.error / (self.eager_error or self.ulp)

    @property
    def share(self) -> float:
        """Error over the largest one that is `ok`."""
        allowed = 2 * self.eager_error + self.ulp
        return 0.5 if isinf(allowed) else self.error / allowed


def worst_error(got: Tensor, want: Tensor) -> float:
    """Largest |got - want| in fp64; infinite where one is NaN or infinite and the other is not the same."""
    return _distance(got, want).max().item() if want.numel() else 0.0


def _distance(got, want):
    got = got.double()
    distance = torch.where((got == want) | (got.isnan() & want.isnan()), 0.0, (got - want).abs())
    return distance.nan_to_num(nan=float("inf"))


def agreement(got: Tensor, eager: Tensor, want: Tensor) -> Agreement:
    """Compare a result and eager's, both of one dtype, with the fp64 result `want`."""
    scale = want.abs().max().item() if want.numel() else 0.0
    exponent = floor(log2(scale)) if scale > 0 and isfinite(scale) else 0
    ulp = torch.finfo(got.dtype).eps * 2.0**exponent
    return Agreement(worst_error(got, want), worst_error(eager, want), ulp)


def gradient_agreement(
    got: Mapping[str, Tensor],
    eager: Mapping[str, Tensor],
    want: Mapping[str, Tensor],
    eager_want: Mapping[str, Tensor] | None = None,
) -> Agreement:
    """The worst of comparisons of gradients by the first word of their names, such as `x`, `channel.` and `spatial.`.

    Errors are root mean squares, each tensor's on the scale of its largest exact value: an arg-max that rounding moves
    moves single values, and a parameter of one number is as near to the exact one as luck has it. Eager's are those
    from `eager_want`, if its exact gradients are others.
    """
    parts = dict.fromkeys(name.partition(".")[0] for name in want)
    found = []
    for part in parts:
        names = [name for name in want if name.partition(".")[0] == part]
        eps = max(torch.finfo(got[name].dtype).eps for name in names)
        own = _rms_error(eager, want if eager_want is None else eager_want, names)
        found.append(Agreement(_rms_error(got, want, names), own, eps))
    return max(found, key=lambda one: one.share)


def _rms_error(got, want, names):
    scaled = [_distance(got[name], want[name]).flatten() / (want[name].abs().max().item() or 1.0) for name in names]
    return torch.cat(scaled).square().mean().sqrt().item()
