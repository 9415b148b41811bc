"""torchvision's networks and detectors, with attention at the end of their blocks and weights to start from."""

from __future__ import annotations

import argparse
import difflib
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cbam_triton import insert_cbam
from cbam_triton.demo.options import InputError
from cbam_triton.models import new_parameters

from . import checkpoint

# The options of `insert_cbam` that are options here, for CBAM alone.
OPTIONS = ("arrangement", "kernel_size", "channel_pools", "spatial_pools", "gentle")
# Squeeze-and-excitation is the channel gate by the average alone; a test compares it with torchvision's. All three
# attentions then sit at the same place of the same blocks, and go through the same kernels.
_SE: dict[str, Any] = {"arrangement": "channel_only", "channel_pools": ("avg",)}
_HEADS = ("fc.", "classifier.")  # layers for the classes, which differ from data to data
_RESNET_FPN = re.compile(r"fasterrcnn_(.*res.*)_fpn")
_BODY = ("layer4", "layer3", "layer2", "layer1", "conv1")  # of a ResNet, as training unfreezes them


def attention_options(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """What `insert_cbam` gets; None where there is no attention.

    Raises: InputError for an option that the chosen attention does not have.
    """
    given = {name: getattr(arguments, name) for name in OPTIONS if getattr(arguments, name)}
    if arguments.reduction is not None and arguments.attention != "none":
        given["reduction"] = arguments.reduction
    elif arguments.reduction is not None:
        given["reduction"] = None  # named below
    allowed = {"none": (), "se": ("reduction", "gentle"), "cbam": (*OPTIONS, "reduction")}[arguments.attention]
    for name in given:
        if name not in allowed:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is of another attention than {arguments.attention!r}: leave it out")
    if arguments.attention == "none":
        return None
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return options | _SE if arguments.attention == "se" else options


def classifier(arguments: argparse.Namespace, classes: int) -> nn.Module:
    """torchvision's network of that name with `classes` outputs.

    Raises: InputError for an unknown name, a network without blocks, and weights of another one.
    """
    from torchvision import models

    known = models.list_models(module=models)
    options = attention_options(arguments)
    model = models.get_model(_known(arguments.model, known), weights=None, num_classes=classes)
    _insert(model, options)
    if arguments.weights:
        _start_from(arguments.weights, model, _HEADS)
    return model


def detector(arguments: argparse.Namespace, classes: int) -> nn.Module:
    """torchvision's detector of that name; `classes` counts the background, which is class 0.

    Raises: InputError for an unknown name, sizes that it does not take, and weights of another backbone.
    """
    from torchvision import models

    known = models.list_models(module=models.detection, exclude=("mask*", "keypoint*"))
    resnets = models.list_models(module=models, include=("resnet*", "resnext*", "wide_resnet*"))
    of_ours = {f"fasterrcnn_{name}_fpn": name for name in resnets}
    name = _known(arguments.model, [*known, *of_ours])
    sizes = {size: getattr(arguments, size) for size in ("min_size", "max_size") if getattr(arguments, size)}
    if sizes and name.startswith("ssd"):
        raise InputError(f"--min-size and --max-size are not of {name}, whose images have one size: leave them out")
    if arguments.weights and name not in of_ours:
        raise InputError(f"--weights goes with fasterrcnn_..._fpn of a ResNet, not with {name}: leave it out")
    options = attention_options(arguments)
    if name not in of_ours:
        model = models.get_model(name, weights=None, weights_backbone=None, num_classes=classes, **sizes)
        _insert(model.backbone, options)
        return model
    return _resnet_fpn(arguments, of_ours[name], classes, sizes, options)


def _resnet_fpn(
    arguments: argparse.Namespace, body: str, classes: int, sizes: dict[str, int], options: dict[str, Any] | None
) -> nn.Module:
    """Faster R-CNN on a ResNet's pyramid, as torchvision builds it: with weights, norms and early layers are frozen."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    norm = FrozenBatchNorm2d if arguments.weights else nn.BatchNorm2d
    layers = arguments.trainable_layers if arguments.weights else 5
    backbone = resnet_fpn_backbone(backbone_name=body, weights=None, norm_layer=norm, trainable_layers=layers)
    _insert(backbone, options)
    if arguments.weights and _start_from(arguments.weights, backbone.body, ()):
        for name, parameter in backbone.body.named_parameters():
            parameter.requires_grad_(name.startswith(_BODY[:layers]) or (layers == 5 and name.startswith("bn1")))
    return FasterRCNN(backbone, classes, **sizes)


def _known(name: str, known: list[str]) -> str:
    if name not in known:
        close = difflib.get_close_matches(name, known) or sorted(known)
        raise InputError(f"--model: torchvision has no {name!r} for this task; there is {', '.join(close)}")
    return name


def _insert(model: nn.Module, options: dict[str, Any] | None) -> None:
    if options is not None:
        try:
            insert_cbam(model, **options)
        except ValueError as error:
            raise InputError(f"--attention: {error}") from None


def _start_from(path: Path, model: nn.Module, heads: tuple[str, ...]) -> bool:
    """Load weights of torchvision or of a checkpoint of this command; whether all attention has its own.

    Raises: InputError where a layer is missing that is neither attention nor a head for other classes.
    """
    loaded = checkpoint.read(path, "--weights")
    state: dict[str, Tensor] = loaded["model"] if "config" in loaded else loaded
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and isinstance(value, Tensor) and value.shape == own[name].shape
    }
    new = {f"{name.rpartition('.cbam.')[0]}.cbam." for name in new_parameters(model)}
    missing = [name for name in own if name not in fitting and not name.startswith(heads)]
    of_attention = [name for name in missing if any(name.startswith(prefix) for prefix in new)]
    others = [name for name in missing if name not in of_attention and not name.endswith("num_batches_tracked")]
    if others or (of_attention and any(".cbam." in name for name in state)):
        names = ", ".join((others or of_attention)[:3])
        raise InputError(f"--weights: {str(path)!r} has no fitting {names}: is it of this --model and attention?")
    model.load_state_dict(fitting, strict=False)
    return not of_attention
