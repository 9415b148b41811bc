"""Any view of a strided memory gives what its values give when they are laid out densely."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

import cbam_triton
from cbam_triton import CBAM

from ..cases import SCHEDULES, of_interpreted_exp
from ..errors import assert_as_good_as_eager

pytestmark = [of_interpreted_exp, pytest.mark.usefixtures("nan_memory")]


@st.composite
def views(draw, shape):
    """A tensor of this shape by any strides, also 0 and such that elements share an address."""
    dense = [1, shape[1], shape[-1], *torch.empty(shape, device="meta").stride()]
    strides = [draw(st.integers(0, 4) | st.sampled_from(dense)) for _ in shape]
    offset = draw(st.integers(0, 2))
    size = 1 + offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    memory = torch.randn(size, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return memory.as_strided(shape, strides, offset)


@st.composite
def cases(draw):
    """x, a gradient, a residual or none."""
    pixels = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 8])), *pixels)
    return draw(views(shape)), draw(views(shape)), draw(st.none() | views(shape))


def results(module, x, dy, residual):
    """y, and the gradients of x and of every parameter."""
    x = x.detach().requires_grad_()
    y = module(x, residual)
    return y.detach(), torch.autograd.grad(y, (x, *module.parameters()), dy)


def check_views(case, schedule, device):
    x, dy, residual = (None if view is None else moved(view, device) for view in case)
    torch.manual_seed(0)
    options = {"activation": "relu", "spatial_norm": None, "kernel_size": 3, "dims": x.ndim - 2}
    module = CBAM(x.shape[1], hidden_channels=2, device=device, **options)
    with cbam_triton.settings(backend="triton", schedule=schedule):
        y, gradients = results(module, x, dy, residual)
        with torch.no_grad():
            assert_as_good_as_eager(module(x, residual), y, y.double())
    x, dy, residual = (None if view is None else view.contiguous() for view in (x, dy, residual))
    with cbam_triton.settings(backend="reference"):
        wide = (None if view is None else view.double() for view in (x, dy, residual))
        exact = results(module.double(), *wide)
    # Of a few numbers eager's may be exact by luck, so that twice its error is nothing.
    torch.testing.assert_close(y.double(), exact[0], rtol=1e-5, atol=1e-5)
    for mine, right in zip(gradients, exact[1], strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-5 * max(1.0, right.abs().max().item()))


def moved(view, device):
    """The view on the device, by the same strides."""
    memory = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage()).to(device)
    return memory.as_strided(view.shape, view.stride(), view.storage_offset())


any_views = given(case=cases(), schedule=st.sampled_from(SCHEDULES))
few, many = (
    settings(max_examples=count, suppress_health_check=[HealthCheck.function_scoped_fixture]) for count in (8, 300)
)


@few
@any_views
def test_any_view_gives_what_its_values_give(case, schedule, device):
    check_views(case, schedule, device)


@pytest.mark.slow
@many
@any_views
def test_many_views_give_what_their_values_give(case, schedule, device):
    check_views(case, schedule, device)
