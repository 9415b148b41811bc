"""What a norm on the logits is in one call, and what the kernels are told of it."""

import pytest
import torch
from torch import nn

from cbam_triton.spec.norms import NO_NORM, asked, update_statistics

from ..cases import HALF

X = torch.zeros(2, 8, 5, 4)


def hooked(norm):
    norm.register_forward_pre_hook(lambda *_: None)
    return norm


class Squared(nn.BatchNorm2d):
    def forward(self, z):
        return super().forward(z) ** 2


KINDS = {
    "none": [None],
    "fixed": [nn.BatchNorm2d(1).eval(), nn.BatchNorm2d(1, affine=False).eval(), nn.SyncBatchNorm(1).eval()],
    "batch": [
        nn.BatchNorm2d(1),
        nn.BatchNorm2d(1, track_running_stats=False).eval(),
        nn.BatchNorm2d(1, affine=False),
        nn.SyncBatchNorm(1),
    ],
    "called": [
        nn.GroupNorm(1, 1),
        torch.tanh,
        Squared(1).eval(),
        nn.BatchNorm1d(1).eval(),
        nn.BatchNorm2d(3).eval(),
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(1).double(),
        hooked(nn.BatchNorm2d(1)),
        hooked(nn.BatchNorm2d(1).eval()),
        nn.BatchNorm2d(1, device="meta").eval(),
    ],
}


@pytest.mark.parametrize("kind, norm", [(kind, norm) for kind, norms in KINDS.items() for norm in norms])
def test_a_norm_is_asked_once_what_it_is(kind, norm):
    found, statistics = asked(norm, X)
    assert found == kind
    if kind in ("none", "called"):
        assert statistics == NO_NORM
    elif kind == "fixed":
        assert statistics == (norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    else:
        assert statistics == (norm.weight, norm.bias, None, None, norm.eps)


def test_an_empty_batch_has_no_statistics():
    assert asked(nn.BatchNorm2d(1), X[:0])[0] == "called"


@pytest.mark.parametrize("axes, norm", [(3, nn.BatchNorm1d(1)), (5, nn.BatchNorm3d(1))])
def test_the_axes_of_the_map_choose_the_batch_norm(axes, norm):
    x = torch.zeros(2, 8, *(3,) * (axes - 2))
    assert asked(norm, x)[0] == "batch"
    assert asked(norm.eval(), x)[0] == "fixed"
    assert asked(norm, X)[0] == "called"


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_buffers_of_half_precision_are_rounded_once(momentum, dtype):
    """0.9 * 0.375 and 0.1 * -3.34375 nearly cancel: a product that is rounded before the sum would show."""
    norm = nn.BatchNorm2d(1, momentum=momentum).to(dtype)
    norm.running_mean.fill_(0.375)
    norm.num_batches_tracked.fill_(9)
    update_statistics(norm, torch.tensor([-3.34375]), torch.tensor([0.34375]), 12)
    mean, var = 0.9 * 0.375 - 0.1 * 3.34375, 0.9 + 0.1 * 0.34375 * 12 / 11
    assert norm.running_mean.item() == pytest.approx(mean, rel=torch.finfo(dtype).eps)
    assert norm.running_var.item() == pytest.approx(var, rel=torch.finfo(dtype).eps)
    assert norm.num_batches_tracked == 10
