"""Kernels and device functions stay small enough to read, and name no argument that is not specialised by mistake."""

import ast
from pathlib import Path

import pytest

import cbam_triton

FOLDER = Path(cbam_triton.__file__).parent / "kernels"
FUNCTIONS = [
    (path, node)
    for path in sorted(FOLDER.rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(each) for each in node.decorator_list)
]


def is_kernel(node):
    return node.name.endswith("_kernel") or "wavefront" in node.name


def each(kernels):
    found = [(path, node) for path, node in FUNCTIONS if is_kernel(node) == kernels]
    return pytest.mark.parametrize("path, node", found, ids=[f"{path.stem}-{node.name}" for path, node in found])


def check(node, most):
    assert len(node.args.args) <= most, f"{len(node.args.args)} arguments: put those that belong together in a pack"
    lines = node.end_lineno - node.lineno + 1
    assert lines <= 60, f"{lines} lines: give a part of it a name"


@each(kernels=True)
def test_a_kernel_has_at_most_30_arguments_and_60_lines(path, node):
    check(node, 30)


@each(kernels=False)
def test_a_device_function_has_at_most_15_arguments_and_60_lines(path, node):
    check(node, 15)


@each(kernels=True)
def test_no_kernel_is_specialised_on_a_size_or_a_stride(path, node):
    from cbam_triton.kernels.schedules.specialisation import UNSPECIALISED

    assert "do_not_specialize=UNSPECIALISED" in ast.unparse(node.decorator_list[0])
    packs = {"parameters", "saved", "scratch", "gradients"}
    for argument in node.args.args:
        if argument.annotation is None and not argument.arg.endswith("_ptr") and argument.arg not in packs:
            assert argument.arg in UNSPECIALISED
