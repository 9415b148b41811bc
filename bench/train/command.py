"""`python -m bench train classification | detection DATA`, alone or under torchrun."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cbam_triton.demo.options import InputError, folder_of, need_extras, number_of

from . import checkpoint, processes
from .detection import SETS

SUMMARY = "The paper's experiments at full size: classification on folders of images, detection on COCO or VOC data."

# How long the others leave the word to the first: torchrun ends all processes as soon as one has failed.
_PATIENCE = 10  # seconds
_EXTRA = 'pip install ".[train]"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench train`."""
    tasks = parser.add_subparsers(dest="task", required=True)
    words = "A torchvision network on DATA/train/CLASS/*.jpg and DATA/val/CLASS/*.jpg; the paper's schedule."
    _classification(tasks.add_parser("classification", help=words, description=words))
    words = "A torchvision detector, with attention in its backbone, on data in COCO's or Pascal VOC's format."
    _detection(tasks.add_parser("detection", help=words, description=words))


def _classification(parser: argparse.ArgumentParser) -> None:
    _model(parser, "resnet50", "resnet18 to 152, wide_resnet50_2, resnext50_32x4d, mobilenet_v2, ... (%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="pixels of a crop's side (default: %(default)s)")
    parser.add_argument("--channels-last", action="store_true", help="network and images in NHWC")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    _training(parser, epochs=90, batch=256, lr=0.1, drops=[30, 60], warmup=0)


def _detection(parser: argparse.ArgumentParser) -> None:
    _model(parser, "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet101_fpn, ssd300_vgg16, ... (default: %(default)s)")
    parser.add_argument("--format", choices=tuple(SETS), required=True)
    for name, place in (("train", 0), ("val", 1)):
        known = "; ".join(f"{key}: {' '.join(sets[place])}" for key, sets in SETS.items())
        parser.add_argument(f"--{name}", nargs="+", metavar="SET", help=f"sets of DATA (default for {known})")
    parser.add_argument("--augment", choices=("flip", "ssd"), help="flip, or SSD's crops and colours (by the model)")
    parser.add_argument("--min-size", type=int, help="pixels of an image's short side (default: torchvision's)")
    parser.add_argument("--max-size", type=int, help="pixels of its long side at most (default: torchvision's)")
    parser.add_argument(
        "--trainable-layers", type=int, default=3, help="of the backbone, with --weights, from its end (%(default)s)"
    )
    parser.set_defaults(channels_last=False, compile=False)
    _training(parser, epochs=26, batch=16, lr=0.02, drops=[16, 22], warmup=1000)


def _model(parser: argparse.ArgumentParser, model: str, models: str) -> None:
    """Options of the network and of its attention."""
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the data")
    parser.add_argument("--model", default=model, help=models)
    parser.add_argument("--weights", type=Path, metavar="FILE", help="to start from: torchvision's, or a checkpoint.pt")
    parser.add_argument("--attention", choices=("none", "se", "cbam"), default="cbam", help="default: %(default)s")
    layers = ("channel_first", "spatial_first", "parallel", "channel_only", "spatial_only")
    parser.add_argument("--arrangement", choices=layers, help="of CBAM (default: channel_first)")
    parser.add_argument("--reduction", type=float, help="of the channels in the MLP (default: 16)")
    parser.add_argument("--kernel-size", type=int, help="of CBAM's convolution (default: 7)")
    parser.add_argument("--channel-pools", nargs="+", help="of CBAM (default: avg max)")
    parser.add_argument("--spatial-pools", nargs="+", help="of CBAM (default: max avg)")
    parser.add_argument("--gentle", action="store_true", help="attention begins nearly as the identity")


def _training(
    parser: argparse.ArgumentParser, epochs: int, batch: int, lr: float, drops: list[int], warmup: int
) -> None:
    """Options of the schedule, of the machine and of what is written."""
    shown = "default: %(default)s"
    parser.add_argument("--epochs", type=int, default=epochs, help=shown)
    parser.add_argument("--batch", type=int, default=batch, help=f"images a step, over all processes ({shown})")
    parser.add_argument("--lr", type=float, default=lr, help=shown)
    parser.add_argument("--drops", type=int, nargs="*", default=drops, help=f"epochs after which it drops ({shown})")
    parser.add_argument("--factor", type=float, default=0.1, help=f"of a drop ({shown})")
    parser.add_argument("--warmup", type=int, default=warmup, help=f"steps over which it grows from 0 ({shown})")
    parser.add_argument("--momentum", type=float, default=0.9, help=shown)
    parser.add_argument("--weight-decay", type=float, default=1e-4, help=shown)
    parser.add_argument("--ema", type=float, metavar="DECAY", help="also average the weights, such as 0.9999")
    parser.add_argument("--amp", choices=("bfloat16", "float16"), help="autocast; float16 with a scaled loss")
    parser.add_argument("--sync-bn", action="store_true", help="batch norms over all processes (not on a CPU)")
    parser.add_argument(
        "--deterministic", action="store_true", help="the same bits in every run, also on a GPU; slower"
    )
    parser.add_argument("--seed", type=int, default=0, help=shown)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help=f"to read images ({shown})")
    parser.add_argument("--device", help="default: the accelerator, else cpu")
    parser.add_argument("--out", default="train", help=f"folder; a run that is there goes on ({shown})")


def main(arguments: argparse.Namespace) -> int:
    """Train, or go on; 130 after Ctrl-C. The first of several processes says what is wrong, if it knows."""
    try:
        return _run(arguments)
    except InputError:
        if processes.rank() > 0:
            time.sleep(_PATIENCE)
        raise
    except KeyboardInterrupt:
        if processes.rank() == 0:
            print(
                f"\nStopped; the same command goes on after the last whole epoch in {arguments.out}.", file=sys.stderr
            )
        return 130


def _run(arguments: argparse.Namespace) -> int:
    need_extras("torchvision", "PIL", "tqdm", *(["pycocotools"] if arguments.task == "detection" else []), extra=_EXTRA)
    _check(arguments)
    from .classification import Classification
    from .detection import Detection
    from .loop import Run

    with processes.started(arguments.device) as here, _algorithms(arguments.deterministic):
        if arguments.sync_bn and here.device.type == "cpu":
            raise InputError("--sync-bn: PyTorch's SyncBatchNorm takes no tensors of a CPU; leave it out")
        if here.first:
            folder_of(arguments.out, ("checkpoint.pt.partial", "log.jsonl.partial"), option="--out")
        checkpoint.seed(arguments.seed)
        task = {"classification": Classification, "detection": Detection}[arguments.task](arguments, here)
        Run(task, arguments, here).fit()
    return 0


@contextmanager
def _algorithms(deterministic: bool) -> Iterator[None]:
    """The fastest algorithms, or those that give the same bits in every run, with a warning where there is none."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    flags = {"enabled": torch.backends.cudnn.enabled, "allow_tf32": torch.backends.cudnn.allow_tf32}
    try:
        with torch.backends.cudnn.flags(benchmark=not deterministic, deterministic=deterministic, **flags):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _check(arguments: argparse.Namespace) -> None:
    if not arguments.data.is_dir():
        raise InputError(f"there is no folder {str(arguments.data)!r}: DATA is the folder of the data")
    for name, least, most, what in (
        ("epochs", 1, 100_000, "passes over the data"), ("batch", 1, 1_000_000, "images a step"),
        ("size", 1, 10_000, "pixels of a crop's side"), ("workers", 0, 1000, "processes that read images"),
        ("warmup", 0, 10**9, "steps"), ("trainable_layers", 0, 5, "layers of a ResNet"), ("seed", 0, 2**31, "a number"),
    ):  # fmt: skip
        if hasattr(arguments, name):
            number_of(f"--{name.replace('_', '-')}", getattr(arguments, name), least, most, what)
    if arguments.ema is not None and not 0 <= arguments.ema < 1:
        raise InputError(f"--ema is the part of the average that stays, from 0 to below 1, got {arguments.ema}")
    if arguments.lr <= 0 or sorted(arguments.drops) != arguments.drops:
        raise InputError(f"--lr is above 0 and --drops grow, got {arguments.lr} and {arguments.drops}")
