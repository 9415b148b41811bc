"""The paper's figure 4: what networks with different attention look at, image by image."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike

import torch
from torch import Tensor, nn

from .class_activation import grad_cam
from .drawing import overlay


def compare(
    models: Mapping[str, nn.Module],
    images: Tensor,
    targets: Sequence[int],
    path: str | PathLike[str],
    *,
    layer: str | Mapping[str, str],
    pictures: Tensor | None = None,
    method: str = "GradCAM",
) -> Tensor:
    """Write the paper's figure 4; its numbers, softmax scores of the true classes, (len(models), N) float64.

    The first row is the images, one a column. Every other row is a network of `models`, by its name: where the score
    of the true class comes from, drawn over the image, and that score P below it. Networks are run in eval mode.

    `images` (N, 3, H, W) or (N, 1, H, W) as the networks take them, `targets` the N true classes. `layer` is the name
    of the module that Grad-CAM asks, usually the last block: one for all, or one for each network. `pictures`, from 0
    to 1, are drawn instead of `images` where these are normalised. `method` is as for `grad_cam`.

    Raises: ValueError for other images, pictures or targets, or no network; ImportError without the extra `viz`.
    Source: the CBAM paper's figure 4 (arXiv 1807.06521).

        networks = {"ResNet18": plain, "ResNet18 + CBAM": refined}
        scores = cbam_triton.viz.compare(networks, images, targets, "compared.png", layer="layer4")
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = images if pictures is None else pictures
    _check(models, images, drawn, targets)
    scores = torch.stack([_scores(model, images, targets) for model in models.values()])
    figure = Figure(figsize=(1.5 * len(images) + 0.6, 1.75 * (len(models) + 1)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(models) + 1, len(images), squeeze=False)
    for n, picture in enumerate(drawn.detach().float().cpu()):
        axes[0, n].imshow(picture.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1).numpy())
        axes[0, n].set_xlabel(f"class {targets[n]}", fontsize=8)
    axes[0, 0].set_ylabel("image", fontsize=9)
    for row, (name, model) in enumerate(models.items(), 1):
        asked = layer if isinstance(layer, str) else layer[name]
        with _evaluated(model):
            maps = grad_cam(model, images, asked, targets=targets, method=method)
        for n, found in enumerate(maps):
            axes[row, n].imshow(overlay(drawn[n], found))
            axes[row, n].set_xlabel(f"P = {scores[row - 1, n]:.4f}", fontsize=8)
        axes[row, 0].set_ylabel(name, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    figure.savefig(path)
    return scores


def _check(models: Mapping[str, nn.Module], images: Tensor, drawn: Tensor, targets: Sequence[int]) -> None:
    if not isinstance(models, Mapping) or not models:
        raise ValueError("models must be networks by name, such as {'ResNet': plain, '+ CBAM': with_cbam}")
    for what, given in (("images", images), ("pictures", drawn)):
        if not isinstance(given, Tensor) or given.ndim != 4 or given.shape[1] not in (1, 3):
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"{what} must have shape (N, 3, H, W) or (N, 1, H, W), got {shape}: draw such ones")
    if not len(images) == len(drawn) == len(targets):
        raise ValueError(
            f"images, pictures and targets must be as many, got {len(images)}, {len(drawn)} and {len(targets)}"
        )


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """`model` in eval mode; its modules' modes are theirs again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _scores(model: nn.Module, images: Tensor, targets: Sequence[int]) -> Tensor:
    with _evaluated(model), torch.no_grad():
        logits = model(images)
    classes = torch.as_tensor(targets, device=logits.device)
    if logits.ndim != 2 or not 0 <= classes.min() <= classes.max() < logits.shape[1]:
        raise ValueError(f"targets must be classes of the logits {tuple(logits.shape)}, got {list(targets)}")
    return logits.double().softmax(1)[torch.arange(len(images)), classes].cpu()
