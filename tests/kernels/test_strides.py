"""Strides: what the kernels read as it lies, what is copied once, what comes out, and offsets past 2^31 elements."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cbam_triton.kernels.launch import layout

pytest.importorskip("triton")

from cbam_triton import ops
from cbam_triton.kernels.launch import backward as gradients
from cbam_triton.kernels.launch import forward as launch
from cbam_triton.kernels.launch import plan
from cbam_triton.kernels.launch import tensors as call

from ..cases import FORMATS, SCHEDULES, assert_refined, both_formats, integers, layer, normal
from ..errors import assert_same

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
NCHW, CHANNELS_LAST = FORMATS

C, H, W = 8, 4, 6


def _shifted(x):
    """x at a storage offset of one element, so that no wide access is aligned."""
    memory = x.new_zeros(x.numel() + 1)
    return memory[1:].as_strided(x.shape, x.stride(), 1).copy_(x)


TAKEN = {
    "every second sample": lambda x: x[::2],
    "a slice of samples": lambda x: x[1:3],
    "one sample for all": lambda x: x[:1].expand(3, -1, -1, -1),
    "a slice of channels": lambda x: x[:, 1:6],
    "wide channels": lambda x: x[:, 4:],
    "one channel": lambda x: x[:, 2:3],
    "a misaligned storage": _shifted,
    "one row": lambda x: x[:, :, 1:2],
    "some rows": lambda x: x[:, :, 1:3],
    "one pixel": lambda x: x[:, :, 2:3, 3:4],
    "one sample with any stride": lambda x: x[:1].as_strided((1, *x.shape[1:]), (7, *x.stride()[1:])),
}
COPIED = {
    "a crop": lambda x: x[:, :, 1:-1, 1:-1],
    "rows for columns": lambda x: x.transpose(2, 3),
    "every second channel, row and column": lambda x: x[:, ::2, ::2, ::2],
    "channels backwards in memory order": lambda x: x.permute(0, 2, 1, 3),
}


def _check(view, schedule):
    """The operator is right on the view, and its output lies as the fake says."""
    weights = layer(view.shape[1], device=view.device)
    y = ops.cbam(view, *weights.parameters, weights.norm_eps, schedule)
    assert_refined(y, view, weights)
    with FakeTensorMode() as mode:
        parameters = (w if w is None else mode.from_tensor(w) for w in weights.parameters)
        fake = ops.cbam(mode.from_tensor(view), *parameters, weights.norm_eps, schedule)
    assert _significant(y) == _significant(fake)
    assert y.storage_offset() == fake.storage_offset() == 0
    return y


def _significant(x):
    """Strides that are ever multiplied by an index other than 0."""
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


@both_formats
@pytest.mark.parametrize("take", TAKEN.values(), ids=TAKEN)
def test_a_view_with_evenly_spaced_pixels_is_read_as_it_lies(take, memory_format, device):
    view = take(normal((4, C, H, W), memory_format=memory_format, dtype=torch.float16, device=device))
    assert layout.merged(view) is view
    _check(view, "staged" if view.shape[0] == 1 else "wavefront")


@both_formats
@pytest.mark.parametrize("take", COPIED.values(), ids=COPIED)
def test_any_other_view_is_copied_once_in_its_own_format(take, memory_format, device):
    view = take(normal((4, C, H, W), memory_format=memory_format, device=device))
    copy = layout.merged(view)
    expected = CHANNELS_LAST if view.stride(1) == 1 else NCHW
    assert copy is not view
    assert copy.is_contiguous(memory_format=expected)
    assert layout.merged(copy) is copy
    assert_same(copy, view.clone())
    assert _check(view, "staged").is_contiguous(memory_format=expected)


@pytest.mark.parametrize("shape", [(2, 8, 4, 6), (2, 8, 1, 1), (2, 1, 4, 6), (1, 8, 1, 6), (2, 8, 5, 1), (2, 1, 1, 1)])
@both_formats
def test_the_memory_format_of_x_is_that_of_y(shape, memory_format, device):
    x = normal(shape, memory_format=memory_format, device=device)
    assert layout.merged(x) is x
    y = _check(x, "wavefront")
    assert y.is_contiguous(memory_format=memory_format)
    assert y.stride() == x.stride()


@pytest.mark.parametrize("dtype, shape, memory_format, width", [
    (torch.float16, (2, 16, 5, 3), CHANNELS_LAST, 8),
    (torch.float16, (2, 12, 5, 3), CHANNELS_LAST, 4),
    (torch.float16, (2, 15, 4, 4), CHANNELS_LAST, 1),
    (torch.float16, (2, 15, 28, 28), NCHW, 8),
    (torch.float16, (2, 16, 14, 14), NCHW, 4),
    (torch.float16, (2, 16, 7, 7), NCHW, 1),
    (torch.float32, (2, 3, 4, 4), NCHW, 4),
    (torch.float64, (2, 3, 4, 4), NCHW, 2),
])  # fmt: skip
def test_accesses_are_as_wide_as_the_sizes_allow(dtype, shape, memory_format, width):
    assert _width(torch.empty(shape, dtype=dtype, memory_format=memory_format)) == width


def test_accesses_are_no_wider_than_offset_and_strides_allow():
    memory = torch.empty(4096, dtype=torch.float16)
    aligned = memory.as_strided((2, 16, 4, 4), (256, 16, 4, 1))
    assert _width(aligned) == 8
    for offset, width in [(8, 8), (4, 4), (2, 2), (1, 1)]:
        assert _width(memory.as_strided((2, 16, 4, 4), (256, 16, 4, 1), offset)) == width
    assert _width(memory.as_strided((2, 16, 4, 4), (260, 16, 4, 1))) == 4
    assert _width(memory.as_strided((2, 16, 4, 4), (256, 18, 4, 1))) == 2
    assert _width(memory.as_strided((2, 16, 4, 4), (0, 16, 4, 1))) == 8
    assert _width(aligned, memory.as_strided((2, 16, 4, 4), (260, 16, 4, 1))) == 4


def _width(*tensors):
    C, H, W = tensors[0].shape[1:]
    address = math.gcd(*(x.data_ptr() for x in tensors))
    return layout.access_width(C, H * W, tensors[0].element_size(), address, *map(layout.pixel_strides, tensors))


FAR = 1 << 31
HUGE = {  # shape, strides
    "sample, nchw": ((2, 4, 2, 8), (FAR, 16, 8, 1)),
    "sample, channels_last": ((2, 4, 2, 8), (FAR, 1, 32, 4)),
    "channel": ((1, 3, 2, 8), (0, FAR // 2, 8, 1)),
    "pixel": ((1, 8, 3, 1), (0, 1, FAR // 2, FAR // 2)),
    "almost 2^31": ((1, 4, 2, 8), (0, FAR // 4 - 8, 8, 1)),
}


@pytest.fixture(scope="module")
def unwritten(device):
    """Twice 4 GiB of addresses, of which only the pages that are written take memory."""
    try:
        return [torch.empty(FAR + 4096, dtype=torch.float16, device=device) for _ in range(2)]
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        pytest.skip(f"no 8 GiB of addresses here: {error}")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape, strides", HUGE.values(), ids=HUGE)
def test_offsets_past_2_to_31_are_right_in_x_and_in_y(shape, strides, schedule, unwritten, device, monkeypatch):
    x = unwritten[0].as_strided(shape, strides).copy_(integers(shape, device=device))
    y = unwritten[1].as_strided(shape, strides).fill_(torch.nan)
    weights = layer(shape[1], device=device)
    assert layout.merged(x) is x
    assert_refined(launch.forward(x, weights, schedule), x, weights)
    z = torch.zeros(shape[0], 1, *shape[2:], device=device)
    assert_same(launch.apply_gates(x, None, z), x * 0.5)
    # y with the strides of x, which no caller gets: as far from its first element as a y of 2^31 elements.
    monkeypatch.setattr(call, "plan", plan.plan.__wrapped__)
    monkeypatch.setattr(plan, "output_like", lambda x: x)
    monkeypatch.setattr(torch, "empty_like", lambda x: y)
    assert launch.forward(x, weights, schedule) is y
    monkeypatch.undo()
    assert_refined(y, x, weights)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("strides", [(0, FAR // 2, 2, 1), (0, 1, 2 * (FAR // 7), FAR // 7)], ids=["channel", "pixel"])
def test_offsets_past_2_to_31_are_right_in_the_gradient_of_a_small_map(strides, schedule, unwritten, device):
    shape = (1, 3, 4, 2)
    x, near = normal(shape, device=device, dtype=torch.float16), integers(shape, device=device, dtype=torch.float16)
    dy = unwritten[0].as_strided(shape, strides).copy_(near)
    weights = layer(3, device=device)
    _, kept, _ = launch.forward_saved(x, weights, schedule)
    far, dense = (
        gradients.backward(x, gradient, None, weights, kept, call.Needed(residual=True), schedule)
        for gradient in (dy, near)
    )
    for found, expected in zip(far, dense, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_maps_that_32_bits_cannot_index_are_refused(device):
    x = torch.empty(1, device=device).expand(1, 1, 1 << 15, 1 << 15)
    with pytest.raises(ValueError, match=r"expected fewer than 2\^30 pixels a sample.*got 1073741824: use settings"):
        call.plan_of(x, layer(1, device=device), "staged")
