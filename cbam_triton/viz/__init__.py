"""What a network attends to: the gates of all its CBAMs, recorded, drawn over images, and counted over a data set.

    with cbam_triton.viz.record(model) as gates:
        model(images)
    cbam_triton.viz.draw(images, gates, "gates.png")

Drawing needs matplotlib, `grad_cam` and `compare` the package grad-cam: pip install "cbam-triton[viz]". The commands
import this folder; it imports the modules and the specification, and no kernel.
"""

from .class_activation import grad_cam
from .comparison import compare
from .drawing import channel_strip, draw, overlay
from .recording import Gates, Recording, record
from .statistics import GateStatistics, statistics

__all__ = [
    "GateStatistics",
    "Gates",
    "Recording",
    "channel_strip",
    "compare",
    "draw",
    "grad_cam",
    "overlay",
    "record",
    "statistics",
]
