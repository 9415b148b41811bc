"""Imports point down only, and need neither Triton nor a driver."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cbam_triton

PACKAGE = Path(cbam_triton.__file__).parent
# Upper storeys first. A folder stands for all that is in it; what is not named here is part of the command, above them.
STOREYS = [
    {"models", "timm", "tuning", "ultralytics", "viz"},
    {"nn", "squeeze_excite"},
    {"attention"},
    {"called", "functional"},
    {"dispatch"},
    {"ops"},
    {"double_backward", "flop_formulas"},
    {"prediction"},
    {"kernels.launch"},
    {"kernels.schedules"},
    {"kernels.stages"},
    {"checkpoints", "models.recognition"},
    {"spec"},
    {"kernels", "settings", "testing"},
]
# Folders that import nothing of the package but themselves.
ALONE = ("kernels.stages", "settings", "spec", "testing")


def storey(module: str) -> int:
    if module == "__init__":
        return 0  # the public surface re-exports the modules
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        head = ".".join(parts[:length])
        for i, names in enumerate(STOREYS):
            if head in names:
                return i
    return -1


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def own_imports(path: Path) -> set[str]:
    """Modules of the package, named from its root, that the file imports anywhere in it."""
    package = list(path.relative_to(PACKAGE).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {name.removeprefix("cbam_triton").lstrip(".") for name in names if name.startswith("cbam_triton")}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
            elif node.module and node.module.split(".")[0] == "cbam_triton":
                base = []
            else:
                continue
            tail = (node.module or "").split(".")
            base = base + [part for part in tail if part and part != "cbam_triton"]
            if base:
                found.add(".".join(base))
            else:
                names = {alias.name for alias in node.names}
                found |= {"__init__" if name in PUBLIC else name for name in names}
    return found


# `from cbam_triton import CBAM` asks for the public surface, `from cbam_triton import ops` for a module.
PUBLIC = set(cbam_triton.__all__) - {"functional", "settings"} | {"__version__"}
FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down_only(path):
    own = storey(module_name(path))
    for name in own_imports(path):
        assert storey(name) >= own, f"{module_name(path)} imports {name}, which is above it"


@pytest.mark.parametrize("folder", ALONE)
def test_these_import_nothing_of_ours_but_themselves(folder):
    files = [path for path in FILES if within(module_name(path), folder)]
    assert files
    for path in files:
        assert all(within(name, folder) for name in own_imports(path)), module_name(path)


def within(module: str, folder: str) -> bool:
    return f"{module}.".startswith(f"{folder}.")


@pytest.mark.parametrize(
    "folder", [path.parent for path in FILES if path.name == "__init__.py"], ids=lambda path: path.name
)
def test_every_folder_says_what_lives_there(folder):
    words = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert words, folder


def test_the_layer_test_sees_an_import_in_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / "kernels").mkdir()
    path = tmp_path / "kernels" / "low.py"
    path.write_text(
        "import cbam_triton.nn\nfrom .. import functional\nfrom ..ops import f\nfrom cbam_triton import viz\n"
    )
    assert own_imports(path) == {"nn", "functional", "ops", "viz"}


def run_python(code: str, warnings: str = "error") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", warnings, "-c", code], capture_output=True, text=True, check=False)


def test_the_package_works_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch, cbam_triton
layer, x = cbam_triton.CBAM(8), torch.randn(2, 8, 4, 4)
layer(x).sum().backward()
try:
    with cbam_triton.settings(backend="triton"):
        layer(x)
except RuntimeError as error:
    print(error)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "triton is not installed: pip install triton" in done.stdout


def test_importing_the_package_does_not_import_triton():
    # A fresh torch may import triton by itself, so only what our import adds counts.
    code = """
import sys, torch
before = set(sys.modules)
import cbam_triton
print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] == "triton"))
"""
    done = run_python(code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_public_names_are_few_and_exist():
    assert len(cbam_triton.__all__) <= 10
    assert all(hasattr(cbam_triton, name) for name in cbam_triton.__all__)
