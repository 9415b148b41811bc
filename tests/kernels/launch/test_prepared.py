"""A prepared launch: a call of a known kind goes straight to the compiled kernel, any other through Triton's JIT."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime import JITFunction

from cbam_triton.kernels.launch import prepared
from cbam_triton.kernels.launch.prepared import Launch
from cbam_triton.kernels.stages.packs import Scratch


class Compiled:
    """A compiled kernel that notes what it was launched with."""

    def __init__(self):
        self.launched = []

    def __getitem__(self, grid):
        return lambda *arguments: self.launched.append((grid, arguments))


class Interpreted:
    """A kernel x_ptr, scratch, stride, RELU that notes its launches, each of which makes a new compiled kernel."""

    arg_names = ("x_ptr", "scratch", "stride", "RELU")
    pre_run_hooks = ()

    def __init__(self):
        self.compiled, self.calls = [], []

    def __getitem__(self, grid):
        def launch(*arguments, **known):
            self.calls.append((grid, arguments, known))
            self.compiled.append(Compiled())
            return self.compiled[-1]

        return launch


class Kernel(Interpreted, JITFunction):
    """The same as a JIT function, which a kernel in the interpreter or under autotuning is not."""


@pytest.fixture(autouse=True)
def some_driver(monkeypatch):
    monkeypatch.setattr(prepared, "driver", SimpleNamespace(active=object()))


def arguments(dtype=torch.float32, offset=0, s=None, stride=7):
    memory = torch.zeros(64, dtype=dtype)
    return memory[offset : offset + 8], Scratch(gate=torch.zeros(4), s=s), stride


def launch_of(kernel):
    return Launch(kernel, (5,), {"RELU": True, "num_warps": 2})


def test_a_launch_of_a_known_kind_goes_past_the_jit_with_every_argument():
    kernel = Kernel()
    launch = launch_of(kernel)
    launch(arguments())
    later = arguments()
    launch(later)
    launch(later)
    assert len(kernel.calls) == 1
    assert kernel.compiled[0].launched == [((5, 1, 1), (*later, True))] * 2


@pytest.mark.parametrize("other", [
    {"dtype": torch.float16}, {"offset": 1}, {"s": torch.zeros(4)}, {"s": torch.zeros(8)[1:5]}, {"stride": 1 << 31},
], ids=["dtype", "alignment", "a tensor for None", "alignment in a pack", "an integer of 64 bits"])  # fmt: skip
def test_a_launch_of_another_kind_takes_another_compiled_kernel(other):
    kernel = Kernel()
    launch = launch_of(kernel)
    for _ in range(2):
        launch(arguments())
        launch(arguments(**other))
    assert len(kernel.calls) == 2
    assert [len(compiled.launched) for compiled in kernel.compiled] == [1, 1]


def test_which_of_two_tensors_is_misaligned_matters():
    kernel = Kernel()
    launch = launch_of(kernel)
    launch(arguments(offset=1, s=torch.zeros(4)))
    launch(arguments(s=torch.zeros(8)[1:5]))
    assert len(kernel.calls) == 2


def test_a_small_integer_of_another_value_is_of_the_same_kind():
    kernel = Kernel()
    launch = launch_of(kernel)
    launch(arguments(stride=1))
    launch(arguments(stride=48))
    assert len(kernel.calls) == 1
    assert kernel.compiled[0].launched[0][1][2] == 48


def test_another_driver_has_its_own_compiled_kernels():
    kernel = Kernel()
    launch = launch_of(kernel)
    launch(arguments())
    prepared.driver.active = object()
    launch(arguments())
    assert len(kernel.calls) == 2


@pytest.mark.parametrize("kernel", [Interpreted(), Kernel()], ids=["interpreted", "with a hook"])
def test_an_interpreted_or_hooked_kernel_is_always_launched_by_triton(kernel):
    if type(kernel) is Kernel:
        kernel.pre_run_hooks = (print,)
    launch = launch_of(kernel)
    for _ in range(3):
        launch(arguments())
    assert len(kernel.calls) == 3
    assert kernel.calls[0][2] == {"RELU": True, "num_warps": 2}
