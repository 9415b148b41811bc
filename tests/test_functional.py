import pytest
import torch
from torch import nn

from cbam_triton import dispatch, settings
from cbam_triton import functional as f

from .errors import assert_same

C, R, K = 8, 4, 7


def arguments(device: str = "cpu", **changed) -> dict:
    """Valid arguments of `cbam`, some of them replaced."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"x": (2, C, 5, 4), "fc1_weight": (R, C), "fc1_bias": (R,), "fc2_weight": (C, R), "fc2_bias": (C,)}
    sizes |= {"conv_weight": (1, 2, K, K), "conv_bias": (1,)}
    return {name: torch.randn(size, generator=generator).to(device) for name, size in sizes.items()} | changed


BAD = [
    ({"x": torch.zeros(C, 5, 4)}, ValueError, r"x must have 4 dimensions \(N, C, H, W\), as .* \(8, 5, 4\): add"),
    (
        {"x": torch.zeros(2, C, 5, 4, dtype=torch.int32)},
        TypeError,
        r"x must have a floating-point .* got torch.int32: con",
    ),
    (
        {"x": torch.zeros(2, C, 5, 4, dtype=torch.cfloat)},
        TypeError,
        "x must have a floating-point .* got torch.complex64: ",
    ),
    (
        {"x": torch.zeros(2, 5, 4, C)},
        ValueError,
        r"x must have the 8 channels of fc1_weight .* got 5 in shape .*: build",
    ),
    (
        {"x": torch.zeros(2, C, 0, 4)},
        ValueError,
        r"x must have at least one channel and one pixel, got shape .*: leave",
    ),
    (
        {"fc1_weight": torch.zeros(R, C, 1, 1)},
        ValueError,
        r"fc1_weight must have shape \(R, C\), got \(4, 8, 1, 1\): .*flat",
    ),
    (
        {"fc1_weight": torch.tensor(1.0)},
        ValueError,
        r"fc1_weight must have shape \(R, C\), got \(\): ",
    ),
    ({"conv_weight": torch.tensor(1.0)}, ValueError, r"conv_weight must have shape \(1, 2, K, K\), got \(\): reshape"),
    ({"fc2_weight": None}, ValueError, r"an MLP without fc2_weight has one layer: fc1_weight \(C, C\) and no fc2_bias"),
    ({"fc1_bias": torch.zeros(C)}, ValueError, r"fc1_bias must have shape \(4,\), got \(8,\): reshape"),
    ({"fc2_weight": torch.zeros(R, C)}, ValueError, r"fc2_weight must have shape \(8, 4\), got \(4, 8\): reshape"),
    ({"fc2_bias": torch.zeros(1)}, ValueError, r"fc2_bias must have shape \(8,\), got \(1,\): reshape"),
    (
        {"conv_weight": torch.zeros(2, K, K)},
        ValueError,
        r"conv_weight must have shape \(1, 2, K, K\), got \(2, 7, 7\): res",
    ),
    (
        {"conv_weight": torch.zeros(1, 2, 4, 4)},
        ValueError,
        "conv_weight .* must have an odd K, .* got K = 4: use 3 or 5",
    ),
    (
        {"conv_weight": torch.zeros(1, 2, 3, 5)},
        ValueError,
        r"conv_weight must have shape \(1, 2, 5, 5\), got \(1, 2, 3, 5\)",
    ),
    (
        {"conv_weight": torch.zeros(1, 1, 7, 7)},
        ValueError,
        r"conv_weight must have shape \(1, 2, 7, 7\), got \(1, 1, 7, 7\)",
    ),
    ({"conv_bias": torch.zeros(2)}, ValueError, r"conv_bias must have shape \(1,\), got \(2,\): reshape"),
    (
        {"fc2_weight": torch.zeros(C, R).half()},
        TypeError,
        "fc2_weight must have torch.float32, got torch.float16: convert",
    ),
    ({"fc1_bias": torch.zeros(R, device="meta")}, ValueError, "fc1_bias must be on x's device cpu, got meta: move"),
    ({"conv_bias": torch.zeros(1, device="meta")}, ValueError, "conv_bias must be on x's device cpu, got meta: move"),
]


@pytest.mark.parametrize(
    "changed, kind, message", BAD, ids=lambda value: next(iter(value), "") if isinstance(value, dict) else ""
)
@pytest.mark.parametrize("function", [f.cbam, f.attention_maps])
def test_bad_arguments_get_one_sentence(function, changed, kind, message):
    with pytest.raises(kind, match=f"^{message}") as caught:
        function(**arguments(**changed))
    assert "\n" not in str(caught.value)


def test_each_attention_checks_its_own_arguments():
    ok = arguments()
    mlp = [ok[name] for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")]
    with pytest.raises(ValueError, match="x must have the 8 channels"):
        f.channel_attention(torch.zeros(1, 3, 2, 2), *mlp)
    with pytest.raises(ValueError, match="odd K"):
        f.spatial_attention(ok["x"], torch.zeros(1, 2, 2, 2))
    with pytest.raises(TypeError):
        f.spatial_attention(ok["x"], ok["conv_weight"], None, nn.Identity())


def test_half_precision_parameters_are_named_with_both_dtypes_that_fit():
    changed = {"x": torch.zeros(1, C, 2, 2).bfloat16(), "fc1_weight": torch.zeros(R, C).half()}
    with pytest.raises(
        TypeError, match=r"fc1_weight must have x's dtype torch.bfloat16 or torch.float32, got torch.flo"
    ):
        f.cbam(**arguments(**changed))


@pytest.mark.usefixtures("no_kernels")
def test_the_triton_backend_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(dispatch.kernel_device, "missing", lambda: "no driver: install one")
    with settings(backend="triton"), pytest.raises(RuntimeError, match="cannot run: no driver: install one"):
        f.cbam(**arguments())


def test_the_triton_backend_names_the_device_it_takes(monkeypatch):
    monkeypatch.setattr(dispatch, "_kernel_device_type", lambda: "cuda")
    with (
        settings(backend="triton"),
        pytest.raises(RuntimeError, match="run on cuda tensors here, got one on cpu: move x"),
    ):
        f.cbam(**arguments())


class Recorder:
    """Stands in for the ops: notes what was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.last: tuple = ()

    def cbam(self, x, *rest):
        self.calls.append("cbam")
        self.last = rest
        return x

    def gates(self, x, *rest):
        self.calls.append("gates")
        return x.new_ones(x.shape[:2]).float(), x.new_zeros(x.shape[0], 1, *x.shape[2:]).float()

    def cbam_training(self, x, residual, *rest):
        self.calls.append("cbam_training")
        self.last = rest
        return x + sum(tensor.sum() for tensor in rest if isinstance(tensor, torch.Tensor)), *[torch.ones(1)] * 9

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


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize(
    "changed, kind, message",
    [
        ({"residual": torch.zeros(2, C, 5, 5)}, ValueError, r"residual must have x's shape \(2, 8, 5, 4\), got"),
        ({"residual": torch.zeros(2, C, 5, 4).half()}, TypeError, "residual must have x's dtype torch.float32, got"),
        (
            {"residual": torch.zeros(2, C, 5, 4, device="meta")},
            ValueError,
            "residual must be on x's device cpu, got me",
        ),
        ({"activation": "gelu"}, ValueError, "activation must be 'relu' or None, got 'gelu': apply"),
    ],
    ids=["shape", "dtype", "device", "activation"],
)
def test_a_residual_and_an_activation_are_checked(changed, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        f.cbam(**arguments(), **changed)


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


def test_biases_may_be_left_out():
    ok = arguments()
    zeros = {name: torch.zeros_like(ok[name]) for name in ("fc1_bias", "fc2_bias", "conv_bias")}
    with settings(backend="reference"):
        assert_same(f.cbam(**ok | dict.fromkeys(zeros)), f.cbam(**ok | zeros))
