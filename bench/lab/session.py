"""`python -m bench session`: one page of what `bench/gpu_session.sh` left in its folder, with the pictures in it."""

from __future__ import annotations

import argparse
import base64
import csv
import html
import json
from collections.abc import Iterable
from pathlib import Path

from cbam_triton.demo.options import InputError
from cbam_triton.kernels.launch import tables

SUMMARY = "Write report.html of a folder of bench/gpu_session.sh: steps, numbers and pictures in one file."
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.15em .5em;text-align:left}pre{background:#f5f5f5;padding:.7em;overflow:auto}"
    "img{max-width:100%}"
)
# What is shown of each file, in this order; whatever a step did not leave is left out.
_RUN = ("dtype", "layout", "n", "c", "h", "w", "pass", "form", "median_us", "over_timm", "over_timm_compiled", "note")
_NETWORK = ("mode", "layout", "network", "images_per_second", "over_published", "attention_share", "noisy", "note")
_TABLES = {
    "Inference, against eager and torch.compile": ("run.csv", _RUN),
    "Training, forward and backward": ("training.csv", _RUN),
    "Whole networks": ("network.jsonl", _NETWORK),
    "The GPU's own ceilings": ("device.json", None),
}
_TEXTS = {"Environment": "logs/environment.log", "Tests": "logs/tests.log", "Trials": "logs/trials/report.md"}
_LAST_LINES = 40  # of a text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m bench session`."""
    parser.add_argument("folder", type=Path, help="what bench/gpu_session.sh wrote")


def main(arguments: argparse.Namespace) -> int:
    """Write report.html into the folder."""
    folder = arguments.folder
    if not (folder / "steps.tsv").is_file():
        raise InputError(f"{folder} has no steps.tsv: give the folder that bench/gpu_session.sh wrote")
    tables.write_whole(folder / "report.html", page(folder))
    print(f"Wrote {folder / 'report.html'}.")
    return 0


def page(folder: Path) -> str:
    """The page, all in one file."""
    with (folder / "steps.tsv").open(encoding="utf-8", newline="") as file:
        parts = ["<h2>Steps</h2>", _table(list(csv.DictReader(file, delimiter="\t")))]
    for title, (name, columns) in _TABLES.items():
        rows = _rows(folder / name)
        if rows:
            shown = [{key: row.get(key, "") for key in columns} for row in rows] if columns else rows
            parts += [f"<h2>{title}</h2>", _table(shown)]
    for picture in sorted((folder / "logs").rglob("*.png")):
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        parts.append(f'<h2>{html.escape(picture.stem)}</h2><img alt="" src="data:image/png;base64,{data}">')
    for title, name in _TEXTS.items():
        if (folder / name).is_file():
            lines = (folder / name).read_text("utf-8", "replace").splitlines()[-_LAST_LINES:]
            parts.append(f"<h2>{title}</h2><pre>{html.escape(chr(10).join(lines))}</pre>")
    head = f'<!doctype html><meta charset="utf-8"><title>cbam_triton on a GPU</title><style>{_STYLE}</style>'
    return head + "<h1>cbam_triton on a GPU, measured</h1>" + "\n".join(parts) + "\n"


def _rows(path: Path) -> list[dict[str, object]]:
    """The rows of a CSV, a JSONL or a JSON file; lines that are none, of a step that was ended, are passed over."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return [dict(row) for row in csv.DictReader(file)]
        text = file.read()
    rows = []
    for line in [text] if path.suffix == ".json" else text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        rows += [found] if isinstance(found, dict) else []
    return rows


def _table(rows: Iterable[dict[str, object]]) -> str:
    rows = list(rows)
    names = list(rows[0]) if rows else []
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = ["".join(f"<td>{html.escape(str(row.get(name, '')))}</td>" for name in names) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{cells}</tr>' for cells in body)}</table>"
