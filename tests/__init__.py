"""Tests of the library, in the interpreter, on a GPU, or on any other Triton driver."""

from importlib.metadata import version

from torch.torch_version import TorchVersion


def release(package: str) -> TorchVersion:
    """Its version, to compare."""
    return TorchVersion(version(package))
