"""The README and the pages of docs/: their code runs, their commands exist, their links lead somewhere.

The blocks of a page share one namespace, in order. A block after `<!-- not run: reason -->` is left out.
"""

import inspect
import re
import sys
import types
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import cbam_triton

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LEFT_OUT = 3  # blocks at most that no test runs
PACKAGES = {"seeing": "pytorch_grad_cam"}  # what a page needs beyond the extra test


class Block(NamedTuple):
    """Fenced code: its language, the number of the line after the fence, its lines, and why it is not run."""

    language: str
    line: int
    code: str
    not_run: str | None


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    found: list[Block] = []
    opened: tuple[str, int] | None = None
    reason, code = None, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.fullmatch(r"\s*```(\w*)\s*", line)
        if opened is not None and fence:
            found.append(Block(*opened, "\n".join(code), reason))
            opened, reason = None, None
        elif opened is not None:
            code.append(line)
        elif fence:
            opened, code = (fence[1], number + 1), []
        elif line.strip():
            remark = re.fullmatch(r"\s*<!-- not run: (.+) -->\s*", line)
            reason = remark[1] if remark else None
    assert opened is None, f"the block of line {opened} does not end"
    return found


def commands_of(text: str) -> list[str]:
    """The commands of a page: of its shell blocks, of lines that are indented, and `python -m ...` in its sentences."""
    lines = [line for block in blocks_of(text) if block.language == "sh" for line in block.code.splitlines()]
    lines += re.findall(r"^(?: {4}|```\n)(python -m .+)$", text, re.MULTILINE)
    lines += [" ".join(words.split()) for words in re.findall(r"`(python -m [^`]+)`", text)]
    parts = [part for line in lines for part in line.partition("#")[0].split("&&")]
    return [part.strip() for part in parts if part.strip()]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.filterwarnings("ignore:::pytorch_grad_cam", "ignore:.torch.jit.*deprecated")
@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text("utf-8")], ids=name_of)
def test_the_code_of_a_page_runs(page, device, monkeypatch, tmp_path):
    if page.stem in PACKAGES:
        pytest.importorskip(PACKAGES[page.stem])
    blocks = [block for block in blocks_of(page.read_text("utf-8")) if block.language == "python"]
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # classes of a page are pickled by this name
    monkeypatch.chdir(tmp_path)
    # Kernels in the interpreter would take minutes for what a page shows.
    quick = cbam_triton.settings(backend="reference") if device == "cpu" else nullcontext()
    with torch.random.fork_rng(), quick:
        torch.manual_seed(0)
        for block in blocks:
            if block.not_run is None:
                code = "\n" * (block.line - 1) + block.code.replace('"cuda"', repr(device))
                exec(compile(code, str(page), "exec"), vars(module))


def test_few_blocks_are_left_out():
    reasons = [block.not_run for page in PAGES for block in blocks_of(page.read_text("utf-8")) if block.not_run]
    assert len(reasons) <= LEFT_OUT, reasons


def test_the_readme_and_the_pages_have_code_and_commands():
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    assert sum(block.language == "python" for block in blocks_of(text)) > 15
    assert len(commands_of(text)) > 15


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_exist(page, capsys):
    for command in commands_of(page.read_text("utf-8")):
        words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]  # variables come first
        if words[0] == "torchrun":
            words = ["python", *words[words.index("-m") :]]  # what it starts; its own options are PyTorch's
        check = {"python": check_module, "pip": check_extra}.get(words[0], check_tool)
        check(words, command, capsys)


def check_module(words: list[str], command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m module [subcommand] --option ...`: the subcommand's help tells of every option."""
    assert words[1] == "-m", command
    if words[2] == "venv":
        return
    assert words[2] in {"cbam_triton", "bench"}, command
    main = {"cbam_triton": cbam_triton_main, "bench": bench_main}[words[2]]
    names = [word for word in words[3:] if re.fullmatch(r"[a-z]+", word)]
    several = "|" in words
    depth = 2 if names[:1] == ["train"] and words[2] == "bench" else 1  # which has commands of its own
    for name in names if several else [" ".join(names[:depth])]:
        with pytest.raises(SystemExit) as ended:
            main([*name.split(), "--help"])
        told = capsys.readouterr().out
        assert ended.value.code == 0, command
        for option in (word for word in words if word.startswith("--") and word != "--help"):
            assert re.search(rf"{re.escape(option)}\b", told), f"{command}: no option {option}"


def cbam_triton_main(arguments: list[str]) -> None:
    from cbam_triton.demo.command import main

    main(arguments)


def bench_main(arguments: list[str]) -> None:
    from bench.__main__ import main

    main(arguments)


def check_extra(words: list[str], command: str, capsys: object) -> None:
    """`pip install ".[extra]"`: the project has that extra."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for extra in re.findall(r"\[([\w,]+)\]", command):
        assert all(re.search(rf"^{name} = \[", project, re.MULTILINE) for name in extra.split(",")), command


def check_tool(words: list[str], command: str, capsys: object) -> None:
    """Any other program: one that the project uses, with files that exist."""
    assert words[0] in {".", ".ci/run", "mkdocs", "pyright", "pytest", "ruff"}, command
    for word in words[1:]:
        if word.endswith((".py", ".yml")):
            assert (ROOT / word).exists(), command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, heading = target.partition("#")
        if re.match(r"https?:", path):
            continue
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", linked.read_text("utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page):
    names = set(re.findall(r"`([\w.-][\w./-]*/(?:[\w.-]+\.(?:py|md|yml))?)`", page.read_text("utf-8")))
    missing = [name for name in names if not any((base / name).exists() for base in (ROOT, ROOT / "cbam_triton"))]
    assert not missing, f"{sorted(missing)}: name files from the root of the repository, or from cbam_triton/"


def test_every_page_is_in_the_navigation_and_in_the_index():
    navigation = re.findall(r"^\s+- (?:.+: )?(\w+\.md)$", (ROOT / ".mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    pages = {page.name for page in PAGES[1:]}
    assert sorted(navigation) == sorted(pages)
    linked = set(re.findall(r"\((\w+\.md)\)", (ROOT / "docs" / "index.md").read_text("utf-8")))
    assert linked == pages - {"index.md"}


def test_a_block_knows_its_line_its_language_and_why_it_is_not_run():
    text = "a\n```python\nx = 1\n```\n<!-- not run: needs the net -->\n```sh\nls\n```\n```python\ny\n```\n"
    assert blocks_of(text) == [
        Block("python", 3, "x = 1", None), Block("sh", 7, "ls", "needs the net"), Block("python", 10, "y", None),
    ]  # fmt: skip


def test_every_variable_of_the_environment_is_in_the_options():
    files = (ROOT / "cbam_triton").rglob("*.py")
    names = {name for path in files for name in re.findall(r"CBAM_TRITON_[A-Z_]*[A-Z]", path.read_text("utf-8"))}
    told = (ROOT / "docs" / "options.md").read_text("utf-8")
    names.remove("CBAM_TRITON_CHECK_RESTARTED")  # a command's word to itself
    assert [name for name in sorted(names) if f"`{name}`" not in told] == []


def test_every_option_of_the_layer_is_in_the_options():
    told = (ROOT / "docs" / "options.md").read_text("utf-8")
    names = set(inspect.signature(cbam_triton.CBAM).parameters) - {"channels", "device", "dtype"}
    assert [name for name in sorted(names) if f"`{name}`" not in told] == []
