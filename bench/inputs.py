"""What is measured, and where: shapes by name, seeded maps, layers and gradients, and the facts of a machine."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

import cbam_triton
from cbam_triton import CBAM
from cbam_triton.demo.options import InputError
from cbam_triton.kernels.launch import hardware as kernel_device

SHAPES = {
    "resnet50": ((256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)),
    "resnet18": ((64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)),
    "detection": ((256, 200, 304), (512, 100, 152), (1024, 50, 76), (2048, 25, 38)),
    "odd": ((96, 55, 57), (40, 31, 31), (320, 13, 13)),
}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = ("float16", "bfloat16", "float32", "float64")


def parse_shapes(name: str, batch: int) -> list[tuple[int, int, int, int]]:
    """Shapes (N,C,H,W) of a named set, of every set ("all"), or of one size such as "32x256x56x56".

    Raises: InputError for anything else.
    """
    if name == "all":
        return [(batch, *shape) for shapes in SHAPES.values() for shape in shapes]
    if name in SHAPES:
        return [(batch, *shape) for shape in SHAPES[name]]
    sizes = name.split("x")
    if len(sizes) == 4 and all(size.isdigit() and int(size) > 0 for size in sizes):
        n, c, h, w = map(int, sizes)
        return [(n, c, h, w)]
    known = ", ".join(SHAPES)
    raise InputError(f"--shapes: {name!r} is neither {known}, all nor four sizes such as 32x256x56x56")


def environment(device: torch.device) -> dict[str, str]:
    """What a time depends on besides the input: device and versions."""
    name = platform.processor() or platform.machine()
    if device.type != "cpu":
        name = torch.get_device_module(device).get_device_name(device)
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    return {
        "device": f"cpu {name} ({torch.get_num_threads()} threads)" if device.type == "cpu" else name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton,
        "cbam_triton": cbam_triton.__version__,
    }


def kernels_run_on(device: torch.device) -> bool:
    """Whether the kernels run there at full speed: a driver, not the interpreter."""
    missing = kernel_device.missing() is not None or kernel_device.device_type() != device.type
    return not missing and not kernel_device.interpreted()


def make_input(shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype, layout: str) -> Tensor:
    """A seeded map after a ReLU, half of it zeros, as a ResNet's are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).relu()
    return x.to(device, dtype).contiguous(memory_format=LAYOUTS[layout])


def make_dy(x: Tensor) -> Tensor:
    """A seeded gradient for the result on x, in x's dtype and layout."""
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return torch.empty_like(x).copy_(dy)


def make_layer(x: Tensor) -> CBAM:
    """A seeded CBAM in eval mode for x, with batch-norm statistics that are not 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = CBAM(x.shape[1]).eval()
        for key, value in (("running_mean", 0.1), ("running_var", 0.5), ("weight", 1.5), ("bias", -0.2)):
            getattr(layer.spatial.norm, key).data.fill_(value)
    return layer.to(x.device, x.dtype)
