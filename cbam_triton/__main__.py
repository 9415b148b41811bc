"""`python -m cbam_triton`: check this machine on a real photograph; exit status 1 if any result is wrong.

`python -m cbam_triton train`: train a small network on digits; exit status 1 if it stays below 97 %.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import torch

from .photo import EXTRA, STAGES, InputError, feature_maps, load_photograph, square_views

DTYPES = ("float16", "bfloat16", "float32", "float64")
_RESTARTED = "CBAM_TRITON_CHECK_RESTARTED"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    # No argparse subcommand: it would take the check's options before the word "train" and drop them.
    arguments = _train_parser().parse_args(words[1:]) if words[:1] == ["train"] else _parser().parse_args(words)
    try:
        return arguments.run(arguments)
    except InputError as error:
        print(f"cbam_triton: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cbam_triton",
        description="Run CBAM by every backend and schedule of this machine on a real photograph's feature maps, "
        "compare results and gradients with fp64, time what can be timed, and draw the gates.",
        epilog="python -m cbam_triton train: train a small network instead; its options: train --help",
    )
    parser.add_argument("--image", metavar="FILE", help="a photograph (default: scikit-learn's sample)")
    parser.add_argument("--device", help="torch device, e.g. cuda or cpu (default: an accelerator if there is one)")
    parser.add_argument("--dtype", help=f"one of {', '.join(DTYPES)} (default: float16 on a GPU, float32 on a CPU)")
    parser.add_argument("--output", metavar="DIR", default="cbam_report", help="where files go (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="views of the photograph (default: 32 on a GPU, 1 on a CPU)")
    parser.add_argument(
        "--compile-seconds", type=float, default=40, help="time for torch.compile, 0 for none (default: %(default)s)"
    )
    parser.set_defaults(run=run_check)
    return parser


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cbam_triton train",
        description="Train a small CBAM ResNet on scikit-learn's handwritten digits by the backend that the library "
        "chooses here, and draw what it attends to. Exit status 0 if it exceeds 97 % on held-out digits, else 1.",
    )
    parser.add_argument("--device", help="torch device, e.g. cuda or cpu (default: an accelerator if there is one)")
    parser.add_argument("--output", metavar="DIR", default="cbam_report", help="where files go (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=15, help="passes over the training digits (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and shifts (default: %(default)s)")
    parser.set_defaults(run=run_train)
    return parser


def run_check(arguments: argparse.Namespace) -> int:
    """The check: print the report, draw the picture; 1 if anything disagrees."""
    _need_extras("tqdm", "matplotlib")
    device, dtype = _device(arguments.device), _dtype(arguments.dtype, arguments.device)
    why_interpreted = interpret_if_there_is_no_driver()

    from tqdm import tqdm

    from . import report, viz
    from .check import Machine, check_photograph, row_count
    from .kernels import device as kernel_device

    batch = arguments.batch if arguments.batch is not None else (1 if device.type == "cpu" else 32)
    if batch < 1:
        raise InputError(f"--batch is the number of views, at least 1, got {batch}")
    kernels = kernel_device.missing() is None and kernel_device.device_type() == device.type
    machine = Machine(device, dtype, kernels, kernels and kernel_device.interpreted())
    photograph = load_photograph(arguments.image)
    views = square_views(photograph, batch)
    output = _directory(arguments.output)

    heading = report.environment(machine, why_interpreted)
    maps = [feature_maps(views, stage).to(device, dtype) for stage in STAGES]
    choices = report.choices(machine, maps, why_interpreted)
    source = arguments.image or "scikit-learn's china.jpg"
    size = f"{photograph.shape[2]}x{photograph.shape[1]}"
    print(f"{heading}\n{choices}\n{'image':<9} {source}, {size}, {batch} view{'s' if batch > 1 else ''}\n", flush=True)
    with tqdm(total=row_count(machine), unit="row", leave=False, dynamic_ncols=True) as bar:
        outcome = check_photograph(views, machine, bar, compile_seconds=arguments.compile_seconds)
    text = "\n".join([report.table(outcome.rows), "", report.verdict(outcome), *outcome.remarks])
    print(text, flush=True)
    (output / "report.txt").write_text(f"{heading}\n{choices}\n\n{text}\n")
    viz.draw(views[0], outcome.gates, output / "attention.png")
    print(f"\nWrote {output / 'attention.png'} and {output / 'report.txt'}.")
    return 0 if all(row.ok for row in outcome.rows) else 1


def run_train(arguments: argparse.Namespace) -> int:
    """The training: print what runs and what it reached, draw the picture; 1 if it is not above the bar."""
    begin = time.perf_counter()
    _need_extras("tqdm", "matplotlib", "sklearn")
    device = _device(arguments.device)
    if arguments.epochs < 1:
        raise InputError(f"--epochs is the number of passes over the digits, at least 1, got {arguments.epochs}")
    if not 0 <= arguments.seed < 1 << 63:
        raise InputError(f"--seed must be at least 0 and below 2^63, got {arguments.seed}")
    output = _directory(arguments.output)

    from tqdm import tqdm

    from . import train

    with train.one_thread(device):
        digits = train.load_digits()
        print(train.facts(digits, device), flush=True)
        with tqdm(total=arguments.epochs * train.steps(digits), unit="step", leave=False, dynamic_ncols=True) as bar:
            net, last = train.fit(digits, device, bar, epochs=arguments.epochs, seed=arguments.seed)
        trained = time.perf_counter()
        predicted = train.predict(net, digits.test_images)
        train.draw(net, digits, predicted, output / "digits.png")
    right, count = int((predicted == digits.test_labels).sum()), len(predicted)
    passed = right / count > train.PASS
    print(
        f"{'train':<9} loss {last.loss:.4f}, accuracy {last.accuracy:.2%} in epoch {arguments.epochs}\n"
        f"{'test':<9} accuracy {right / count:.2%}, {right} of {count}: {'above' if passed else 'NOT ABOVE'} "
        f"{train.PASS:.0%}{'' if passed else ', try more --epochs'}\n"
        f"{'time':<9} {trained - begin:.1f} s to the end of training, {time.perf_counter() - begin:.1f} s in all\n\n"
        f"Wrote {output / 'digits.png'}."
    )
    return 0 if passed else 1


def interpret_if_there_is_no_driver() -> str | None:
    """Turn on Triton's interpreter where no driver can be active; the reason if this command did so.

    Triton reads TRITON_INTERPRET when its functions are defined: where torch has imported it, the process starts anew.
    """
    reason = "there is no GPU, so this check set TRITON_INTERPRET=1"
    if "TRITON_INTERPRET" in os.environ:
        return reason if os.environ.get(_RESTARTED) else None
    if importlib.util.find_spec("triton") is None or torch.cuda.is_available():
        return None
    if {point.name for point in entry_points(group="triton.backends")} - {"nvidia", "amd"}:
        return None
    if "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"
        return reason
    if __name__ == "__main__":
        os.execve(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            {**os.environ, "TRITON_INTERPRET": "1", _RESTARTED: "1"},
        )
    return None


def _need_extras(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"this command needs {' and '.join(missing)}: {EXTRA}")


def _device(name: str | None) -> torch.device:
    if name is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found if found is not None and found.type in ("cuda", "xpu") else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device: torch knows no device {name!r}; give cpu, cuda or cuda:0") from None
    if device.type == "cpu":
        return device
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None or found.type != device.type:
        raise InputError(f"--device {name}: torch {torch.__version__} sees no {device.type} device; try --device cpu")
    count = torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        raise InputError(f"--device {name}: the last {device.type} device here is {device.type}:{count - 1}")
    return device


def _dtype(name: str | None, device_name: str | None) -> torch.dtype:
    if name is None:
        return torch.float32 if _device(device_name).type == "cpu" else torch.float16
    if name not in DTYPES:
        raise InputError(f"--dtype: {name!r} is not one of {', '.join(DTYPES)}")
    return getattr(torch, name)


def _directory(name: str) -> Path:
    output = Path(name)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output: cannot make the folder {name!r} ({error.strerror})") from None
    return output


if __name__ == "__main__":
    sys.exit(main())
