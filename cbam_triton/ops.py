"""The kernels as PyTorch operators: schemas, fakes, gradients. Opaque to torch.compile, never a layout copy of x.

Shapes and dtypes are checked in `dispatch`; a None among the parameters leaves its stage out. `cbam`, `gates` and
`apply_gates` are for inference: autograd through them raises. `cbam_training` has a gradient, which is `cbam_backward`;
a gradient of that gradient is computed by the reference.
"""

from collections.abc import Callable
from typing import Any, Sequence  # noqa: UP035 -- the one of them that PyTorch 2.6 infers a schema from

import torch
from torch import Tensor

from . import layout
from .kernels import gradients, launch
from .kernels.call import Kept, Needed, Weights, accumulator, places
from .norms import NO_NORM
from .second_order import reference_gradients

_LIBRARY = torch.library.Library("cbam_triton", "FRAGMENT")  # a reload of this module replaces it
_PARAMETERS = 10  # of `Weights`, without eps


def _inference(function: Callable[..., Any]) -> Any:
    """The function as an operator without a gradient, with the dispatcher alone between a call and it.

    `custom_op` has Python code at two more dispatch keys, which every call pays for.
    """
    name = f"cbam_triton::{function.__name__}"
    torch.library.define(name, torch.library.infer_schema(function, mutates_args=()), lib=_LIBRARY)

    @torch.library.impl(name, "default", lib=_LIBRARY)
    def _(*arguments: Any, **options: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            raise RuntimeError(f"{name} has no gradient: call it in torch.no_grad(), or cbam_triton::cbam_training")
        return function(*arguments, **options)

    return getattr(torch.ops.cbam_triton, function.__name__).default


@_inference
def cbam(
    x: Tensor,
    fc1_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_mean: Tensor | None,
    norm_var: Tensor | None,
    norm_eps: float,
    schedule: str,
    residual: Tensor | None = None,
    relu: bool = False,
    variant: str = "",
    planes: int = 1,
) -> Tensor:
    """y = act(x * g * s + residual) for x (N, C, H, W), with x's dtype and memory format.

    Without fc1_weight there is no channel attention, without conv_weight no spatial one, without norm_mean no norm.
    A residual in another memory format than x is copied. Traffic: 2 passes over x (wavefront) to 4 (staged), 1 more for
    a residual. Source: Woo et al. 2018, equations 1 to 3.
    """
    weights = _weights(
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, conv_weight,
        conv_bias, norm_weight, norm_bias, norm_mean, norm_var, norm_eps, variant, planes,
    )  # fmt: skip
    x = layout.merged(x)
    if residual is not None:
        residual = layout.laid_out_like(residual, x)
    return launch.forward(x, weights, schedule, None, residual, relu)


@torch.library.register_fake("cbam_triton::cbam", lib=_LIBRARY)
def _(x: Tensor, *_: object) -> Tensor:
    return layout.output_like(x)


@_inference
def gates(
    x: Tensor,
    fc1_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    schedule: str,
    variant: str = "",
    planes: int = 1,
) -> tuple[Tensor, Tensor]:
    """g (N, C) after the sigmoid, (N, 0) without channel attention, and z (N, 1, H, W), the convolution's output.

    Both float32 (float64 for float64 x). Traffic: 1 pass over x (wavefront) or 2 (staged).
    """
    weights = _weights(fc1_weight, fc1_bias, fc2_weight, fc2_bias, conv_weight, conv_bias, *NO_NORM, variant, planes)
    return launch.gates(layout.merged(x), weights, schedule)


@torch.library.register_fake("cbam_triton::gates", lib=_LIBRARY)
def _(x: Tensor, fc1_weight: Tensor | None, *_: object) -> tuple[Tensor, Tensor]:
    N, C, H, W = x.shape
    dtype = accumulator(x.dtype)
    g = torch.empty((N, 0 if fc1_weight is None else C), dtype=dtype, device=x.device)
    return g, torch.empty((N, 1, H, W), dtype=dtype, device=x.device)


@_inference
def apply_gates(
    x: Tensor,
    g: Tensor | None,
    z: Tensor | None,
    residual: Tensor | None = None,
    relu: bool = False,
    variant: str = "",
) -> Tensor:
    """y = act(x * g * sigmoid(z) + residual) for x (N, C, H, W), g (N, C), z (N, 1, H, W); either gate may be None.

    Traffic: 2 passes over x, 1 more for a residual.
    """
    x = layout.merged(x)
    g, z = _dense(g, z)
    return launch.apply_gates(x, g, z, None, layout.laid_out_like(residual, x), relu, variant)


@torch.library.register_fake("cbam_triton::apply_gates", lib=_LIBRARY)
def _(x: Tensor, *_: object) -> Tensor:
    return layout.output_like(x)


@torch.library.custom_op("cbam_triton::cbam_training", mutates_args=())
def cbam_training(
    x: Tensor,
    residual: Tensor | None,
    fc1_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_mean: Tensor | None,
    norm_var: Tensor | None,
    norm_eps: float,
    batch_norm: bool,
    relu: bool,
    schedule: str,
    variant: str,
    planes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, the seven of `call.Kept`, mean, var): y as `cbam`, and what its backward needs; what there is not is empty.

    With `batch_norm` the logits are normalised by their own mean and variance (1,), biased, which come last.
    Traffic: that of `cbam`; with `batch_norm` 1 pass over x more.
    """
    weights = _weights(
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, conv_weight,
        conv_bias, norm_weight, norm_bias, norm_mean, norm_var, norm_eps, variant, planes,
    )  # fmt: skip
    merged = layout.merged(x)
    residual = layout.laid_out_like(residual, merged)
    y, kept, mean, var = launch.forward_kept(merged, weights, schedule, None, residual, relu, batch_norm)
    return y, *(_or_empty(tensor, x) for tensor in (*kept, mean, var))  # pyright: ignore[reportReturnType]


@cbam_training.register_fake
def _(x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *parameters, norm_eps, batch_norm, _, _, variant, planes = rest
    kept = places(x, Weights._make([*parameters, norm_eps, variant, planes]))
    statistics = [x.new_empty(1, dtype=accumulator(x.dtype)) if batch_norm else None for _ in range(2)]
    return layout.output_like(x), *(_or_empty(tensor, x) for tensor in (*kept, *statistics))


@torch.library.custom_op("cbam_triton::cbam_backward", mutates_args=())
def cbam_backward(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    fc1_weight: Tensor | None,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor | None,
    fc2_bias: Tensor | None,
    conv_weight: Tensor | None,
    conv_bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_mean: Tensor | None,
    norm_var: Tensor | None,
    kept: Sequence[Tensor],
    norm_eps: float,
    batch_norm: bool,
    needed: Sequence[bool],
    schedule: str,
    variant: str,
    planes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, the residual, both layers of the MLP, the convolution and the norm, each a weight and a bias.

    y is the forward's output where it ended in a ReLU; `kept` and the batch's statistics are the forward's. `needed`
    says in this order which gradients are asked for; the others are empty. Traffic: 3 passes over x (wavefront) to 7.
    """
    weights = _weights(
        fc1_weight, fc1_bias, fc2_weight, fc2_bias, conv_weight,
        conv_bias, norm_weight, norm_bias, norm_mean, norm_var, norm_eps, variant, planes,
    )  # fmt: skip
    merged = layout.merged(x)
    found = gradients.backward(
        merged,
        dy,
        layout.laid_out_like(y, merged),
        weights,
        Kept(*(tensor if tensor.numel() > 0 else None for tensor in kept)),
        Needed(*needed),
        schedule,
        batch_norm=batch_norm,
    )
    return tuple(_or_empty(tensor, x) for tensor in found)  # pyright: ignore[reportReturnType]


@cbam_backward.register_fake
def _(dy: Tensor, x: Tensor, y: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    parameters, needed = rest[: _PARAMETERS - 2], rest[_PARAMETERS + 3]  # after kept, eps and batch_norm
    like = (layout.output_like(x), layout.output_like(x), *parameters)
    return tuple(
        torch.empty_like(tensor, memory_format=torch.preserve_format if i < 2 else torch.contiguous_format)
        if wanted and tensor is not None
        else x.new_empty(0)
        for i, (tensor, wanted) in enumerate(zip(like, needed, strict=True))
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, *parameters = inputs[: 2 + _PARAMETERS]
    ctx.norm_eps, ctx.batch_norm, ctx.relu, ctx.schedule, ctx.variant, ctx.planes = inputs[2 + _PARAMETERS :]
    y, *kept = output
    ctx.has_residual = residual is not None
    # The residual is needed by a gradient of the gradient alone, and then only if a ReLU came after it.
    ctx.save_for_backward(x, y if ctx.relu else None, *parameters, *kept)
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
    nothing = (None,) * 6  # eps, batch_norm, relu, schedule, variant, planes
    if dy is None:
        return (None,) * (2 + _PARAMETERS) + nothing
    x, y, *rest = ctx.saved_tensors
    parameters, kept, statistics = rest[:_PARAMETERS], rest[_PARAMETERS:-2], rest[-2:]
    asked = ctx.needs_input_grad
    if torch.is_grad_enabled():
        found = reference_gradients(ctx, dy, x, y, parameters)
        return (*found, None, None, *nothing)
    wanted = [bool(asked[0]), bool(asked[1] and ctx.relu), *map(bool, asked[2:_PARAMETERS])]
    norm = statistics if ctx.batch_norm else parameters[8:]
    options = (ctx.norm_eps, ctx.batch_norm, wanted, ctx.schedule, ctx.variant, ctx.planes)
    found = cbam_backward(dy, x, y, *parameters[:8], *norm, kept, *options)
    found = [gradient if want else None for gradient, want in zip(found, wanted, strict=True)]
    if asked[1] and not ctx.relu:
        found[1] = dy
    return (*found, None, None, *nothing)


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
