"""The kernels as PyTorch operators: schemas, fakes, gradients. Opaque to torch.compile, never a layout copy of x.

Shapes and dtypes are checked in `dispatch`; a None among the parameters leaves its stage out. `cbam`, `gates` and
`apply_gates` are for inference: autograd through them raises. `cbam_training` has a gradient, which is `cbam_backward`;
a gradient of that gradient is computed by the reference.

The parameters of a layer are spelled once, by the fields of `Weights`; each schema is made from them.
"""

from collections.abc import Callable
from typing import Any, get_type_hints

import torch
from torch import Tensor

from . import flop_formulas
from .double_backward import reference_gradients
from .kernels.launch import backward as gradients
from .kernels.launch import forward as launch
from .kernels.launch import layout
from .kernels.launch.tensors import Needed, Weights, accumulator, places
from .kernels.stages.packs import Saved
from .spec.norms import NO_NORM

_LIBRARY = torch.library.Library("cbam_triton", "FRAGMENT")  # a reload of this module replaces it

_TENSORS = tuple(name for name, kind in get_type_hints(Weights).items() if kind == Tensor | None)
_GATES = tuple(name for name in _TENSORS if not name.startswith("norm_"))  # what both gates are made of, without norm
_FORM = "str variant{}, int planes{}"  # the rest of `Weights`, besides the norm's eps


def _optional(names: tuple[str, ...]) -> str:
    return ", ".join(f"Tensor? {name}" for name in names)


def _tensors(count: int) -> str:
    return ", ".join(["Tensor"] * count)


def _inference(schema: str) -> Callable[[Callable[..., Any]], Any]:
    """The function as an operator without a gradient, with the dispatcher alone between a call and it.

    `custom_op` has Python code at two more dispatch keys, which every call pays for.
    """

    def defined(function: Callable[..., Any]) -> Any:
        name = f"cbam_triton::{function.__name__}"
        torch.library.define(name, schema, lib=_LIBRARY)
        operator = getattr(torch.ops.cbam_triton, function.__name__).default
        wanted = operator._schema.arguments
        defaults = tuple(argument.default_value for argument in wanted if argument.has_default_value())

        @torch.library.impl(name, "default", lib=_LIBRARY)
        def _(*arguments: Any) -> Any:
            if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
                raise RuntimeError(f"{name} has no gradient: call it in torch.no_grad(), or cbam_triton::cbam_training")
            missing = len(wanted) - len(arguments)  # the dispatcher leaves out what is as in the schema
            return function(*arguments, *defaults[-missing:]) if missing else function(*arguments)

        return operator

    return defined


_END = "Tensor? residual=None, bool relu=False"
_DEFAULT_FORM = _FORM.format('=""', "=1")


def cbam_directly(x: Tensor, *rest: Any) -> Tensor:
    """The operator `cbam` without the dispatcher, whose part is a fifth of the time of a call on the host."""
    *parameters, schedule, residual, relu, variant, planes = rest
    x = layout.merged(x)
    if residual is not None:
        residual = layout.laid_out_like(residual, x)
    return launch.forward(x, _weights(*parameters, variant, planes), schedule, residual, relu)


@_inference(f"(Tensor x, {_optional(_TENSORS)}, float norm_eps, str schedule, {_END}, {_DEFAULT_FORM}) -> Tensor")
def cbam(x: Tensor, *rest: Any) -> Tensor:
    """y = act(x * g * s + residual) for x (N, C, H, W), with x's dtype and memory format.

    Without fc1_weight there is no channel attention, without conv_weight no spatial one, without norm_mean no norm.
    A residual in another memory format than x is copied. Traffic: 2 passes over x (wavefront) to 4 (staged), 1 more for
    a residual. Source: Woo et al. 2018, equations 1 to 3.
    """
    return cbam_directly(x, *rest)


@torch.library.register_fake("cbam_triton::cbam", lib=_LIBRARY)
def _(x: Tensor, *_: object) -> Tensor:
    return layout.output_like(x)


@_inference(f"(Tensor x, {_optional(_GATES)}, str schedule, {_DEFAULT_FORM}) -> (Tensor, Tensor)")
def gates(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """g (N, C) after the sigmoid, (N, 0) without channel attention, and z (N, 1, H, W), the convolution's output.

    Both float32 (float64 for float64 x). Traffic: 1 pass over x (wavefront) or 2 (staged).
    """
    *parameters, schedule, variant, planes = rest
    return launch.gates(layout.merged(x), _weights(*parameters, *NO_NORM, variant, planes), schedule)


@torch.library.register_fake("cbam_triton::gates", lib=_LIBRARY)
def _(x: Tensor, fc1_weight: Tensor | None, *_: object) -> tuple[Tensor, Tensor]:
    N, C, H, W = x.shape
    dtype = accumulator(x.dtype)
    g = torch.empty((N, 0 if fc1_weight is None else C), dtype=dtype, device=x.device)
    return g, torch.empty((N, 1, H, W), dtype=dtype, device=x.device)


@_inference(f'(Tensor x, Tensor? g, Tensor? z, {_END}, str variant="") -> Tensor')
def apply_gates(
    x: Tensor,
    g: Tensor | None,
    z: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    variant: str,
) -> Tensor:
    """y = act(x * g * sigmoid(z) + residual) for x (N, C, H, W), g (N, C), z (N, 1, H, W); either gate may be None.

    Traffic: 2 passes over x, 1 more for a residual.
    """
    x = layout.merged(x)
    g, z = _dense(g, z)
    return launch.apply_gates(x, g, z, layout.laid_out_like(residual, x), relu, variant)


@torch.library.register_fake("cbam_triton::apply_gates", lib=_LIBRARY)
def _(x: Tensor, *_: object) -> Tensor:
    return layout.output_like(x)


_TRAINING = ("x", "residual", *_TENSORS, "norm_eps", "batch_norm", "group", "relu", "schedule", "variant", "planes")


def _training(x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    """(y, the seven of `Saved`, mean, var, count): y as `cbam`, and what its backward needs; others are empty.

    With `batch_norm` the logits are normalised by their own mean and variance (1,), biased. With the name of a process
    group these are of the logits of all its processes, whose count (1,) comes last; all of them must call the operator.
    Traffic: that of `cbam`; with `batch_norm` 1 pass over x more; with a group one all-reduce of 3 numbers a process.
    """
    *parameters, batch_norm, group, relu, schedule, variant, planes = rest
    merged = layout.merged(x)
    residual = layout.laid_out_like(residual, merged)
    weights = _weights(*parameters, variant, planes)
    y, kept, statistics = launch.forward_saved(merged, weights, schedule, residual, relu, batch_norm, group)
    return y, *(_or_empty(tensor, x) for tensor in (*kept, *statistics))


cbam_training = torch.library.custom_op(
    "cbam_triton::cbam_training",
    _training,
    mutates_args=(),
    schema=f"(Tensor x, Tensor? residual, {_optional(_TENSORS)}, float norm_eps, bool batch_norm, "
    f"str? group, bool relu, str schedule, {_FORM.format('', '')}) -> ({_tensors(11)})",
)


@cbam_training.register_fake
def _(x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *parameters, batch_norm, group, _, _, variant, planes = rest
    kept = places(x, Weights._make([*parameters, variant, planes]))
    there = (batch_norm, batch_norm, group is not None)
    statistics = [x.new_empty(1, dtype=accumulator(x.dtype)) if wanted else None for wanted in there]
    return layout.output_like(x), *(_or_empty(tensor, x) for tensor in (*kept, *statistics))


def _backward_kernels(dy: Tensor, x: Tensor, y: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    """Gradients of x, the residual, both layers of the MLP, the convolution and the norm, each a weight and a bias.

    y is the forward's output where it ended in a ReLU; `kept` and the batch's statistics are the forward's. `needed`
    says in this order which gradients are asked for; the others are empty. With the
    name of a process group the statistics are of its processes' batches, and all of them must call the operator.
    Traffic: 3 passes over x (wavefront) to 7; with a group one all-reduce of 3 numbers.
    """
    *parameters, kept, batch_norm, group, needed, schedule, variant, planes = rest
    merged = layout.merged(x)
    found = gradients.backward(
        merged,
        dy,
        layout.laid_out_like(y, merged),
        _weights(*parameters, variant, planes),
        Saved(*(tensor if tensor.numel() > 0 else None for tensor in kept)),
        Needed(*needed),
        schedule,
        batch_norm=batch_norm,
        group=group,
    )
    return tuple(_or_empty(tensor, x) for tensor in found)


cbam_backward = torch.library.custom_op(
    "cbam_triton::cbam_backward",
    _backward_kernels,
    mutates_args=(),
    schema=f"(Tensor dy, Tensor x, Tensor? y, {_optional(_TENSORS)}, float norm_eps, Tensor[] kept, bool batch_norm, "
    f"str? group, bool[] needed, str schedule, {_FORM.format('', '')}) -> ({_tensors(10)})",
)


@cbam_backward.register_fake
def _(dy: Tensor, x: Tensor, y: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *parameters, _, _, _, _, needed, _, _, _ = rest
    given = dict(zip(_TENSORS, parameters, strict=True))
    like: dict[str, Any] = {"x": layout.output_like(x), "residual": layout.output_like(x), **given}
    return tuple(
        torch.empty_like(like[name], memory_format=_format_of(name))
        if wanted and like[name] is not None
        else x.new_empty(0)
        for name, wanted in zip(Needed._fields, needed, strict=True)
    )


def _format_of(name: str) -> torch.memory_format:
    return torch.preserve_format if name in ("x", "residual") else torch.contiguous_format


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given = dict(zip(_TRAINING, inputs, strict=True))
    y, *kept = output
    ctx.given = {name: given[name] for name in _TRAINING if name not in ("x", "residual", *_TENSORS)}
    # The residual is needed by a gradient of the gradient alone, and then only if a ReLU came after it.
    ctx.save_for_backward(given["x"], y if given["relu"] else None, *(given[name] for name in _TENSORS), *kept)
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * len(_TRAINING)
    x, y, *rest = ctx.saved_tensors
    tensors = dict(zip(_TENSORS, rest, strict=False))
    *kept, mean, var, _ = rest[len(tensors) :]
    asked = dict(zip(_TRAINING, ctx.needs_input_grad, strict=True))
    needed = Needed(**{name: bool(asked[name]) for name in Needed._fields})
    given = ctx.given
    weights = Weights(**tensors, norm_eps=given["norm_eps"], variant=given["variant"], planes=given["planes"])
    if torch.is_grad_enabled():
        found = reference_gradients(dy, x, y, weights, needed, given["batch_norm"], given["group"])
        return tuple(found.get(name) for name in _TRAINING)
    if given["batch_norm"]:
        weights = weights._replace(norm_mean=mean, norm_var=var)
    needed = needed._replace(residual=needed.residual and given["relu"])
    *parameters, variant, planes = weights
    options = (kept, given["batch_norm"], given["group"], needed, given["schedule"], variant, planes)
    made = zip(Needed._fields, cbam_backward(dy, x, y, *parameters, *options), needed, strict=True)
    found = {name: gradient for name, gradient, wanted in made if wanted}
    if asked["residual"] and not given["relu"]:
        found["residual"] = dy
    return tuple(found.get(name) for name in _TRAINING)


cbam_training.register_autograd(_backward, setup_context=_setup_context)


def _weights(
    fc1_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor | None,
    *rest: Any,
) -> Weights:
    """The parameters, dense; those of the rest are single numbers, which are dense as they are."""
    return Weights(*_dense(fc1_weight, fc1_bias, fc2_weight, fc2_bias, conv_weight), *rest)


def _dense(*small: Tensor | None) -> list[Any]:
    """Parameters or gates in row-major order; a copy only of those that a user transposed or sliced."""
    return [tensor if tensor is None or tensor.is_contiguous() else tensor.contiguous() for tensor in small]


def _or_empty(tensor: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if tensor is None else tensor


flop_formulas.register(torch.ops.cbam_triton)
