"""Pictures of what CBAM attends to."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from . import AttentionMaps
from .photo import Stage

SPATIAL_COLOURS = "inferno"
CHANNEL_COLOURS = "viridis"
STRIP_ROWS = 8


def overlay(photograph: Tensor, gate: Tensor, *, opacity: float = 0.6) -> np.ndarray:
    """A photograph (3,H,W) in [0, 1] with a spatial gate (h,w) over it, (H,W,3); the gate's range spans the colours."""
    import matplotlib

    span = gate.max() - gate.min()
    spread = (gate - gate.min()) / span if span > 0 else gate - gate.min()
    enlarged = F.interpolate(spread[None, None].float(), size=photograph.shape[1:], mode="bicubic", align_corners=False)
    colours = matplotlib.colormaps[SPATIAL_COLOURS](enlarged[0, 0].clamp(0, 1).numpy())[..., :3]
    grey = photograph.mean(0).numpy()[..., None]
    return (1 - opacity) * grey + opacity * colours


def draw(photograph: Tensor, gates: Mapping[Stage, AttentionMaps], path: str | PathLike[str]) -> None:
    """Write a picture: the photograph, the spatial gate over it for every stage, the channel gates below as strips."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    columns = len(gates) + 1
    figure = Figure(figsize=(2.9 * columns + 0.6, 5.1), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("CBAM's gates on a photograph (seeded weights, not trained)", fontsize=13)
    axes = figure.subplots(2, columns, height_ratios=(4, 1), squeeze=False)
    axes[0, 0].imshow(photograph.permute(1, 2, 0).numpy())
    axes[0, 0].set_title("photograph", fontsize=11)
    axes[1, 0].text(0.97, 0.5, "channel gate,\none cell a channel", ha="right", va="center", fontsize=10)
    for (stage, maps), (above, below) in zip(gates.items(), axes.T[1:], strict=True):
        spatial, channel = maps.spatial[0, 0].float(), maps.channel[0].float()
        above.imshow(overlay(photograph, spatial))
        above.set_title(f"{stage.name}: {stage.channels}x{stage.side}x{stage.side}", fontsize=11)
        above.set_xlabel(f"spatial gate {spatial.min():.2f} to {spatial.max():.2f}", fontsize=9)
        below.imshow(_strip(channel), cmap=CHANNEL_COLOURS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        below.set_xlabel(f"{channel.min():.2f} to {channel.max():.2f}, mean {channel.mean():.2f}", fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    bar = figure.colorbar(ScalarMappable(cmap=SPATIAL_COLOURS), ax=axes[0, -1], ticks=(0, 1), pad=0.03, aspect=30)
    bar.ax.set_yticklabels(("least", "most"), fontsize=9)
    bar = figure.colorbar(ScalarMappable(cmap=CHANNEL_COLOURS), ax=axes[1, -1], ticks=(0, 1), pad=0.03, aspect=8)
    bar.ax.set_yticklabels(("0", "1"), fontsize=9)
    figure.savefig(path)


def _strip(channel: Tensor) -> np.ndarray:
    """The gate (C) as a few rows of cells; cells past C are empty."""
    rows = min(STRIP_ROWS, len(channel))
    cells = np.full(-(-len(channel) // rows) * rows, np.nan, np.float32)
    cells[: len(channel)] = channel.numpy()
    return cells.reshape(rows, -1)
