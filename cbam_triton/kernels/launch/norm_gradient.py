"""The norm of the logits in a backward: gradients of its parameters, and the way back through a batch's statistics."""

from torch import Tensor

from ..schedules.norm_gradients import norm_gradient_kernel, norm_sums_kernel
from .backward_stages import Backward
from .launcher import launch_once
from .statistics import over_batch
from .tensors import Gradients, Needed

_BLOCK = 1024  # logits at once


def norm_gradient(run: Backward, needed: Needed, batch_norm: bool, group: str | None) -> Gradients:
    """Gradients of the norm's weight and bias (1,) each, as far as they are asked for.

    With `batch_norm` dz becomes the gradient of what is normed; with the name of a process group the statistics are of
    all its processes' batches, and each of these must call. Traffic: 2 passes over dz and z, 4 with `batch_norm`.
    """
    call, plan = run.call, run.call.plan
    parameters, programs = call.parameters, plan.norm_programs
    sums = call.empty(2 * programs)
    tensors, sizes = (parameters, call.saved, run.scratch), plan.sizes
    launch_once(call, norm_sums_kernel, programs, *tensors, sums, *sizes, PROGRAMS=programs, BLOCK=_BLOCK)
    found = Gradients(
        norm_weight=_like(parameters.norm_weight, needed.norm_weight),
        norm_bias=_like(parameters.norm_bias, needed.norm_bias),
    )
    shares, count = programs, plan.problem.N * plan.problem.P
    if group is not None:
        own = sums.view(programs, 2).sum(0)
        for place, total in ((found.norm_bias, own[:1]), (found.norm_weight, own[1:])):
            if place is not None:
                place.copy_(total)
        sums, shares, count = over_batch(own, count, group), 1, 1
    launch_once(
        call, norm_gradient_kernel, programs if batch_norm else 1,
        *tensors, Gradients() if group is not None else found, sums, *sizes, shares, count,
        PROGRAMS=programs, BLOCK=_BLOCK, BATCH=batch_norm,
    )  # fmt: skip
    return found


def _like(parameter: Tensor | None, wanted: bool) -> Tensor | None:
    return parameter.new_empty(1) if wanted and parameter is not None else None
