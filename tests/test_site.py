"""The site of docs/: it is built without a warning, asks no other host for anything, and tells of every public name."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LARGEST_PICTURE = 300_000  # bytes
PUBLIC = [
    "",
    ".checkpoints",
    ".functional",
    ".models",
    ".settings",
    ".squeeze_excite",
    ".timm",
    ".tuning",
    ".ultralytics",
    ".viz",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "-q",
        "--strict",
        "-f",
        ".mkdocs.yml",
        "--site-dir",
        str(folder),
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_no_page_loads_anything_from_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text("utf-8")
        loaded = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=\"?([^\"\s>]+)", text)
        assert loaded, page
        assert [address for address in loaded if re.match(r"(?:https?:)?//", address)] == [], page


def test_every_public_name_is_on_a_page_of_the_api(site):
    text = "".join(page.read_text("utf-8") for page in site.glob("api*/index.html"))
    told = {anchor.rpartition(".")[2] for anchor in re.findall(r'id="(cbam_triton[\w.]*)"', text)}
    missing = []
    for name in PUBLIC:
        module = importlib.import_module("cbam_triton" + name)
        names = getattr(module, "__all__", None) or [
            key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
            and not key.startswith("_") and not key.startswith("current_") and key != "Labels"
        ]  # fmt: skip
        missing += [f"{module.__name__}.{key}" for key in names if key not in told]
    assert missing == []


def test_docstrings_become_paragraphs_and_code(site):
    text = (site / "api" / "index.html").read_text("utf-8")
    assert "<strong>Raises.</strong>" in text
    assert "&gt;&gt;&gt;" in text
    assert "<blockquote>" not in text  # what an example without a fence would be


def test_pictures_of_the_pages_are_small():
    pictures = [*(ROOT / "docs").glob("*.png"), *(ROOT / "docs").glob("*.svg")]
    assert pictures
    assert [path.name for path in pictures if path.stat().st_size > LARGEST_PICTURE] == []
