"""Half precision compiled by Inductor: gradients that are finite and right where x has many zeros, hence many ties.

The published form with `amax` (`forms.TimmCBAM`, timm's) fails here. In the backward of `amax` Inductor compares the
unrounded product x * g with its maximum, which was rounded, finds no tie and divides by their number, zero: with torch
2.14 on a CPU, every value of its dx is NaN in the last test, and most of the MLP's gradients are.
`emulate_precision_casts` makes it right. See pytorch issues 186799 and 195214.
"""

import copy

import pytest
import torch

from cbam_triton import CBAM, settings
from cbam_triton.spec import reference
from cbam_triton.testing.published import jongchan_like

from ..cases import HALF, normal, of_interpreted_exp
from ..checkpoints.published import randomised
from ..errors import assert_gradients_as_good_as_eager

pytestmark = [
    of_interpreted_exp,
    pytest.mark.filterwarnings("ignore:`torch.jit.script", "ignore:Skipping serialization of"),  # Inductor's own
]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def gated_and_pooled(x, g):
    """The least of the layer that Inductor can get wrong: a maximum of a product, in a graph with the product."""
    refined = reference.apply_channel_gate(x, g)
    mean, largest = reference.spatial_pool(refined).unbind(1)
    return refined * (mean - 2 * largest)[:, None]


@pytest.mark.parametrize("dtype", HALF)
def test_a_compiled_maximum_of_a_product_has_the_right_gradient(dtype):
    x = torch.relu(normal((2, 8, 4, 5), dtype=dtype))
    g, dy = normal((2, 8), dtype=dtype, seed=1).sigmoid(), normal(x.shape, dtype=dtype, seed=2)

    def gradients(function, x, g, dy):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(function(x, g), [x], dy)

    found = gradients(torch.compile(gated_and_pooled, fullgraph=True), x, g, dy)
    exact = gradients(gated_and_pooled, x.double(), g.double(), dy.double())
    assert_gradients_as_good_as_eager(found, gradients(gated_and_pooled, x, g, dy), exact)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("backend", ["triton", pytest.param("reference", marks=pytest.mark.slow)])
def test_a_compiled_layer_has_right_gradients(backend, dtype, device):
    if backend == "triton":
        pytest.importorskip("triton")
    layer = randomised(CBAM(16, 4)).to(device, dtype)
    x = torch.relu(normal((2, 16, 6, 5), dtype=dtype, device=device))
    dy = normal(x.shape, dtype=dtype, device=device, seed=2)

    def gradients(module, dtype):
        leaf = x.to(dtype).requires_grad_()
        return torch.autograd.grad(module(leaf), [leaf, *module.parameters()], dy.to(dtype))

    with settings(backend=backend):
        found = gradients(torch.compile(copy.deepcopy(layer), fullgraph=True), dtype)
    with settings(backend="reference"):
        exact = gradients(copy.deepcopy(layer).double(), torch.float64)
    published = list(gradients(jongchan_like(layer), dtype))
    published[5] = published[5].flip(1)  # the convolution's inputs change places
    assert_gradients_as_good_as_eager(found, published, exact)
