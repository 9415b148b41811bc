"""Whether kernels can run here: an unusable Triton is named and the reference runs; threads take turns."""

import os
import subprocess
import sys
import threading
from types import ModuleType

import pytest
import torch

from cbam_triton import CBAM, settings
from cbam_triton.kernels.launch import hardware


def _module(**attributes):
    module = ModuleType("triton")
    vars(module).update(attributes)
    return module


@pytest.mark.parametrize(
    "module, message",
    [
        (None, "triton is not installed: pip install triton"),
        (_module(__version__="2.1.0"), "triton 2.1.0 is too old: pip install 'triton>=3.4'"),
        (_module(__version__="3.2.0", jit=id), "triton 3.2.0 is too old"),
        (
            _module(__version__="9.0.0", __file__="/lib/triton.py"),
            "the module triton in /lib/triton.py is not",
        ),
        (_module(__path__=["/home/triton"]), "the module triton in /home/triton is not OpenAI's"),
    ],
    ids=["none", "very old", "old", "another package", "a folder of the same name"],
)
def test_a_triton_that_cannot_be_used_is_named_with_a_remedy(module, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", module)
    found = hardware.why_no_triton.__wrapped__()
    assert message in found
    assert found.endswith("or use backend='reference'")


_CALLS = """
import torch, cbam_triton
layer, x = cbam_triton.CBAM(8), torch.randn(2, 8, 4, 4)
layer(x).sum().backward()
try:
    with cbam_triton.settings(backend="triton"):
        layer(x)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "source, message",
    [
        (
            "raise ImportError('DLL load failed while\\nimporting libtriton')",
            "(ImportError: DLL load failed",
        ),
        ("raise AttributeError('no attribute')", "import fails (AttributeError: no attribute)"),
        ("import numpy_of_another_time", "import fails (ModuleNotFoundError: No module named 'numpy_of_another_time')"),
    ],
)
def test_with_a_triton_that_does_not_import_auto_runs_the_reference(source, message, tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(source)
    # The folder comes first only after torch is there: torch's own import may ask for triton.
    code = f"import sys, torch\nsys.path.insert(0, {str(tmp_path)!r})\n" + _CALLS
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert message in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("numpy, runs", [("2.3.5", True), ("2.4.6", False)])
def test_an_interpreter_that_numpy_is_too_new_for_is_named(numpy, runs, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(hardware, "interpreted", lambda: True)
    monkeypatch.setattr("triton.__version__", "3.6.0")
    monkeypatch.setattr("numpy.__version__", numpy)
    assert (hardware.device_type() == "cpu") == runs
    if not runs:
        assert "Triton 3.6.0 fails with NumPy 2.4.6: pip install 'numpy<2.4'" in hardware.missing()


def test_threads_that_call_kernels_at_once_get_what_one_thread_gets(device):
    if hardware.device_type() is None:
        pytest.skip("kernels do not run here")
    torch.manual_seed(0)
    layer = CBAM(8, 4).to(device).eval()
    maps = [torch.randn(1, 8, 3 + i, 4, device=device) for i in range(3)]
    wrong = []

    def work(first):
        with settings(backend="triton"), torch.no_grad():
            for i in range(4):
                x, y = maps[(first + i) % 3], want[(first + i) % 3]
                if not torch.equal(layer(x), y):
                    wrong.append(first)

    with settings(backend="triton"), torch.no_grad():
        want = [layer(x) for x in maps]
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
