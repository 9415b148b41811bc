"""Plain text of `python -m cbam_triton`: lines as wide as the terminal, the table, the verdict."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from itertools import groupby

from .check import Outcome, Row

HEADER = ("", "error", "gradients", "time", "vs eager", "vs compiled")


def fit(text: str) -> str:
    """The text with lines no longer than the terminal is wide; what does not fit goes on below, indented."""
    width = max(20, shutil.get_terminal_size().columns)
    lines = []
    for line in text.split("\n"):
        # Names of nine letters stand to the left of what they name.
        indent = " " * (10 if re.match(r"(\w+ {2,}|\w{9} | {10})\S", line) else 2)
        lines += (
            textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False)
            if len(line) > width
            else [line]
        )
    return "\n".join(lines)


def table(rows: list[Row]) -> str:
    """Aligned plain text: a line for each map in each layout, below it one for each backend and schedule."""
    columns = len(HEADER) if any(row.timing for row in rows) else 4
    cells = [HEADER, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(columns)]
    text = [_aligned(HEADER, widths)]
    for name, group in groupby(rows, key=lambda row: f"{row.shape}{' crop' * row.crop} {row.layout}"):
        text += [name, *(_aligned(_cells(row), widths) for row in group)]
    return "\n".join(text)


def _cells(row: Row) -> tuple[str, ...]:
    time = f"{row.timing.median * 1e3:.3f} ms{' ~' * row.noisy}" if row.timing else "not timed"
    errors = (f"{row.agreement.share:.2f}", f"{row.gradients.share:.2f}")
    speeds = ("", "") if row.crop else (row.over_eager, row.over_compiled)
    return f"  {row.name}", *errors, time if row.ok else f"{time}, DISAGREES", *speeds


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = cells
    return "  ".join(
        [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=False))]
    ).rstrip()


def verdict(outcome: Outcome) -> str:
    """How many rows agree with fp64, and by which rule."""
    wrong = [row for row in outcome.rows if not row.ok]
    rule = (
        "error: the largest error against fp64, as a part of what is allowed: twice that of the published eager form "
        "at the same dtype, plus one ulp of the output's scale. gradients: the same of root mean square errors, of the "
        "gradients of x and of both attentions' parameters, whichever is worst. Right is what is at most 1.00."
    )
    if not wrong:
        return f"All {len(outcome.rows)} rows agree.\n{rule}"
    names = "; ".join(f"{row.shape} {row.layout} {row.name}{_what(row)}" for row in wrong)
    return f"{len(wrong)} of {len(outcome.rows)} rows DISAGREE: {names}.\n{rule}"


def _what(row: Row) -> str:
    return " (gradients)" if row.agreement.ok else ""
