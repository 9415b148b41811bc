"""Which operators a call runs. What stands in for them here only notes that it was called."""

import pytest
import torch
from torch import nn

from cbam_triton import dispatch, settings
from cbam_triton import functional as f

from .test_functional import C, arguments


class Recorder:
    """Stands in for the ops: notes what was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.last: tuple = ()

    def cbam(self, x, *rest):
        self.calls.append("cbam")
        self.last = rest
        return x

    cbam_directly = cbam

    def gates(self, x, *rest):
        self.calls.append("gates")
        return x.new_ones(x.shape[:2]).float(), x.new_zeros(x.shape[0], 1, *x.shape[2:]).float()

    def cbam_training(self, x, residual, *rest):
        self.calls.append("cbam_training")
        self.last = rest
        return x + sum(tensor.sum() for tensor in rest if isinstance(tensor, torch.Tensor)), *[torch.ones(1)] * 10

    def apply_gates(self, x, g, z, *rest):
        self.calls.append("apply_gates" + "".join(" without g" for _ in [0] if g is None))
        return x


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    import sys

    import cbam_triton

    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "cbam_triton.ops", recorder)
    monkeypatch.setattr(cbam_triton, "ops", recorder, raising=False)
    monkeypatch.setattr(dispatch, "_kernel_device_type", lambda: "cpu")
    return recorder


def test_the_training_kernels_run_where_a_gradient_is_needed(recorder):
    f.cbam(**arguments())
    assert recorder.calls.pop() == "cbam"
    for name in arguments():
        ok = arguments()
        ok[name].requires_grad_()
        f.cbam(**ok).sum().backward()
        assert ok[name].grad is not None, name
        assert recorder.calls.pop() == "cbam_training"
    with torch.no_grad():
        f.cbam(**ok)
    assert recorder.calls == ["cbam"]


def test_a_norm_that_kernels_do_not_know_runs_the_reference_where_x_needs_a_gradient(recorder):
    ok = arguments()
    ok["x"].requires_grad_()
    f.cbam(**ok, norm=nn.GroupNorm(1, 1)).sum().backward()
    f.cbam(**ok, norm=nn.SyncBatchNorm(1).eval()).sum().backward()
    assert recorder.calls == ["cbam_training"]
    assert ok["x"].grad is not None


@pytest.mark.parametrize(
    "changed", [{"conv_weight": torch.zeros(1, 2, 17, 17)}, {"x": torch.zeros(1, C, 2, 2).to("meta")}]
)
def test_what_kernels_do_not_take_runs_the_reference(recorder, changed):
    device = changed.get("x", torch.zeros(0)).device
    ok = {name: tensor.to(device) for name, tensor in arguments(**changed).items()}
    f.cbam(**ok)
    assert recorder.calls == []


def test_the_reference_backend_never_runs_kernels(recorder):
    with settings(backend="reference"):
        f.cbam(**arguments())
    assert recorder.calls == []


def test_the_schedule_is_handed_down(recorder):
    with settings(schedule="staged"):
        f.cbam(**arguments())
    assert recorder.last[-5:] == ("staged", None, False, "", 1)


def test_tracing_and_export_run_the_reference(recorder):
    ok = arguments()
    x = ok.pop("x")
    torch.export.export(Call(ok), (x,))
    assert recorder.calls == []


class Call(nn.Module):
    def __init__(self, parameters: dict) -> None:
        super().__init__()
        for name, tensor in parameters.items():
            self.register_buffer(name, tensor)

    def forward(self, x):
        return f.cbam(x, **dict(self.named_buffers()))


def test_forward_mode_runs_the_reference(recorder):
    ok = arguments()
    x = ok.pop("x")
    with torch.autograd.forward_ad.dual_level():
        f.cbam(x, **ok)
    assert recorder.calls == []


def batch_norm(**options) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(1, **options).requires_grad_(False).eval()


@pytest.mark.parametrize(
    "norm", [None, batch_norm(), batch_norm(affine=False), nn.SyncBatchNorm(1).requires_grad_(False).eval()]
)
def test_a_fixed_batch_norm_is_folded(recorder, norm):
    f.cbam(**arguments(), norm=norm)
    assert recorder.calls == ["cbam"]
    if norm is not None:
        assert recorder.last[6:11] == (norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)


class Squared(nn.BatchNorm2d):
    def forward(self, z):
        return super().forward(z) ** 2


@pytest.mark.parametrize(
    "norm",
    [batch_norm().train(), batch_norm(track_running_stats=False), Squared(1).requires_grad_(False).eval(), torch.tanh],
)
def test_any_other_norm_is_called_between_the_kernels(recorder, norm):
    f.cbam(**arguments(), norm=norm)
    assert recorder.calls == ["gates", "apply_gates"]
    ok = arguments()
    f.spatial_attention(ok["x"], ok["conv_weight"], norm=norm)
    assert recorder.calls[2:] == ["gates", "apply_gates without g"]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(1).eval(), nn.BatchNorm2d(1), nn.GroupNorm(1, 1)])
def test_a_norm_that_learns_gets_its_gradient(recorder, norm):
    f.cbam(**arguments(), norm=norm).sum().backward()
    assert norm.weight.grad is not None
    assert norm.bias.grad.abs().item() > 0
    known = isinstance(norm, nn.BatchNorm2d)
    assert recorder.calls == (["cbam_training"] if known else ["gates"])


def test_a_batch_norm_that_does_not_fit_is_refused_by_pytorch(recorder):
    with pytest.raises((RuntimeError, ValueError)):
        f.cbam(**arguments(), norm=nn.BatchNorm2d(3).requires_grad_(False).eval())
