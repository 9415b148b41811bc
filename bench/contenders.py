"""The forms that `python -m bench run` compares: checked against float64, then timed in turns."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

import cbam_triton
from cbam_triton import CBAM, tuning
from cbam_triton.demo.options import InputError
from cbam_triton.testing.agreement import Agreement, agreement, gradient_agreement
from cbam_triton.testing.published import jongchan_like, timm_like
from cbam_triton.testing.timing import CompileFailed, compiled, interleaved

from .inputs import kernels_run_on, make_dy, make_layer
from .own_forms import Factory, OwnForm, device_works, one_line, own_agreements

# Passes over x that no implementation can avoid: x read, y written; then x and dy read, dx written.
LEAST_PASSES = {"forward": 2, "forward+backward": 5}

BASELINES = ("published", "timm", "timm compiled")

Form = Callable[[Tensor], Tensor]
Cells = dict[str, Any]


def with_settings(layer: CBAM, **options: Any) -> Form:
    """The layer under `cbam_triton.settings(**options)`."""

    def form(x: Tensor) -> Tensor:
        with cbam_triton.settings(**options):
            return layer(x)

    return form


def contenders(layer: CBAM, with_compile: bool) -> dict[str, Form | torch.nn.Module]:
    """Every form by name; the ones named "... compiled" are still to be compiled."""
    device = layer.channel.fc1.weight.device
    kernels = kernels_run_on(device)
    published, timm = jongchan_like(layer), timm_like(layer)
    ours = with_settings(layer, backend="auto" if kernels else "reference")
    forms: dict[str, Form | torch.nn.Module] = {"published": published, "timm": timm}
    if with_compile:
        forms["timm compiled"] = timm
    forms["ours"] = ours
    if kernels:
        for name in ("staged", "wavefront"):
            forms[f"ours {name}"] = with_settings(layer, backend="triton", schedule=name)
    if with_compile:
        forms["ours compiled"] = layer
    return forms


def measure(
    x: Tensor, backward: bool = False, *, seconds: float, with_compile: bool, own: Mapping[str, Factory] | None = None
) -> Iterator[Cells]:
    """Check every form on x, then time those that agree, taking turns; a dict of CSV cells for each.

    Raises: InputError where a form of `own` left a device that runs nothing any more.
    """
    layer = make_layer(x).train(backward)
    dy = make_dy(x) if backward else None
    x = x.detach().requires_grad_(backward)
    forms = contenders(layer, with_compile)
    owners = {name: form if isinstance(form, torch.nn.Module) else layer for name, form in forms.items()}
    truths = _truths(layer, x, dy)
    calls: dict[str, Callable[[], object]] = {}
    rows: dict[str, Cells] = {}
    with torch.set_grad_enabled(backward):
        eager = results(forms["published"], owners["published"], x, dy)
        for name, form in forms.items():
            call, rows[name] = _check(name, form, owners[name], x, dy, (eager, truths))
            if not rows[name]["note"]:
                calls[name] = call
        for name, factory in (own or {}).items():
            call, rows[name] = check_own(name, factory, layer, x, dy, (eager, truths))
            if call is not None:
                calls[name] = call
        timings = interleaved(calls, x.device, seconds=seconds)
    for name, call in calls.items():
        if isinstance(call, OwnForm) and call.failure is not None:
            rows[name]["note"] = f"while it was timed: {call.failure}"
            del timings[name]
    for name, row in rows.items():
        row = {"pass": "forward+backward" if backward else "forward", "form": name} | row
        yield row | _speeds(row["pass"], name, timings, x)


def _check(name, form, owner, x, dy, yardstick) -> tuple[Callable[[], object], Cells]:
    """The call of a form of this module, and its cells: with a note, it is not to be timed."""
    eager, truths = yardstick
    try:
        if name.endswith("compiled"):
            with cbam_triton.settings(backend="auto" if kernels_run_on(x.device) else "reference"):
                form = _under_same_settings(compiled(form, x), x.device)
        call = functools.partial(results, form, owner, x, dy)
        with tuning.record() as met:
            got = call()
    except CompileFailed as error:
        return form, {"note": str(error)}
    found = _agreements(got, eager, truths, name)
    return call, _cells(found, met)


def check_own(
    name: str, factory: Factory, layer: CBAM, x: Tensor, dy: Tensor | None, yardstick: tuple[Any, Any]
) -> tuple[OwnForm | None, Cells]:
    """A user's form, None if it is not to be timed, and its cells.

    Raises: InputError where it left a device that runs nothing any more.
    """
    try:
        form = OwnForm(factory, layer, x, dy)
        with tuning.record() as met:
            got, remark = form.checked()
        cells = _cells(own_agreements(got, *yardstick), met)
    except Exception as error:  # the user's own code runs here
        if not device_works(x.device):
            why = one_line(error)
            raise InputError(
                f"--with: {name} left a device that runs nothing any more ({why}); run without it"
            ) from error
        return None, {"note": one_line(error)}
    return (None if cells["note"] else form), cells | {"note": cells["note"] or remark}


def _cells(found: list[Agreement], met: tuning.Recording) -> Cells:
    """Cells of a form that ran: its error, whether it is wrong, and what its launches are, forward first."""
    launches = met.explanations()
    return {
        "error_over_eager": f"{max(one.ratio for one in found):.3f}",
        "schedule": " + ".join(one.candidate.schedule for one in launches),
        "source": " + ".join(dict.fromkeys(one.source for one in launches)),
        "candidates": json.dumps([one.candidate.to_json() for one in launches]) if launches else "",
        "note": "" if all(one.ok for one in found) else "wrong",
    }


def results(form: Form, owner: torch.nn.Module, x: Tensor, dy: Tensor | None) -> tuple[Tensor, ...]:
    """y; given dy also dx and the gradients of the owner's parameters, which all forms hold in the same order."""
    y = form(x)
    if dy is None:
        return (y,)
    return (y, *torch.autograd.grad(y, (x, *owner.parameters()), dy, materialize_grads=True))


def _truths(layer: CBAM, x: Tensor, dy: Tensor | None) -> dict[str, tuple[Tensor, ...]]:
    """The results in fp64: y is the module's; gradients are each form's own, since timm's amax splits them at ties."""
    wide = copy.deepcopy(layer).double()
    forms: dict[str, Any] = {"ours": with_settings(wide, backend="reference")}
    if dy is None:
        with torch.no_grad():
            return {"ours": results(forms["ours"], wide, x.double(), None)}
    forms |= {"published": jongchan_like(wide), "timm": timm_like(wide)}
    x = x.detach().double().requires_grad_()
    return {name: results(form, wide if name == "ours" else form, x, dy.double()) for name, form in forms.items()}


def _agreements(got, eager, truths, name) -> list[Agreement]:
    """Of y; given gradients also the worse of dx and of all parameters' together."""
    found = [agreement(got[0], eager[0], truths["ours"][0])]
    if len(got) > 1:
        own, published = truths[name.split()[0]], truths["published"]
        found.append(gradient_agreement(*map(_by_name, (got, eager, own, published))))
    return found


def _by_name(results: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {f"parameters.{i}" if i else "x": gradient for i, gradient in enumerate(results[1:])}


def _speeds(which, name, timings, x) -> dict[str, str]:
    if name not in timings:
        return {}
    own = timings[name]
    speeds = {
        "median_us": f"{own.median * 1e6:.2f}",
        "quartiles_us": f"{own.spread * 1e6:.2f}",
        "noisy": "noisy" if own.noisy else "",
        "gigabytes_per_second": f"{LEAST_PASSES[which] * x.nbytes / own.median / 1e9:.1f}",
    }
    for other in BASELINES:
        ratio = own.over(timings[other]) if other in timings else None
        if ratio is not None:
            speeds["over_" + other.replace(" ", "_")] = f"{ratio:.3f}"
    return speeds


def _under_same_settings(form, device):
    """Compiled code guards on the settings it was compiled under."""
    if kernels_run_on(device):
        return form
    return lambda x: _with_reference(form, x)


def _with_reference(form, x):
    with cbam_triton.settings(backend="reference"):
        return form(x)
