"""Forms of users' own for `python -m bench run --with package:name`: found, made, held to our rule, and never trusted.

A factory takes a `cbam_triton.CBAM` and returns a function or module of x (N,C,H,W) that computes the same with the
layer's weights. A form that raises, returns something else, or writes to x is told and stops no other form.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cbam_triton import CBAM
from cbam_triton.demo.options import InputError
from cbam_triton.testing.agreement import Agreement, agreement, gradient_agreement

Factory = Callable[[CBAM], Callable[[Tensor], Tensor]]

_FORMS = "a mapping of names to factories, a function without arguments that returns one, or one factory"


class Unusable(Exception):
    """What a form returned cannot be compared; the message says what was expected."""


def load(specs: Sequence[str], taken: Iterable[str]) -> dict[str, Factory]:
    """The factories that `package.module:attribute` gives, by the names of their forms.

    Raises: InputError for a module or attribute that is not there, for another thing than factories, and for a name
    that is taken.
    """
    found: dict[str, Factory] = {}
    for spec in specs:
        for name, factory in _factories(spec).items():
            if not isinstance(name, str) or not name.strip():
                raise InputError(f"--with {spec}: a form's name must be a text, got {name!r}")
            if not callable(factory):
                what = type(factory).__name__
                raise InputError(f"--with {spec}: {name!r} must be a factory, a function of a CBAM, got a {what}")
            if name in taken or name in found:
                raise InputError(f"--with {spec}: there is a form {name!r} already; give yours another name")
            found[name] = factory
    return found


def _factories(spec: str) -> dict[str, Any]:
    path, colon, attribute = spec.partition(":")
    if not (path and colon and attribute):
        raise InputError(f"--with: expected package.module:attribute, got {spec!r}; the attribute is {_FORMS}")
    found = _attribute(spec, _module(spec, path), attribute)
    if not isinstance(found, Mapping) and callable(found):
        if _takes_a_layer(found):
            return {attribute.rpartition(".")[2]: found}
        try:
            found = found()
        except Exception as error:  # the user's own code runs here
            raise InputError(f"--with {spec}: the function raises {one_line(error)}") from error
    if not isinstance(found, Mapping):
        raise InputError(f"--with {spec}: expected {_FORMS}, got a {type(found).__name__}")
    if not found:
        raise InputError(f"--with {spec}: the mapping is empty; give names and factories")
    return dict(found)


def _module(spec: str, path: str) -> Any:
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise InputError(f"--with {spec}: {path} needs a module that is not there: {error.name}") from error
        raise InputError(
            f"--with {spec}: there is no module {error.name!r} here or installed; run from the folder that holds it"
        ) from None
    except (Exception, SystemExit) as error:  # the user's own code runs here
        raise InputError(f"--with {spec}: importing {path} raises {one_line(error)}") from error
    finally:
        sys.path.pop(0)


def _attribute(spec: str, module: Any, attribute: str) -> Any:
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            close = difflib.get_close_matches(part, public) or public[:5]
            has = f"it has {', '.join(close)}" if close else "it has none"
            raise InputError(f"--with {spec}: {module.__name__} has no attribute {attribute!r}; {has}")
        found = getattr(found, part)
    return found


def _takes_a_layer(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a function of C
        return True
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(one.kind in by_position and one.default is one.empty for one in parameters)


class OwnForm:
    """A form made for one layer: called in turns with the others, and silent once it has failed.

    Gradients of parameters are those of the form, if it is a module, else of the layer that its factory got.
    """

    def __init__(self, factory: Factory, layer: CBAM, x: Tensor, dy: Tensor | None) -> None:
        layer = copy.deepcopy(layer)
        self._form = factory(layer)
        if not callable(self._form):
            raise Unusable(f"the factory returned a {type(self._form).__name__}, expected a function or module of x")
        owner = layer
        if isinstance(self._form, nn.Module):
            self._form.train(layer.training)
            owner = self._form if next(self._form.parameters(), None) is not None else layer
        self._leaves = (x, *(one for one in owner.parameters() if one.requires_grad))
        self._sizes = [one.numel() for one in layer.parameters()]
        self._x, self._dy = x, dy
        self.failure: str | None = None

    def results(self, check: Callable[[Any], None] | None = None) -> tuple[Any, ...]:
        """y; given dy also dx and the gradients of parameters, None for those that y does not depend on."""
        y = self._form(self._x)
        if check is not None:
            check(y)
        if self._dy is None:
            return (y,)
        return (y, *torch.autograd.grad(y, self._leaves, self._dy, allow_unused=True))

    def __call__(self) -> None:
        """What is timed."""
        if self.failure is None:
            try:
                self.results()
            except Exception as error:  # nothing of the user's may stop the other forms
                self.failure = one_line(error)

    def checked(self) -> tuple[tuple[Tensor, ...], str]:
        """`results` that can be compared, and a remark where those of parameters cannot.

        Raises: Unusable for a result of another kind, and where x was written to; x then is as it was.
        """
        before = self._x.detach().clone()
        try:
            y, *gradients = self.results(self._check)
        finally:
            same = torch.equal(self._x.detach(), before)
            if not same:
                self._x.data.copy_(before)
        if not same:
            raise Unusable("it writes to x, expected a new tensor")
        if self._dy is None:
            return (y,), ""
        dx, *parameters = gradients
        if dx is None:
            raise Unusable("y has no gradient for x, expected one: keep x in the graph, or leave out --backward")
        if all(one is None for one in parameters):
            return (y, dx), "parameters' gradients not compared: y does not depend on the layer's"
        leaves = self._leaves[1:]
        if [leaf.numel() for leaf in leaves] != self._sizes:
            return (y, dx), "parameters' gradients not compared: they are not the layer's in its order"
        filled = [torch.zeros_like(leaf) if one is None else one for one, leaf in zip(parameters, leaves, strict=True)]
        return (y, dx, *filled), ""

    def _check(self, y: Any) -> None:
        if not isinstance(y, Tensor):
            raise Unusable(f"it returned a {type(y).__name__}, expected a tensor")
        if self._dy is not None and not y.requires_grad:
            raise Unusable("y has no gradient, expected one for x: keep x in the graph, or leave out --backward")
        got, want = ((tuple(one.shape), one.dtype, one.device) for one in (y, self._x))
        if got != want:
            words = ["{} {} on {}".format(*one) for one in (got, want)]
            raise Unusable(f"it returned {words[0]}, expected {words[1]}")


def own_agreements(
    got: tuple[Tensor, ...], eager: tuple[Tensor, ...], truths: Mapping[str, tuple[Tensor, ...]]
) -> list[Agreement]:
    """Of y; given gradients also the worse of dx and of all parameters' together.

    Where a maximum is taken twice its gradient may go to the first or be shared, and the convolution may read either
    map first: the form must agree with the module, the published form or timm's, whichever is the nearest.
    """
    y = agreement(got[0], eager[0], truths["ours"][0])
    if len(got) == 1:
        return [y]
    published = _by_name(truths["published"], len(got))
    near = [
        gradient_agreement(
            {name: one.reshape(want[name].shape) for name, one in _by_name(got, len(got)).items()},
            _by_name(eager, len(got)),
            want,
            published,
        )
        for want in (_by_name(truth, len(got)) for truth in truths.values())
    ]
    return [y, min(near, key=lambda one: one.share)]


def _by_name(results: Sequence[Tensor], count: int) -> dict[str, Tensor]:
    return {f"parameters.{i}" if i else "x": gradient for i, gradient in enumerate(results[1:count])}


def device_works(device: torch.device) -> bool:
    """Whether the device still runs anything after a form has failed: an illegal access ends it for the process."""
    if device.type == "cpu":
        return True
    try:
        torch.get_device_module(device).synchronize(device)
    except Exception:
        return False
    return True


def one_line(error: BaseException) -> str:
    """The kind and the first line of what was raised."""
    if isinstance(error, Unusable):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
