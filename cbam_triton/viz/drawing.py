"""Pictures of gates: maps over images, channel gates as strips of cells."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec.validation import check_tensor
from ..spec.values import check_integer
from .recording import Gates, sizes

SPATIAL_COLOURS, CHANNEL_COLOURS = "inferno", "viridis"
_STRIP_ROWS = 8


def overlay(image: Tensor, gate: Tensor, *, opacity: float = 0.6) -> Any:
    """An image (3, H, W) or (1, H, W) in [0, 1] with a map (h, w) over it: a NumPy array (H, W, 3).

    The map's own range spans the colours; it is enlarged to the image's size.

        picture = cbam_triton.viz.overlay(images[0], gates["layer4.1.cbam"].spatial[0, 0])
    """
    import matplotlib

    gate = gate.detach().float().cpu()
    span = gate.max() - gate.min()
    spread = (gate - gate.min()) / span if span > 0 else gate - gate.min()
    enlarged = F.interpolate(spread[None, None], size=image.shape[1:], mode="bicubic", align_corners=False)
    colours = matplotlib.colormaps[SPATIAL_COLOURS](enlarged[0, 0].clamp(0, 1).numpy())[..., :3]
    grey = image.detach().float().cpu().mean(0).numpy()[..., None]
    return (1 - opacity) * grey + opacity * colours


def draw(
    images: Tensor, gates: Mapping[str, Gates], path: str | PathLike[str], *, layers: Sequence[str] | None = None
) -> None:
    """Write a picture: a row for each image, with the spatial gate of each layer over it and its channel gate below.

    `images` (N, 3, H, W) or (N, 1, H, W) in [0, 1] are what the model was called with, before their normalisation.
    `layers` are names in `gates`, all if None.

    Raises: ValueError for other images than these, and for gates of volumes or signals.

        with cbam_triton.viz.record(model) as gates:
            model(images)
        cbam_triton.viz.draw(images, gates, "gates.png")
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(gates) if layers is None else list(layers)
    chosen = {name: gates[name] for name in names}
    _check_drawable(images, chosen)
    N, columns = len(images), len(chosen) + 1
    figure = Figure(figsize=(2.1 * columns, 2.7 * N + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * N, columns, height_ratios=(4, 1) * N, squeeze=False)
    for n in range(N):
        axes[2 * n, 0].imshow(images[n].detach().float().cpu().expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).numpy())
        for column, (name, found) in enumerate(chosen.items(), 1):
            above, below = axes[2 * n, column], axes[2 * n + 1, column]
            if n == 0:
                above.set_title(name or "the model", fontsize=8)
            if found.spatial is not None:
                gate = found.spatial[n, 0].float().cpu()
                above.imshow(overlay(images[n], gate))
                above.set_xlabel(f"spatial {gate.min():.2f} to {gate.max():.2f}", fontsize=7)
            if found.channel is not None:
                gate = found.channel[n].float().cpu()
                below.imshow(channel_strip(gate), cmap=CHANNEL_COLOURS, vmin=0, vmax=1, aspect="auto")
                below.set_xlabel(f"channel {gate.min():.2f} to {gate.max():.2f}", fontsize=7)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    figure.savefig(path)


def channel_strip(gate: Tensor, most_rows: int = _STRIP_ROWS) -> Any:
    """A channel gate (C,) as a few rows of cells, a NumPy array; cells past C are NaN.

    Raises: ValueError for another shape, TypeError for anything but a tensor and an integer.

    >>> channel_strip(torch.rand(10), most_rows=4).shape
    (4, 3)
    """
    check_tensor("gate", gate)
    check_integer("most_rows", most_rows, 1, "pass how many rows there may be")
    if gate.ndim != 1 or len(gate) == 0:
        raise ValueError(f"gate must have shape (C,), got {tuple(gate.shape)}: pass the gate of one image")
    gate = gate.detach().float().cpu()
    rows = min(most_rows, len(gate))
    cells = gate.new_full((-(-len(gate) // rows) * rows,), torch.nan)
    cells[: len(gate)] = gate
    return cells.reshape(rows, -1).numpy()


def _check_drawable(images: Tensor, gates: Mapping[str, Gates]) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must have shape (N, 3, H, W) or (N, 1, H, W), got {shape}: draw such ones")
    for name, found in gates.items():
        for gate in found:
            if gate is not None and (len(gate) != len(images) or gate.ndim not in (2, 4)):
                raise ValueError(
                    f"the gates of {name!r} must be of {len(images)} images, got {sizes(found)}: pass the images that "
                    "the model was called with"
                )
