"""The command line: `python -m cbam_triton [train | see | info]`.

Exit status 0 if all is well, 1 if a result is wrong, 2 and one line for what cannot be done, before any work.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence

from .. import __version__
from .interpreter import interpret_if_there_is_no_driver
from .options import InputError, Parser, device_of, dtype_of, folder_of, need_extras, number_of
from .report import fit

_MODULE = "python -m cbam_triton"
_BAR = {"leave": False, "dynamic_ncols": True, "disable": None}  # none where stderr is no terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    # torch.compile would warn of CUDA tools without a GPU, which is no news to whoever runs the command.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    parsers: dict[str, Callable[[], Parser]] = {"train": _train_parser, "see": _see_parser, "info": _info_parser}
    # No argparse subcommand: it would take the check's options before the word "train" and drop them.
    if words and words[0] in parsers:
        arguments = parsers[words[0]]().parse_args(words[1:])
    else:
        arguments = _check_parser().parse_args(words)
    try:
        return arguments.run(arguments)
    except InputError as error:
        print(f"cbam_triton: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _check_parser() -> Parser:
    parser = Parser(
        prog=_MODULE,
        description="Run CBAM by every backend and schedule of this machine on a real photograph's feature maps, "
        "compare results and gradients with fp64, time what can be timed, and draw the gates. Exit status 1 if any "
        "result is wrong.",
        epilog=f"{_MODULE} train: train a small network instead; see: draw a model's gates on pictures; info: what "
        "runs here and why. Each has its own --help.",
    )
    parser.add_argument("--version", action="version", version=f"cbam_triton {__version__}")
    parser.add_argument("--image", metavar="FILE", help="a photograph (default: scikit-learn's sample)")
    _add_device(parser)
    parser.add_argument("--dtype", help="float16, bfloat16, float32 or float64 (default: float16, float32 on a CPU)")
    _add_output(parser)
    parser.add_argument("--batch", type=int, help="views of the photograph (default: 32, 1 on a CPU)")
    parser.add_argument(
        "--compile-seconds", type=float, default=40, help="time for torch.compile, 0 for none (default: %(default)s)"
    )
    parser.set_defaults(run=run_check)
    return parser


def _train_parser() -> Parser:
    parser = Parser(
        prog=f"{_MODULE} train",
        description="Train a small CBAM ResNet on scikit-learn's handwritten digits by the backend that the library "
        "chooses here, and draw what it attends to. Exit status 0 if it exceeds 97 % on held-out digits, else 1.",
    )
    _add_device(parser)
    _add_output(parser)
    parser.add_argument("--epochs", type=int, default=15, help="passes over the training digits (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and shifts (default: %(default)s)")
    parser.set_defaults(run=run_train)
    return parser


def _info_parser() -> Parser:
    parser = Parser(
        prog=f"{_MODULE} info",
        description="Say what would run here and why: versions, device, settings, caches. A bug report needs it.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run_info)
    return parser


def _see_parser() -> Parser:
    parser = Parser(prog=f"{_MODULE} see", description="Draw the gates of every CBAM of a model on pictures.")
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a file that torch.save wrote of a whole model, or module:callable that returns one, such as "
        "mynetworks:resnet",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="pictures, in any format that Pillow reads")
    parser.add_argument("--size", type=int, default=224, help="pixels a side of the input (default: %(default)s)")
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="draw these CBAMs only (default: all)")
    parser.add_argument(
        "--trust", action="store_true", help="load a MODEL file that holds code of others: a pickle can do anything"
    )
    _add_device(parser)
    _add_output(parser)
    parser.set_defaults(run=run_see)
    return parser


def _add_device(parser: Parser) -> None:
    parser.add_argument("--device", help="torch device, e.g. cuda or cpu (default: an accelerator if there is one)")


def _add_output(parser: Parser) -> None:
    parser.add_argument("--output", metavar="DIR", default="cbam_report", help="where files go (default: %(default)s)")


def run_check(arguments: argparse.Namespace) -> int:
    """The check: print the report, draw the picture; 1 if anything disagrees."""
    from .photograph import STAGES, feature_maps, load_photograph, square_views

    need_extras("tqdm", "matplotlib")
    device = device_of(arguments.device)
    dtype = dtype_of(arguments.dtype, device)
    batch = (1 if device.type == "cpu" else 32) if arguments.batch is None else arguments.batch
    number_of("--batch", batch, 1, 1024, "the number of views")
    number_of("--compile-seconds", arguments.compile_seconds, 0, 86400, "time for torch.compile")
    photograph = load_photograph(arguments.image)
    output = folder_of(arguments.output, ("report.txt", "attention.png"))
    why_interpreted = interpret_if_there_is_no_driver()

    from tqdm import tqdm

    from . import pictures, report
    from .check import check_photograph, row_count
    from .environment import choices, environment, machine_of

    machine = machine_of(device, dtype)
    views = square_views(photograph, batch)
    heading = environment(machine, why_interpreted)
    maps = [feature_maps(views, stage).to(device, dtype) for stage in STAGES]
    source = arguments.image or "scikit-learn's china.jpg"
    size = f"{photograph.shape[2]}x{photograph.shape[1]}"
    pictured = f"{'image':<9} {source}, {size}, {batch} view{'s' if batch > 1 else ''}"
    heading = "\n".join([heading, choices(machine, maps, why_interpreted), pictured])
    print(fit(heading) + "\n", flush=True)
    with tqdm(total=row_count(machine), unit="row", **_BAR) as bar:
        outcome = check_photograph(views, machine, bar, compile_seconds=arguments.compile_seconds)
    text = "\n".join([report.table(outcome.rows), "", report.verdict(outcome), *outcome.remarks])
    print(fit(text), flush=True)
    (output / "report.txt").write_text(f"{heading}\n\n{text}\n", encoding="utf-8")
    pictures.draw(views[0], outcome.gates, output / "attention.png")
    print(fit(f"\nWrote {output / 'attention.png'} and {output / 'report.txt'}."))
    return 0 if all(row.ok for row in outcome.rows) else 1


def run_train(arguments: argparse.Namespace) -> int:
    """The training: print what runs and what it reached, draw the picture; 1 if it is not above the bar."""
    begin = time.perf_counter()
    need_extras("tqdm", "matplotlib", "sklearn")
    device = device_of(arguments.device)
    epochs = number_of("--epochs", arguments.epochs, 1, 10_000, "the number of passes over the digits")
    seed = number_of("--seed", arguments.seed, 0, (1 << 63) - 1, "what random numbers begin with")
    output = folder_of(arguments.output, ("digits.png",))

    from tqdm import tqdm

    from . import digits as train

    with train.one_thread(device):
        digits = train.load_digits()
        print(fit(train.facts(digits, device)), flush=True)
        with tqdm(total=epochs * train.steps(digits), unit="step", **_BAR) as bar:
            net, last = train.fit(digits, device, bar, epochs=epochs, seed=seed)
        trained = time.perf_counter()
        predicted = train.predict(net, digits.test_images)
        train.draw(net, digits, predicted, output / "digits.png")
    right, count = int((predicted == digits.test_labels).sum()), len(predicted)
    passed = right / count > train.PASS
    lines = [
        f"{'train':<9} loss {last.loss:.4f}, accuracy {last.accuracy:.2%} in epoch {epochs}",
        f"{'test':<9} accuracy {right / count:.2%}, {right} of {count}: {'above' if passed else 'NOT ABOVE'} "
        f"{train.PASS:.0%}{'' if passed else ', try more --epochs'}",
        f"{'time':<9} {trained - begin:.1f} s to the end of training, {time.perf_counter() - begin:.1f} s in all",
        f"\nWrote {output / 'digits.png'}.",
    ]
    print(fit("\n".join(lines)))
    return 0 if passed else 1


def run_info(arguments: argparse.Namespace) -> int:
    """What would run here and why."""
    import json

    from . import info

    facts = info.gathered()
    print(json.dumps(facts, indent=2) if arguments.json else fit(info.text(facts)))
    return 0


def run_see(arguments: argparse.Namespace) -> int:
    """The picture of a model's gates on images."""
    from .see import see

    need_extras("matplotlib", "PIL")
    device = device_of(arguments.device)
    size = number_of("--size", arguments.size, 1, 8192, "the side of the model's input in pixels")
    output = folder_of(arguments.output, ("gates.png",)) / "gates.png"
    print(fit(see(arguments.model, arguments.images, size, device, arguments.layers, arguments.trust, output)))
    print(fit(f"\nWrote {output}."))
    return 0
