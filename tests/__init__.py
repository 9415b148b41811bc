"""Tests of the library, in the interpreter, on a GPU, or on any other Triton driver."""

from importlib.metadata import version


def release(package: str) -> tuple[int, int]:
    """Its first two numbers."""
    major, minor, *_ = version(package).split(".")
    return int(major), int(minor)


IN_2_6 = release("torch") == (2, 6)
