"""The docstrings of the package as Markdown, for the site: a paragraph for each part, code fenced.

An extension of griffe, which mkdocstrings calls. `Raises:` and its like begin a paragraph; what is indented or begins
with `>>>` is code.
"""

import re
from typing import Any

import griffe

_PART = re.compile(r"([A-Z]\w+(?: \w+)?): (?=\S)")


def as_markdown(text: str) -> str:
    """The docstring with its parts apart and its code in fences."""
    lines, fence = [], None
    for line in text.splitlines():
        example = line.startswith(">>>") or (fence == "pycon" and line.strip() != "")
        indented = line.startswith("    ")
        kind = "pycon" if example else "python" if indented or (fence == "python" and not line.strip()) else None
        if kind != fence:
            lines += ["```", ""] if fence else []
            lines += ["", f"```{kind}"] if kind else []
            fence = kind
        part = _PART.match(line) if lines and not kind else None  # a summary may have a colon
        if part:
            line = f"\n**{part[1]}.** {line[part.end() :]}"
        lines.append(line[4:] if kind == "python" else line)
    return "\n".join([*lines, *(["```"] if fence else [])])


class Docstrings(griffe.Extension):
    """Rewrites the docstrings when an object is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
