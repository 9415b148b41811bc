"""`python -m bench run | network | plot | ...`, and the lab: `space | tune | ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from cbam_triton.demo.options import InputError, Parser
from cbam_triton.kernels.launch.hardware import why_no_triton

from . import ablation, codegen, figures, host, network, plot, run
from .train import command as train

_LAB = ("space", "tune", "distill", "compare", "report", "export", "device", "session")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark command; the exit status."""
    parser = Parser(prog="python -m bench", description="Benchmarks of cbam_triton.")
    commands = parser.add_subparsers(dest="command", required=True)
    modules: dict[str, Any] = {"run": run, "plot": plot, "codegen": codegen, "host": host, "figures": figures}
    modules |= {"network": network, "ablation": ablation, "train": train}
    if why_no_triton() is None:
        modules |= {name: importlib.import_module(f"bench.lab.{name}") for name in _LAB}
        modules |= {name: importlib.import_module(f"bench.model.{name}") for name in ("predict", "roofline")}
    for name, module in modules.items():
        # Not the docstring, which -OO takes away.
        module.add_arguments(commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY))
    arguments = parser.parse_args(argv)
    try:
        return modules[arguments.command].main(arguments)
    except InputError as error:
        print(f"bench {arguments.command}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
