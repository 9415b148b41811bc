"""A CBAM for the model files (yaml) of ultralytics and of YOLO's forks: their arguments, in their order.

    import cbam_triton.ultralytics
    cbam_triton.ultralytics.register()  # before the model is built, in every process that builds it

Then a row of a model file names it, with "c2" for the number of channels that the row before returns:

    - [-1, 1, CBAM, [c2]]     # 7x7 convolution
    - [-1, 1, CBAM, [c2, 3]]  # 3x3
"""

import importlib
from typing import Any

from . import nn


class CBAM(nn.CBAM):
    """The layer of the paper on x (N, C, H, W), by the arguments of a model file: C, then the kernel size.

    It is `cbam_triton.CBAM` with its defaults: two linear layers with biases, both pools, and a batch norm on the
    spatial gate. The CBAM of ultralytics has one layer, the average alone, and no norm; `convert_cbam` runs that one. A
    trainer may set its attributes (`i`, `f`, `type`, `np`) on the layer; copies and pickles keep them.
    Keys: those of `cbam_triton.CBAM`.

    Raises: TypeError and ValueError for sizes that `cbam_triton.CBAM` refuses, such as an even `kernel_size`. Parsers
    that pass the number of output channels second must be told to leave it out.
    Source: arXiv 1807.06521, equation 1.

        layer = CBAM(256, 7)
    """

    def __init__(self, c1: int, kernel_size: int = 7, reduction: float = 16) -> None:
        if isinstance(kernel_size, int) and kernel_size > 1 and kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd, got {kernel_size}: the arguments are (channels, kernel_size, reduction), so "
                "leave out a number of output channels"
            )
        super().__init__(c1, reduction, kernel_size=kernel_size)

    # The layer that it makes may have options that no model file names.
    from_state_dict: Any = nn.CBAM.from_state_dict


def register(tasks: Any = None, name: str = "CBAM") -> None:
    """Lets the model files of ultralytics name this layer, as `name`.

    `tasks` is the module whose function `parse_model` reads a model file: `ultralytics.nn.tasks` if None, and
    `models.yolo` in forks of YOLOv5.

    Raises: ImportError where ultralytics is not installed and `tasks` is None; TypeError for a module without
    `parse_model`.

        register()
        model = ultralytics.YOLO("yolo11n-cbam.yaml")
    """
    if tasks is None:
        tasks = importlib.import_module("ultralytics.nn.tasks")
    if not callable(getattr(tasks, "parse_model", None)):
        raise TypeError(f"tasks must be a module with a function parse_model, got {tasks!r}: pass ultralytics.nn.tasks")
    setattr(tasks, name, CBAM)
