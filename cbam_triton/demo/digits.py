"""`python -m cbam_triton train`: a small CBAM ResNet learns scikit-learn's handwritten digits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .. import CBAM, AttentionMaps
from . import pictures as viz
from .check import Progress
from .environment import choices, environment, machine_of

CLASSES = 10
SIDE = 8  # of a digit, in pixels
STAGES = ((16, 1), (32, 1), (64, 2))  # channels, stride
REDUCTION = 8
BATCH = 64
TEST_SHARE = 0.25
PASS = 0.97  # the test accuracy to exceed
DRAWN = 10  # digits in the picture
DRAWN_WRONG = 5  # of these at most
_SPLIT_SEED = 0  # the same held-out digits whatever the seed of the training
_LEARNING_RATE = 0.004
_WEIGHT_DECAY = 0.01


class Digits(NamedTuple):
    """Images (N,1,8,8) float32 in [0, 1] and labels (N) int64, all on the CPU."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Epoch(NamedTuple):
    """What an epoch saw while it learned, on shifted images: mean cross-entropy in nats, accuracy from 0 to 1."""

    loss: float
    accuracy: float


class Block(nn.Module):
    """A basic residual block, (N,channels_in,H,W) to (N,C,H/stride,W/stride): relu(cbam(branch(x)) + shortcut(x)).

    `branch` is convolution, norm, ReLU, convolution, norm; `shortcut` the identity, or a 1x1 convolution and a norm
    where the shape changes.
    """

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != channels_in:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.cbam = CBAM(channels, reduction=REDUCTION, activation="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.cbam(self.branch(x), residual=self.shortcut(x))


class DigitsNet(nn.Module):
    """Digits (N,1,8,8) to logits (N,10): a 3x3 convolution, one block a stage, the mean over pixels, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        channels = STAGES[0][0]
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.Sequential()
        for wider, stride in STAGES:
            self.blocks.append(Block(channels, wider, stride))
            channels = wider
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))

    @torch.no_grad()
    def attention_maps(self, x: Tensor) -> list[AttentionMaps]:
        """Both gates of every block for x (N,1,8,8), first block first, on the CPU: (N,C) and (N,1,H,W)."""
        found = []
        x = self.stem(x)
        for block in self.blocks:
            assert isinstance(block, Block)
            maps = block.cbam.attention_maps(block.branch(x))
            found.append(AttentionMaps(maps.channel.cpu(), maps.spatial.cpu()))
            x = block(x)
        return found


class _Operators(TorchDispatchMode):
    """Collects the names of this library's operators among those that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "cbam_triton":
            self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def load_digits() -> Digits:
    """scikit-learn's 1797 digits, a quarter of them held out: a stratified split, always the same."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    pixels, labels = load(return_X_y=True)
    parts = train_test_split(pixels, labels, test_size=TEST_SHARE, stratify=labels, random_state=_SPLIT_SEED)
    train_images, test_images = (torch.from_numpy(part).float().reshape(-1, 1, SIDE, SIDE) / 16 for part in parts[:2])
    train_labels, test_labels = (torch.from_numpy(part).long() for part in parts[2:])
    return Digits(train_images, train_labels, test_images, test_labels)


def steps(digits: Digits) -> int:
    """Steps of an epoch: whole batches; what is left over changes with the order."""
    return len(digits.train_labels) // BATCH


def fit(digits: Digits, device: torch.device, progress: Progress, *, epochs: int, seed: int) -> tuple[DigitsNet, Epoch]:
    """A network trained with AdamW and a one-cycle learning rate, in eval mode, and its last epoch.

    `progress` moves once a step. On a CPU with as many threads the same seed gives the same bits.

    Raises: ValueError for fewer than one epoch.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    generator = torch.Generator().manual_seed(seed)
    net = _initialized(seed).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=epochs * steps(digits))
    last = Epoch(float("nan"), 0.0)
    for epoch in range(epochs):
        loss_sum, right = torch.zeros((), device=device), torch.zeros((), device=device)
        order = torch.randperm(len(digits.train_labels), generator=generator)[: steps(digits) * BATCH]
        for chosen in order.split(BATCH):
            images = shifted(digits.train_images[chosen], generator).to(device)
            labels = digits.train_labels[chosen].to(device)
            logits = net(images)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.detach()
            right += (logits.argmax(1) == labels).sum()
            progress.update()
        last = Epoch(loss_sum.item() / steps(digits), right.item() / len(order))
        progress.set_description(f"epoch {epoch + 1}: loss {last.loss:.3f}, accuracy {last.accuracy:.1%}")
    return net.eval(), last


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N,1,H,W), each moved by -1, 0 or 1 pixel along each axis; zeros come in, what leaves is lost."""
    N, _, H, W = images.shape
    dy, dx = torch.randint(3, (2, N, 1, 1), generator=generator)
    n, h, w = torch.arange(N)[:, None, None], torch.arange(H)[:, None] + dy, torch.arange(W) + dx
    return F.pad(images, (1, 1, 1, 1))[n, 0, h, w][:, None]


@torch.no_grad()
def predict(net: DigitsNet, images: Tensor) -> Tensor:
    """The likeliest digit of each image (N,1,8,8): (N) int64 on the CPU."""
    device = net.head.weight.device
    return torch.cat([net(part.to(device)).argmax(1).cpu() for part in images.split(512)])


def operators(net: DigitsNet, images: Tensor) -> tuple[set[str], set[str]]:
    """This library's operators in a training step and in inference, on a copy; none where only PyTorch's run."""
    copied = copy.deepcopy(net).train()
    with _Operators() as training:
        copied(images.to(net.head.weight.device)).sum().backward()
    with _Operators() as inference:
        predict(copied.eval(), images)
    return training.names, inference.names


def facts(digits: Digits, device: torch.device) -> str:
    """Plain text: the environment, the schedules that "auto" takes and why, the operators that run, the data."""
    machine = machine_of(device, torch.float32)
    maps, side = [], SIDE
    for channels, stride in STAGES:
        side //= stride
        maps.append(torch.empty(BATCH, channels, side, side, device=device))
    names = operators(_initialized(0).to(device), digits.test_images[:2])
    ran = [", ".join(sorted(found)) or "the reference, PyTorch's operators" for found in names]
    lines = [
        ("runs", f"training: {ran[0]}; inference: {ran[1]}"),
        ("digits", f"{len(digits.train_labels)} to train on, {len(digits.test_labels)} held out, scikit-learn's"),
    ]
    text = [f"{name:<9} {what}" for name, what in lines]
    return "\n".join([environment(machine, None), choices(machine, maps, None), *text])


def draw(net: DigitsNet, digits: Digits, predicted: Tensor, path: str | PathLike[str]) -> None:
    """Write the picture of held-out digits: up to five wrong ones, then the first right one of each class."""
    labels = digits.test_labels
    right = predicted == labels
    chosen = torch.nonzero(~right).flatten().tolist()[:DRAWN_WRONG]
    for digit in range(CLASSES):
        chosen += torch.nonzero(right & (labels == digit)).flatten().tolist()[:1]
    chosen = chosen[:DRAWN]
    images = digits.test_images[chosen]
    maps = net.attention_maps(images.to(net.head.weight.device))
    viz.draw_digits(images, labels[chosen].tolist(), predicted[chosen].tolist(), maps, path)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """One CPU thread where the CPU trains: maps this small gain nothing from more, which wait for a shared core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cpu" else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _initialized(seed: int) -> DigitsNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DigitsNet()
