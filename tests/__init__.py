"""Tests of the library, in the interpreter, on a GPU, or on any other Triton driver."""

import torch

IN_2_6 = not hasattr(torch.compiler, "is_exporting")  # which came with the next release of PyTorch
