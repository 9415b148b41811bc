"""Grad-CAM and its kin beside the gates, by the package grad-cam."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..spec.validation import check_tensor
from ..spec.values import described

_EXTRA = 'pip install "cbam-triton[viz]"'


def grad_cam(
    model: nn.Module, images: Tensor, layer: str, *, targets: Sequence[int] | None = None, method: str = "GradCAM"
) -> Tensor:
    """Where the score of a class comes from: (N, H, W) in [0, 1], by the package grad-cam.

    `images` (N, 3, H, W) as the model takes them. `layer` is the name of a module whose output (N, C, h, w) is asked,
    usually the last block. `targets` are a class for each image, the likeliest if None. `method` is a class of the
    package, such as "GradCAM" or "GradCAMPlusPlus".

    Raises: ImportError without the package, ValueError for an unknown method or layer, TypeError for a model or images
    of another type.

        heat = cbam_triton.viz.grad_cam(model, images, "layer4.1")

    Source: arXiv 1610.02391 (Grad-CAM), arXiv 1710.11063 (Grad-CAM++); the CBAM paper's figure 4.
    """
    try:
        cams = import_module("pytorch_grad_cam")
        targets_of_cams = import_module("pytorch_grad_cam.utils.model_targets")
    except ImportError as error:
        raise ImportError(f"grad_cam needs the package grad-cam: {_EXTRA}") from error
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {described(model)}: pass the network")
    if layer not in (names := [name for name, _ in model.named_modules()]):
        raise ValueError(
            f"layer must be the name of a module of the model, got {layer!r}: {', '.join(names[-3:])} are some"
        )
    check_tensor("images", images)
    made: Callable[..., Any] | None = getattr(cams, method, None) if isinstance(method, str) else None
    if made is None:
        raise ValueError(f"method must be a class of pytorch_grad_cam, got {method!r}: GradCAM is one")
    asked = None if targets is None else [targets_of_cams.ClassifierOutputTarget(int(target)) for target in targets]
    layers = [model.get_submodule(layer)]
    eagerly = torch.compiler.set_stance("force_eager")
    with torch.enable_grad(), eagerly, made(model=model, target_layers=layers) as cam:
        return torch.from_numpy(cam(input_tensor=images, targets=asked))
