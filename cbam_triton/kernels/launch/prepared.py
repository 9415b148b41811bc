"""A launch that is prepared once: a later call with arguments of the same kind goes straight to the compiled kernel.

Triton's JIT looks at every argument of every call, to find the compiled kernel for their types and alignments. That
takes longer than all the rest of a call. A plan fixes all that but the tensors and the strides of a gradient.
"""

import math
from typing import Any

from torch import Tensor
from triton.runtime import JITFunction, driver

_WIDE = 1 << 31  # an integer from here on has another type
_ALIGNED = 16  # bytes: what the JIT asks of an address


class Launch:
    """A kernel, its grid, and its arguments by keyword.

    An interpreted or hooked kernel is always launched by Triton.
    """

    def __init__(self, kernel: Any, grid: Any, known: dict[str, Any]) -> None:
        self._kernel = kernel
        self._by_triton = kernel[grid]
        self._grid = grid
        self._known = known
        self._compiled: dict[Any, Any] = {}
        self._tail: tuple[Any, ...] = ()
        self.code: Any = None  # what Triton compiled for the last arguments of another kind

    def __call__(self, arguments: tuple[Any, ...]) -> None:
        """Launch with these positional arguments: tensors, integers, None, and packs of tensors and None."""
        kernel = self._kernel
        if not isinstance(kernel, JITFunction) or kernel.pre_run_hooks:
            self._by_triton(*arguments, **self._known)
            return
        active = driver.active
        key = (active, _kind(arguments))
        run = self._compiled.get(key)
        if run is not None:
            run(*arguments, *self._tail)
            return
        compiled = self._by_triton(*arguments, **self._known)
        if compiled is not None:
            self.code = compiled
            self._tail = tuple(self._known[name] for name in kernel.arg_names[len(arguments) :])
            self._compiled[key] = compiled[self._padded_grid()]

    @property
    def name(self) -> str:
        """Of the kernel."""
        return self._kernel.__name__

    @property
    def programs(self) -> int:
        """How many are launched."""
        return math.prod(self._grid)

    @property
    def warps(self) -> int:
        """Of a program."""
        return self._known.get("num_warps", 4)

    def _padded_grid(self) -> tuple[int, int, int]:
        return (*self._grid, 1, 1)


def _kind(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the JIT tells arguments of one plan apart by: device, None, dtype, alignment, and the width of integers."""
    tensors: list[Tensor | None] = []
    largest = 0
    for argument in arguments:
        if argument.__class__ is int:
            largest = max(largest, argument)
        elif isinstance(argument, tuple):
            tensors += argument
        else:
            tensors.append(argument)
    kind: list[Any] = []
    addresses = 0
    for tensor in tensors:
        if tensor is None:
            kind.append(None)
        else:
            addresses |= tensor.data_ptr()
            kind.append(tensor.dtype)
    if addresses % _ALIGNED:
        kind += [tensor is not None and tensor.data_ptr() % _ALIGNED == 0 for tensor in tensors]
    if largest >= _WIDE:
        kind += [argument >= _WIDE for argument in arguments if isinstance(argument, int)]
    device = next(tensor.get_device() for tensor in tensors if tensor is not None)
    return (device, *kind)
