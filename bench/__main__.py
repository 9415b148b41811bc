"""`python -m bench run | plot | codegen | host`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import codegen, host, plot, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of cbam_triton.")
    commands = parser.add_subparsers(dest="command", required=True)
    modules = {"run": run, "plot": plot, "codegen": codegen, "host": host}
    for name, module in modules.items():
        summary = module.__doc__.splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    arguments = parser.parse_args(argv)
    return modules[arguments.command].main(arguments)


if __name__ == "__main__":
    sys.exit(main())
