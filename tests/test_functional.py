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


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize(
    "changed, kind, message",
    [
        ({"residual": torch.zeros(2, C, 5, 5)}, ValueError, r"residual must have x's shape \(2, 8, 5, 4\), got"),
        ({"residual": torch.zeros(2, C, 5, 4).int()}, TypeError, "residual must have a floating-point dtype, .* got"),
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


def test_biases_may_be_left_out():
    ok = arguments()
    zeros = {name: torch.zeros_like(ok[name]) for name in ("fc1_bias", "fc2_bias", "conv_bias")}
    with settings(backend="reference"):
        assert_same(f.cbam(**ok | dict.fromkeys(zeros)), f.cbam(**ok | zeros))
