"""Pictures of what CBAM attends to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from torch import Tensor

from .. import AttentionMaps
from ..viz.drawing import CHANNEL_COLOURS, SPATIAL_COLOURS, channel_strip, overlay
from .photograph import Stage

DIGIT_STRIP_ROWS = 4
RIGHT_COLOUR, WRONG_COLOUR = "black", "crimson"
_BESIDE: Any = {"fontsize": 13, "rotation": 0, "ha": "right", "va": "center"}  # the name of a row


def draw(photograph: Tensor, gates: Mapping[Stage, AttentionMaps], path: str | PathLike[str]) -> None:
    """Write a picture: the photograph, the spatial gate over it for every stage, the channel gates below as strips."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
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
        below.imshow(
            channel_strip(channel), cmap=CHANNEL_COLOURS, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        below.set_xlabel(f"{channel.min():.2f} to {channel.max():.2f}, mean {channel.mean():.2f}", fontsize=9)
    _bare(axes)
    _colour_bars(figure, axes[0, -1], axes[1, -1])
    figure.savefig(path)


def draw_digits(
    images: Tensor,
    labels: Sequence[int],
    predictions: Sequence[int],
    maps: Sequence[AttentionMaps],
    path: str | PathLike[str],
) -> None:
    """Write a picture, one column a digit: the image, then every block's spatial gate over it and channel gate.

    `images` (N,1,H,W) in [0, 1] and `maps`, one a block for all N, on the CPU. What was taken for another digit is red.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ratios = (4, *(4, 1.6) * len(maps))
    # Letters large enough to be read where a page shows the picture at half its size.
    figure = Figure(figsize=(1.25 * len(images) + 1.6, 0.36 * sum(ratios) + 0.9), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("What a trained CBAM ResNet attends to in digits that it never saw", fontsize=19)
    axes = figure.subplots(len(ratios), len(images), height_ratios=ratios, squeeze=False)
    axes[0, 0].set_ylabel("digit", **_BESIDE)
    for n, (label, predicted) in enumerate(zip(labels, predictions, strict=True)):
        right = label == predicted
        title = f"{label}" if right else f"{label}, taken\nfor {predicted}"
        axes[0, n].imshow(images[n, 0].numpy(), cmap="gray", vmin=0, vmax=1)
        axes[0, n].set_title(title, fontsize=14, color=RIGHT_COLOUR if right else WRONG_COLOUR)
        for block, gates in enumerate(maps):
            spatial, channel = gates.spatial[n, 0].float(), gates.channel[n].float()
            above, below = axes[2 * block + 1, n], axes[2 * block + 2, n]
            above.imshow(overlay(images[n], spatial))
            above.set_xlabel(f"{spatial.min():.2f} to {spatial.max():.2f}", fontsize=11, labelpad=2)
            strip = channel_strip(channel, DIGIT_STRIP_ROWS)
            below.imshow(strip, cmap=CHANNEL_COLOURS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            if n == 0:
                above.set_ylabel(f"block {block + 1}:\nwhere", **_BESIDE)
                below.set_ylabel(f"which of\n{len(channel)} channels", **_BESIDE)
    _bare(axes)
    _colour_bars(figure, axes[1, -1], axes[2, -1])
    figure.savefig(path)


def _bare(axes: np.ndarray) -> None:
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)


def _colour_bars(figure: Any, spatial_axis: Any, channel_axis: Any) -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(cmap=SPATIAL_COLOURS), ax=spatial_axis, ticks=(0, 1), pad=0.03, aspect=30)
    bar.ax.set_yticklabels(("least", "most"), fontsize=12)
    bar = figure.colorbar(ScalarMappable(cmap=CHANNEL_COLOURS), ax=channel_axis, ticks=(0, 1), pad=0.03, aspect=8)
    bar.ax.set_yticklabels(("0", "1"), fontsize=12)
